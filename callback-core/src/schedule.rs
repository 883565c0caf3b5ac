//! When a failed delivery is attempted again.

use crate::ErrorKind;
use std::{sync::Arc, time::Duration};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

const MAX_STEPS: usize = 1_000;
const MAX_STEP: Duration = Duration::from_hours(366 * 24);

/// The longest wait that a receiver can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);

/// The first step that waits after [`ErrorKind::Unauthorized`], counted from 0.
const UNAUTHORIZED_STEP: usize = 3;

/// Says whether a failed delivery is attempted again, and when. Always finite.
///
/// A pure value: what has happened and a seed go in, a wait comes out. It is made of steps, the waits after the first,
/// second, … failed attempt, so `n` steps are `n + 1` attempts. The default is the one that Standard Webhooks 1.0.0
/// recommends: at once, then after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h, ten attempts within 76 h,
/// each wait longer or shorter by up to 20 %.
///
/// ```
/// use callback_core::{ErrorKind, Failed, Schedule};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), callback_core::ScheduleError> {
/// let schedule = Schedule::new([1, 10].map(Duration::from_secs))?.jitter(0);
/// let failed = |attempt, kind| Failed { attempt, kind, retry_after: None, since_first_due: Duration::ZERO };
/// let seed = 7;
/// assert_eq!(schedule.next(&failed(2, ErrorKind::TimedOut), seed), Some(Duration::from_secs(10)));
/// assert_eq!(schedule.next(&failed(3, ErrorKind::TimedOut), seed), None);
/// assert_eq!(schedule.next(&failed(1, ErrorKind::Gone), seed), None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    steps: Arc<[Duration]>,
    give_up_after: Duration,
    jitter_percent: u8,
}

impl Schedule {
    /// The schedule of these waits; none at all is a single attempt.
    ///
    /// At most 1,000 waits of at most 366 days. Jitter and the time to give up are the default's.
    ///
    /// # Errors
    /// There are too many waits, or one is too long.
    pub fn new(delays: impl IntoIterator<Item = Duration>) -> Result<Self, ScheduleError> {
        let steps: Arc<[Duration]> = delays.into_iter().take(MAX_STEPS + 1).collect();
        if steps.len() > MAX_STEPS {
            return Err(ScheduleError::TooManySteps);
        }
        if steps.iter().any(|step| *step > MAX_STEP) {
            return Err(ScheduleError::StepTooLong);
        }
        Ok(Self { steps, ..Self::default() })
    }

    /// How long after the first attempt was due the last may be due; 76 h by default.
    #[must_use]
    pub const fn give_up_after(mut self, age: Duration) -> Self {
        self.give_up_after = age;
        self
    }

    /// By how many percent a wait varies at random, up and down; 20 by default.
    ///
    /// More than 100 counts as 100. Jitter keeps messages that failed together from coming back together.
    #[must_use]
    pub const fn jitter(mut self, percent: u8) -> Self {
        self.jitter_percent = if percent > 100 { 100 } else { percent };
        self
    }

    /// The wait until the next attempt; none if this was the last.
    ///
    /// It was the last if its kind is not temporary, no step is left, or the next would be due later than the time to
    /// give up. Else, from the step that has this attempt's number:
    ///
    /// - [`ErrorKind::Unauthorized`] waits by the fourth step at least (2 h; the last one of a shorter schedule), since
    ///   credentials are mended by people. Attempts count on as always: a first attempt that was unauthorized waits by
    ///   step four, a fifth by step five.
    /// - `retry_after`, at most 24 h, can lengthen each wait. In the first half of the schedule it is taken for the
    ///   wait itself, though never for less than the *first* step, so that a receiver who is back soon is not left
    ///   waiting. In the second half it does not shorten: a receiver that always says "in a second" would use up all
    ///   attempts in a minute, and the message would be lost to an outage that the schedule was made to outlast.
    /// - Jitter, drawn from `seed` and the attempt's number. A wait that the receiver had a say in only gets longer.
    ///   Nothing is put off past the time to give up.
    #[must_use]
    pub fn next(&self, failed: &Failed, seed: u64) -> Option<Duration> {
        let index = usize::try_from(failed.attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        if !failed.kind.is_temporary() || index >= self.steps.len() {
            return None;
        }
        let left = self.give_up_after.checked_sub(failed.since_first_due)?;
        let step = match failed.kind {
            ErrorKind::Unauthorized => self.steps[index.max(UNAUTHORIZED_STEP).min(self.steps.len() - 1)],
            _ => self.steps[index],
        };
        let (soonest, wait) = match failed.retry_after {
            Some(asked) => {
                let floor = if index < self.steps.len() / 2 { self.steps[0] } else { step };
                let wait = asked.min(MAX_RETRY_AFTER).max(floor);
                (wait, wait)
            }
            None => (step - self.spread(step), step),
        };
        let latest = (wait + self.spread(wait)).min(left);
        let range = latest.checked_sub(soonest)?;
        Some(soonest + fraction(range, mix(seed ^ mix(index as u64))))
    }

    /// Whether a message that was first due this long ago is given up, whatever its attempts.
    #[must_use]
    pub fn is_over(&self, since_first_due: Duration) -> bool {
        since_first_due > self.give_up_after
    }

    /// The age at which a message is given up, whatever its attempts.
    #[must_use]
    pub const fn age_limit(&self) -> Duration {
        self.give_up_after
    }

    /// The longest wait that [`next`](Self::next) can return; zero for a single attempt.
    ///
    /// What is due later than this from now has a wrong due time, as after a leap of the clock.
    #[must_use]
    pub fn longest_step(&self) -> Duration {
        let longest = self.steps.iter().max().map_or(Duration::ZERO, |step| (*step).max(MAX_RETRY_AFTER));
        (longest + self.spread(longest)).min(self.give_up_after)
    }

    /// How far jitter moves this wait at most. No overflow: a wait has at most 366 days.
    fn spread(&self, wait: Duration) -> Duration {
        wait * u32::from(self.jitter_percent) / 100
    }
}

/// The protocol's: ten attempts within 76 h.
impl Default for Schedule {
    fn default() -> Self {
        let steps = [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
        Self {
            steps: steps.map(Duration::from_secs).into(),
            give_up_after: Duration::from_hours(76),
            jitter_percent: 20,
        }
    }
}

/// A failed attempt, as far as the [`Schedule`] looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The attempt's number, from 1; 0 counts as 1.
    pub attempt: u32,
    /// Why it failed.
    pub kind: ErrorKind,
    /// How long the receiver asked us to wait (RFC 9110 §10.2.3).
    pub retry_after: Option<Duration>,
    /// The time from when the first attempt was due until it failed.
    pub since_first_due: Duration,
}

/// Waits that make no [`Schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// One is longer than 366 days.
    #[error("a step of a schedule has at most 366 days")]
    StepTooLong,
    /// There are more than 1,000.
    #[error("a schedule has at most 1,000 steps")]
    TooManySteps,
}

/// The part of `range` that these random bits choose.
fn fraction(range: Duration, bits: u64) -> Duration {
    let nanoseconds = (range.as_nanos() * u128::from(bits)) >> 64;
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// The mixer of `SplitMix64` (Steele, Lea, Flood 2014): near seeds give values far apart.
const fn mix(seed: u64) -> u64 {
    let mut value = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DAY: Duration = Duration::from_hours(24);

    fn hours(hours: u64) -> Duration {
        Duration::from_hours(hours)
    }

    fn unavailable(attempt: u32) -> Failed {
        Failed { attempt, kind: ErrorKind::Unavailable, retry_after: None, since_first_due: Duration::ZERO }
    }

    fn asked(attempt: u32, retry_after: Duration) -> Failed {
        Failed { retry_after: Some(retry_after), kind: ErrorKind::Throttled, ..unavailable(attempt) }
    }

    fn unauthorized(attempt: u32) -> Failed {
        Failed { kind: ErrorKind::Unauthorized, ..unavailable(attempt) }
    }

    /// Asks the default schedule without jitter.
    #[track_caller]
    fn check(failed: Failed, expected: impl Into<Option<Duration>>) {
        assert_eq!(Schedule::default().jitter(0).next(&failed, 0), expected.into(), "{failed:?}");
    }

    #[test]
    fn the_default_is_that_of_standard_webhooks() {
        let steps = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
        for (attempt, seconds) in (1..).zip(steps) {
            check(unavailable(attempt), Duration::from_secs(seconds));
        }
        check(unavailable(10), None);
        check(unavailable(u32::MAX), None);
        check(unavailable(0), 5 * SECOND);
        assert_eq!(steps.iter().sum::<u64>(), 75 * HOUR + 35 * MINUTE + 5);
    }

    #[test]
    fn only_what_is_temporary_is_retried() {
        for (kind, retried) in [
            (ErrorKind::Forbidden, false),
            (ErrorKind::Gone, false),
            (ErrorKind::Refused, false),
            (ErrorKind::TooLarge, false),
            (ErrorKind::Throttled, true),
            (ErrorKind::TimedOut, true),
            (ErrorKind::Unavailable, true),
            (ErrorKind::Unroutable, true),
        ] {
            check(Failed { kind, ..unavailable(1) }, retried.then_some(5 * SECOND));
            check(Failed { kind, ..asked(1, 9 * SECOND) }, retried.then_some(9 * SECOND));
        }
    }

    #[test]
    fn unauthorized_skips_the_first_three_steps() {
        for attempt in 1..=4 {
            check(unauthorized(attempt), hours(2));
        }
        check(unauthorized(5), hours(5));
        check(unauthorized(9), hours(24));
        check(unauthorized(10), None);
    }

    #[test]
    fn unauthorized_waits_by_the_last_step_of_a_short_schedule() {
        let schedule = Schedule::new([SECOND, 2 * SECOND]).expect("valid").jitter(0);
        assert_eq!(schedule.next(&unauthorized(1), 0), Some(2 * SECOND));
        assert_eq!(schedule.next(&unauthorized(2), 0), Some(2 * SECOND));
        assert_eq!(schedule.next(&unauthorized(3), 0), None);
    }

    #[test]
    fn a_receiver_can_lengthen_each_wait_up_to_a_day() {
        check(asked(1, 6 * SECOND), 6 * SECOND);
        check(asked(6, hours(11)), hours(11));
        check(asked(1, hours(25)), DAY);
        check(asked(9, Duration::MAX), DAY);
        check(asked(10, SECOND), None);
    }

    #[test]
    fn a_receiver_can_shorten_early_waits_down_to_the_first_step() {
        check(asked(1, Duration::ZERO), 5 * SECOND);
        check(asked(2, SECOND), 5 * SECOND);
        check(asked(3, 60 * SECOND), 60 * SECOND);
        check(asked(4, SECOND), 5 * SECOND);
        check(Failed { kind: ErrorKind::Unauthorized, ..asked(1, 60 * SECOND) }, 60 * SECOND);
    }

    #[test]
    fn a_receiver_cannot_use_up_the_schedule() {
        check(asked(5, SECOND), hours(5));
        check(asked(9, hours(1)), hours(24));
        let total: Duration = (1..=9).filter_map(|attempt| Schedule::default().next(&asked(attempt, SECOND), 0)).sum();
        assert!(total >= hours(73), "{total:?}");
    }

    #[test]
    fn nothing_is_scheduled_past_the_time_to_give_up() {
        let after = |since_first_due| Failed { since_first_due, ..unavailable(9) };
        check(after(hours(52)), hours(24));
        check(after(hours(52) + Duration::from_nanos(1)), None);
        check(after(hours(76)), None);
        check(after(Duration::MAX), None);
        check(Failed { since_first_due: hours(53), ..asked(9, DAY) }, None);
    }

    #[test]
    fn jitter_alone_does_not_cost_an_attempt() {
        let late = Failed { since_first_due: hours(56), ..unavailable(9) };
        for seed in 0..100 {
            let wait = Schedule::default().next(&late, seed).expect("20 h are left, 19.2 h enough");
            assert!((hours(19)..=hours(20)).contains(&wait), "{wait:?}");
        }
        let later = Failed { since_first_due: hours(57), ..late };
        assert_eq!(Schedule::default().next(&later, 0), None);
    }

    #[test]
    fn time_is_over_when_it_is() {
        let schedule = Schedule::default();
        assert!(!schedule.is_over(hours(76)));
        assert!(schedule.is_over(hours(76) + SECOND));
        assert!(!schedule.give_up_after(Duration::MAX).is_over(Duration::MAX));
    }

    #[test]
    fn jitter_fills_its_band_evenly() {
        let waits = |failed: Failed| {
            let mut waits: Vec<f64> = (0..10_000)
                .filter_map(|seed| Schedule::default().next(&failed, seed))
                .map(|wait| wait.as_secs_f64())
                .collect();
            waits.sort_by(f64::total_cmp);
            waits
        };
        let near =
            |value: f64, expected: f64| assert!((value - expected).abs() < 0.005 * expected, "{value} {expected}");
        let both_ways = waits(unavailable(2));
        assert!(both_ways[0] >= 240.0 && both_ways[9_999] <= 360.0);
        for (rank, expected) in [(0, 240.0), (2_500, 270.0), (5_000, 300.0), (7_500, 330.0), (9_999, 360.0)] {
            near(both_ways[rank], expected);
        }
        let upwards = waits(asked(2, Duration::from_secs(1_000)));
        assert!(upwards[0] >= 1_000.0 && upwards[9_999] <= 1_200.0);
        near(upwards[5_000], 1_100.0);
    }

    #[test]
    fn one_seed_gives_one_wait_and_other_jitter_to_other_attempts() {
        let schedule = Schedule::new([DAY; 2]).expect("valid");
        let wait = |attempt| schedule.next(&unavailable(attempt), 7);
        assert_eq!(wait(1), wait(1));
        assert_ne!(wait(1), wait(2));
    }

    #[test]
    fn a_schedule_is_finite() {
        assert_eq!(Schedule::new(std::iter::repeat(SECOND)), Err(ScheduleError::TooManySteps));
        assert_eq!(Schedule::new([MAX_STEP + Duration::from_nanos(1)]), Err(ScheduleError::StepTooLong));
        assert!(Schedule::new([MAX_STEP; MAX_STEPS]).is_ok());
        let once = Schedule::new([]).expect("one attempt");
        assert_eq!(once.next(&unavailable(1), 0), None);
        assert_eq!(once.longest_step(), Duration::ZERO);
    }

    #[test]
    fn the_longest_step_counts_jitter_and_what_receivers_ask_for() {
        assert_eq!(Schedule::default().longest_step(), DAY + DAY / 5);
        assert_eq!(Schedule::new([SECOND]).expect("valid").longest_step(), DAY + DAY / 5);
        assert_eq!(Schedule::new([2 * DAY]).expect("valid").jitter(0).longest_step(), 2 * DAY);
        assert_eq!(Schedule::default().give_up_after(SECOND).longest_step(), SECOND);
    }

    fn duration() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::MAX),
            (0..=MAX_STEP.as_secs()).prop_map(Duration::from_secs),
            any::<Duration>(),
        ]
    }

    fn kind() -> impl Strategy<Value = ErrorKind> {
        prop::sample::select(vec![
            ErrorKind::Unavailable,
            ErrorKind::Throttled,
            ErrorKind::Unauthorized,
            ErrorKind::Gone,
        ])
    }

    proptest! {
        #[test]
        fn every_wait_is_within_its_bounds(
            steps in prop::collection::vec((0..=MAX_STEP.as_nanos() as u64).prop_map(Duration::from_nanos), 0..12),
            attempt in prop_oneof![0..14_u32, any::<u32>()],
            kind in kind(),
            retry_after in prop::option::of(duration()),
            since_first_due in duration(),
            give_up_after in duration(),
            percent: u8,
            seed: u64,
        ) {
            let schedule = Schedule::new(steps.clone()).expect("valid").give_up_after(give_up_after).jitter(percent);
            let failed = Failed { attempt, kind, retry_after, since_first_due };
            if let Some(wait) = schedule.next(&failed, seed) {
                prop_assert!(kind.is_temporary() && attempt.max(1) as usize <= steps.len());
                prop_assert!(wait <= schedule.longest_step());
                prop_assert!(since_first_due.checked_add(wait).is_some_and(|age| !schedule.is_over(age)));
                if let Some(asked) = retry_after {
                    let step = attempt.max(1) as usize - 1;
                    let skips = if kind == ErrorKind::Unauthorized { UNAUTHORIZED_STEP } else { 0 };
                    prop_assert!(wait >= steps[0].min(steps[step.max(skips).min(steps.len() - 1)]));
                    prop_assert!(wait >= asked.min(DAY));
                }
            }
        }
    }
}
