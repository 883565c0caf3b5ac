//! The disk is full: the outbox's files may not grow.

use crate::{
    Setting,
    process::{Process, Start},
    report::Finding,
    trial::Trial,
};
use callback_core::BoxError;
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// How much the files may hold: less than one large request.
const LIMIT: &str = "65536";

/// More than fits.
const LARGE: usize = 200_000;

/// Healed by room on the disk, and by a restart.
pub(crate) fn full(setting: &Setting) -> Result<Vec<Finding>, BoxError> {
    let times = if setting.quick { 1 } else { 10 };
    Ok(vec![healed(setting, times, false)?, healed(setting, times, true)?])
}

fn healed(setting: &Setting, times: usize, by_restart: bool) -> Result<Finding, BoxError> {
    let mut trial = Trial::new(setting)?;
    let mut service = trial.start(Start::default())?;
    while trial.times < times {
        let before = trial.refused();
        trial.send(&mut service, 8, 100);
        limit(&service, LIMIT)?;
        trial.send(&mut service, 8, LARGE);
        trial.send(&mut service, 8, 100);
        trial.answers(&mut service);
        if trial.refused() == before {
            return Err("nothing was refused: the file's limit has no effect".into());
        }
        if by_restart {
            let said = service.kill()?;
            trial.note_all(&said);
            service = trial.start(Start::default())?;
        } else {
            limit(&service, "unlimited")?;
        }
        // A store that failed is left alone for a moment.
        let (accepted, until) = (trial.accepted(), Instant::now() + Duration::from_secs(30));
        while trial.accepted() < accepted + 8 {
            if Instant::now() > until {
                return Err("what was healed accepts nothing".into());
            }
            trial.send(&mut service, 1, 100);
            trial.answers(&mut service);
        }
        trial.times += 1;
    }
    let (done, why) = if by_restart {
        (
            "no file may grow; then SIGKILL, and a start without the limit",
            "what was taken could not be marked before the kill",
        )
    } else {
        ("no file may grow; then it may again", "")
    };
    let finding = Finding { fault: "disk-full", done: done.to_owned(), why, ..Finding::default() };
    trial.finish(service, finding)
}

fn limit(service: &Process, bytes: &str) -> Result<(), BoxError> {
    let (id, limit) = (service.id().to_string(), format!("--fsize={bytes}:unlimited"));
    let limited = Command::new("prlimit").args(["--pid", &id, &limit]).status()?;
    if limited.success() { Ok(()) } else { Err("prlimit refused the limit".into()) }
}
