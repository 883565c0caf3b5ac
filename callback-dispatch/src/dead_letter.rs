//! What could not be delivered.

use crate::{
    Outbox, OutboxError,
    clock::{Clock, Micros, SystemClock},
    engine::Engine,
    outbox::{Store, Write, Written, write},
    row::FailedRow,
};
use callback_core::{Destination, Dsn, ErrorKind, Message, Phase, TaskId};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The messages that were given up; they are kept, and can be sent again.
///
/// Works beside a running service: it needs no dispatcher. What it sends again, the service finds within a second; in
/// memory it looks every half minute, unless [`Dispatcher::wake`](crate::Dispatcher::wake) tells it.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    store: Arc<dyn Store>,
    /// Whose clock counts, and who is told of a replay; none beside a running service.
    engine: Option<Arc<Engine>>,
}

/// A message that was given up, with its history.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The task, or the delivery of an event.
    pub id: TaskId,
    /// Where it could not be sent.
    pub dsn: Dsn,
    /// What could not be sent.
    pub message: Message,
    /// When it was given up.
    pub since: SystemTime,
    /// All failed attempts, oldest first.
    pub attempts: Vec<FailedAttempt>,
}

/// One failed attempt.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailedAttempt {
    /// Its number, from 1.
    pub number: u32,
    /// When it was made.
    pub time: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What its failure means.
    pub kind: ErrorKind,
    /// The part that failed, where the sink knew it.
    pub phase: Option<Phase>,
    /// The HTTP status, or a code of the same meaning.
    pub status: Option<u16>,
    /// The error and its causes.
    pub reason: String,
}

impl From<FailedRow> for FailedAttempt {
    fn from(row: FailedRow) -> Self {
        let FailedRow { number, time, took, kind, phase, status, reason } = row;
        Self { number, time: time.to_system(), took, kind, phase, status, reason }
    }
}

impl DeadLetters {
    /// The dead letters of this outbox.
    #[expect(clippy::needless_pass_by_value, reason = "an outbox is handed over, as to a dispatcher")]
    pub fn new(outbox: impl Outbox) -> Self {
        Self { store: outbox.erase().0, engine: None }
    }

    pub(crate) fn of(engine: Arc<Engine>) -> Self {
        Self { store: Arc::clone(&engine.store), engine: Some(engine) }
    }

    /// A page of them, oldest first.
    ///
    /// # Errors
    /// When the outbox cannot be read.
    pub async fn list(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, OutboxError> {
        let wanted = query.limit;
        let items = self.store.dead_letters(query).await?;
        let next = (items.len() == wanted).then(|| items.last().map(Cursor::after)).flatten();
        Ok(Page { items, next })
    }

    /// The dead letter of this id.
    ///
    /// # Errors
    /// When the outbox cannot be read.
    pub async fn get(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError> {
        self.store.dead_letter(id).await
    }

    /// Begins a new delivery under the same id; false if there is no such dead letter.
    ///
    /// # Errors
    /// When the outbox cannot be written.
    pub async fn replay(&self, id: TaskId) -> Result<bool, OutboxError> {
        let now = self.engine.as_ref().map_or_else(|| Micros::from(SystemClock.now()), |engine| engine.now());
        let written = write(&*self.store, Write::Replay { id, now }).await?;
        if let Some(engine) = &self.engine {
            engine.look_again();
        }
        Ok(matches!(written, Written::Done))
    }
}

/// Which dead letters are listed.
#[derive(Clone, Debug)]
#[must_use]
pub struct DeadLetterQuery {
    pub(crate) destination: Option<Destination>,
    pub(crate) kind: Option<ErrorKind>,
    pub(crate) limit: usize,
    pub(crate) after: Option<Cursor>,
}

impl Default for DeadLetterQuery {
    fn default() -> Self {
        Self { destination: None, kind: None, limit: 100, after: None }
    }
}

impl DeadLetterQuery {
    /// Only those of one destination.
    pub fn destination(mut self, destination: Destination) -> Self {
        self.destination = Some(destination);
        self
    }

    /// Only those whose last attempt failed so.
    pub const fn kind(mut self, kind: ErrorKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// At most so many on a page. Default 100; 1 to 1,000.
    pub const fn limit(mut self, limit: usize) -> Self {
        self.limit = match limit {
            0 => 1,
            1..=1_000 => limit,
            _ => 1_000,
        };
        self
    }

    /// Goes on where a page ended.
    pub const fn after(mut self, cursor: Cursor) -> Self {
        self.after = Some(cursor);
        self
    }

    /// Whether the query asks for this one, its limit apart.
    pub(crate) fn covers(&self, letter: &DeadLetter) -> bool {
        let last = letter.attempts.last().map(|attempt| attempt.kind);
        self.destination.as_ref().is_none_or(|wanted| *wanted == letter.dsn.destination())
            && self.kind.is_none_or(|wanted| last == Some(wanted))
            && self.after.is_none_or(|cursor| (cursor.since, cursor.id) < (letter.since.into(), letter.id))
    }
}

/// A part of a longer list.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page begins; none on the last.
    pub next: Option<Cursor>,
}

/// A place in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(crate) since: Micros,
    pub(crate) id: TaskId,
}

impl Cursor {
    fn after(letter: &DeadLetter) -> Self {
        Self { since: letter.since.into(), id: letter.id }
    }
}
