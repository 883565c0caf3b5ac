//! The sessions whose clients are connected, by their addresses.

use crate::{
    connection::{Job, Jobs},
    outcome::Failure,
    session::Pace,
};
use callback_core::Phase;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// How many jobs wait for a place on a connection beside those that wait in line for it.
const QUEUE: usize = 64;

/// Of how many sessions whose clients are away it is remembered that they go one frame at a time.
const SLOW: usize = 1_000;

pub(super) struct Sessions {
    keep: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seats: HashMap<Arc<str>, Taken>,
    /// The number of the last seat.
    last: u64,
    /// The paces of sessions whose clients are away, where they are not the usual one, and since when.
    slow: HashMap<Arc<str>, (Pace, Instant)>,
}

struct Taken {
    number: u64,
    jobs: mpsc::Sender<Box<Job>>,
    gone: Option<oneshot::Sender<()>>,
}

impl Sessions {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, state: Mutex::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.state().seats.len()
    }

    /// The queue of the connection that a session has, and the number of its seat.
    pub(super) fn to(&self, address: &str) -> Option<(u64, mpsc::Sender<Box<Job>>)> {
        self.state().seats.get(address).map(|taken| (taken.number, taken.jobs.clone()))
    }

    /// The client of a session has said that it is gone.
    pub(super) fn gone(&self, address: &str, number: u64) {
        let mut state = self.state();
        let taken = state.seats.get_mut(address).filter(|taken| taken.number == number);
        if let Some(gone) = taken.and_then(|taken| taken.gone.take()) {
            let _ = gone.send(());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a connection in its session, until it is dropped: what is delivered to the session waits in its queue.
pub(super) struct Seat {
    sessions: Arc<Sessions>,
    address: Arc<str>,
    number: u64,
    pub(super) jobs: Jobs,
    /// Told when the client has said that it is gone.
    pub(super) gone: oneshot::Receiver<()>,
    pub(super) pace: Pace,
}

impl Seat {
    /// A seat in a session that no other connection is in.
    pub(super) fn reserve(sessions: Arc<Sessions>, address: &str) -> Option<Self> {
        Self::sit(sessions, address, |state| !state.seats.contains_key(address))
    }

    /// A seat in a session, in the place of whoever sits there, unless `is_lost` says that it is another's already.
    pub(super) fn take(sessions: Arc<Sessions>, address: &str, is_lost: impl FnOnce() -> bool) -> Option<Self> {
        Self::sit(sessions, address, |_| !is_lost())
    }

    fn sit(sessions: Arc<Sessions>, address: &str, may: impl FnOnce(&State) -> bool) -> Option<Self> {
        let mut state = sessions.state();
        if !may(&state) {
            return None;
        }
        let (sender, jobs) = mpsc::channel(QUEUE);
        let (teller, gone) = oneshot::channel();
        let (pace, _) = state.slow.remove(address).unwrap_or_else(|| (Pace::default(), Instant::now()));
        let address: Arc<str> = address.into();
        state.last += 1;
        let number = state.last;
        state.seats.insert(Arc::clone(&address), Taken { number, jobs: sender, gone: Some(teller) });
        drop(state);
        Some(Self { sessions, address, number, jobs, gone, pace })
    }

    /// Whether no other connection has taken it.
    pub(super) fn is_current(&self) -> bool {
        self.sessions.state().seats.get(&self.address).is_some_and(|taken| taken.number == self.number)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.sessions.state();
        if state.seats.get(&self.address).is_some_and(|taken| taken.number == self.number) {
            state.seats.remove(&self.address);
        }
        if self.pace != Pace::default() {
            let now = Instant::now();
            if state.slow.len() >= SLOW {
                state.slow.retain(|_, (_, since)| *since + self.sessions.keep > now);
            }
            if state.slow.len() < SLOW {
                state.slow.insert(Arc::clone(&self.address), (self.pace, now));
            }
        }
        drop(state);
        // Whoever waits for room learns it from the channel, when it is dropped.
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            job.fail(Failure::unavailable(Phase::Connect, "the client is away"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::{Attempt, ErrorKind, Message};
    use std::time::SystemTime;

    const ADDRESS: &str = "kR3mZ0wqV1c_8dXy-7LbQA";

    fn sessions() -> Arc<Sessions> {
        Arc::new(Sessions::new(Duration::from_secs(600)))
    }

    fn reserve(sessions: &Arc<Sessions>) -> Option<Seat> {
        Seat::reserve(Arc::clone(sessions), ADDRESS)
    }

    fn take(sessions: &Arc<Sessions>, is_lost: bool) -> Option<Seat> {
        Seat::take(Arc::clone(sessions), ADDRESS, || is_lost)
    }

    fn job() -> (Box<Job>, oneshot::Receiver<Result<callback_core::Receipt, Failure>>) {
        let (reply, ended) = oneshot::channel();
        let attempt = Attempt::new(1, SystemTime::now(), std::time::Instant::now());
        (Box::new(Job { message: Message::builder("a").build().expect("valid"), attempt, reply }), ended)
    }

    #[test]
    fn a_seat_is_left_by_who_sits_there() {
        let sessions = sessions();
        let first = reserve(&sessions).expect("nobody is there");
        assert!(reserve(&sessions).is_none() && first.is_current());
        assert!(take(&sessions, true).is_none() && first.is_current());
        let second = take(&sessions, false).expect("it may");
        assert!(!first.is_current() && second.is_current());
        drop(first);
        assert!(second.is_current() && sessions.len() == 1);
        drop(second);
        assert!(sessions.len() == 0 && sessions.to(ADDRESS).is_none());
    }

    #[tokio::test]
    async fn what_waits_in_a_seat_that_is_left_was_not_sent() {
        let sessions = sessions();
        let seat = reserve(&sessions).expect("nobody is there");
        let (_, jobs) = sessions.to(ADDRESS).expect("somebody is there");
        let (waiting, ended) = job();
        assert!(jobs.send(waiting).await.is_ok());
        drop(seat);
        let failure = ended.await.expect("a reply").expect_err("not delivered");
        assert_eq!((failure.kind, failure.phase), (ErrorKind::Unavailable, Phase::Connect));
        assert!(jobs.send(job().0).await.is_err());
    }

    #[test]
    fn the_one_that_is_meant_is_told_that_its_client_is_gone() {
        let sessions = sessions();
        let mut first = reserve(&sessions).expect("nobody is there");
        let mut second = take(&sessions, false).expect("it may");
        sessions.gone(ADDRESS, first.number);
        assert!(second.gone.try_recv().is_err() && first.gone.try_recv().is_err());
        sessions.gone(ADDRESS, second.number);
        sessions.gone(ADDRESS, second.number);
        assert!(second.gone.try_recv().is_ok());
    }

    #[test]
    fn a_pace_outlives_the_connection() {
        let sessions = sessions();
        let mut seat = reserve(&sessions).expect("nobody is there");
        assert_eq!(seat.pace, Pace::default());
        seat.pace = Pace::ONE_AT_A_TIME;
        drop(seat);
        assert_eq!(reserve(&sessions).expect("nobody is there").pace, Pace::ONE_AT_A_TIME);
        // What is remembered has a limit.
        for number in 0..2 * SLOW {
            let mut seat = Seat::reserve(Arc::clone(&sessions), &number.to_string()).expect("nobody is there");
            seat.pace = Pace::ONE_AT_A_TIME;
        }
        assert_eq!(sessions.state().slow.len(), SLOW);
    }
}
