//! Steps that a failing store made wait: they come before anything new.

use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Who waits for the store to heal.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    waiting: AtomicUsize,
    healed: Notify,
}

/// A step that waits; it does no more when dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Outage);

impl Outage {
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(self)
    }

    /// Whether steps wait: nothing new is stored before them.
    pub(crate) fn is_on(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Resolves when a step was stored that had waited.
    pub(super) async fn healed(&self) {
        self.healed.notified().await;
    }

    /// Resolves when no step waits.
    pub(super) async fn over(&self) {
        loop {
            let healed = self.healed.notified();
            if !self.is_on() {
                return;
            }
            healed.await;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        self.0.healed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
