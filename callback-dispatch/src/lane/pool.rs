//! Counts with limits, for what waits in memory.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// A count with a limit.
///
/// Once it was used up it counts as full until half of it is free, so that what waits in the store comes in batches.
#[derive(Debug)]
pub(crate) struct Pool {
    used: AtomicUsize,
    limit: AtomicUsize,
    /// Whether somebody was turned away since it was last half free.
    missed: AtomicBool,
    wake: Arc<Notify>,
}

impl Pool {
    /// `wake` is told when half of the pool is free again, if somebody was turned away before.
    pub(crate) fn waking(limit: usize, wake: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            missed: AtomicBool::new(false),
            wake: Arc::clone(wake),
        })
    }

    /// Takes `amount`, unless the pool is used up. The last one in may exceed the limit, so that none is too large.
    pub(crate) fn take(self: &Arc<Self>, amount: usize) -> Option<Slot> {
        let take = |used| (used < self.limit()).then(|| used + amount);
        if self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            return Some(Slot { pool: Arc::clone(self), amount });
        }
        self.missed.store(true, Ordering::SeqCst);
        None
    }

    /// Takes `amount`, whatever the limit.
    pub(crate) fn take_anyway(self: &Arc<Self>, amount: usize) -> Slot {
        self.used.fetch_add(amount, Ordering::SeqCst);
        Slot { pool: Arc::clone(self), amount }
    }

    /// Changes the limit; who was turned away is told if there is room now.
    pub(crate) fn resize(&self, limit: usize) {
        let before = self.limit.swap(limit, Ordering::SeqCst);
        if limit > before && self.used() <= limit / 2 && self.missed.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::SeqCst)
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// How much is left of it.
    pub(crate) fn left(&self) -> usize {
        self.limit().saturating_sub(self.used())
    }

    /// Whether who asks for some would be turned away.
    pub(crate) fn is_used_up(&self) -> bool {
        self.used() >= self.limit()
    }

    /// Whether less than half of it is free; whoever asks is turned away then.
    pub(crate) fn is_full(&self) -> bool {
        if self.used() <= self.limit() / 2 {
            return false;
        }
        self.missed.store(true, Ordering::SeqCst);
        // What became free before that was noted has told nobody.
        self.used() > self.limit() / 2
    }
}

/// A part of a [`Pool`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    pool: Arc<Pool>,
    amount: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (half, before) = (self.pool.limit() / 2, self.pool.used.fetch_sub(self.amount, Ordering::SeqCst));
        if before > half && before - self.amount <= half && self.pool.missed.swap(false, Ordering::SeqCst) {
            self.pool.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_turned_away_is_told_when_half_is_free() {
        use futures_util::FutureExt;
        let wake = Arc::new(Notify::new());
        let pool = Pool::waking(4, &wake);
        let told = || wake.notified().now_or_never().is_some();
        let mut slots: Vec<Slot> = (0..4).map_while(|_| pool.take(1)).collect();
        slots.truncate(2);
        assert!(!told(), "nobody was turned away");
        slots.extend((0..2).map_while(|_| pool.take(1)));
        assert!(pool.take(1).is_none());
        slots.truncate(3);
        assert!(!told(), "less than half is free");
        slots.truncate(2);
        assert!(told());
        slots.extend(pool.take(1));
        assert!(pool.is_full(), "more than half is used");
        slots.truncate(2);
        assert!(told(), "a claim that left the lane out is told too");
    }

    #[test]
    fn who_was_turned_away_is_told_when_the_limit_grows() {
        use futures_util::FutureExt;
        let wake = Arc::new(Notify::new());
        let pool = Pool::waking(1, &wake);
        let _slot = pool.take(1);
        assert!(pool.take(1).is_none());
        pool.resize(2);
        assert!(wake.notified().now_or_never().is_some());
        assert!(pool.take(1).is_some());
    }
}
