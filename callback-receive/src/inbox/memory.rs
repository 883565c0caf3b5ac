//! An inbox in memory.

use super::{Done, Expectation, Inbox, Micros, Started, Store, Waiting, Write, Written};
use crate::{
    HandleId, InboxError, ReceiveError, dead_letter::DeadLetter, handle::Minter, listener::Position,
    transaction::Connection,
};
use async_trait::async_trait;
use callback_core::Message;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// An inbox for tests and demonstrations: what is in it is gone with the process, though its senders were told that it was
/// taken.
#[derive(Default)]
pub struct MemoryInbox(Mutex<Rows>);

#[derive(Default)]
struct Rows {
    expected: HashMap<HandleId, Expectation>,
    /// By place.
    rows: BTreeMap<i64, Row>,
    known: HashMap<(HandleId, String), i64>,
    positions: HashMap<String, i64>,
    next: i64,
    closed: bool,
}

struct Row {
    handle: HandleId,
    name: String,
    state: State,
    due: Micros,
    since: Micros,
    reason: String,
    message: Message,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Accepted,
    Dead,
}

impl MemoryInbox {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox for MemoryInbox {}

#[async_trait]
impl Store for MemoryInbox {
    async fn start(&self) -> Result<Started, InboxError> {
        Ok(Started { key: Minter::random_key(), expectations: Vec::new(), positions: Vec::<Position>::new() })
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), InboxError> {
        let written = {
            let mut rows = self.rows();
            if rows.closed {
                return Err(InboxError::not_stored("the inbox is closed"));
            }
            rows.apply(write)
        };
        done(Ok(written));
        Ok(())
    }

    async fn load(&self, handle: &HandleId, after: i64, most: usize) -> Result<Vec<Waiting>, InboxError> {
        let rows = self.rows();
        let waiting = rows.rows.range(after + 1..).filter(|(_, row)| row.handle == *handle && row.is(State::Waiting));
        Ok(waiting
            .take(most)
            .map(|(seq, row)| Waiting { seq: *seq, due: row.due, message: row.message.clone() })
            .collect())
    }

    async fn load_one(&self, seq: i64) -> Result<Option<Message>, InboxError> {
        let rows = self.rows();
        Ok(rows.rows.get(&seq).filter(|row| row.is(State::Waiting)).map(|row| row.message.clone()))
    }

    async fn knows(&self, handle: &HandleId, id: &str) -> Result<bool, InboxError> {
        Ok(self.rows().known.contains_key(&(*handle, id.to_owned())))
    }

    async fn accept_in(&self, _: Connection<'_>, _: &HandleId, _: i64, _: Micros) -> Result<bool, ReceiveError> {
        Err(ReceiveError::NotTransactional)
    }

    async fn dead_letters(&self, after: u64, most: usize) -> Result<Vec<DeadLetter>, InboxError> {
        let rows = self.rows();
        let after = i64::try_from(after).unwrap_or(i64::MAX).saturating_add(1);
        let dead = rows.rows.range(after..).filter(|(_, row)| row.is(State::Dead)).take(most);
        Ok(dead
            .map(|(seq, row)| DeadLetter {
                number: u64::try_from(*seq).unwrap_or(0),
                name: row.name.clone(),
                message: row.message.clone(),
                reason: row.reason.clone(),
                since: row.since.to_system(),
            })
            .collect())
    }

    async fn close(&self) {
        self.rows().closed = true;
    }
}

impl Row {
    fn is(&self, state: State) -> bool {
        self.state == state
    }
}

impl Rows {
    fn apply(&mut self, write: Write) -> Written {
        match write {
            Write::Expect { name, handle, expires, own_key } => {
                if let Some(known) = self.expected.values().find(|known| known.name == name) {
                    return Written::Expected(known.clone(), true);
                }
                let expectation = Expectation { name, handle, expires, own_key, waiting: 0 };
                self.expected.insert(handle, expectation.clone());
                Written::Expected(expectation, false)
            }
            Write::Change { handle, expires, own_key } => {
                let known = self.expected.get_mut(&handle);
                Written::Changed(known.map(|known| (known.expires, known.own_key) = (expires, own_key)).is_some())
            }
            Write::Pass { positions } => {
                positions.into_iter().for_each(|position| self.pass(position));
                Written::Changed(true)
            }
            Write::Store { handle, message, position, now } => self.store(handle, message, position, now),
            Write::Accept { seq, now } => self.change(seq, now, |row| {
                let is_open = !row.is(State::Accepted);
                row.state = State::Accepted;
                is_open
            }),
            Write::Later { seq, due } => self.change(seq, due, |row| {
                row.due = due;
                row.is(State::Waiting)
            }),
            Write::Refuse { seq, reason, now } => self.change(seq, now, |row| {
                let is_open = row.is(State::Waiting);
                if is_open {
                    (row.state, row.reason) = (State::Dead, reason);
                }
                is_open
            }),
            Write::Recheck { seq } => Written::Changed(self.rows.get(&seq).is_some_and(|row| row.is(State::Waiting))),
            Write::End { handle, reason, now } => {
                for row in self.rows.values_mut().filter(|row| row.handle == handle && row.is(State::Waiting)) {
                    (row.state, row.since) = (State::Dead, now);
                    reason.clone_into(&mut row.reason);
                }
                Written::Changed(self.expected.remove(&handle).is_some())
            }
            Write::Replay { seq } => {
                let row = self.rows.get_mut(&seq).filter(|row| row.is(State::Dead));
                let row = row.filter(|row| self.expected.contains_key(&row.handle));
                Written::Replayed(row.map(|row| {
                    (row.state, row.due) = (State::Waiting, Micros(0));
                    row.handle
                }))
            }
            Write::Purge { until } => {
                let dead = self.rows.values_mut().filter(|row| row.is(State::Dead) && row.since < until);
                Written::Count(dead.map(|row| row.state = State::Accepted).count() as u64)
            }
            Write::Forget { before, most } => {
                self.delete(|row| row.is(State::Accepted) && row.since < before);
                let mut accepted: Vec<(Micros, i64)> = self
                    .rows
                    .iter()
                    .filter(|(_, row)| row.is(State::Accepted))
                    .map(|(seq, row)| (row.since, *seq))
                    .collect();
                accepted.sort_unstable();
                let evicted: Vec<i64> =
                    accepted.iter().take(accepted.len().saturating_sub(most)).map(|(_, seq)| *seq).collect();
                for seq in &evicted {
                    self.remove(*seq);
                }
                Written::Count(evicted.len() as u64)
            }
        }
    }

    fn store(&mut self, handle: HandleId, message: Message, position: Option<Position>, now: Micros) -> Written {
        if let Some(position) = position {
            self.pass(position);
        }
        let key = (handle, message.id().as_str().to_owned());
        if self.known.contains_key(&key) {
            return Written::Duplicate;
        }
        let Some(expectation) = self.expected.get(&handle) else { return Written::Ended };
        self.next += 1;
        let seq = self.next;
        let name = expectation.name.clone();
        let row =
            Row { handle, name, state: State::Waiting, due: Micros(0), since: now, reason: String::new(), message };
        self.rows.insert(seq, row);
        self.known.insert(key, seq);
        Written::Stored(seq)
    }

    fn pass(&mut self, (log, offset): Position) {
        let known = self.positions.entry(log).or_insert(offset);
        *known = offset.max(*known);
    }

    fn change(&mut self, seq: i64, now: Micros, change: impl FnOnce(&mut Row) -> bool) -> Written {
        let Some(row) = self.rows.get_mut(&seq) else { return Written::Changed(false) };
        let is_changed = change(row);
        if is_changed {
            row.since = now;
        }
        Written::Changed(is_changed)
    }

    fn delete(&mut self, is_old: impl Fn(&Row) -> bool) -> u64 {
        let old: Vec<i64> = self.rows.iter().filter(|(_, row)| is_old(row)).map(|(seq, _)| *seq).collect();
        for seq in &old {
            self.remove(*seq);
        }
        old.len() as u64
    }

    fn remove(&mut self, seq: i64) {
        if let Some(row) = self.rows.remove(&seq) {
            self.known.remove(&(row.handle, row.message.id().as_str().to_owned()));
        }
    }
}

impl fmt::Debug for MemoryInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryInbox").field("messages", &self.rows().rows.len()).finish_non_exhaustive()
    }
}
