//! A PostgreSQL of our own, which can be stopped, cut off and started again.

use callback_core::BoxError;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// A cluster in a folder of its own, on a socket there; stopped and removed when dropped.
pub(crate) struct Server {
    programs: PathBuf,
    folder: TempDir,
}

impl Server {
    /// Makes a cluster and starts it.
    pub(crate) fn start() -> Result<Self, BoxError> {
        // Debian keeps the server's programs out of the PATH, one folder a version.
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let debian = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max();
        let in_path =
            env::split_paths(&env::var_os("PATH").unwrap_or_default()).find(|bin| bin.join("initdb").exists());
        let programs =
            debian.or(in_path).ok_or("there is no PostgreSQL here; on Debian: apt-get install postgresql")?;
        // A socket's path is short: the folder is not under a deep TMPDIR.
        let folder = tempfile::Builder::new().prefix("callback-faults.").tempdir_in("/tmp")?;
        if is_root()? {
            run(Command::new("chown").arg("postgres").arg(folder.path()))?;
        }
        let server = Self { programs, folder };
        run(server.as_owner("initdb").args(["--pgdata", "data", "--username", "callback", "--auth", "trust"]).args([
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--no-sync",
        ]))?;
        server.start_again()?;
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://callback@localhost/postgres?host={}", self.folder.path().display())
    }

    pub(crate) fn start_again(&self) -> Result<(), BoxError> {
        let options = format!(
            "-c listen_addresses= -c max_connections=100 -c unix_socket_directories={}",
            self.folder.path().display()
        );
        run(self
            .as_owner("pg_ctl")
            .args(["start", "--pgdata", "data", "--log", "log", "--wait", "--silent"])
            .args(["--options", &options]))
    }

    /// Ends all its processes at once, as a crash does: the next start recovers.
    pub(crate) fn crash(&self) -> Result<(), BoxError> {
        run(self.as_owner("pg_ctl").args(["stop", "--pgdata", "data", "--mode", "immediate", "--silent"]))
    }

    /// Ends all connections but the one that says so.
    pub(crate) fn end_connections(&self) -> Result<(), BoxError> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
                   AND backend_type = 'client backend'";
        let host = self.folder.path().display().to_string();
        run(self
            .as_owner("psql")
            .args(["--quiet", "--host", &host, "--username", "callback", "--dbname", "postgres"])
            .args(["--command", sql]))
    }

    /// Sends this signal to the server and all that serve a connection.
    pub(crate) fn signal(&self, signal: &str) -> Result<(), BoxError> {
        let file = fs::read_to_string(self.folder.path().join("data/postmaster.pid"))?;
        let server = file.lines().next().ok_or("the server has no process")?.to_owned();
        let children = Command::new("pgrep").args(["--parent", &server]).output()?;
        let children = String::from_utf8(children.stdout)?;
        // One of them may have ended meanwhile.
        let _ = Command::new("kill").arg(signal).arg(&server).args(children.lines()).stderr(Stdio::null()).status()?;
        Ok(())
    }

    /// The server refuses to be root.
    fn as_owner(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = if is_root().unwrap_or(false) {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.folder.path());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.signal("-CONT");
        let _ = self.crash();
    }
}

fn is_root() -> Result<bool, BoxError> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(Path::new("/proc/self"))?.uid() == 0)
}

fn run(command: &mut Command) -> Result<(), BoxError> {
    // A server that is started keeps what it was given: a pipe would never end.
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{:?} failed: {status}", command.get_program()).into()) }
}
