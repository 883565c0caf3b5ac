//! What a destination said to being sent to, as far as this process knows.

use super::{Rate, lock};
use crate::clock::Micros;
use callback_core::{Destination, Dsn};
use std::{
    collections::VecDeque,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::{Mutex as Turn, MutexGuard},
    time::Instant,
};

/// How long nobody asks again for a Dsn whose destination did not consent, though other messages to it come.
pub(crate) const REFUSED_FOR: Duration = Duration::from_secs(5);

/// Of how many Dsns of a destination that is remembered.
const REMEMBERED: usize = 64;

/// A destination's consent, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredConsent {
    pub(crate) destination: Destination,
    pub(crate) per_minute: Option<NonZeroU32>,
    /// When it is asked again.
    pub(crate) until: Micros,
}

impl StoredConsent {
    /// Whether it counts: not for longer than it does now, so that a clock that was set back, or a setting that was changed,
    /// costs one question.
    pub(crate) fn counts(&self, now: Micros, age: Duration) -> bool {
        now < self.until && self.until <= now.after(age)
    }
}

/// What a destination said.
#[derive(Debug, Default)]
pub(crate) struct HostConsent {
    said: Mutex<Said>,
    /// One asks at a time.
    turn: Turn<()>,
}

#[derive(Debug, Default)]
struct Said {
    given: Option<StoredConsent>,
    /// How many requests it allows. That of a consent which counts no more binds until there is another.
    rate: Option<Arc<Rate>>,
    refused: VecDeque<(Dsn, Instant)>,
}

impl HostConsent {
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub(crate) fn is_given(&self, now: Micros, age: Duration) -> bool {
        lock(&self.said).given.as_ref().is_some_and(|given| given.counts(now, age))
    }

    /// Takes in what it said; the same rate goes on from where it is.
    pub(crate) fn give(&self, given: StoredConsent) {
        let mut said = lock(&self.said);
        let per_minute = |given: &StoredConsent| given.per_minute;
        if said.given.as_ref().map(per_minute) != Some(given.per_minute) {
            let rate = Rate::new(given.per_minute.map(|requests| f64::from(requests.get()) / 60.0));
            said.rate = rate.map(Arc::new);
        }
        said.given = Some(given);
        said.refused.clear();
    }

    /// Takes in that it did not consent when it was asked for this Dsn.
    pub(crate) fn refuse(&self, dsn: &Dsn, now: Instant) {
        let mut said = lock(&self.said);
        said.refused.retain(|(refused, _)| refused != dsn);
        if said.refused.len() >= REMEMBERED {
            said.refused.pop_front();
        }
        said.refused.push_back((dsn.clone(), now));
    }

    /// Whether it did not consent a moment ago.
    pub(crate) fn has_refused(&self, dsn: &Dsn, now: Instant) -> bool {
        let is_young = |at: Instant| now.saturating_duration_since(at) < REFUSED_FOR;
        lock(&self.said).refused.iter().any(|(refused, at)| refused == dsn && is_young(*at))
    }

    /// How many requests it allows; no limit if it has set none, or was not asked.
    pub(crate) fn rate(&self) -> Option<Arc<Rate>> {
        lock(&self.said).rate.clone()
    }

    /// Whether an attempt may begin that has a place of this rate: of one that was not known yet it takes a place.
    pub(crate) fn admits(&self, taken: Option<&Arc<Rate>>, now: Instant) -> bool {
        let Some(rate) = self.rate() else { return true };
        taken.is_some_and(|taken| Arc::ptr_eq(taken, &rate)) || Rate::take([&*rate], now)
    }

    /// Whether it must be remembered for what it allows.
    pub(crate) fn is_in_use(&self, now: Instant) -> bool {
        lock(&self.said).rate.as_ref().is_some_and(|rate| !rate.is_idle(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const NOW: Micros = Micros(1_000_000);

    fn dsn(path: usize) -> Dsn {
        format!("https://a/{path}").parse().expect("a Dsn")
    }

    fn consent(per_minute: u32) -> StoredConsent {
        let destination = dsn(0).destination();
        StoredConsent { destination, per_minute: NonZeroU32::new(per_minute), until: NOW.after(DAY) }
    }

    #[test]
    fn a_consent_counts_until_it_is_old_and_never_for_longer_than_one_of_today() {
        let given = consent(1);
        assert!(given.counts(NOW, DAY));
        assert!(given.counts(Micros(given.until.0 - 1), DAY));
        assert!(!given.counts(given.until, DAY));
        assert!(!given.counts(NOW, DAY / 2), "it shall count for a shorter time");
        assert!(!given.counts(Micros(NOW.0 - 1), DAY), "the clock was set back");
    }

    #[test]
    fn what_is_allowed_goes_on_where_it_is_until_something_else_is_said() {
        let (host, now) = (HostConsent::default(), Instant::now());
        assert!(host.admits(None, now), "nothing is said");
        host.give(consent(60));
        let taken = host.rate();
        assert!(host.admits(None, now));
        assert!(!host.admits(None, now), "the second comes a second later");
        assert!(host.admits(taken.as_ref(), now), "it has its place");
        host.give(consent(60));
        assert!(!host.admits(None, now), "the same was said again");
        assert!(host.is_in_use(now));
        assert!(!host.is_in_use(now + DAY));
        host.give(consent(120));
        assert!(host.admits(taken.as_ref(), now));
        assert!(!host.admits(taken.as_ref(), now), "its place is of another rate");
        host.give(consent(0));
        assert!(host.admits(None, now) && host.rate().is_none());
    }

    #[test]
    fn a_refusal_is_remembered_for_a_moment_and_for_its_dsn() {
        let (host, now) = (HostConsent::default(), Instant::now());
        host.refuse(&dsn(0), now);
        assert!(host.has_refused(&dsn(0), now));
        assert!(!host.has_refused(&dsn(1), now));
        assert!(!host.has_refused(&dsn(0), now + REFUSED_FOR));
        for path in 1..=REMEMBERED {
            host.refuse(&dsn(path), now);
        }
        assert!(!host.has_refused(&dsn(0), now) && host.has_refused(&dsn(1), now), "it is bounded");
        host.give(consent(1));
        assert!(!host.has_refused(&dsn(1), now));
    }
}
