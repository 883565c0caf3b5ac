//! An outbox that lives and dies with the process.

use super::{Claim, Done, Erase, Erased, NotQueued, Outbox, OutboxError, Settle, Store, Write, Written};
use crate::{
    clock::Micros,
    dead_letter::{DeadLetter, DeadLetterQuery},
    row::{FailedRow, Row, Stage},
};
use async_trait::async_trait;
use callback_core::TaskId;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// An outbox in memory: for tests and demos. A crash loses what is in it.
///
/// Of the tasks that have ended, and of dead letters, it keeps the last 10,000. Clones share the contents, so that a test can start a second dispatcher
/// on what the first one left.
#[derive(Clone, Default)]
pub struct MemoryOutbox(Arc<Mutex<State>>);

/// How many ended rows are kept of those that anybody can ask for.
const KEPT: usize = 10_000;

#[derive(Default)]
struct State {
    rows: BTreeMap<u64, Entry>,
    by_id: HashMap<TaskId, u64>,
    /// Pending rows that nobody holds, by when they are due.
    free: BTreeSet<(Micros, u64)>,
    ended: VecDeque<u64>,
    next: u64,
}

struct Entry {
    row: Arc<Row>,
    ended_at: Micros,
    failed: Vec<FailedRow>,
}

impl MemoryOutbox {
    /// An empty outbox.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, row: Arc<Row>) {
        let key = self.next;
        self.next += 1;
        if !row.held && !row.stage.is_ended() {
            self.free.insert((row.due, key));
        }
        self.by_id.insert(row.id, key);
        self.rows.insert(key, Entry { row, ended_at: Micros(0), failed: Vec::new() });
    }

    /// Changes a row if it is as `expected`; keeps the indexes true.
    fn change(
        &mut self,
        id: TaskId,
        now: Micros,
        expected: impl FnOnce(&Row) -> bool,
        change: impl FnOnce(&mut Row),
    ) -> Written {
        let Some(&key) = self.by_id.get(&id) else { return Written::Unknown };
        let Some(entry) = self.rows.get_mut(&key) else { return Written::Unknown };
        if !expected(&entry.row) {
            return Written::Superseded;
        }
        self.free.remove(&(entry.row.due, key));
        let row = Arc::make_mut(&mut entry.row);
        change(row);
        if row.stage.is_ended() && row.work.is_none() && row.stage != Stage::Dead {
            self.rows.remove(&key);
            self.by_id.remove(&id);
        } else if row.stage.is_ended() {
            entry.ended_at = now;
            self.ended.push_back(key);
        } else if !row.held {
            self.free.insert((row.due, key));
        }
        while self.ended.len() > KEPT {
            let oldest = self.ended.pop_front();
            // A replayed row is pending again: it stays.
            if let Some(entry) = oldest.and_then(|key| self.rows.get(&key)).filter(|entry| entry.row.stage.is_ended()) {
                let id = entry.row.id;
                self.by_id.remove(&id).and_then(|key| self.rows.remove(&key));
            }
        }
        Written::Done
    }

    fn apply(&mut self, write: Write) -> Written {
        match write {
            Write::Insert(row) => {
                self.insert(row);
                Written::Done
            }
            Write::Result { id, token, to, held, now, result, events } => {
                let written = self.change(
                    id,
                    now,
                    |row| row.stage.is_open() && row.token == token,
                    |row| {
                        (row.stage, row.held, row.due, row.first_due) = (to, held, now, now);
                        row.result = Some(result);
                    },
                );
                if matches!(written, Written::Done) {
                    events.into_iter().for_each(|event| self.insert(event));
                }
                written
            }
            Write::Defer { id, token, events } => {
                let written = self.change(
                    id,
                    Micros(0),
                    |row| matches!(row.stage, Stage::Accepted | Stage::Started) && row.token == token,
                    |row| (row.stage, row.held, row.due) = (Stage::Deferred, false, Micros::NEVER),
                );
                if matches!(written, Written::Done) {
                    events.into_iter().for_each(|event| self.insert(event));
                }
                written
            }
            Write::Settle(Settle { id, token, from, to, held, due, attempts, now, failed }) => {
                let written = self.change(
                    id,
                    now,
                    |row| row.stage == from && row.token == token,
                    |row| (row.stage, row.held, row.due, row.attempts) = (to, held, due, attempts),
                );
                let entry = self.by_id.get(&id).and_then(|key| self.rows.get_mut(key));
                if let (Written::Done, Some(entry), Some(failed)) = (&written, entry, failed) {
                    entry.failed.push(failed);
                }
                written
            }
            Write::Cancel { id, now } => self.change(
                id,
                now,
                |row| !row.stage.is_ended(),
                |row| (row.stage, row.held) = (Stage::Cancelled, false),
            ),
            Write::Replay { id, now } => self.change(
                id,
                now,
                |row| row.stage == Stage::Dead,
                |row| {
                    (row.stage, row.held, row.due, row.first_due) = (Stage::Delivering, false, now, now);
                    (row.attempts, row.token) = (0, row.token + 1);
                },
            ),
            Write::Claim(claim) => Written::Claimed(self.claim(&claim)),
            Write::Recover => self.recover(),
        }
    }

    fn recover(&mut self) -> Written {
        let held: Vec<TaskId> = self.rows.values().filter(|entry| entry.row.held).map(|entry| entry.row.id).collect();
        for id in held {
            let give_back = |row: &mut Row| {
                (row.held, row.token) = (false, row.token + 1);
                row.starts += u32::from(matches!(row.stage, Stage::Accepted | Stage::Started));
            };
            self.change(id, Micros(0), |_| true, give_back);
        }
        Written::Done
    }

    fn claim(&mut self, claim: &Claim) -> Vec<Row> {
        let wanted = |row: &Row| match row.stage {
            Stage::Accepted | Stage::Started => row.worker.as_ref().is_some_and(|name| claim.workers.contains(name)),
            _ => row.lane().is_some_and(|lane| !claim.full.contains(&lane)),
        };
        let keys: Vec<(Micros, u64)> = self
            .free
            .iter()
            .take_while(|(due, _)| *due <= claim.now)
            .filter(|(_, key)| self.rows.get(key).is_some_and(|entry| wanted(&entry.row)))
            .take(claim.limit)
            .copied()
            .collect();
        let mut claimed = Vec::with_capacity(keys.len());
        for place in keys {
            self.free.remove(&place);
            if let Some(entry) = self.rows.get_mut(&place.1) {
                let row = Arc::make_mut(&mut entry.row);
                (row.held, row.token) = (true, row.token + 1);
                claimed.push(row.clone());
            }
        }
        claimed
    }
}

impl Outbox for MemoryOutbox {}

impl Erase for MemoryOutbox {
    fn erase(&self) -> Erased {
        Erased(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Store for MemoryOutbox {
    async fn start(&self) -> Result<(), OutboxError> {
        self.state().recover();
        Ok(())
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        let written = self.state().apply(write);
        done(Ok(written));
        Ok(())
    }

    async fn next_due(&self, after: Micros) -> Result<Option<Micros>, OutboxError> {
        let state = self.state();
        let next = state.free.range((Micros(after.0.saturating_add(1)), 0)..).next();
        Ok(next.map(|(due, _)| *due).filter(|due| *due != Micros::NEVER))
    }

    async fn find(&self, id: TaskId) -> Result<Option<Row>, OutboxError> {
        let state = self.state();
        Ok(state.by_id.get(&id).and_then(|key| state.rows.get(key)).map(|entry| Row::clone(&entry.row)))
    }

    async fn others_wrote(&self) -> Result<Option<bool>, OutboxError> {
        Ok(None)
    }

    async fn waiting_workers(&self) -> Result<Vec<String>, OutboxError> {
        let state = self.state();
        let waiting = state.rows.values().map(|entry| &entry.row);
        let waiting = waiting.filter(|row| !row.held && matches!(row.stage, Stage::Accepted | Stage::Started));
        let names: BTreeSet<String> = waiting.filter_map(|row| row.worker.as_deref().map(str::to_owned)).collect();
        Ok(names.into_iter().collect())
    }

    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Vec<DeadLetter>, OutboxError> {
        let state = self.state();
        let dead = state.rows.values().filter(|entry| entry.row.stage == Stage::Dead);
        let mut letters: Vec<DeadLetter> = dead.filter_map(letter).collect();
        letters.retain(|letter| query.covers(letter));
        letters.sort_by_key(|letter| (letter.since, letter.id));
        letters.truncate(query.limit);
        Ok(letters)
    }

    async fn dead_letter(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError> {
        let state = self.state();
        let entry = state.by_id.get(&id).and_then(|key| state.rows.get(key));
        Ok(entry.filter(|entry| entry.row.stage == Stage::Dead).and_then(letter))
    }

    async fn close(&self) {}
}

fn letter(entry: &Entry) -> Option<DeadLetter> {
    Some(DeadLetter {
        id: entry.row.id,
        dsn: entry.row.dsn.clone()?,
        message: entry.row.result.as_ref()?.message.clone(),
        since: entry.ended_at.to_system(),
        attempts: entry.failed.iter().cloned().map(Into::into).collect(),
    })
}

impl fmt::Debug for MemoryOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryOutbox").finish_non_exhaustive()
    }
}
