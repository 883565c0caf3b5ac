//! How long a message waits in the broker that cannot be taken at once.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// The first wait of a message that nobody gives a time for; doubled with each further one.
const FIRST: Duration = Duration::from_secs(1);

/// The longest such wait.
const LONGEST: Duration = Duration::from_secs(60);

/// The shortest wait, whatever is asked for: a message must not go around without a pause.
const SHORTEST: Duration = Duration::from_millis(100);

/// How long a message is held at a time; RabbitMQ closes a channel that holds one for half an hour.
const HOLD: Duration = Duration::from_secs(5 * 60);

/// Of how many messages it is known that they wait.
const MOST: usize = 65_536;

/// What waits, by keys that are the same when a message comes again.
#[derive(Default)]
pub(super) struct Waits(HashMap<u64, Wait>);

struct Wait {
    since: Instant,
    times: u32,
    due: Instant,
    /// Since when its handle is unknown.
    unknown: Option<Instant>,
}

impl Waits {
    /// For how long a message that came again is to be held, if it was given back before its time.
    pub(super) fn left(&self, key: u64, now: Instant) -> Option<Duration> {
        let left = self.0.get(&key)?.due.saturating_duration_since(now);
        (!left.is_zero()).then(|| left.min(HOLD))
    }

    /// For how long a message is held that is wanted after this time, or at some time.
    pub(super) fn later(&mut self, key: u64, wait: Option<Duration>, now: Instant) -> Duration {
        let entry = self.entry(key, now);
        entry.unknown = None;
        postpone(entry, wait, now)
    }

    /// For how long a message is held whose handle is unknown, and since when that is; `None` if for longer than `keep`.
    pub(super) fn unknown(&mut self, key: u64, keep: Duration, now: Instant) -> Option<(Duration, Instant)> {
        let entry = self.entry(key, now);
        let since = *entry.unknown.get_or_insert(now);
        let left = keep.saturating_sub(now.saturating_duration_since(since));
        if left.is_zero() {
            self.done(key);
            return None;
        }
        Some((postpone(entry, None, now).min(left), since))
    }

    /// The message has its end.
    pub(super) fn done(&mut self, key: u64) {
        self.0.remove(&key);
    }

    fn entry(&mut self, key: u64, now: Instant) -> &mut Wait {
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            // The older half begins anew when it comes again.
            let mut since: Vec<Instant> = self.0.values().map(|wait| wait.since).collect();
            let (_, &mut median, _) = since.select_nth_unstable(MOST / 2);
            self.0.retain(|_, wait| wait.since > median);
        }
        self.0.entry(key).or_insert(Wait { since: now, times: 0, due: now, unknown: None })
    }
}

fn postpone(entry: &mut Wait, wait: Option<Duration>, now: Instant) -> Duration {
    let growing = FIRST.saturating_mul(1 << entry.times.min(10)).min(LONGEST);
    let wait = wait.unwrap_or(growing).max(SHORTEST);
    entry.times = entry.times.saturating_add(1);
    // A time that no clock can tell is far away all the same.
    entry.due = now.checked_add(wait).unwrap_or_else(|| now + HOLD);
    wait.min(HOLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_wait_without_a_time_grows_to_a_minute() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        let found: Vec<u64> = (0..9).map(|_| waits.later(1, None, now).as_secs()).collect();
        assert_eq!(found, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        waits.done(1);
        assert_eq!(waits.later(1, None, now), FIRST);
    }

    #[test]
    fn a_wait_with_a_time_is_kept_through_what_comes_again_too_early() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        assert_eq!(waits.later(1, Some(7 * SECOND), now), 7 * SECOND);
        assert_eq!(waits.left(1, now + 2 * SECOND), Some(5 * SECOND));
        assert_eq!(waits.left(1, now + 7 * SECOND), None);
        assert_eq!(waits.left(2, now), None);
        // One that is longer than a channel bears goes in pieces.
        assert_eq!(waits.later(1, Some(HOUR), now), HOLD);
        assert_eq!(waits.left(1, now + HOLD), Some(HOLD));
        assert_eq!(waits.left(1, now + HOUR - SECOND), Some(SECOND));
        assert_eq!(waits.later(1, Some(Duration::MAX), now), HOLD);
    }

    #[test]
    fn no_wait_is_shorter_than_a_tenth_of_a_second() {
        assert_eq!(Waits::default().later(1, Some(Duration::ZERO), Instant::now()), SHORTEST);
    }

    #[test]
    fn what_nobody_knows_ends_after_its_time() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        assert_eq!(waits.unknown(1, HOUR, now), Some((FIRST, now)));
        assert_eq!(waits.unknown(1, HOUR, now + SECOND), Some((2 * SECOND, now)));
        assert_eq!(waits.unknown(1, HOUR, now + HOUR - SECOND), Some((SECOND, now)), "not longer than it is kept");
        assert_eq!(waits.unknown(1, HOUR, now + HOUR), None);
        assert_eq!(waits.unknown(1, HOUR, now + HOUR), Some((FIRST, now + HOUR)), "it was forgotten");
        assert_eq!(waits.unknown(2, Duration::ZERO, now), None);
        // Who is known in between is waited for anew.
        waits.later(3, None, now);
        waits.unknown(3, HOUR, now);
        waits.later(3, None, now + HOUR);
        assert!(waits.unknown(3, HOUR, now + HOUR).is_some());
    }

    #[test]
    fn many_messages_have_a_bound() {
        let (mut waits, now) = (Waits::default(), Instant::now());
        for key in 0..3 * MOST as u64 {
            waits.later(key, Some(HOUR), now + Duration::from_millis(key));
            assert!(waits.0.len() <= MOST);
        }
        let last = 3 * MOST as u64 - 1;
        assert!(waits.left(last, now + Duration::from_millis(last)).is_some(), "the latest is known");
    }
}
