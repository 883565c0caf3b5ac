//! Wall time, as the engine sees it.

use std::{
    fmt,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// Gives the wall time by which due times are judged.
///
/// It may leap. Ahead, what waits is attempted early. Back, what waits for a retry waits from then on, and no longer than
/// the [`Schedule`](callback_core::Schedule)'s [longest step](callback_core::Schedule::longest_step): a leap is noticed
/// within a second, within 30 s in a [`MemoryOutbox`](crate::MemoryOutbox), and one between two processes at the start.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time.
    fn now(&self) -> SystemTime;
}

/// The system's clock: the default.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that goes with tokio's, so that a test with paused time passes a day at once.
///
/// Use it with [`MemoryOutbox`](crate::MemoryOutbox): a database's threads make paused time run ahead.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    wall: SystemTime,
    begun: Instant,
}

impl TokioClock {
    /// A clock that shows `wall` and goes on from there.
    #[must_use]
    pub fn starting_at(wall: SystemTime) -> Self {
        Self { wall, begun: Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::starting_at(SystemTime::now())
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        self.wall + self.begun.elapsed()
    }
}

/// A point in wall time, in microseconds since 1970: what a store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Micros(pub(crate) i64);

impl Micros {
    /// Later than every time: never due.
    pub(crate) const NEVER: Self = Self(i64::MAX);

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX)))
    }

    pub(crate) fn before(self, wait: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` to this; zero where the clock was set back.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub(crate) fn to_system(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<SystemTime> for Micros {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
