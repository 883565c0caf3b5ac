//! How many attempts a second.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
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
    /// One waits for the time, the others for their turn.
    turn: tokio::sync::Mutex<()>,
}

impl Rate {
    /// None for no limit; what is no rate (zero, negative, not a number) counts as one a day.
    pub(crate) fn new(per_second: Option<f64>) -> Option<Self> {
        const LONGEST: f64 = 86_400.0;
        let seconds = 1.0 / per_second?;
        let seconds = if seconds.is_finite() && seconds > 0.0 { seconds.min(LONGEST) } else { LONGEST };
        Some(Self { interval: Duration::from_secs_f64(seconds), next: Mutex::default(), turn: Default::default() })
    }

    /// Waits until a place is free. Whoever waited [takes](Self::take) it when he begins, or waits again.
    pub(crate) async fn wait(&self) {
        let _turn = self.turn.lock().await;
        let next = *self.next();
        if let Some(at) = next.filter(|next| !is_free(Some(*next), Instant::now())) {
            sleep_until(at - BURST).await;
        }
    }

    /// Takes a place of each of these, or of none.
    pub(crate) fn take<'a>(rates: impl IntoIterator<Item = &'a Self>, now: Instant) -> bool {
        let mut places: Vec<_> = rates.into_iter().map(|rate| (rate.interval, rate.next())).collect();
        let are_free = places.iter().all(|(_, next)| is_free(**next, now));
        if are_free {
            for (interval, next) in &mut places {
                **next = Some(next.map_or(now, |next| next.max(now)) + *interval);
            }
        }
        are_free
    }

    /// Whether all that was taken is long over.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.next().is_none_or(|next| next <= now)
    }

    fn next(&self) -> MutexGuard<'_, Option<Instant>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_free(next: Option<Instant>, now: Instant) -> bool {
    next.is_none_or(|next| next <= now + BURST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_evenly_after_a_burst() {
        let (rate, now) = (Rate::new(Some(20.0)).expect("a limit"), Instant::now());
        let taken = |from: Instant| {
            let milliseconds = (0..200).filter(|after| Rate::take([&rate], from + Duration::from_millis(*after)));
            milliseconds.collect::<Vec<u64>>()
        };
        assert_eq!(taken(now), [0, 1, 2, 50, 100, 150]);
        let later = now + Duration::from_secs(10);
        assert_eq!(taken(later), [0, 1, 2, 50, 100, 150], "what was not used is not saved up");
    }

    #[test]
    fn a_place_is_taken_of_all_or_of_none() {
        let (now, rate) = (Instant::now(), |per_second| Rate::new(Some(per_second)).expect("a limit"));
        let (slow, fast) = (rate(1.0), rate(1_000.0));
        assert!(Rate::take([&slow, &fast], now));
        let before = *fast.next();
        assert!(!Rate::take([&fast, &slow], now));
        assert_eq!(*fast.next(), before);
    }

    #[test]
    fn what_is_no_rate_is_the_slowest() {
        for rate in [0.0, -1.0, f64::NAN, 1e-300] {
            assert_eq!(Rate::new(Some(rate)).map(|rate| rate.interval), Some(Duration::from_secs(86_400)), "{rate}");
        }
        assert!(Rate::new(None).is_none());
    }
}
