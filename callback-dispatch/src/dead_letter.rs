//! What could not be delivered.

use crate::{
    Outbox, OutboxError,
    clock::{Clock, Micros, SystemClock},
    engine::Engine,
    outbox::{Store, Write, Written, write},
    row::{FailedRow, Stage, Stored},
};
use callback_core::{Destination, Dsn, ErrorKind, InvalidId, Message, MessageId, Phase, TaskId};
use std::{
    fmt,
    str::FromStr,
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
    /// Why it was given up.
    pub kind: ErrorKind,
    /// What could not be sent.
    pub message: Message,
    /// When it was given up.
    pub since: SystemTime,
    /// All failed attempts, those before a replay included, oldest first.
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
    /// The part that failed: as the sink says, else where failures of this kind arise.
    pub phase: Phase,
    /// The HTTP status, or a code of the same meaning.
    pub status: Option<u16>,
    /// The error and its causes.
    pub reason: String,
}

impl From<FailedRow> for FailedAttempt {
    fn from(row: FailedRow) -> Self {
        let FailedRow { number, time, took, kind, phase, status, reason } = row;
        let phase = phase.unwrap_or_else(|| usual_phase(kind, status));
        Self { number, time: time.to_system(), took, kind, phase, status, reason }
    }
}

/// Where a failure arises of which the sink did not say it.
fn usual_phase(kind: ErrorKind, status: Option<u16>) -> Phase {
    match (kind, status) {
        (ErrorKind::Forbidden, None) => Phase::Policy,
        (ErrorKind::Unavailable, None) => Phase::Connect,
        // A destination that said anything has answered; one that was waited for in vain has not.
        _ => Phase::Answer,
    }
}

/// How many are replayed or purged in one transaction.
const BATCH: usize = 500;

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
        self.store.dead_letters(query).await
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
    /// A receiver that has seen the message knows it by that id, and drops it. An expiry of the former delivery is over.
    ///
    /// # Errors
    /// When the outbox cannot be written.
    pub async fn replay(&self, id: TaskId) -> Result<bool, OutboxError> {
        let written = write(&*self.store, Write::Replay { ids: vec![id], now: self.now() }).await?;
        self.look_again();
        Ok(matches!(written, Written::Count(1)))
    }

    /// Begins a new delivery under a delivery id that no receiver knows; none if there is no such dead letter.
    ///
    /// Returns that id. The event's id, and the id by which task and dead letter are known here, stay.
    ///
    /// # Errors
    /// When the outbox cannot be read or written.
    pub async fn replay_as_new(&self, id: TaskId) -> Result<Option<MessageId>, OutboxError> {
        let row = self.store.find(id).await?.filter(|row| row.stage == Stage::Dead);
        let Some(former) = row.and_then(|row| row.result) else { return Ok(None) };
        let new = MessageId::new();
        let Stored { message, failed, traceparent, service, kept } = &*former;
        let (traceparent, service, kept) = (traceparent.clone(), service.clone(), kept.clone());
        let result = Stored { message: message.with_id(new.clone()), failed: *failed, traceparent, service, kept };
        let replay = Write::ReplayAsNew { id, now: self.now(), result: Arc::new(result) };
        let written = write(&*self.store, replay).await?;
        self.look_again();
        Ok(written.is_done().then_some(new))
    }

    /// Begins new deliveries of all that the query asks for, whatever its limit; how many.
    ///
    /// In transactions of 500. What is given up after the call is left out, so that nothing is taken twice. If it fails
    /// halfway, what was replayed before stays so.
    ///
    /// # Errors
    /// When the outbox cannot be read or written.
    pub async fn replay_all(&self, query: &DeadLetterQuery) -> Result<u64, OutboxError> {
        self.in_batches(query, |ids| Write::Replay { ids, now: self.now() }).await
    }

    /// Deletes all that the query asks for, whatever its limit, with what belongs to it; how many.
    ///
    /// In transactions of 500. A task that is purged is unknown from then on, and so is its idempotency key.
    ///
    /// # Errors
    /// When the outbox cannot be read or written.
    pub async fn purge(&self, query: &DeadLetterQuery) -> Result<u64, OutboxError> {
        self.in_batches(query, |ids| Write::Purge { ids, now: self.now() }).await
    }

    async fn in_batches(
        &self,
        query: &DeadLetterQuery,
        write_of: impl Fn(Vec<TaskId>) -> Write,
    ) -> Result<u64, OutboxError> {
        let call = self.now().after(Duration::from_micros(1));
        let mut query = query.clone();
        query.limit = BATCH;
        query.until = Some(query.until.map_or(call, |until| until.min(call)));
        let mut count = 0;
        loop {
            let places = self.store.dead_places(&query).await?;
            query.after = places.last().copied();
            let is_last = places.len() < BATCH;
            if !places.is_empty() {
                let ids = places.into_iter().map(|place| place.id).collect();
                if let Written::Count(changed) = write(&*self.store, write_of(ids)).await? {
                    count += changed;
                }
                self.look_again();
            }
            if is_last {
                return Ok(count);
            }
        }
    }

    fn now(&self) -> Micros {
        self.engine.as_ref().map_or_else(|| Micros::from(SystemClock.now()), |engine| engine.now())
    }

    fn look_again(&self) {
        if let Some(engine) = &self.engine {
            engine.look_again();
        }
    }
}

/// Which dead letters are meant. Default: all.
#[derive(Clone, Debug)]
#[must_use]
pub struct DeadLetterQuery {
    pub(crate) destination: Option<Destination>,
    pub(crate) kind: Option<ErrorKind>,
    pub(crate) since: Option<Micros>,
    pub(crate) until: Option<Micros>,
    pub(crate) limit: usize,
    pub(crate) after: Option<Cursor>,
}

impl Default for DeadLetterQuery {
    fn default() -> Self {
        Self { destination: None, kind: None, since: None, until: None, limit: 100, after: None }
    }
}

impl DeadLetterQuery {
    /// Only those of one destination.
    pub fn destination(mut self, destination: Destination) -> Self {
        self.destination = Some(destination);
        self
    }

    /// Only those that were given up for this.
    pub const fn kind(mut self, kind: ErrorKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Only those that were given up then or later.
    pub fn since(mut self, time: SystemTime) -> Self {
        self.since = Some(time.into());
        self
    }

    /// Only those that were given up before then.
    pub fn until(mut self, time: SystemTime) -> Self {
        self.until = Some(time.into());
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
        let ended = Micros::from(letter.since);
        self.destination.as_ref().is_none_or(|wanted| *wanted == letter.dsn.destination())
            && self.kind.is_none_or(|wanted| wanted == letter.kind)
            && self.since.is_none_or(|since| since <= ended)
            && self.until.is_none_or(|until| ended < until)
            && self.after.is_none_or(|cursor| (cursor.since, cursor.id) < (ended, letter.id))
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

/// As text that fits into a URL; parsed back by [`FromStr`].
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.since.0, self.id)
    }
}

impl FromStr for Cursor {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (since, id) = text.split_once('_').unwrap_or_default();
        // What is no number is no id either.
        let id: TaskId = if since.parse::<i64>().is_ok() { id.parse()? } else { "".parse()? };
        Ok(Self { since: Micros(since.parse().unwrap_or_default()), id })
    }
}

impl Cursor {
    pub(crate) fn after(letter: &DeadLetter) -> Self {
        Self { since: letter.since.into(), id: letter.id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_from_its_text() {
        let cursor = Cursor { since: Micros(-7), id: TaskId::new() };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "7", "7_", "x_0193b2a4-0000-7000-8000-000000000000", "_"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_failure_has_a_phase() {
        let table = [
            (ErrorKind::Forbidden, None, Phase::Policy),
            (ErrorKind::Unavailable, None, Phase::Connect),
            (ErrorKind::Unavailable, Some(503), Phase::Answer),
            (ErrorKind::TimedOut, None, Phase::Answer),
            (ErrorKind::Refused, Some(400), Phase::Answer),
            (ErrorKind::Gone, None, Phase::Answer),
        ];
        for (kind, status, expected) in table {
            assert_eq!(usual_phase(kind, status), expected, "{kind} {status:?}");
        }
    }
}
