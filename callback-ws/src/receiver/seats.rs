//! The places of connections: who has to go where there are too many.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// A place in the line of those who have to go: who has no socket before who has one, then by the time since when.
type Place = (bool, u64);

/// The seats of all connections.
#[derive(Debug)]
pub(super) struct Seats {
    room: Arc<Semaphore>,
    idle: Idle,
    closing: CancellationToken,
}

/// Connections that may go, by the order in which they have to.
#[derive(Debug, Default)]
struct Idle {
    next: AtomicU64,
    line: Mutex<BTreeMap<Place, CancellationToken>>,
    rested: Notify,
}

/// The seat of one connection; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    place: Mutex<Place>,
    /// Cancelled when it has to go: to make room, or with all others.
    pub(super) leaving: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    /// So many, which are left when `closing` is cancelled.
    pub(super) fn new(most: usize, closing: CancellationToken) -> Self {
        let room = Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)));
        Self { room, idle: Idle::default(), closing }
    }

    /// Waits for a seat, for which the one goes that is first in line.
    ///
    /// # Cancellation
    /// Dropped before it resolves, it takes none.
    pub(super) async fn enter(self: &Arc<Self>) -> Seat {
        let permit = match Arc::clone(&self.room).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.make_room().await,
        };
        let leaving = self.closing.child_token();
        let seat = Seat { seats: Arc::clone(self), place: Mutex::default(), leaving, _permit: permit };
        self.idle.rest(&seat, false);
        seat
    }

    async fn make_room(&self) -> OwnedSemaphorePermit {
        let mut place = std::pin::pin!(Arc::clone(&self.room).acquire_owned());
        let permit = tokio::select! {
            biased;
            permit = place.as_mut() => permit,
            () = self.idle.evict() => place.await,
        };
        permit.expect("it is never closed")
    }
}

impl Seat {
    /// It has a socket, and nothing to do.
    pub(super) fn rest(&self) {
        self.seats.idle.leave(self);
        self.seats.idle.rest(self, true);
    }

    /// It has something to do: it has not to go.
    pub(super) fn work(&self) {
        self.seats.idle.leave(self);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.idle.leave(self);
    }
}

impl Idle {
    fn rest(&self, seat: &Seat, has_socket: bool) {
        let mut line = lock(&self.line);
        if seat.leaving.is_cancelled() {
            // Who goes already makes room for one alone.
            return;
        }
        let place = (has_socket, self.next.fetch_add(1, Ordering::Relaxed));
        *lock(&seat.place) = place;
        line.insert(place, seat.leaving.clone());
        self.rested.notify_one();
    }

    fn leave(&self, seat: &Seat) {
        let place = *lock(&seat.place);
        lock(&self.line).remove(&place);
    }

    fn evict_first(&self) -> bool {
        // It learns that before it can be in line again.
        let mut line = lock(&self.line);
        line.pop_first().map(|(_, evicted)| evicted.cancel()).is_some()
    }

    /// Lets the first in line go; waits for one where all have something to do.
    async fn evict(&self) {
        while !self.evict_first() {
            self.rested.notified().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::poll_immediate;

    async fn seats<const N: usize>() -> (Arc<Seats>, [Seat; N]) {
        let seats = Arc::new(Seats::new(N, CancellationToken::new()));
        let mut taken = Vec::new();
        for _ in 0..N {
            taken.push(seats.enter().await);
        }
        (seats, taken.try_into().expect("so many"))
    }

    fn left<const N: usize>(taken: &[Seat; N]) -> [bool; N] {
        taken.each_ref().map(|seat| seat.leaving.is_cancelled())
    }

    #[tokio::test]
    async fn who_has_no_socket_goes_first_and_who_has_work_stays() {
        let (seats, taken) = seats::<4>().await;
        taken[0].rest();
        taken[1].rest();
        taken[2].work();
        for expected in [[false, false, false, true], [true, false, false, true], [true, true, false, true]] {
            assert!(poll_immediate(seats.enter()).await.is_none(), "it has not gone yet");
            assert_eq!(left(&taken), expected);
        }
        let mut entering = std::pin::pin!(seats.enter());
        assert!(poll_immediate(entering.as_mut()).await.is_none(), "all have work");
        assert!(!taken[2].leaving.is_cancelled());
        taken[2].rest();
        assert!(poll_immediate(entering.as_mut()).await.is_none());
        assert!(taken[2].leaving.is_cancelled(), "it had work, and has none");
        drop(taken);
        assert!(poll_immediate(entering).await.is_some());
    }

    #[tokio::test]
    async fn who_goes_already_is_not_asked_again() {
        let (seats, taken) = seats::<2>().await;
        taken[1].work();
        let (mut first, mut second) = (std::pin::pin!(seats.enter()), std::pin::pin!(seats.enter()));
        assert!(poll_immediate(first.as_mut()).await.is_none());
        taken[0].rest();
        assert!(poll_immediate(second.as_mut()).await.is_none());
        assert_eq!(left(&taken), [true, false]);
        taken[1].rest();
        assert!(poll_immediate(second.as_mut()).await.is_none());
        assert_eq!(left(&taken), [true, true], "each asks one");
    }

    #[tokio::test]
    async fn with_the_end_all_leave() {
        let (seats, taken) = seats::<2>().await;
        seats.closing.cancel();
        assert_eq!(left(&taken), [true, true]);
    }
}
