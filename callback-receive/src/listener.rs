//! What a transport implements, and what it is told.

use crate::{HandleId, Intake};
use async_trait::async_trait;
use bytes::Bytes;
use callback_core::{Dsn, Message, Problem};
use std::{fmt, time::Duration};

/// A transport that brings messages in: it gives handles their Dsns, offers what comes to the [`Intake`], and answers its
/// senders by the [`Verdict`].
///
/// # Dsn
/// A handle is a path, a channel, a routing key or a record key, so that its Dsn is made without I/O: whatever has to be
/// declared, bound or read first (an exchange, a queue, a topic's high watermark) is, before the listener is given to a
/// receiver. [`HandleId`] is text that all of them carry unchanged.
///
/// # Offering
/// Each message is offered once it is here to its last byte, never before; many at once, each offer on its own. A listener
/// keeps no id, no key and no handle: the receiver judges signatures and duplicates. Bodies larger than
/// [`Intake::body_limit`] need not be read to their end: they are answered as [`Verdict::TooLarge`].
///
/// An offer ends within the receiver's `answer_within`. Dropping its future (the sender went away) is allowed at any moment:
/// the message may be handed over, and is, or is known, when the sender comes again.
///
/// # Verdicts
/// Each is answered in the transport's own words, and **only** [`Verdict::Accepted`] and [`Verdict::Duplicate`] as taken.
///
/// | verdict | HTTP | WebSocket `callback.v1` | AMQP | Kafka |
/// |---|---|---|---|---|
/// | `Accepted` `Duplicate` | 200 | `{"ack":id}` | ack | the offset may be passed |
/// | `RetryLater` | 503, `Retry-After` | nack `later`, `retryAfter` | requeue after the wait | offered again after the wait; the offset is not passed |
/// | `Refused` | 403, problem | nack `refused` | reject, to the queue's dead letters | passed, counted |
/// | `Unverified` | 401 | nack `refused` | reject | passed, counted |
/// | `TooLarge` | 413 | close 1009 | reject | passed, counted |
/// | `Ended` | 410 | nack `gone` | reject | passed, counted |
/// | `Unknown` | 404 | nack `later` | requeue after a wait, and after `keep_unknown` reject | kept for `keep_unknown`, bounded by bytes, and offered again; without an inbox counted and passed |
///
/// An AMQP listener acknowledges after the verdict, never on arrival. A log (Kafka) has no acknowledgment but its offset:
/// it passes one when every record before it has a verdict that says so. So that a restart neither loses nor repeats, it
/// gives each message its [`Incoming::position`], which the inbox stores in the very transaction that stores the message,
/// and goes on after [`Intake::positions`]; what was read from a log and has no inbox begins at the high watermark again.
/// A position covers every record up to it: an offer that overtakes another gives the position before that other one.
/// Where a log [begins](Listener::begin) is stored before the receiver opens, and what is passed without a message to store
/// is stored by [`Intake::pass`].
///
/// # Liveness
/// What a broker or a log kept may be days old: its messages are [`Incoming::stored`], and their age is not judged. A live
/// transport (HTTP, WebSocket) leaves that out.
///
/// # Closing
/// After [`close`](Self::close) was called no new message is offered, offers that are under way are answered, and both
/// `close` and `listen` return. Idempotent. A receiver that closes answers offers with `RetryLater`.
#[async_trait]
pub trait Listener: fmt::Debug + Send + Sync + 'static {
    /// The Dsn of a handle: what a sender is told. Does no I/O.
    fn dsn(&self, handle: &HandleId) -> Dsn;

    /// Says after which position each log begins that the inbox does not know. Does no I/O.
    ///
    /// Called once, before [`listen`](Self::listen), if there is an inbox, with the positions that it has stored. What is given is
    /// stored before the receiver opens, so that no handle's Dsn is older than the beginning of its log. Default: no log.
    fn begin(&self, stored: &[(String, i64)]) -> Vec<(String, i64)> {
        let _ = stored;
        Vec::new()
    }

    /// Takes messages in until it is closed. Called once.
    async fn listen(&self, intake: Intake);

    /// Takes no more in, answers what is under way, and ends `listen`.
    async fn close(&self);
}

/// A message that came in, with what its sender signed it by.
#[derive(Clone)]
pub struct Incoming {
    pub(crate) message: Message,
    pub(crate) signed: Option<Box<Signed>>,
    pub(crate) is_stored: bool,
    pub(crate) position: Option<Position>,
}

/// A signature as it came.
#[derive(Clone, Default)]
pub(crate) struct Signed {
    pub(crate) timestamp: String,
    pub(crate) signature: String,
    /// What it is over, where that is not the message's body.
    pub(crate) content: Option<Bytes>,
}

/// Where in a log a message stood: log and offset.
pub(crate) type Position = (String, i64);

impl Incoming {
    /// A message without a signature, from a live transport.
    ///
    /// Its id is what duplicates are found by: the sender's delivery id, or one that nobody else has.
    #[must_use]
    pub const fn new(message: Message) -> Self {
        Self { message, signed: None, is_stored: false, position: None }
    }

    /// Adds the signature as it came: `webhook-timestamp` and `webhook-signature`, over the message's id and body.
    #[must_use]
    pub fn signed(mut self, timestamp: impl Into<String>, signature: impl Into<String>) -> Self {
        let signed = self.signed.get_or_insert_default();
        (signed.timestamp, signed.signature) = (timestamp.into(), signature.into());
        self
    }

    /// Says what the signature is over, where that is not the message's body: an event in structured mode, as it was sent.
    #[must_use]
    pub fn signed_content(mut self, content: impl Into<Bytes>) -> Self {
        self.signed.get_or_insert_default().content = Some(content.into());
        self
    }

    /// Says that a broker or a log kept it: its age is not judged.
    #[must_use]
    pub const fn stored(mut self) -> Self {
        self.is_stored = true;
        self
    }

    /// The message alone.
    pub(crate) fn into_message(self) -> Message {
        self.message
    }

    /// Says where in a log it stood: stored together with the message, if it is stored.
    ///
    /// `log` names one ordered log, a partition of a topic for example; a lower offset than the one known is not stored.
    #[must_use]
    pub fn position(mut self, log: impl Into<String>, offset: i64) -> Self {
        self.position = Some((log.into(), offset));
        self
    }
}

/// The message; no signature.
impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("message", &self.message)
            .field("is_signed", &self.signed.is_some())
            .field("is_stored", &self.is_stored)
            .finish_non_exhaustive()
    }
}

/// What the sender of a message is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It was handed over and accepted, or it was stored.
    Accepted,
    /// It was accepted or stored before.
    Duplicate,
    /// The handle was this receiver's, and has ended.
    Ended,
    /// The waiting code does not want it.
    Refused(Problem),
    /// Not now: nobody has answered in time, the handle has no room, the inbox failed, or the code asks for a wait.
    RetryLater(Option<Duration>),
    /// The body is larger than the limit.
    TooLarge,
    /// The handle is none of this receiver's.
    Unknown,
    /// A signature is wanted, and this is none that counts.
    Unverified,
}

impl Verdict {
    /// Whether the sender may forget the message.
    #[must_use]
    pub const fn is_taken(&self) -> bool {
        matches!(self, Self::Accepted | Self::Duplicate)
    }
}
