//! The connections that have no request: the first to go where there are too many.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// All connections, of which those without a request may be asked to go.
///
/// A request costs its connection two stores of its own, and no timer; whoever wants one gone looks through all.
#[derive(Debug)]
pub(super) struct Connections {
    begun: Instant,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    /// How many wait for one that rests.
    waiting: AtomicUsize,
    rested: Notify,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    number: u64,
    /// Since when it rests, in nanoseconds after the first one; [`BUSY`] while it has a request, [`GOING`] once it was
    /// asked to go.
    resting: AtomicU64,
    /// Cancelled when it has to go: to make room, or with all others.
    pub(super) leaving: CancellationToken,
}

impl Connection {
    /// Whether it has a request.
    pub(super) fn is_working(&self) -> bool {
        self.resting.load(Ordering::SeqCst) == BUSY
    }
}

const BUSY: u64 = u64::MAX;
const GOING: u64 = BUSY - 1;

impl Connections {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            next: AtomicU64::new(0),
            open: Mutex::default(),
            waiting: AtomicUsize::new(0),
            rested: Notify::new(),
        }
    }

    /// A new connection, which has no request yet; the token is cancelled when it has to go.
    pub(super) fn open(&self, leaving: CancellationToken) -> Arc<Connection> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection { number, resting: AtomicU64::new(BUSY), leaving });
        self.lock().insert(number, Arc::clone(&connection));
        self.rest(&connection);
        connection
    }

    /// The connection has ended.
    pub(super) fn close(&self, connection: &Connection) {
        let closed = self.lock().remove(&connection.number);
        drop(closed);
    }

    /// The connection has a request from here on.
    pub(super) fn work(connection: &Connection) {
        connection.resting.store(BUSY, Ordering::SeqCst);
    }

    /// The connection has no request from here on.
    pub(super) fn rest(&self, connection: &Connection) {
        connection.resting.store(self.elapsed(), Ordering::SeqCst);
        // Whoever waits has counted himself before he looked for the last time.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.rested.notify_one();
        }
    }

    /// Lets the one go that has been resting for longest; waits for one where all have requests.
    ///
    /// Dropped before it resolves, it has let none go.
    pub(super) async fn evict(&self) {
        let _waiting = Waiting::new(&self.waiting);
        while !self.evict_longest() {
            self.rested.notified().await;
        }
    }

    /// Whether there was one.
    fn evict_longest(&self) -> bool {
        let open = self.lock();
        loop {
            let resting = open.values().map(|connection| (connection.resting.load(Ordering::SeqCst), connection));
            let longest = resting.filter(|(since, _)| *since < GOING).min_by_key(|(since, _)| *since);
            let Some((since, connection)) = longest else { return false };
            // One that got a request meanwhile is left alone.
            if connection.resting.compare_exchange(since, GOING, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                connection.leaving.cancel();
                return true;
            }
        }
    }

    /// Lets all go that have been resting for so long.
    pub(super) fn expire(&self, time: Duration) {
        let Some(latest) = self.elapsed().checked_sub(nanoseconds(time)) else { return };
        for connection in self.lock().values() {
            let since = connection.resting.load(Ordering::SeqCst);
            if since <= latest.min(GOING - 1)
                && connection.resting.compare_exchange(since, GOING, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            {
                connection.leaving.cancel();
            }
        }
    }

    fn elapsed(&self) -> u64 {
        nanoseconds(self.begun.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Less than [`GOING`].
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(BUSY).min(GOING - 1)
}

/// Counts who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_goes_first_and_what_has_a_request_stays() {
        let (all, open) = (Connections::new(), CancellationToken::new);
        let mut connections = Vec::new();
        for _ in 0..3 {
            connections.push(all.open(open()));
            advance(Duration::from_nanos(1)).await;
        }
        let leave = || connections.iter().map(|one| one.leaving.is_cancelled()).collect::<Vec<_>>();
        Connections::work(&connections[0]);
        all.evict().await;
        assert_eq!(leave(), [false, true, false]);
        assert_eq!(connections.iter().map(|one| one.is_working()).collect::<Vec<_>>(), [true, false, false]);
        all.rest(&connections[0]);
        all.evict().await;
        assert_eq!(leave(), [false, true, true]);
        all.evict().await;
        assert!(connections[0].leaving.is_cancelled());
        let late = all.open(open());
        Connections::work(&late);
        let (evicting, resting) = (all.evict(), async { all.rest(&late) });
        tokio::join!(evicting, resting);
        assert!(late.leaving.is_cancelled(), "it was busy, and is idle");
    }

    #[tokio::test(start_paused = true)]
    async fn what_rests_for_too_long_goes_and_what_has_a_request_stays() {
        let (all, limit) = (Connections::new(), Duration::from_secs(10));
        let [resting, working] = [(); 2].map(|()| all.open(CancellationToken::new()));
        Connections::work(&working);
        advance(limit - Duration::from_nanos(1)).await;
        all.expire(limit);
        assert!(!resting.leaving.is_cancelled());
        advance(Duration::from_nanos(1)).await;
        all.expire(limit);
        assert!(resting.leaving.is_cancelled() && !working.leaving.is_cancelled());
        all.rest(&working);
        all.expire(Duration::MAX);
        assert!(!working.leaving.is_cancelled());
    }
}
