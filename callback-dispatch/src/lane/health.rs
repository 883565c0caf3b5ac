//! What is known of a far end, and how much is sent there because of it: pure.

use super::Lane;
use callback_core::{ErrorKind, Phase, Receipt, SinkError};
use std::time::Duration;
use tokio::time::Instant;

/// The longest that a lane stays closed without being tried.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How long a lane pauses that was told to slow down, but not for how long.
const SLOW_DOWN: Duration = Duration::from_secs(5);

/// What an attempt says of the far end, whatever it says of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It answered.
    Reached,
    /// No way there, or no answer within the deadline.
    Unreachable,
    /// It asks to be left alone for this long.
    Throttled(Duration),
    /// Nothing.
    None,
}

impl Sign {
    /// Only the name, the connection, TLS and the deadline speak of the host; a status counts against its Dsn.
    pub(crate) fn of(answer: Result<&Receipt, &SinkError>) -> Self {
        let Err(error) = answer else { return Self::Reached };
        match (error.kind(), error.phase()) {
            (ErrorKind::TimedOut, _) => Self::Unreachable,
            (ErrorKind::Unavailable, Some(Phase::Resolve | Phase::Connect | Phase::Tls)) => Self::Unreachable,
            (ErrorKind::Throttled, _) => Self::Throttled(error.retry_after().unwrap_or(SLOW_DOWN).min(LONGEST_PAUSE)),
            _ if error.status().is_some() => Self::Reached,
            _ => Self::None,
        }
    }
}

/// What is known of a lane's far end.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    /// Attempts at once: grows with what succeeds, up to the lane's bound.
    window: usize,
    /// Whether the last sign was that it can be reached.
    proven: bool,
    /// Signs in a row that it cannot be reached.
    failures: u32,
    /// How often the breaker opened since it was last reached.
    opened: u32,
    closed_until: Option<Instant>,
}

/// What became of the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaker {
    Opened { pause: Duration, times: u32 },
    Closed,
}

impl Health {
    /// Nothing is known: one attempt at a time, until the first succeeds.
    pub(crate) const fn new() -> Self {
        Self { window: 1, proven: false, failures: 0, opened: 0, closed_until: None }
    }

    /// As it was before a restart.
    pub(crate) fn reopened(times: u32, left: Duration, now: Instant) -> Self {
        Self { opened: times, closed_until: Some(now + left.min(LONGEST_PAUSE)), ..Self::new() }
    }

    pub(crate) const fn window(&self) -> usize {
        self.window
    }

    /// Whether the last that was heard is not good, or nothing was heard yet.
    pub(crate) const fn is_doubtful(&self) -> bool {
        !self.proven
    }

    /// Until when nothing is sent.
    pub(crate) fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.closed_until.filter(|until| *until > now)
    }

    /// Sends again at once, whatever pause it was asked for.
    pub(crate) const fn open(&mut self) {
        self.closed_until = None;
    }

    /// Takes in what an attempt said.
    pub(crate) fn after(&mut self, sign: Sign, bounds: &Lane, now: Instant) -> Option<Breaker> {
        match sign {
            Sign::Reached => {
                self.window = self.window.saturating_mul(2).min(bounds.in_flight);
                self.proven = true;
                self.failures = 0;
                let was_open = std::mem::take(&mut self.opened) > 0;
                if was_open {
                    self.closed_until = None;
                }
                was_open.then_some(Breaker::Closed)
            }
            Sign::Unreachable => {
                self.window = 1;
                self.proven = false;
                self.failures = self.failures.saturating_add(1);
                let is_open = self.closed_until(now).is_some();
                // One that was open is tried once, and needs no second sign.
                if is_open || (self.opened == 0 && self.failures < bounds.failures) {
                    return None;
                }
                self.opened = self.opened.saturating_add(1);
                let factor = 1 << (self.opened - 1).min(16);
                let pause = bounds.pause.saturating_mul(factor).min(LONGEST_PAUSE);
                self.closed_until = Some(now + pause);
                Some(Breaker::Opened { pause, times: self.opened })
            }
            Sign::Throttled(wait) => {
                self.closed_until = self.closed_until.max(Some(now + wait));
                None
            }
            Sign::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::Evidence;

    const PAUSE: Duration = Duration::from_secs(30);

    fn bounds() -> Lane {
        Lane::default().in_flight(10).breaker(3, PAUSE)
    }

    #[test]
    fn only_what_speaks_of_the_host_is_a_sign() {
        let unavailable = || SinkError::unavailable("x");
        for (error, sign) in [
            (SinkError::timed_out("x"), Sign::Unreachable),
            (unavailable().with_phase(Phase::Resolve), Sign::Unreachable),
            (unavailable().with_phase(Phase::Connect), Sign::Unreachable),
            (unavailable().with_phase(Phase::Tls), Sign::Unreachable),
            (unavailable().with_phase(Phase::Write), Sign::None),
            (unavailable().with_phase(Phase::Answer).with_status(500), Sign::Reached),
            (SinkError::refused("x").with_status(400), Sign::Reached),
            (SinkError::forbidden("x"), Sign::None),
            (SinkError::throttled("x"), Sign::Throttled(SLOW_DOWN)),
            (SinkError::throttled("x").with_retry_after(PAUSE), Sign::Throttled(PAUSE)),
            (SinkError::throttled("x").with_retry_after(Duration::MAX), Sign::Throttled(LONGEST_PAUSE)),
        ] {
            assert_eq!(Sign::of(Err(&error)), sign, "{error:?}");
        }
        assert_eq!(Sign::of(Ok(&Receipt::new(Evidence::Acknowledged))), Sign::Reached);
    }

    #[test]
    fn the_window_grows_with_each_success_and_falls_to_one() {
        let (mut health, now) = (Health::new(), Instant::now());
        assert!(health.is_doubtful());
        let grown: Vec<usize> = (0..5)
            .map(|_| {
                health.after(Sign::Reached, &bounds(), now);
                health.window()
            })
            .collect();
        assert_eq!(grown, [2, 4, 8, 10, 10]);
        health.after(Sign::Unreachable, &bounds(), now);
        assert_eq!(health.window(), 1);
        assert!(health.is_doubtful());
    }

    #[test]
    fn the_breaker_opens_after_so_many_signs_in_a_row() {
        let (mut health, now) = (Health::new(), Instant::now());
        for sign in [Sign::Unreachable, Sign::Unreachable, Sign::Reached, Sign::Unreachable, Sign::None] {
            assert_eq!(health.after(sign, &bounds(), now), None);
        }
        assert_eq!(health.after(Sign::Unreachable, &bounds(), now), None);
        let opened = Breaker::Opened { pause: PAUSE, times: 1 };
        assert_eq!(health.after(Sign::Unreachable, &bounds(), now), Some(opened));
        assert_eq!(health.closed_until(now), Some(now + PAUSE));
        assert_eq!(health.closed_until(now + PAUSE), None);
        assert_eq!(health.after(Sign::Unreachable, &bounds(), now), None, "what was in flight counts once");
    }

    #[test]
    fn a_probe_that_fails_opens_it_for_twice_as_long_up_to_ten_minutes() {
        let (mut health, mut now) = (Health::new(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..40 {
            if let Some(Breaker::Opened { pause, .. }) = health.after(Sign::Unreachable, &bounds(), now) {
                pauses.push(pause.as_secs());
                now += pause;
            }
        }
        assert_eq!(pauses[..6], [30, 60, 120, 240, 480, 600]);
        assert_eq!(pauses.last(), Some(&600));
    }

    #[test]
    fn a_probe_that_is_answered_closes_it() {
        let now = Instant::now();
        let mut health = Health::reopened(3, PAUSE, now);
        assert!(health.closed_until(now).is_some());
        assert_eq!(health.after(Sign::Reached, &bounds(), now + PAUSE), Some(Breaker::Closed));
        assert_eq!(health.closed_until(now), None);
        assert_eq!(health.after(Sign::Unreachable, &bounds(), now), None, "it counts from the beginning");
    }

    #[test]
    fn who_asks_for_a_pause_gets_it_without_a_breaker() {
        let (mut health, now) = (Health::new(), Instant::now());
        assert_eq!(health.after(Sign::Throttled(PAUSE), &bounds(), now), None);
        assert_eq!(health.after(Sign::Throttled(PAUSE / 2), &bounds(), now), None);
        assert_eq!(health.closed_until(now), Some(now + PAUSE));
        assert_eq!(health.after(Sign::Reached, &bounds(), now), None);
        assert_eq!(health.closed_until(now), Some(now + PAUSE), "an answer to an earlier attempt is no leave");
    }
}
