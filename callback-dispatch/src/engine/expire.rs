//! What ends by time: tasks and events that expire, and what is kept of those that have ended.

use super::Engine;
use crate::{
    clock::Micros,
    lane::OpenBreaker,
    outbox::{Write, Written, write},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::sleep};

/// How many rows are ended, or deleted, in one transaction: few, so that nobody waits long behind them.
const BATCH: usize = 200;

/// The longest sleep: after it the clock is looked at again.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// How often the outbox is cleaned, at most and at least.
const CLEAN_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long an idempotency key is kept at least, after its task has ended.
const KEYS: Duration = Duration::from_secs(24 * 60 * 60);

/// When the next expiry is looked for.
#[derive(Debug)]
pub(crate) struct Expiring {
    at: AtomicI64,
    sooner: Notify,
}

impl Default for Expiring {
    fn default() -> Self {
        Self { at: AtomicI64::new(Micros::NEVER.0), sooner: Notify::new() }
    }
}

impl Expiring {
    /// Says that something expires then.
    pub(super) fn expect(&self, expires: Micros) {
        if expires.0 < self.at.load(Ordering::Acquire) {
            self.sooner.notify_one();
        }
    }

    /// Says that somebody else may have stored something that expires.
    pub(crate) fn look_again(&self) {
        self.sooner.notify_one();
    }
}

impl Engine {
    /// Ends what is not over in time, until the dispatcher closes.
    pub(crate) async fn expire_until_closed(self: Arc<Self>) {
        loop {
            // Whatever is stored while the store is asked wakes us.
            self.expiring.at.store(Micros::NEVER.0, Ordering::Release);
            let next = self.store.next_expiry().await;
            let now = self.now();
            let wait = match next {
                Ok(Some(at)) if at <= now => {
                    if self.expire(now).await {
                        continue;
                    }
                    Duration::from_secs(1)
                }
                Ok(next) => {
                    let at = next.unwrap_or(Micros::NEVER);
                    self.expiring.at.store(at.0, Ordering::Release);
                    at.since(now).min(LONGEST_SLEEP)
                }
                Err(_) => Duration::from_secs(1),
            };
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = self.expiring.sooner.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Ends a batch of what has expired; false if nothing was ended: the store failed, or somebody keeps it back.
    async fn expire(&self, now: Micros) -> bool {
        match write(&*self.store, Write::Expire { now, limit: BATCH }).await {
            Ok(Written::Ended(ids)) => {
                if ids.is_empty() {
                    return false;
                }
                // Some may have held back others of their ordering keys.
                self.look_again();
                for id in ids {
                    tracing::info!(%id, "a task or event has expired");
                    self.drop_task(id);
                    self.ended(id);
                }
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::error!(error = %super::chain(&error), "what has expired could not be ended");
                false
            }
        }
    }

    /// Deletes what has ended long ago, until the dispatcher closes.
    pub(crate) async fn clean_until_closed(self: Arc<Self>) {
        let every = (self.retention / 10).clamp(CLEAN_EVERY.0, CLEAN_EVERY.1);
        while !self.pause(every).await {
            self.clean().await;
        }
    }

    async fn clean(&self) {
        while !self.closing.is_cancelled() {
            let now = self.now();
            let (before, keyed_before) = (now.before(self.retention), now.before(self.retention.max(KEYS)));
            let breakers_before = now.before(OpenBreaker::KEPT);
            let clean = Write::Clean { now, before, keyed_before, breakers_before, limit: BATCH };
            match write(&*self.store, clean).await {
                Ok(Written::Count(count)) if count >= BATCH as u64 => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::error!(error = %super::chain(&error), "what has ended could not be deleted");
                    return;
                }
            }
        }
    }
}
