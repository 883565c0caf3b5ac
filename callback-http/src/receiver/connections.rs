//! The connections that have no request: the first to go where there are too many.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Idle connections by the time since when they are.
#[derive(Debug, Default)]
pub(super) struct Idle {
    next: AtomicU64,
    since: Mutex<BTreeMap<u64, CancellationToken>>,
    rested: Notify,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its place while it is idle.
    place: AtomicU64,
    /// Cancelled when it has to go: to make room, or with all others.
    pub(super) leaving: CancellationToken,
}

impl Idle {
    /// A new connection, which has no request yet; the token is cancelled when it has to go.
    pub(super) fn open(&self, leaving: CancellationToken) -> Connection {
        let connection = Connection { place: AtomicU64::new(0), leaving };
        self.rest(&connection);
        connection
    }

    /// The connection has no request from here on.
    pub(super) fn rest(&self, connection: &Connection) {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        connection.place.store(place, Ordering::Relaxed);
        self.lock().insert(place, connection.leaving.clone());
        self.rested.notify_one();
    }

    /// The connection has a request, or has ended.
    pub(super) fn leave(&self, connection: &Connection) {
        self.lock().remove(&connection.place.load(Ordering::Relaxed));
    }

    /// Lets the one go that has been idle for longest; waits for one where all have requests.
    ///
    /// Dropped before it resolves, it has let none go.
    pub(super) async fn evict(&self) {
        loop {
            let oldest = self.lock().pop_first();
            if let Some((_, evicted)) = oldest {
                return evicted.cancel();
            }
            self.rested.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_goes_first_and_what_has_a_request_stays() {
        let (idle, open) = (Idle::default(), CancellationToken::new);
        let connections = [idle.open(open()), idle.open(open()), idle.open(open())];
        idle.leave(&connections[0]);
        idle.evict().await;
        assert_eq!(connections.each_ref().map(|one| one.leaving.is_cancelled()), [false, true, false]);
        idle.rest(&connections[0]);
        idle.evict().await;
        assert_eq!(connections.each_ref().map(|one| one.leaving.is_cancelled()), [false, true, true]);
        idle.evict().await;
        assert!(connections[0].leaving.is_cancelled());
        let late = idle.open(open());
        idle.leave(&late);
        let (evicting, resting) = (idle.evict(), async { idle.rest(&late) });
        tokio::join!(evicting, resting);
        assert!(late.leaving.is_cancelled(), "it was busy, and is idle");
    }
}
