//! Bounds between destinations, so that a slow one costs the others nothing.

use crate::row::digest;
use callback_core::Destination;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use tokio::sync::{Notify, Semaphore};

/// The bounds of one lane: what one caller has going to one destination.
///
/// ```
/// use callback_dispatch::Lane;
///
/// let lane = Lane::default().in_flight(8);
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Lane {
    in_flight: usize,
}

impl Default for Lane {
    fn default() -> Self {
        Self { in_flight: 64 }
    }
}

impl Lane {
    /// How many attempts are made at once. Default 64; 0 counts as 1.
    pub const fn in_flight(mut self, attempts: usize) -> Self {
        self.in_flight = if attempts == 0 { 1 } else { attempts };
        self
    }

    /// How many messages wait in memory: four times as many as are in flight. More stay in the store.
    const fn in_memory(self) -> usize {
        self.in_flight.saturating_mul(4)
    }
}

/// What a lane is kept for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey {
    pub(crate) owner: Option<Arc<str>>,
    pub(crate) destination: Destination,
}

impl LaneKey {
    /// What a store knows the lane by. Two lanes that share a number, which is not to be had on purpose, are left out
    /// of a claim together.
    pub(crate) fn number(&self) -> i64 {
        let owner = self.owner.as_deref();
        let half = digest([owner.map_or("0", |_| "1"), owner.unwrap_or_default(), self.destination.as_str()]);
        let mut number = [0; 8];
        number.copy_from_slice(&half[..8]);
        i64::from_be_bytes(number)
    }
}

/// All lanes that have something in memory.
#[derive(Debug)]
pub(crate) struct Lanes {
    default: Lane,
    special: HashMap<Destination, Lane>,
    open: Mutex<HashMap<LaneKey, Arc<OpenLane>>>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
pub(crate) struct OpenLane {
    pub(crate) attempts: Semaphore,
    pub(crate) slots: Arc<Pool>,
}

/// More open lanes than this are looked through for idle ones.
const IDLE_LANES: usize = 1_024;

impl Lanes {
    /// `wake` is told when a lane that was full has places again.
    pub(crate) fn new(default: Lane, special: HashMap<Destination, Lane>, wake: &Arc<Notify>) -> Self {
        Self { default, special, open: Mutex::default(), wake: Arc::clone(wake) }
    }

    /// A place in the lane's memory; none when it is full.
    pub(crate) fn reserve(&self, key: &LaneKey) -> Option<(Arc<OpenLane>, Slot)> {
        let lane = self.lane(key);
        let slot = lane.slots.take(1)?;
        Some((lane, slot))
    }

    pub(crate) fn lane(&self, key: &LaneKey) -> Arc<OpenLane> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = open.get(key) {
            return Arc::clone(lane);
        }
        if open.len() >= IDLE_LANES {
            // Whoever is about to take a slot holds the lane.
            open.retain(|_, lane| lane.slots.used() > 0 || Arc::strong_count(lane) > 1);
        }
        let bounds = self.special.get(&key.destination).copied().unwrap_or(self.default);
        let lane = Arc::new(OpenLane {
            attempts: Semaphore::new(bounds.in_flight.min(Semaphore::MAX_PERMITS)),
            slots: Pool::waking(bounds.in_memory(), &self.wake),
        });
        open.insert(key.clone(), Arc::clone(&lane));
        lane
    }

    /// The lanes that have no place left: their messages stay in the store.
    pub(crate) fn full(&self) -> Vec<LaneKey> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().filter(|(_, lane)| lane.slots.is_full()).map(|(key, _)| key.clone()).collect()
    }
}

/// A count with a limit.
///
/// Once it was used up it counts as full until half of it is free, so that what waits in the store comes in batches.
#[derive(Debug)]
pub(crate) struct Pool {
    used: AtomicUsize,
    limit: usize,
    /// Whether somebody was turned away since it was last half free.
    missed: AtomicBool,
    wake: Arc<Notify>,
}

impl Pool {
    /// `wake` is told when half of the pool is free again, if somebody was turned away before.
    pub(crate) fn waking(limit: usize, wake: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit, missed: AtomicBool::new(false), wake: Arc::clone(wake) })
    }

    /// Takes `amount`, unless the pool is used up. The last one in may exceed the limit, so that none is too large.
    pub(crate) fn take(self: &Arc<Self>, amount: usize) -> Option<Slot> {
        let take = |used| (used < self.limit).then(|| used + amount);
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

    fn used(&self) -> usize {
        self.used.load(Ordering::SeqCst)
    }

    /// Whether less than half of it is free; whoever asks is turned away then.
    pub(crate) fn is_full(&self) -> bool {
        if self.used() <= self.limit / 2 {
            return false;
        }
        self.missed.store(true, Ordering::SeqCst);
        // What became free before that was noted has told nobody.
        self.used() > self.limit / 2
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
        let (half, before) = (self.pool.limit / 2, self.pool.used.fetch_sub(self.amount, Ordering::SeqCst));
        if before > half && before - self.amount <= half && self.pool.missed.swap(false, Ordering::SeqCst) {
            self.pool.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(destination: &str) -> LaneKey {
        LaneKey { owner: None, destination: destination.parse().expect("valid") }
    }

    #[test]
    fn a_full_lane_leaves_the_others_their_places() {
        let lanes = Lanes::new(Lane::default().in_flight(1), HashMap::new(), &Arc::default());
        let slots: Vec<_> = (0..4).map(|_| lanes.reserve(&key("https://a:443")).expect("a place")).collect();
        assert!(lanes.reserve(&key("https://a:443")).is_none());
        assert_eq!(lanes.full(), [key("https://a:443")]);
        assert!(lanes.reserve(&key("https://b:443")).is_some());
        drop(slots);
        assert!(lanes.full().is_empty());
        assert!(lanes.reserve(&key("https://a:443")).is_some());
    }

    #[test]
    fn callers_have_lanes_of_their_own() {
        let lanes = Lanes::new(Lane::default().in_flight(1), HashMap::new(), &Arc::default());
        let _slots: Vec<_> = (0..4).map(|_| lanes.reserve(&key("https://a:443")).expect("a place")).collect();
        let other = LaneKey { owner: Some("other".into()), ..key("https://a:443") };
        assert!(lanes.reserve(&other).is_some());
    }

    #[test]
    fn idle_lanes_are_forgotten() {
        let lanes = Lanes::new(Lane::default(), HashMap::new(), &Arc::default());
        for number in 0..3 * IDLE_LANES {
            drop(lanes.reserve(&key(&format!("https://host{number}:443"))));
        }
        assert!(lanes.open.lock().expect("not poisoned").len() <= IDLE_LANES);
    }

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
}
