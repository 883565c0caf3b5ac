//! Bounds between destinations, so that a slow one costs the others nothing.

mod consent;
mod health;
mod pool;
mod rate;

pub(crate) use consent::{HostConsent, StoredConsent};
pub(crate) use health::{Breaker, Sign};
pub(crate) use pool::{Pool, Slot};
pub(crate) use rate::Rate;

use crate::row::digest;
use callback_core::Destination;
use health::Health;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};

/// The bounds of one lane: what one caller has going to one destination.
///
/// A destination of which nothing is known gets one attempt at a time; each success doubles that, up to
/// [`in_flight`](Self::in_flight). One that cannot be reached falls back to one, and its breaker opens.
///
/// ```
/// use callback_dispatch::Lane;
/// use std::time::Duration;
///
/// let lane = Lane::default().in_flight(8).per_second(50.0).breaker(3, Duration::from_secs(10));
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Lane {
    in_flight: usize,
    per_second: Option<f64>,
    failures: u32,
    pause: Duration,
    stops: bool,
}

impl Default for Lane {
    fn default() -> Self {
        Self { in_flight: 64, per_second: None, failures: 5, pause: Duration::from_secs(30), stops: false }
    }
}

impl Lane {
    /// How many attempts are made at once. Default 64; 0 counts as 1.
    pub const fn in_flight(mut self, attempts: usize) -> Self {
        self.in_flight = if attempts == 0 { 1 } else { attempts };
        self
    }

    /// How many attempts are begun a second. Default: no limit.
    ///
    /// They come evenly, but for bursts of a tenth of a second. Zero, and what is no number, counts as one a day.
    pub const fn per_second(mut self, attempts: f64) -> Self {
        self.per_second = Some(attempts);
        self
    }

    /// When nothing is sent for a while: after so many attempts in a row that found no way to the host, or no answer
    /// within the deadline. Default: 5, and 30 s; 0 counts as 1.
    ///
    /// What waits is not attempted meanwhile, but it ages. After the pause one message is tried: what it finds closes the
    /// breaker, or opens it for twice as long, up to ten minutes. It stays open through a restart.
    pub const fn breaker(mut self, failures: u32, pause: Duration) -> Self {
        self.failures = if failures == 0 { 1 } else { failures };
        self.pause = pause;
        self
    }

    /// Whether an ordering key stops at a message that is given up, until somebody replays or purges it.
    ///
    /// Default: no, the next message goes.
    pub const fn stop_when_dead(mut self, stop: bool) -> Self {
        self.stops = stop;
        self
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

/// An open breaker, as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct OpenBreaker {
    pub(crate) lane: LaneKey,
    pub(crate) times: u32,
    pub(crate) until: crate::clock::Micros,
}

impl OpenBreaker {
    /// For how long it is remembered after its pause, though nobody tried the lane again.
    pub(crate) const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
}

/// What all lanes are bounded by.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) lane: Lane,
    pub(crate) special: HashMap<Destination, Lane>,
    /// Schemes whose lanes have no breaker: their far ends say themselves whether they are there.
    pub(crate) local: HashSet<String>,
    /// Attempts at once to one destination, over all callers.
    pub(crate) host_in_flight: usize,
    pub(crate) host_per_second: Option<f64>,
}

impl Bounds {
    pub(crate) fn of(&self, destination: &Destination) -> Lane {
        let lane = self.special.get(destination).copied().unwrap_or(self.lane);
        if self.is_local(destination) { Lane { failures: u32::MAX, ..lane } } else { lane }
    }

    pub(crate) fn is_local(&self, destination: &Destination) -> bool {
        self.local.contains(destination.scheme())
    }

    /// Whether the ordering keys of a destination stop at what is given up.
    pub(crate) fn stops(&self, destination: &Destination) -> bool {
        self.of(destination).stops
    }
}

/// All lanes that have something in memory, and those whose far end is in trouble.
#[derive(Debug)]
pub(crate) struct Lanes {
    bounds: Bounds,
    open: Mutex<Known<LaneKey, OpenLane>>,
    hosts: Mutex<Known<Destination, Host>>,
    wake: Arc<Notify>,
}

/// What is in use, and what is idle and not forgotten yet.
#[derive(Debug)]
struct Known<K, V> {
    all: HashMap<K, Arc<V>>,
    /// With so many, idle ones are looked for: twice as many as were in use then, so that each is looked at a few times.
    look_at: usize,
}

impl<K, V> Default for Known<K, V> {
    fn default() -> Self {
        Self { all: HashMap::new(), look_at: IDLE_LANES }
    }
}

impl<K, V> Known<K, V> {
    /// Forgets what is idle, where there is much.
    fn make_room(&mut self, is_in_use: impl Fn(&Arc<V>) -> bool) {
        if self.all.len() >= self.look_at {
            self.all.retain(|_, value| is_in_use(value));
            self.look_at = (2 * self.all.len()).max(IDLE_LANES);
        }
    }
}

/// What all lanes to one destination share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) attempts: Semaphore,
    pub(crate) rate: Option<Rate>,
    /// How often the pauses of its lanes were lifted.
    lifted: AtomicU32,
    pub(crate) consent: HostConsent,
}

#[derive(Debug)]
pub(crate) struct OpenLane {
    bounds: Lane,
    /// As many permits as the window allows, less those in use.
    attempts: Semaphore,
    state: Mutex<LaneState>,
    pub(crate) rate: Option<Rate>,
    pub(crate) host: Arc<Host>,
    pub(crate) slots: Arc<Pool>,
}

#[derive(Debug)]
struct LaneState {
    health: Health,
    /// Permits in use beyond the window: so many are not given back.
    surplus: usize,
    /// What its host's was when it was looked at.
    lifted: u32,
}

/// A place among the attempts of a lane; gives itself back.
#[derive(Debug)]
pub(crate) struct LanePermit {
    lane: Arc<OpenLane>,
}

/// More open lanes than this are looked through for idle ones.
const IDLE_LANES: usize = 1_024;

/// How many messages wait in memory for each attempt that may be made; more stay in the store.
const IN_MEMORY: usize = 4;

impl Lanes {
    /// `wake` is told when a lane that was full has places again.
    pub(crate) fn new(bounds: Bounds, wake: &Arc<Notify>) -> Self {
        Self { bounds, open: Mutex::default(), hosts: Mutex::default(), wake: Arc::clone(wake) }
    }

    pub(crate) const fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// A place in the lane's memory; none when it is full, or closed.
    pub(crate) fn reserve(&self, key: &LaneKey) -> Option<(Arc<OpenLane>, Slot)> {
        let lane = self.lane(key);
        if lane.closed_until(Instant::now()).is_some() {
            return None;
        }
        let slot = lane.slots.take(1)?;
        Some((lane, slot))
    }

    pub(crate) fn lane(&self, key: &LaneKey) -> Arc<OpenLane> {
        self.get_or_open(key, Health::new)
    }

    /// Goes on where a former process was.
    pub(crate) fn restore(&self, open: &OpenBreaker, left: Duration) {
        self.get_or_open(&open.lane, || Health::reopened(open.times, left, Instant::now()));
    }

    fn get_or_open(&self, key: &LaneKey, health: impl FnOnce() -> Health) -> Arc<OpenLane> {
        let mut open = lock(&self.open);
        if let Some(lane) = open.all.get(key) {
            return Arc::clone(lane);
        }
        let now = Instant::now();
        // Whoever is about to take a slot holds the lane.
        open.make_room(|lane| lane.slots.used() > 0 || Arc::strong_count(lane) > 1 || lane.closed_until(now).is_some());
        let bounds = self.bounds.of(&key.destination);
        let health = health();
        let host = self.host(&key.destination, bounds.in_flight);
        let lifted = host.lifted.load(Ordering::Acquire);
        let lane = Arc::new(OpenLane {
            attempts: Semaphore::new(health.window()),
            slots: Pool::waking(IN_MEMORY * health.window(), &self.wake),
            state: Mutex::new(LaneState { health, surplus: 0, lifted }),
            rate: Rate::new(bounds.per_second),
            host,
            bounds,
        });
        open.all.insert(key.clone(), Arc::clone(&lane));
        lane
    }

    fn host(&self, destination: &Destination, lane: usize) -> Arc<Host> {
        let mut hosts = lock(&self.hosts);
        if let Some(host) = hosts.all.get(destination) {
            return Arc::clone(host);
        }
        let now = Instant::now();
        hosts.make_room(|host| Arc::strong_count(host) > 1 || host.consent.is_in_use(now));
        let in_flight = self.bounds.host_in_flight.max(lane).min(Semaphore::MAX_PERMITS);
        let rate = Rate::new(self.bounds.host_per_second);
        let consent = HostConsent::default();
        let host = Arc::new(Host { attempts: Semaphore::new(in_flight), rate, lifted: AtomicU32::new(0), consent });
        hosts.all.insert(destination.clone(), Arc::clone(&host));
        host
    }

    /// Ends the pauses that lanes to this destination make.
    pub(crate) fn lift(&self, destination: &Destination) {
        if let Some(host) = lock(&self.hosts).all.get(destination) {
            host.lifted.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How much is in memory, over all lanes and in the fullest of them.
    pub(crate) fn depths(&self) -> (usize, usize) {
        let open = lock(&self.open);
        let used = open.all.values().map(|lane| lane.slots.used());
        used.fold((0, 0), |(all, most), used| (all + used, most.max(used)))
    }

    /// The lanes that take nothing more: their messages stay in the store. And when the first of them opens by itself.
    pub(crate) fn left_out(&self) -> (Vec<LaneKey>, Option<Instant>) {
        let now = Instant::now();
        let mut opens: Option<Instant> = None;
        let open = lock(&self.open);
        let left_out = open.all.iter().filter(|(_, lane)| {
            let closed_until = lane.closed_until(now);
            opens = opens.into_iter().chain(closed_until).min();
            closed_until.is_some() || lane.slots.is_full()
        });
        (left_out.map(|(key, _)| key.clone()).collect(), opens)
    }
}

impl OpenLane {
    /// Waits for a place among the attempts.
    pub(crate) async fn enter(self: &Arc<Self>) -> Option<LanePermit> {
        self.attempts.acquire().await.ok()?.forget();
        Some(LanePermit { lane: Arc::clone(self) })
    }

    /// Until when nothing is sent.
    pub(crate) fn closed_until(&self, now: Instant) -> Option<Instant> {
        let lifted = self.host.lifted.load(Ordering::Acquire);
        let mut state = self.state();
        if state.lifted != lifted {
            state.lifted = lifted;
            state.health.open();
        }
        state.health.closed_until(now)
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.state().health.is_doubtful()
    }

    /// Takes in what an attempt said of the far end.
    pub(crate) fn learn(&self, sign: Sign) -> Option<Breaker> {
        let mut state = self.state();
        let before = state.health.window();
        let change = state.health.after(sign, &self.bounds, Instant::now());
        let window = state.health.window();
        if window > before {
            let (more, surplus) = (window - before, state.surplus);
            state.surplus = surplus.saturating_sub(more);
            self.attempts.add_permits(more.saturating_sub(surplus));
        } else if window < before {
            let free = self.attempts.forget_permits(before - window);
            state.surplus += before - window - free;
        }
        drop(state);
        if window != before {
            self.slots.resize(window.saturating_mul(IN_MEMORY));
        }
        change
    }

    fn state(&self) -> MutexGuard<'_, LaneState> {
        lock(&self.state)
    }
}

impl Drop for LanePermit {
    fn drop(&mut self) {
        let mut state = self.lane.state();
        if state.surplus > 0 {
            state.surplus -= 1;
        } else {
            self.lane.attempts.add_permits(1);
        }
    }
}

/// Every change under these locks is whole before it can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn key(destination: &str) -> LaneKey {
        LaneKey { owner: None, destination: destination.parse().expect("valid") }
    }

    fn lanes(lane: Lane) -> Lanes {
        let local = HashSet::from(["session".to_owned()]);
        let bounds = Bounds { lane, special: HashMap::new(), local, host_in_flight: 4, host_per_second: None };
        Lanes::new(bounds, &Arc::default())
    }

    fn permits(lane: &Arc<OpenLane>) -> Vec<LanePermit> {
        std::iter::from_fn(|| lane.enter().now_or_never().flatten()).collect()
    }

    #[test]
    fn a_full_lane_leaves_the_others_their_places() {
        let lanes = lanes(Lane::default());
        let slots: Vec<_> = (0..4).map(|_| lanes.reserve(&key("https://a:443")).expect("a place")).collect();
        assert!(lanes.reserve(&key("https://a:443")).is_none());
        assert_eq!(lanes.left_out(), (vec![key("https://a:443")], None));
        assert!(lanes.reserve(&key("https://b:443")).is_some());
        drop(slots);
        assert!(lanes.left_out().0.is_empty());
        assert!(lanes.reserve(&key("https://a:443")).is_some());
    }

    #[test]
    fn callers_have_lanes_of_their_own_and_share_the_host() {
        let lanes = lanes(Lane::default());
        let other = LaneKey { owner: Some("other".into()), ..key("https://a:443") };
        assert!(Arc::ptr_eq(&lanes.lane(&key("https://a:443")).host, &lanes.lane(&other).host));
        let _slots: Vec<_> = (0..4).map(|_| lanes.reserve(&key("https://a:443")).expect("a place")).collect();
        assert!(lanes.reserve(&other).is_some());
        assert_ne!(key("https://a:443").number(), other.number());
    }

    #[test]
    fn a_closed_lane_is_left_out_until_it_opens() {
        let lanes = lanes(Lane::default().breaker(1, Duration::from_secs(30)));
        let lane = lanes.lane(&key("https://a:443"));
        assert!(matches!(lane.learn(Sign::Unreachable), Some(Breaker::Opened { times: 1, .. })));
        let (left_out, opens) = lanes.left_out();
        assert_eq!(left_out, [key("https://a:443")]);
        assert_eq!(opens, lane.closed_until(Instant::now()));
        assert!(lanes.reserve(&key("https://a:443")).is_none());
    }

    #[test]
    fn as_many_attempts_are_made_as_the_window_allows() {
        let lanes = lanes(Lane::default().in_flight(4));
        let lane = lanes.lane(&key("https://a:443"));
        let mut held = permits(&lane);
        assert_eq!(held.len(), 1);
        lane.learn(Sign::Reached);
        lane.learn(Sign::Reached);
        held.extend(permits(&lane));
        assert_eq!(held.len(), 4);
        lane.learn(Sign::Unreachable);
        assert!(permits(&lane).is_empty());
        held.truncate(1);
        assert!(permits(&lane).is_empty(), "what was in flight beyond the window is not given back");
        lane.learn(Sign::Reached);
        assert_eq!(permits(&lane).len(), 1);
        held.clear();
        assert_eq!(permits(&lane).len(), 2);
    }

    #[test]
    fn idle_lanes_are_forgotten_and_closed_ones_are_not() {
        let lanes = lanes(Lane::default().breaker(1, Duration::from_secs(30)));
        lanes.lane(&key("https://closed:443")).learn(Sign::Unreachable);
        for number in 0..3 * IDLE_LANES {
            drop(lanes.reserve(&key(&format!("https://host{number}:443"))));
        }
        assert!(lock(&lanes.open).all.len() <= IDLE_LANES);
        assert!(lock(&lanes.hosts).all.len() <= IDLE_LANES + 1);
        assert!(lanes.reserve(&key("https://closed:443")).is_none());
    }

    #[test]
    fn lanes_in_use_are_not_looked_through_for_each_new_one() {
        let lanes = lanes(Lane::default());
        let mut looks = std::collections::BTreeSet::new();
        let _slots: Vec<_> = (0..8 * IDLE_LANES)
            .map(|number| {
                looks.insert(lock(&lanes.open).look_at);
                lanes.reserve(&key(&format!("https://host{number}:443"))).expect("a place")
            })
            .collect();
        assert_eq!(looks.into_iter().collect::<Vec<_>>(), [1, 2, 4, 8].map(|times| times * IDLE_LANES));
    }
}
