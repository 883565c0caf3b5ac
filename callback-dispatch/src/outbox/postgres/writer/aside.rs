//! What waits for another transaction, and lets the others pass.

use super::Job;
use crate::outbox::{OutboxError, postgres::apply};
use std::{collections::HashSet, time::Duration};
use tokio::time::Instant;

/// How long a write is tried again that another transaction keeps back.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most that wait so.
const MOST: usize = 1 << 14;

/// How soon they are tried again, at the soonest and at the latest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Writes that another transaction keeps back, in their order.
#[derive(Debug)]
pub(super) struct Aside {
    jobs: Vec<Job>,
    /// The keys that they wait for: who comes later for one of these waits behind them.
    keys: HashSet<i64>,
    again: Instant,
}

impl Default for Aside {
    fn default() -> Self {
        Self { jobs: Vec::new(), keys: HashSet::new(), again: Instant::now() }
    }
}

impl Aside {
    pub(super) const fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// When they are tried again.
    pub(super) const fn again(&self) -> Instant {
        self.again
    }

    /// Lets a write pass, unless it waits behind others.
    pub(super) fn pass(&mut self, job: Job) -> Option<Job> {
        if self.keys.is_empty() || !apply::keys_of(&job.0).iter().any(|key| self.keys.contains(key)) {
            return Some(job);
        }
        self.push(job);
        None
    }

    /// Notes keys that another transaction has.
    pub(super) fn note(&mut self, taken: &[i64]) {
        self.keys.extend(taken);
    }

    /// Sets a write aside; refuses it when it has waited for too long, or too many wait.
    pub(super) fn push(&mut self, mut job: Job) {
        let now = Instant::now();
        if *job.1.until.get_or_insert(now + PATIENCE) <= now || self.jobs.len() >= MOST {
            refuse(job);
            return;
        }
        if self.jobs.is_empty() {
            self.again = now + AGAIN.0;
        }
        self.jobs.push(job);
    }

    /// Takes them, to be tried again.
    pub(super) fn take(&mut self) -> Vec<Job> {
        self.keys.clear();
        std::mem::take(&mut self.jobs)
    }

    /// Leaves the next try for later: trying took so long, and may take a tenth of the time.
    pub(super) fn rest(&mut self, took: Duration) {
        self.again = Instant::now() + (took * 10).clamp(AGAIN.0, AGAIN.1);
    }

    pub(super) fn refuse_all(&mut self) {
        self.take().into_iter().for_each(refuse);
    }
}

fn refuse(job: Job) {
    job.1.give(Err(OutboxError::refused("another transaction keeps it back: its key, or a row, is locked")));
}
