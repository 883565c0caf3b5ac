//! What the machine itself does: its disk, its load, this process's memory.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    time::{Duration, Instant},
};

/// The median time to append 4 KiB to a file in this folder and sync it.
pub(crate) fn fdatasync(folder: &Path) -> io::Result<Duration> {
    let mut file = tempfile::tempfile_in(folder)?;
    let append = |file: &mut File| {
        let begun = Instant::now();
        file.write_all(&[1; 4_096])?;
        file.sync_data()?;
        Ok::<_, io::Error>(begun.elapsed())
    };
    let mut times = (0..200).map(|_| append(&mut file)).collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// The memory of this process that is resident, in MiB.
pub(crate) fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes / 1_024.0)
}

/// Lets this process, and those that it starts, have so many files and sockets open.
#[cfg(feature = "sessions")]
pub(crate) fn allow_open_files(count: usize) -> io::Result<()> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let is_enough = |limit: &str| limit == "unlimited" || limit.parse().is_ok_and(|limit: usize| limit >= count);
    if limit.and_then(|limit| limit.split_whitespace().next()).is_some_and(is_enough) {
        return Ok(());
    }
    let id = std::process::id().to_string();
    let raised = std::process::Command::new("prlimit").args(["--pid", &id, &format!("--nofile={count}:")]).status()?;
    if raised.success() { Ok(()) } else { Err(io::Error::other(format!("a process may not open {count} files here"))) }
}

/// The processor time that this process has used, all threads.
pub(crate) fn processor_time() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The fields after the name, which may hold anything, begin with the third; user time is the 14th, system time the 15th.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(ticks(user + system))
}

/// The time of all processors since the machine started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processors {
    busy: Duration,
    all: Duration,
    own: Duration,
}

impl Processors {
    pub(crate) fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let fields = stat.lines().next()?.split_whitespace().skip(1);
        // User, nice, system, idle, waiting for a disk, two kinds of interrupts; what follows is in these, or stolen.
        let times: Vec<u64> = fields.take(7).map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let [user, nice, system, idle, waiting, hard, soft] = times[..] else { return None };
        let busy = user + nice + system + hard + soft;
        Some(Self { busy: ticks(busy), all: ticks(busy + idle + waiting), own: processor_time()? })
    }

    /// The share of all processors that other processes have used since, in percent.
    pub(crate) fn used_by_others(&self) -> Option<f64> {
        let now = Self::now()?;
        let (busy, own) = (now.busy.saturating_sub(self.busy), now.own.saturating_sub(self.own));
        let all = now.all.saturating_sub(self.all).as_secs_f64();
        Some(100.0 * busy.saturating_sub(own).as_secs_f64() / all)
    }
}

/// Linux counts time in hundredths of a second on all machines that the project knows.
fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 10)
}
