//! The frames in flight on one connection, and what the peer says of them: a state machine without I/O.
//!
//! Time is an argument. A token stands for whoever waits for a frame; it is given back once, with what became of it.

use crate::{
    outcome::{self, Failure},
    wire::{self, Subprotocol, Verdict},
};
use callback_core::{MessageId, Phase, Receipt};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How many frames may be unacknowledged.
pub(crate) const WINDOW: u16 = 256;

/// How often a peer is pinged. One that says nothing from one ping to the next is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How long a frame may go unanswered at least, however soon its own deadline was.
const GRACE: Duration = Duration::from_secs(5);

/// For how long overdue frames keep their places on a connection on which nobody else waits.
const OVERDUE_LIMIT: Duration = Duration::from_secs(60);

/// How often the deadlines of frames in flight are looked at.
const TICK: Duration = Duration::from_secs(1);

/// How many frames may be in flight to a Dsn: all of the window, or one at a time until the culprit is found.
///
/// It outlives the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    /// How many acknowledgments are missing until the window is open again.
    missing: u16,
}

impl Pace {
    pub(crate) const ONE_AT_A_TIME: Self = Self { missing: WINDOW };

    pub(crate) fn window(self) -> usize {
        if self.missing == 0 { usize::from(WINDOW) } else { 1 }
    }

    fn acknowledged(&mut self) {
        self.missing = self.missing.saturating_sub(1);
    }
}

/// A frame that was written, and not answered yet.
#[derive(Debug)]
struct Flight<T> {
    id: MessageId,
    token: T,
    written: Instant,
    deadline: Instant,
    /// How much was heard of the peer before.
    heard: u64,
    /// The pong to this ping, or to a later one, says that the peer has read the frame.
    ping: u64,
}

impl<T> Flight<T> {
    /// From when on nobody waits for it.
    fn overdue_at(&self) -> Instant {
        self.deadline.max(self.written + GRACE)
    }
}

/// What has become of a frame.
pub(crate) type Settled<T> = (T, Result<Receipt, Failure>);

/// What a peer sent, bar its close.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Incoming<'a> {
    Text(&'a str),
    Binary,
    Ping,
    Pong(&'a [u8]),
}

/// A frame that the subprotocol does not know: the connection ends with 1008.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown;

/// What is to be done as time passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing until this moment.
    Nothing(Instant),
    /// A ping with this payload.
    Ping([u8; 8]),
    /// The connection has had no work for long.
    Idle,
    /// The connection is of no use any more, for this reason.
    Dead(&'static str),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed it, with a code or without.
    Closed(Option<u16>),
    /// It broke, or we ended it, for this reason.
    Broken(&'static str),
    /// We ended it, whatever was on it: as if it had never been.
    Stopped,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Session<T> {
    subprotocol: Subprotocol,
    pace: Pace,
    in_flight: VecDeque<Flight<T>>,
    /// The number of the last ping.
    pings: u64,
    /// Whether a frame waits for a ping after it.
    unpinged: bool,
    /// How long it may be without work; for ever, where there is no limit.
    idle: Option<Duration>,
    used: Instant,
    /// How many frames came in.
    heard: u64,
    opened: Instant,
    /// When the last ping of the keep-alive was sent, and how much was heard before.
    kept_alive: Option<(Instant, u64)>,
    acknowledged: u64,
}

impl<T> Session<T> {
    pub(crate) fn new(subprotocol: Subprotocol, pace: Pace, idle: Option<Duration>, now: Instant) -> Self {
        Self {
            subprotocol,
            pace,
            in_flight: VecDeque::new(),
            pings: 0,
            unpinged: false,
            idle,
            used: now,
            heard: 0,
            opened: now,
            kept_alive: None,
            acknowledged: 0,
        }
    }

    pub(crate) fn subprotocol(&self) -> Subprotocol {
        self.subprotocol
    }

    /// Whether one more frame may be written.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight.len() < self.pace.window()
    }

    /// How many frames were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// A frame is on its way.
    pub(crate) fn written(&mut self, id: MessageId, token: T, deadline: Instant, now: Instant) {
        self.in_flight.push_back(Flight { id, token, written: now, deadline, heard: self.heard, ping: self.pings + 1 });
        self.unpinged = true;
        self.used = now;
    }

    /// The ping that is to follow the frames that were written, where a pong is the evidence.
    pub(crate) fn ping(&mut self) -> Option<[u8; 8]> {
        (self.unpinged && !self.subprotocol.acknowledges()).then(|| self.next_ping())
    }

    fn next_ping(&mut self) -> [u8; 8] {
        self.pings += 1;
        self.unpinged = false;
        self.pings.to_be_bytes()
    }

    /// Takes in what the peer sent.
    pub(crate) fn received(&mut self, incoming: Incoming<'_>, now: Instant) -> Result<Vec<Settled<T>>, Unknown> {
        self.heard += 1;
        let settled = match incoming {
            Incoming::Text(text) if self.subprotocol.acknowledges() => {
                let answer = wire::answer(text).ok_or(Unknown)?;
                self.settle(|flight| flight.id.as_str() == answer.id, answer.verdict)
            }
            Incoming::Binary if self.subprotocol.acknowledges() => return Err(Unknown),
            Incoming::Pong(payload) if !self.subprotocol.acknowledges() => match payload.try_into() {
                // RFC 6455 §5.5.3: a pong to the last of several pings answers all of them.
                Ok(payload) if u64::from_be_bytes(payload) <= self.pings => {
                    let number = u64::from_be_bytes(payload);
                    self.settle(|flight| flight.ping <= number, Verdict::Acknowledged)
                }
                _ => Vec::new(),
            },
            Incoming::Text(_) | Incoming::Binary | Incoming::Ping | Incoming::Pong(_) => Vec::new(),
        };
        if !settled.is_empty() {
            self.used = now;
        }
        Ok(settled)
    }

    /// Settles every frame that is meant: of one message several may be in flight, from several attempts.
    fn settle(&mut self, is_meant: impl Fn(&Flight<T>) -> bool, verdict: Verdict) -> Vec<Settled<T>> {
        let mut settled = Vec::new();
        let mut at = 0;
        while let Some(flight) = self.in_flight.get(at) {
            if !is_meant(flight) {
                at += 1;
                continue;
            }
            let Some(flight) = self.in_flight.remove(at) else { break };
            if verdict == Verdict::Acknowledged {
                self.pace.acknowledged();
                self.acknowledged += 1;
            }
            let judged = match verdict {
                Verdict::Acknowledged => Ok(outcome::receipt(self.subprotocol)),
                _ => outcome::judge(verdict),
            };
            settled.push((flight.token, judged));
        }
        settled
    }

    /// What is to be done now, and when to ask again.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        if let Some(reason) = self.is_dead(now) {
            return Due::Dead(reason);
        }
        if let Some(idle) = self.idle
            && self.in_flight.is_empty()
            && now >= self.used + idle
        {
            return Due::Idle;
        }
        if now >= self.keep_alive_at() || self.is_in_doubt(now) {
            self.kept_alive = Some((now, self.heard));
            return Due::Ping(self.next_ping());
        }
        Due::Nothing(self.next(now))
    }

    /// When to ask for what is due, at the latest.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        let soon = if self.in_flight.is_empty() { None } else { Some(now + TICK) };
        let idle = self.idle.filter(|_| self.in_flight.is_empty()).map(|idle| self.used + idle);
        [soon, idle].into_iter().flatten().fold(self.keep_alive_at(), Instant::min)
    }

    fn keep_alive_at(&self) -> Instant {
        self.kept_alive.map_or(self.opened, |(pinged, _)| pinged) + KEEP_ALIVE
    }

    /// When the first of the overdue frames was written after which nothing at all was heard.
    fn unheard(&self, now: Instant) -> Option<Instant> {
        let unheard = self.in_flight.iter().find(|flight| flight.heard == self.heard && now >= flight.overdue_at());
        unheard.map(|flight| flight.written)
    }

    /// Whether the peer may be gone, and was not asked yet.
    fn is_in_doubt(&self, now: Instant) -> bool {
        self.unheard(now).is_some_and(|written| self.kept_alive.is_none_or(|(pinged, _)| pinged < written))
    }

    fn is_dead(&self, now: Instant) -> Option<&'static str> {
        if let Some((pinged, heard)) = self.kept_alive
            && self.heard == heard
            && (now >= pinged + KEEP_ALIVE || (now >= pinged + GRACE && self.unheard(now).is_some()))
        {
            return Some("the peer does not answer pings");
        }
        let overdue = self.in_flight.iter().filter(|flight| now >= flight.overdue_at()).count();
        // They disturb nobody, until they take the places of others.
        let first = self.in_flight.iter().map(Flight::overdue_at).min()?;
        let is_all = overdue == self.in_flight.len() && now >= first + OVERDUE_LIMIT;
        let is_many = overdue * 2 >= self.pace.window();
        (overdue > 0 && (is_all || is_many)).then_some("the peer does not acknowledge")
    }

    /// The connection has ended: gives back what was not answered, and the pace for the next connection.
    ///
    /// A close code judges a message only if it alone was unacknowledged.
    pub(crate) fn end(self, end: End) -> (Vec<(T, Failure)>, Pace) {
        let is_alone = self.in_flight.len() == 1;
        let failure = match end {
            End::Closed(code) if is_alone => outcome::closed(code),
            End::Closed(code) => outcome::closed_among_several(code),
            End::Broken(reason) => Failure::unavailable(Phase::Answer, reason),
            End::Stopped => Failure::unavailable(Phase::Connect, "the connection was closed"),
        };
        let pace = match end {
            End::Closed(code) if self.in_flight.len() > 1 && outcome::is_about_a_message(code) => Pace::ONE_AT_A_TIME,
            _ => self.pace,
        };
        (self.in_flight.into_iter().map(|flight| (flight.token, failure.clone())).collect(), pace)
    }
}

#[cfg(test)]
mod tests;
