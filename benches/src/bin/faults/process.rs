//! The handle of a service's process.

use callback_core::BoxError;
use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a start, or an end, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running service; killed when dropped.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    /// Requests that wait for an answer.
    pub(crate) outstanding: usize,
}

/// How a service is started.
#[derive(Clone, Copy, Default)]
pub(crate) struct Start<'a> {
    /// The point at which it dies, and the how manieth time: `after-run:2`.
    pub(crate) failpoint: Option<&'a str>,
    /// How far its clock is off, in seconds.
    pub(crate) clock: i64,
}

impl Process {
    /// Starts a service on this outbox. It says `ready` when it is.
    pub(crate) fn start(outbox: &str, start: Start<'_>) -> Result<Self, BoxError> {
        // SIGXFSZ is ignored, so that a file's limit is an error that the service sees; an abort leaves no core.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -c 0; exec \"$@\"", "sh"]).arg(env::current_exe()?);
        command.args(["service", "--clock", &start.clock.to_string(), "--outbox", outbox]);
        command.env_remove("CALLBACK_FAILPOINT");
        if let Some(failpoint) = start.failpoint {
            command.env("CALLBACK_FAILPOINT", failpoint);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take().ok_or("no output")?);
        let (sender, lines) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, lines, reader: Some(reader), outstanding: 0 })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line; false if the service is dead.
    pub(crate) fn say(&mut self, line: &str) -> bool {
        let said = self.input.as_mut().map(|input| input.write_all(format!("{line}\n").as_bytes()));
        matches!(said, Some(Ok(())))
    }

    /// The next line that it says; none if it does not within `patience`, or is dead.
    pub(crate) fn hear(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    pub(crate) fn is_dead(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// What it says, until it is dead; an error if it does not die by itself.
    pub(crate) fn last_words(mut self) -> Result<Vec<String>, BoxError> {
        let until = Instant::now() + PATIENCE;
        let mut words = Vec::new();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => words.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return Err("the service did not end in time".into()),
            }
        }
        self.child.wait()?;
        Ok(words)
    }

    /// SIGKILL, at once; what it had said before.
    pub(crate) fn kill(mut self) -> Result<Vec<String>, BoxError> {
        self.child.kill()?;
        self.last_words()
    }

    /// Lets it close; what it said until then.
    pub(crate) fn close(mut self) -> Result<Vec<String>, BoxError> {
        self.input.take();
        self.last_words()
    }

    /// Waits until it is ready; none if it died on the way.
    pub(crate) fn ready(self) -> Result<Option<Self>, BoxError> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) if line == "ready" => Ok(Some(self)),
            Ok(line) => Err(format!("the service began with {line:?}").into()),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err("the service did not start in time".into()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
