//! How many attempts a second.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// What may come at once after a pause: as much as in this time.
const BURST: Duration = Duration::from_millis(100);

/// A rate limit: the generic cell rate algorithm (ITU-T I.371), with a tolerance of [`BURST`].
#[derive(Debug)]
pub(crate) struct Rate {
    interval: Duration,
    /// When the next would come if all came evenly.
    next: Mutex<Option<Instant>>,
}

impl Rate {
    /// None for no limit; what is no rate (zero, negative, not a number) counts as one a day.
    pub(crate) fn new(per_second: Option<f64>) -> Option<Self> {
        const LONGEST: f64 = 86_400.0;
        let seconds = 1.0 / per_second?;
        let seconds = if seconds.is_finite() && seconds > 0.0 { seconds.min(LONGEST) } else { LONGEST };
        Some(Self { interval: Duration::from_secs_f64(seconds), next: Mutex::default() })
    }

    /// Takes a place; when its time comes.
    pub(crate) fn book(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let even = next.map_or(now, |next| next.max(now));
        *next = Some(even + self.interval);
        even.checked_sub(BURST).map_or(now, |early| early.max(now))
    }

    /// Waits for a place. Dropped, its place stays empty.
    pub(crate) async fn wait(&self) {
        let now = Instant::now();
        let at = self.book(now);
        if at > now {
            sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_evenly_after_a_burst() {
        let (rate, now) = (Rate::new(Some(20.0)).expect("a limit"), Instant::now());
        let waits: Vec<u128> = (0..6).map(|_| (rate.book(now) - now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 50, 100, 150]);
        let later = now + Duration::from_secs(10);
        assert_eq!(rate.book(later), later, "what was not used is not saved up");
        let waits: Vec<u128> = (0..4).map(|_| (rate.book(later) - later).as_millis()).collect();
        assert_eq!(waits, [0, 0, 50, 100]);
    }

    #[test]
    fn what_is_no_rate_is_the_slowest() {
        for rate in [0.0, -1.0, f64::NAN, 1e-300] {
            assert_eq!(Rate::new(Some(rate)).map(|rate| rate.interval), Some(Duration::from_secs(86_400)), "{rate}");
        }
        assert!(Rate::new(None).is_none());
    }
}
