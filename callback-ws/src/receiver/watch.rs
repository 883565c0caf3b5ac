//! How long a connection may be silent, a message take, and an answer go unread: times alone, no I/O.

use std::time::Duration;
use tokio::time::Instant;

/// After how much silence a peer is pinged, and how long it may stay silent after that.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long a peer may not read what it is told, and how long the last answers may take.
const STUCK: Duration = Duration::from_secs(30);

/// What a connection looks like at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// How many bytes were read, ever.
    pub(super) read: u64,
    /// Whether a part of a message is there.
    pub(super) is_partial: bool,
    /// Whether anything is read at all.
    pub(super) is_reading: bool,
    /// Whether the peer does not take what is written.
    pub(super) is_blocked: bool,
    /// Whether only the last answers are awaited.
    pub(super) is_ending: bool,
}

/// What is to be done as time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing until this moment.
    Nothing(Instant),
    Ping,
    /// A message takes too long.
    Slow,
    /// The peer is of no use any more.
    Dead,
}

/// The times of one connection.
#[derive(Debug)]
pub(super) struct Watch {
    message_time: Duration,
    read: u64,
    /// Since when nothing was heard.
    silent: Instant,
    is_pinged: bool,
    partial: Option<Instant>,
    blocked: Option<Instant>,
    ending: Option<Instant>,
}

impl Watch {
    pub(super) fn new(message_time: Duration, now: Instant) -> Self {
        Self { message_time, read: 0, silent: now, is_pinged: false, partial: None, blocked: None, ending: None }
    }

    /// Takes note of what there is.
    pub(super) fn see(&mut self, seen: Seen, now: Instant) {
        if seen.read != self.read || !seen.is_reading {
            (self.read, self.silent, self.is_pinged) = (seen.read, now, false);
        }
        let since = |before: Option<Instant>, is: bool| is.then(|| before.unwrap_or(now));
        // What is not read cannot become whole.
        self.partial = since(self.partial, seen.is_partial && seen.is_reading);
        self.blocked = since(self.blocked, seen.is_blocked);
        self.ending = since(self.ending, seen.is_ending);
    }

    /// A whole message came: the time of the next one begins anew.
    pub(super) fn message(&mut self) {
        self.partial = None;
    }

    /// What is due; each ping is asked for once.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        let is_over = |since: Option<Instant>, time: Duration| since.is_some_and(|since| now >= since + time);
        if is_over(self.blocked, STUCK) || is_over(self.ending, STUCK) {
            return Due::Dead;
        }
        if is_over(self.partial, self.message_time) {
            return Due::Slow;
        }
        if now >= self.silent + KEEP_ALIVE {
            if self.is_pinged {
                return Due::Dead;
            }
            (self.is_pinged, self.silent) = (true, now);
            return Due::Ping;
        }
        Due::Nothing(self.next())
    }

    /// When to ask for what is due, at the latest.
    pub(super) fn next(&self) -> Instant {
        let times = [
            self.partial.map(|since| since + self.message_time),
            self.blocked.map(|since| since + STUCK),
            self.ending.map(|since| since + STUCK),
        ];
        times.into_iter().flatten().fold(self.silent + KEEP_ALIVE, Instant::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: Duration = Duration::from_secs(30);
    const READING: Seen = Seen { read: 0, is_partial: false, is_reading: true, is_blocked: false, is_ending: false };

    /// What becomes due at which second, while a connection looks like this.
    #[track_caller]
    fn check(seen: Seen, expected: &[(u64, Due)]) {
        let start = Instant::now();
        let mut watch = Watch::new(MESSAGE, start);
        let (mut now, mut found) = (start, Vec::new());
        watch.see(seen, now);
        while now < start + Duration::from_secs(61) {
            match watch.due(now) {
                Due::Nothing(until) => now = until,
                due => {
                    found.push(((now - start).as_secs(), due));
                    if due != Due::Ping {
                        break;
                    }
                }
            }
            watch.see(seen, now);
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn who_is_silent_is_pinged_and_then_cut_off() {
        check(READING, &[(20, Due::Ping), (40, Due::Dead)]);
    }

    #[test]
    fn a_message_that_does_not_become_whole_is_too_slow() {
        check(Seen { is_partial: true, ..READING }, &[(20, Due::Ping), (30, Due::Slow)]);
    }

    #[test]
    fn who_does_not_read_is_cut_off() {
        check(Seen { is_blocked: true, ..READING }, &[(20, Due::Ping), (30, Due::Dead)]);
        check(Seen { is_blocked: true, is_reading: false, ..READING }, &[(30, Due::Dead)]);
    }

    #[test]
    fn the_last_answers_have_a_time() {
        check(Seen { is_ending: true, is_reading: false, ..READING }, &[(30, Due::Dead)]);
    }

    #[test]
    fn who_is_not_read_from_is_not_silent_and_not_slow() {
        check(Seen { is_reading: false, is_partial: true, ..READING }, &[]);
    }

    #[test]
    fn who_is_heard_is_not_pinged() {
        let start = Instant::now();
        let mut watch = Watch::new(MESSAGE, start);
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            watch.see(Seen { read: second, ..READING }, now);
            assert!(matches!(watch.due(now), Due::Nothing(_)), "{second}");
        }
    }

    #[test]
    fn messages_one_after_the_other_have_a_time_each() {
        let start = Instant::now();
        let mut watch = Watch::new(MESSAGE, start);
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            watch.message();
            watch.see(Seen { read: second, is_partial: true, ..READING }, now);
            assert!(matches!(watch.due(now), Due::Nothing(_)), "{second}");
        }
    }
}
