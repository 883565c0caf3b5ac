//! One trial: a receiver, an outbox, the services on it, and what was accepted.

use crate::{
    Setting,
    process::{Process, Start},
    receiver::Receiver,
    report::Finding,
};
use callback_core::BoxError;
use std::{
    collections::{BTreeSet, HashSet},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long nothing may arrive before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many requests wait for an answer at once.
const WINDOW: usize = 32;

pub(crate) struct Trial {
    pub(crate) receiver: Receiver,
    outbox: String,
    /// Kept, and removed in the end.
    _folder: TempDir,
    sent: u64,
    accepted: BTreeSet<String>,
    refused: HashSet<u64>,
    /// How often the fault was made.
    pub(crate) times: usize,
}

impl Trial {
    pub(crate) fn new(setting: &Setting) -> Result<Self, BoxError> {
        let folder = tempfile::tempdir_in(&setting.folder)?;
        Ok(Self {
            receiver: Receiver::start()?,
            outbox: folder.path().join("outbox.db").display().to_string(),
            _folder: folder,
            sent: 0,
            accepted: BTreeSet::new(),
            refused: HashSet::new(),
            times: 0,
        })
    }

    /// On another outbox than a file of its own.
    pub(crate) fn on(setting: &Setting, outbox: String) -> Result<Self, BoxError> {
        Ok(Self { outbox, ..Self::new(setting)? })
    }

    /// Starts a service, ready or not.
    pub(crate) fn begin(&self, start: Start<'_>) -> Result<Process, BoxError> {
        Process::start(&self.outbox, start)
    }

    /// Starts a service that must become ready.
    pub(crate) fn start(&self, start: Start<'_>) -> Result<Process, BoxError> {
        self.begin(start)?.ready()?.ok_or_else(|| "the service died at its start".into())
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.len()
    }

    pub(crate) fn refused(&self) -> usize {
        self.refused.len()
    }

    /// Sends so many requests of so many bytes, to both workers in turn.
    pub(crate) fn send(&mut self, service: &mut Process, requests: usize, bytes: usize) {
        for _ in 0..requests {
            self.sent += 1;
            let worker = if self.sent.is_multiple_of(4) { "report" } else { "again" };
            let request = format!("accept {worker} {} {bytes} {}", self.sent, self.receiver.url());
            if !service.say(&request) {
                return;
            }
            service.outstanding += 1;
        }
    }

    /// Takes answers until none is outstanding, or the service is dead.
    pub(crate) fn answers(&mut self, service: &mut Process) {
        while service.outstanding > 0 {
            let Some(line) = service.hear(PATIENCE) else { return };
            service.outstanding -= 1;
            self.note(&line);
        }
    }

    /// Sends requests, several at once, for so long, or until so many are sent.
    pub(crate) fn load(&mut self, service: &mut Process, time: Duration, requests: usize) {
        let (until, mut sent) = (Instant::now() + time, 0);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let now = WINDOW.saturating_sub(service.outstanding).min(requests - sent);
            self.send(service, now, 100);
            sent += now;
            match service.hear(left) {
                Some(line) => {
                    service.outstanding = service.outstanding.saturating_sub(usize::from(line != "ready"));
                    self.note(&line);
                }
                None if service.is_dead() => return,
                None => {}
            }
        }
    }

    /// Takes in what a service said before it died.
    pub(crate) fn note_all(&mut self, lines: &[String]) {
        lines.iter().for_each(|line| self.note(line));
    }

    fn note(&mut self, line: &str) {
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("accepted"), Some(id)) => _ = self.accepted.insert(id.to_owned()),
            (Some("refused"), Some(number)) => _ = number.parse().map(|number| self.refused.insert(number)),
            _ => {}
        }
    }

    /// Waits until so many of what was accepted was turned away at least once.
    pub(crate) fn turned_away(&self, ids: usize) -> Result<(), BoxError> {
        let came = self.receiver.until(PATIENCE, |arrivals| arrivals.turned_away.len() >= ids);
        if came { Ok(()) } else { Err("the first attempts did not come".into()) }
    }

    /// Waits until all that was accepted has arrived; false if it does not.
    pub(crate) fn all_arrived(&self) -> bool {
        let missing = |ids: &BTreeSet<String>, taken: &std::collections::HashMap<String, usize>| {
            ids.iter().any(|id| !taken.contains_key(id))
        };
        self.receiver.until(PATIENCE, |arrivals| {
            arrivals.taken.len() >= self.accepted.len() && !missing(&self.accepted, &arrivals.taken)
        })
    }

    /// Lets this service bring everything to its end, closes it, and counts.
    pub(crate) fn finish(self, mut service: Process, finding: Finding) -> Result<Finding, BoxError> {
        self.all_arrived();
        let mut dead = HashSet::new();
        // A batch at a time, so that neither side waits for the other to read.
        let ids: Vec<&String> = self.accepted.iter().collect();
        for ids in ids.chunks(100) {
            for id in ids {
                service.say(&format!("wait {id}"));
            }
            for _ in ids {
                let Some(line) = service.hear(PATIENCE) else { break };
                if let ["ended", id, "Dead"] = line.split(' ').collect::<Vec<_>>()[..] {
                    dead.insert(id.to_owned());
                }
            }
        }
        service.close()?;
        let arrivals = self.receiver.arrivals();
        let is_lost = |id: &&String| !arrivals.taken.contains_key(*id) && !dead.contains(*id);
        Ok(Finding {
            times: self.times,
            accepted: self.accepted.len(),
            refused: self.refused.len(),
            lost: self.accepted.iter().filter(is_lost).count(),
            duplicated: arrivals.taken.values().map(|times| times - 1).sum(),
            reported: arrivals.reported.len(),
            dead: dead.len(),
            wrong: self.refused.intersection(&arrivals.numbers).count(),
            ..finding
        })
    }
}
