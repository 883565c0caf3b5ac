//! Where tasks and undelivered messages live until they end.

mod attachment;
mod codec;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

pub(crate) use attachment::{
    Attaching, AttachmentId, AttachmentRow, Holder, Keep, Keeping, Parked, Parking, SecretDigest,
};
pub use memory::MemoryOutbox;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOutbox, PostgresOutboxBuilder};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteOutbox;

#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::{AcceptError, transaction::Connection};
use crate::{
    clock::Micros,
    dead_letter::{Cursor, DeadLetter, DeadLetterQuery, Page},
    lane::{LaneKey, OpenBreaker, StoredConsent},
    row::{FailedRow, Order, Published, Row, Stage, Stored},
    subscription::{FanOut, SubscriptionEnd, SubscriptionId, SubscriptionQuery, SubscriptionRow},
};
use async_trait::async_trait;
use callback_core::{BoxError, Destination, Dsn, ErrorKind, TaskId};
use std::{error::Error, fmt, sync::Arc};
use tokio::sync::oneshot;

/// Where tasks and undelivered messages live: [`MemoryOutbox`], `SqliteOutbox` or `PostgresOutbox`.
///
/// The trait is sealed: what the engine asks of an outbox changes with the engine.
pub trait Outbox: Erase + fmt::Debug + Send + Sync + 'static {}

/// Takes the type off an outbox.
#[expect(unnameable_types, reason = "seals `Outbox`")]
pub trait Erase {
    fn erase(&self) -> Erased;
}

/// An outbox without its type, so that no handle carries it.
#[expect(unnameable_types, reason = "seals `Outbox`")]
#[derive(Debug)]
pub struct Erased(pub(crate) Arc<dyn Store>);

impl<O: Outbox + ?Sized> Outbox for Arc<O> {}

impl<O: Outbox + ?Sized> Erase for Arc<O> {
    fn erase(&self) -> Erased {
        (**self).erase()
    }
}

/// What an outbox does for the engine.
#[async_trait]
pub(crate) trait Store: fmt::Debug + Send + Sync + 'static {
    /// Takes the outbox for one dispatcher, and gives back what a dead process held.
    async fn start(&self) -> Result<(), OutboxError>;

    /// Queues a write. `done` is called once, when it is stored or has failed, whatever becomes of the caller.
    fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued>;

    /// Stores a new row in a transaction of the user's own, in nobody's hands.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    async fn insert_in(&self, connection: Connection<'_>, row: Arc<Row>) -> Result<Written, AcceptError>;

    /// Stores an event in a transaction of the user's own, with a delivery to each subscription that wants it.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    async fn publish_in(&self, connection: Connection<'_>, event: &FanOut) -> Result<u64, AcceptError>;

    /// The subscription of this id.
    async fn subscription(&self, id: SubscriptionId) -> Result<Option<SubscriptionRow>, OutboxError>;

    /// A page of subscriptions, by their ids; what cannot be read is left out.
    async fn subscriptions(&self, query: &SubscriptionQuery) -> Result<Page<SubscriptionRow>, OutboxError>;

    /// Looks for what a claim takes, where that holds up no write; nothing if there is nothing.
    async fn look(&self, claim: Claim) -> Result<Option<Claim>, OutboxError> {
        Ok(Some(claim))
    }

    /// When the next row that nobody holds is due, after `after`.
    async fn next_due(&self, after: Micros) -> Result<Option<Micros>, OutboxError>;

    /// When the next pending row expires that no other process has in hand.
    async fn next_expiry(&self) -> Result<Option<Micros>, OutboxError>;

    /// The row of this id.
    async fn find(&self, id: TaskId) -> Result<Option<Row>, OutboxError>;

    /// Whether others than its dispatcher can store something.
    fn is_shared(&self) -> bool;

    /// Whether others may have stored something since the last question.
    async fn others_wrote(&self) -> Result<bool, OutboxError>;

    /// The workers that accepted work waits for which nobody holds.
    async fn waiting_workers(&self) -> Result<Vec<String>, OutboxError>;

    /// How many rows nobody holds, and when the first of those that are due by `now` was due.
    async fn depth(&self, now: Micros) -> Result<(u64, Option<Micros>), OutboxError>;

    /// The breakers that were open when last heard of; what cannot be read is left out.
    async fn breakers(&self) -> Result<Vec<OpenBreaker>, OutboxError>;

    /// What is stored of a destination's consent, whether it counts still or not.
    async fn consent(&self, destination: &Destination) -> Result<Option<StoredConsent>, OutboxError>;

    /// A page of dead letters; what cannot be read is left out of it.
    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, OutboxError>;

    /// The places of those that the query asks for, readable or not.
    async fn dead_places(&self, query: &DeadLetterQuery) -> Result<Vec<Cursor>, OutboxError>;

    async fn dead_letter(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError>;

    /// The lease under which this process takes something into its hands: another one, each time that the last one was over.
    fn lease(&self) -> Lease {
        Lease::default()
    }

    /// Whether nobody else can have been given what was taken under this lease; if not, nothing of it is begun.
    fn is_leased(&self, _lease: Lease) -> bool {
        true
    }

    /// Settles what is queued and lets go of everything.
    async fn close(&self);
}

/// The number of a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease(pub(crate) u64);

/// Called once with what became of a write.
pub(crate) type Done = Box<dyn FnOnce(Result<Written, OutboxError>) + Send>;

/// Queues a write and waits for what becomes of it.
pub(crate) async fn write(store: &dyn Store, write: Write) -> Result<Written, OutboxError> {
    let (sender, receiver) = oneshot::channel();
    let done = Box::new(move |result| drop(sender.send(result)));
    store.submit(write, done)?;
    receiver.await.unwrap_or_else(|_| Err(OutboxError::unknown("the outbox was closed")))
}

/// Looks and takes, as the engine does.
#[cfg(test)]
pub(crate) async fn take(store: &dyn Store, claim: Claim) -> Vec<Row> {
    let Some(claim) = store.look(claim).await.expect("readable") else { return Vec::new() };
    match write(store, Write::Claim(claim)).await.expect("stored") {
        Written::Claimed(rows) => rows,
        other => panic!("{other:?}"),
    }
}

/// One change to an outbox.
///
/// A row with an order takes its turn when its message is stored, and is due when it is the first of its key. When it ends
/// the next one is.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// A new row, unless there is one of its idempotency key.
    Insert(Arc<Row>),
    /// An event, with a delivery to each subscription that wants it: as many as are counted. In nobody's hands.
    Publish(Arc<FanOut>),
    /// A new subscription, unless its owner has so many by then that have not ended. Without an owner there is no limit.
    Subscribe {
        row: Arc<SubscriptionRow>,
        limit: usize,
    },
    /// What changes of one that has not ended, if its revision was the one before.
    ChangeSubscription(Arc<SubscriptionRow>),
    /// The end of one that has none.
    EndSubscription {
        id: SubscriptionId,
        end: SubscriptionEnd,
        now: Micros,
    },
    /// Makes known what became of an insert of unknown outcome: `Done` if the row is stored, `Unknown` if it is not, and never
    /// will be.
    Confirm {
        id: TaskId,
    },
    /// The same for an event that was published: `Done` if it is stored. What nobody wants never is.
    ConfirmEvent(Arc<FanOut>),
    /// A result, and the events that were published with it, if the row is open and the token is current.
    Result {
        id: TaskId,
        token: u32,
        to: Stage,
        held: bool,
        now: Micros,
        result: Arc<Stored>,
        order: Option<Order>,
        events: Vec<Published>,
    },
    /// The work is done elsewhere; the events that were published so far, if the row is open and the token current.
    Defer {
        id: TaskId,
        token: u32,
        events: Vec<Published>,
    },
    /// A step of a row that is at `from` with this token.
    Settle(Settle),
    /// The end of a row that has none.
    Cancel {
        id: TaskId,
        now: Micros,
    },
    /// New deliveries of dead rows.
    Replay {
        ids: Vec<TaskId>,
        now: Micros,
    },
    /// A new delivery of a dead row, its message under another id.
    ReplayAsNew {
        id: TaskId,
        now: Micros,
        result: Arc<Stored>,
    },
    /// Deletes dead rows, with their attempts.
    Purge {
        ids: Vec<TaskId>,
        now: Micros,
    },
    /// Gives up messages to this Dsn that nobody holds, and ends the subscriptions to it.
    Bury {
        dsn: Dsn,
        now: Micros,
        limit: usize,
    },
    /// Ends what is not over by now, and that no other process has in hand.
    Expire {
        now: Micros,
        limit: usize,
    },
    /// Deletes what has ended before then, but for dead rows, and subscriptions that a row is left of; what has an
    /// idempotency key has a time of its own, and so have breakers, which attachments and consents
    /// share. Ends the subscriptions that have got the one event that they may get, and have no open row of it left,
    /// however that ended.
    Clean {
        now: Micros,
        before: Micros,
        keyed_before: Micros,
        breakers_before: Micros,
        limit: usize,
    },
    /// Takes due rows into the caller's hands.
    Claim(Claim),
    /// Gives back what a claim of this process took, whose answer was lost, and nothing that went on since.
    GiveBack {
        claim: u32,
    },
    /// Gives up free rows of these lanes that were first due before.
    Age {
        lanes: Vec<LaneKey>,
        before: Micros,
        now: Micros,
        limit: usize,
    },
    /// Brings due times near that a clock put far off which was set back since.
    PullIn(PullIn),
    OpenBreaker(OpenBreaker),
    CloseBreaker(LaneKey),
    /// A Dsn comes to this process: as many rows of it are due as are counted. `Unknown` if who comes back is not known,
    /// `Superseded` without a lease.
    Attach(Attaching),
    /// Makes rows of this Dsn due that nobody holds; how many.
    Rouse {
        dsn: Dsn,
        now: Micros,
        limit: usize,
    },
    /// A row waits until its Dsn is attached: `Parked` says where that is.
    Park(Parking),
    /// What became of attachments of this process: `Replaced` names those whose place another has taken.
    KeepAttached(Vec<Keeping>),
    /// What a destination said, in place of what it said before.
    Consent(StoredConsent),
    /// Gives back what a dead process held.
    Recover,
    /// A change of what is sealed by which key.
    #[cfg(feature = "seal")]
    Seal(SealStep),
}

/// A step on the way from one key to another.
#[cfg(feature = "seal")]
#[derive(Clone, Debug)]
pub(crate) enum SealStep {
    /// Values are sealed with this key from now on.
    Learn { key: String, proof: Vec<u8> },
    /// The first key seals some of the rows after this one.
    Rows { after: i64 },
    /// The same for failed attempts.
    Attempts { after: i64 },
    /// The same for events that several get.
    Payloads { after: i64 },
    /// The same for subscriptions.
    Subscriptions { after: i64 },
    /// No value is sealed with any key but the first.
    Forget,
}

/// A step of one row.
#[derive(Clone, Debug)]
pub(crate) struct Settle {
    pub(crate) id: TaskId,
    pub(crate) token: u32,
    pub(crate) from: Stage,
    pub(crate) to: Stage,
    pub(crate) held: bool,
    pub(crate) due: Micros,
    pub(crate) attempts: u32,
    pub(crate) now: Micros,
    /// Why it is given up, or tried again.
    pub(crate) kind: Option<ErrorKind>,
    pub(crate) failed: Option<FailedRow>,
    pub(crate) order: Option<Order>,
}

/// Which rows are taken.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// Another one for each claim of a dispatcher.
    pub(crate) number: u32,
    pub(crate) now: Micros,
    pub(crate) limit: usize,
    /// How many bytes they may have before the last one, about.
    pub(crate) bytes: usize,
    /// The handlers that this process has.
    pub(crate) workers: Vec<Arc<str>>,
    /// The lanes that take nothing more.
    pub(crate) left_out: Vec<LaneKey>,
    /// The places of the rows, if the outbox has looked for them.
    pub(crate) found: Option<Vec<i64>>,
}

/// Which due times come nearer: what waits since a time that is still to come waits from now on, and nothing beyond the
/// latest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PullIn {
    pub(crate) now: Micros,
    /// The latest time at which anything can be due.
    pub(crate) latest: Micros,
    /// Whether the clock was seen to leap back; if not, a store with many rows first looks for a sign of it.
    pub(crate) leapt: bool,
}

/// What became of a write.
#[derive(Debug)]
pub(crate) enum Written {
    /// It is stored.
    Done,
    /// The row was elsewhere already: it had ended, or another claim has it. Nothing changed.
    Superseded,
    /// There is no such row.
    Unknown,
    /// There are as many as there may be. Nothing changed.
    TooMany,
    /// It cannot be said yet: a transaction whose connection was lost may be open still.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "a server's transactions outlive a connection"))]
    NotYet,
    /// These rows are in the caller's hands, oldest first.
    Claimed(Vec<Row>),
    /// This row has the idempotency key; whether it is of the same request.
    Known { id: TaskId, same: bool },
    /// So many rows were changed.
    Count(u64),
    /// These have ended.
    Ended(Vec<TaskId>),
    /// Where the Dsn of a row is, and what became of the row by it.
    Parked(Parked),
    /// The place of these was taken by others.
    Replaced(Vec<AttachmentId>),
    /// So many values were sealed anew, up to the last one; none is left after it if there is no last one.
    #[cfg(feature = "seal")]
    Resealed { last: Option<i64>, changed: u64 },
}

impl Written {
    pub(crate) const fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }
}

/// Why a write was not queued.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotQueued {
    Closed,
    Full,
}

impl From<NotQueued> for OutboxError {
    fn from(refused: NotQueued) -> Self {
        Self::not_stored(match refused {
            NotQueued::Full => "too many writes are waiting",
            NotQueued::Closed => "the outbox is closed",
        })
    }
}

/// An outbox that did not do what was asked.
#[derive(Clone)]
pub struct OutboxError {
    kind: OutboxErrorKind,
    source: Arc<dyn Error + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutboxErrorKind {
    Locked,
    Sealed,
    NotStored,
    /// Of one write: the outbox itself is well.
    Refused,
    Unknown,
}

impl OutboxError {
    /// Another dispatcher has the outbox.
    pub(crate) fn locked(source: impl Into<BoxError>) -> Self {
        Self { kind: OutboxErrorKind::Locked, source: source.into().into() }
    }

    /// It is not opened with these keys.
    pub(crate) fn sealed(source: impl Into<BoxError>) -> Self {
        Self { kind: OutboxErrorKind::Sealed, source: source.into().into() }
    }

    /// Nothing was stored, or read.
    pub(crate) fn not_stored(source: impl Into<BoxError>) -> Self {
        Self { kind: OutboxErrorKind::NotStored, source: source.into().into() }
    }

    /// This write was not stored, whatever becomes of others.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "postgres")),
        expect(dead_code, reason = "memory stores everything")
    )]
    pub(crate) fn refused(source: impl Into<BoxError>) -> Self {
        Self { kind: OutboxErrorKind::Refused, source: source.into().into() }
    }

    /// Whether the outbox fails, and not one write alone.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self.kind, OutboxErrorKind::NotStored | OutboxErrorKind::Unknown)
    }

    /// It may have been stored, or not.
    pub(crate) fn unknown(source: impl Into<BoxError>) -> Self {
        Self { kind: OutboxErrorKind::Unknown, source: source.into().into() }
    }

    /// Whether another dispatcher has the outbox.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.kind == OutboxErrorKind::Locked
    }

    /// Whether it is sealed, and a key that opens it is missing. The cause names the key.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.kind == OutboxErrorKind::Sealed
    }

    /// Whether it may have been stored all the same.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.kind == OutboxErrorKind::Unknown
    }
}

impl fmt::Display for OutboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            OutboxErrorKind::Locked => "another dispatcher has this outbox",
            OutboxErrorKind::Sealed => "the outbox is not opened by these keys",
            OutboxErrorKind::NotStored | OutboxErrorKind::Refused => "the outbox failed, nothing was stored",
            OutboxErrorKind::Unknown => "the outbox failed, whether it was stored is unknown",
        })
    }
}

impl fmt::Debug for OutboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxError").field("kind", &self.kind).field("source", &self.source).finish()
    }
}

impl Error for OutboxError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests;

#[cfg(all(test, feature = "sqlite"))]
mod suite;
