//! Where named handles, and what came in for them, are kept.

mod memory;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use memory::MemoryInbox;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteInbox;

use crate::{HandleId, InboxError, ReceiveError, dead_letter::DeadLetter, listener::Position, transaction::Connection};
use async_trait::async_trait;
use callback_core::Message;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Keeps named handles and what came in for them: [`SqliteInbox`], or [`MemoryInbox`] for tests.
///
/// The trait is sealed.
pub trait Inbox: Store + Erase {}

/// Takes the type off an inbox.
#[expect(unnameable_types, reason = "seals `Inbox`")]
pub trait Erase {
    fn erase(self) -> Arc<dyn Store>;
}

impl<S: Store> Erase for S {
    fn erase(self) -> Arc<dyn Store> {
        Arc::new(self)
    }
}

/// What the receiver asks of an inbox.
#[expect(unnameable_types, reason = "seals `Inbox`")]
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Takes the inbox for this receiver alone, and reads what it expects.
    async fn start(&self) -> Result<Started, InboxError>;

    /// Queues a write. `done` is called once, in the order of the queue, after the write is stored or has failed; when it
    /// is not queued, `done` is not called.
    fn submit(&self, write: Write, done: Done) -> Result<(), InboxError>;

    /// The first messages for a handle that wait and come after `after`, in the order in which they were stored.
    async fn load(&self, handle: &HandleId, after: i64, most: usize) -> Result<Vec<Waiting>, InboxError>;

    /// The message of this place, if it waits.
    async fn load_one(&self, seq: i64) -> Result<Option<Message>, InboxError>;

    /// Whether a message of this id was stored for the handle.
    async fn knows(&self, handle: &HandleId, id: &str) -> Result<bool, InboxError>;

    /// Accepts in a transaction of the caller's; whether it was to be accepted.
    async fn accept_in(
        &self,
        connection: Connection<'_>,
        handle: &HandleId,
        seq: i64,
        now: Micros,
    ) -> Result<bool, ReceiveError>;

    /// What was refused, or came to a handle that ended, after `after`, in the order in which it was stored.
    async fn dead_letters(&self, after: u64, most: usize) -> Result<Vec<DeadLetter>, InboxError>;

    /// Stores what is queued, and lets the inbox go.
    async fn close(&self);
}

pub(crate) type Done = Box<dyn FnOnce(Result<Written, InboxError>) + Send>;

/// What is there when a receiver starts.
#[expect(unnameable_types, reason = "seals `Inbox`")]
#[derive(Debug)]
pub struct Started {
    pub(crate) key: [u8; 32],
    pub(crate) expectations: Vec<Expectation>,
    pub(crate) positions: Vec<Position>,
}

/// A named handle.
#[expect(unnameable_types, reason = "seals `Inbox`")]
#[derive(Clone, Debug)]
pub struct Expectation {
    pub(crate) name: String,
    pub(crate) handle: HandleId,
    pub(crate) expires: Option<Micros>,
    /// Whether its messages are judged by a key of its own, which is not stored.
    pub(crate) own_key: bool,
    /// How many messages wait for it.
    pub(crate) waiting: usize,
}

/// A message that waits, with its place, and when it is due.
#[expect(unnameable_types, reason = "seals `Inbox`")]
#[derive(Clone, Debug)]
pub struct Waiting {
    pub(crate) seq: i64,
    pub(crate) due: Micros,
    pub(crate) message: Message,
}

/// What is written.
#[expect(unnameable_types, reason = "seals `Inbox`")]
#[derive(Clone, Debug)]
pub enum Write {
    /// A handle of this name, unless there is one.
    Expect { name: String, handle: HandleId, expires: Option<Micros>, own_key: bool },
    /// What was said of a handle later.
    Change { handle: HandleId, expires: Option<Micros>, own_key: bool },
    /// A message that came in.
    Store { handle: HandleId, message: Message, position: Option<Position>, now: Micros },
    /// Logs were passed up to there, without a message to store.
    Pass { positions: Vec<Position> },
    /// A message was accepted; a dead letter in hand may be, too.
    Accept { seq: i64, now: Micros },
    /// A message is to be handed over later.
    Later { seq: i64, due: Micros },
    /// A message becomes a dead letter.
    Refuse { seq: i64, reason: String, now: Micros },
    /// Whether a message waits, once the transactions before this are over.
    Recheck { seq: i64 },
    /// A handle ends, and what waits for it becomes dead letters.
    End { handle: HandleId, reason: &'static str, now: Micros },
    /// A dead letter waits again, if its handle is there.
    Replay { seq: i64 },
    /// Dead letters from before this time are deleted; their ids stay known, as accepted ones.
    Purge { until: Micros },
    /// Accepted ids from before this time are forgotten, and the oldest where there are more than so many.
    Forget { before: Micros, most: usize },
}

/// What came of a write.
#[expect(unnameable_types, reason = "seals `Inbox`")]
#[derive(Clone, Debug)]
pub enum Written {
    /// The handle of this name, and whether it was there.
    Expected(Expectation, bool),
    /// The message has this place.
    Stored(i64),
    /// The message was stored before.
    Duplicate,
    /// The handle is not there any more.
    Ended,
    /// Whether there was something to do.
    Changed(bool),
    /// To whom the dead letter was sent, if he is there.
    Replayed(Option<HandleId>),
    /// How many.
    Count(u64),
}

/// Wall time in microseconds since 1970.
#[expect(unnameable_types, reason = "seals `Inbox`")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub(crate) i64);

impl Micros {
    pub(crate) fn now() -> Self {
        SystemTime::now().into()
    }

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX)))
    }

    pub(crate) fn before(self, wait: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` to this; zero if it is past.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub(crate) fn to_system(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<SystemTime> for Micros {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
