//! An outbox that lives and dies with the process.

mod attached;
mod subscribed;

use super::{
    AttachmentId, AttachmentRow, Claim, Done, Erase, Erased, NotQueued, Outbox, OutboxError, PullIn, Settle, Store,
    Write, Written,
};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::{AcceptError, subscription::FanOut, transaction::Connection};
use crate::{
    clock::Micros,
    dead_letter::{Cursor, DeadLetter, DeadLetterQuery, Page},
    lane::{LaneKey, OpenBreaker, StoredConsent},
    row::{FailedRow, Idempotency, OrderKey, Row, Stage, Stored},
    subscription::{SubscriptionEnd, SubscriptionId, SubscriptionQuery, SubscriptionRow},
};
use async_trait::async_trait;
use callback_core::{Destination, Dsn, ErrorKind, TaskId};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// An outbox in memory: for tests and demos. A crash loses what is in it.
///
/// Of the tasks that have ended, and of dead letters, it keeps the last 10,000. Clones share the contents, so that a test can start a second dispatcher
/// on what the first one left; it has one at a time.
#[derive(Clone, Default)]
pub struct MemoryOutbox {
    state: Arc<Mutex<State>>,
    /// What a dispatcher has it by: each that is built over it has another.
    hold: Arc<()>,
}

/// How many ended rows are kept of those that anybody can ask for.
const KEPT: usize = 10_000;

#[derive(Default)]
struct State {
    rows: BTreeMap<u64, Entry>,
    by_id: HashMap<TaskId, u64>,
    by_idempotency: HashMap<[u8; 16], u64>,
    /// Pending rows that nobody holds, by when they are due.
    free: BTreeSet<(Micros, u64)>,
    /// The same, by whom they wait for.
    queues: HashMap<Queue, BTreeSet<(Micros, u64)>>,
    /// The messages of each ordering key that hold back the later ones.
    turns: HashMap<OrderKey, BTreeMap<u64, u64>>,
    breakers: HashMap<LaneKey, OpenBreaker>,
    consents: HashMap<Destination, StoredConsent>,
    subscriptions: BTreeMap<SubscriptionId, Arc<SubscriptionRow>>,
    attachments: HashMap<Dsn, (AttachmentId, AttachmentRow<[u8; 32]>)>,
    /// Pending rows that expire, by when they do.
    expiring: BTreeSet<(Micros, u64)>,
    ended: VecDeque<u64>,
    next: u64,
    /// By what its dispatcher has it.
    held_by: Weak<()>,
}

/// Whom a row waits for.
#[derive(PartialEq, Eq, Hash)]
enum Queue {
    Worker(Arc<str>),
    Lane(LaneKey),
    None,
}

impl Queue {
    fn of(row: &Row) -> Self {
        let worker = row.worker.clone().filter(|_| matches!(row.stage, Stage::Accepted | Stage::Started));
        worker.map(Self::Worker).or_else(|| row.lane().map(Self::Lane)).unwrap_or(Self::None)
    }
}

struct Entry {
    row: Arc<Row>,
    /// The claim that it is in hand by, if nothing was stored of it since.
    claim: Option<u32>,
    turn: Option<u64>,
    ended_at: Micros,
    /// Why it was given up, or tried again.
    kind: Option<ErrorKind>,
    failed: Vec<FailedRow>,
}

impl MemoryOutbox {
    /// An empty outbox.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert_once(&mut self, row: Arc<Row>) -> Written {
        let Some(Idempotency { key, request }) = row.idempotency.clone() else {
            self.insert(row);
            return Written::Done;
        };
        if let Some(known) = self.by_idempotency.get(&key).and_then(|key| self.rows.get(key)).map(|it| &it.row) {
            let same = known.idempotency.as_ref().is_some_and(|known| known.request == request);
            return Written::Known { id: known.id, same };
        }
        self.by_idempotency.insert(key, self.next);
        self.insert(row);
        Written::Done
    }

    fn insert(&mut self, row: Arc<Row>) {
        let (key, id, is_message) = (self.next, row.id, row.stage == Stage::Delivering);
        self.next += 1;
        self.by_id.insert(id, key);
        if row.expires != Micros::NEVER {
            self.expiring.insert((row.expires, key));
        }
        self.rows
            .insert(key, Entry { row, claim: None, turn: None, ended_at: Micros(0), kind: None, failed: Vec::new() });
        if is_message {
            self.enqueue(key);
        }
        self.note_free(key);
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
        let place = (entry.row.due, key);
        let free = (!entry.row.held).then(|| Queue::of(&entry.row));
        let was_message = entry.row.stage == Stage::Delivering;
        self.expiring.remove(&(entry.row.expires, key));
        let row = Arc::make_mut(&mut entry.row);
        change(row);
        entry.claim = None;
        if row.expires != Micros::NEVER && !row.stage.is_ended() {
            self.expiring.insert((row.expires, key));
        }
        let (is_message, is_ended) = (row.stage == Stage::Delivering, row.stage.is_ended());
        let is_kept = row.work.is_some() || row.stage == Stage::Dead;
        if is_ended {
            entry.ended_at = now;
        }
        if let Some(queue) = free {
            self.unnote_free(&queue, place);
        }
        if is_message && !was_message {
            self.enqueue(key);
        } else if is_ended {
            self.leave(key, now);
        }
        match (is_ended, is_kept) {
            (false, _) => self.note_free(key),
            (true, true) => self.ended.push_back(key),
            // Nobody can ask for an event that has ended.
            (true, false) => self.forget(key),
        }
        while self.ended.len() > KEPT {
            let oldest = self.ended.pop_front();
            // A replayed row is pending again: it stays.
            if let Some(key) = oldest.filter(|key| self.rows.get(key).is_some_and(|it| it.row.stage.is_ended())) {
                self.forget(key);
            }
        }
        Written::Done
    }

    fn forget(&mut self, key: u64) {
        if let Some(ended_at) = self.rows.get(&key).map(|entry| entry.ended_at) {
            self.release_next(key, ended_at);
        }
        if let Some(entry) = self.rows.remove(&key) {
            self.by_id.remove(&entry.row.id);
            if let Some(idempotency) = &entry.row.idempotency {
                self.by_idempotency.remove(&idempotency.key);
            }
        }
    }

    fn note_free(&mut self, key: u64) {
        let Some(entry) = self.rows.get(&key).filter(|entry| !entry.row.held && !entry.row.stage.is_ended()) else {
            return;
        };
        let place = (entry.row.due, key);
        self.free.insert(place);
        self.queues.entry(Queue::of(&entry.row)).or_default().insert(place);
    }

    fn unnote_free(&mut self, queue: &Queue, place: (Micros, u64)) {
        self.free.remove(&place);
        if let Some(places) = self.queues.get_mut(queue) {
            places.remove(&place);
            if places.is_empty() {
                self.queues.remove(queue);
            }
        }
    }

    /// The last of its ordering key, and due only if it is the first, too.
    fn enqueue(&mut self, key: u64) {
        let Some(entry) = self.rows.get_mut(&key) else { return };
        let Some(order) = entry.row.order else { return };
        let turns = self.turns.entry(order.key).or_default();
        // What stopped its key when it died has its turn still.
        let turn = entry.turn.unwrap_or_else(|| turns.last_key_value().map_or(1, |(turn, _)| turn + 1));
        turns.insert(turn, key);
        entry.turn = Some(turn);
        if turns.first_key_value().is_some_and(|(first, _)| *first < turn) {
            Arc::make_mut(&mut entry.row).due = Micros::NEVER;
        }
    }

    /// Lets the next of its ordering key go, unless it holds it back.
    fn leave(&mut self, key: u64, now: Micros) {
        let stops = |entry: &Entry| entry.row.stage == Stage::Dead && entry.row.order.is_some_and(|order| order.stops);
        if !self.rows.get(&key).is_none_or(stops) {
            self.release_next(key, now);
        }
    }

    /// The next of its ordering key, and since when that is due.
    fn behind(&self, id: TaskId) -> Option<(u64, Micros)> {
        let entry = self.rows.get(self.by_id.get(&id)?)?;
        let turns = self.turns.get(&entry.row.order?.key)?;
        let (_, next) = turns.range(entry.turn? + 1..).next()?;
        Some((*next, self.rows.get(next)?.row.first_due))
    }

    fn release_next(&mut self, key: u64, now: Micros) {
        let Some(entry) = self.rows.get_mut(&key) else { return };
        let Some(order) = entry.row.order else { return };
        let Some(turn) = entry.turn.take() else { return };
        let Some(turns) = self.turns.get_mut(&order.key) else { return };
        turns.remove(&turn);
        let Some((_, &next)) = turns.first_key_value() else {
            self.turns.remove(&order.key);
            return;
        };
        let Some(entry) = self.rows.get_mut(&next) else { return };
        if entry.row.stage == Stage::Delivering && entry.row.due == Micros::NEVER {
            let queue = Queue::of(&entry.row);
            let row = Arc::make_mut(&mut entry.row);
            // Its age counts from here: it could not be attempted before.
            (row.due, row.first_due) = (now, now);
            self.unnote_free(&queue, (Micros::NEVER, next));
            self.note_free(next);
        }
    }

    fn apply(&mut self, write: Write) -> Written {
        match write {
            Write::Insert(row) => self.insert_once(row),
            Write::Publish(event) => Written::Count(self.fan_out(&event)),
            Write::Subscribe { row, limit } => self.subscribe(row, limit),
            Write::ChangeSubscription(row) => self.change_subscription(&row),
            Write::EndSubscription { id, end, now } => self.end_subscription(id, end, now),
            Write::Confirm { id } => {
                if self.by_id.contains_key(&id) {
                    Written::Done
                } else {
                    Written::Unknown
                }
            }
            Write::ConfirmEvent(event) => {
                let mut deliveries = self.subscriptions.values().map(|row| event.delivery(row));
                if deliveries.any(|id| self.by_id.contains_key(&id)) { Written::Done } else { Written::Unknown }
            }
            Write::Result { id, token, to, held, now, result, order: _, events } => {
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
                    events.into_iter().for_each(|event| self.publish(event));
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
                    events.into_iter().for_each(|event| self.publish(event));
                }
                written
            }
            Write::Settle(Settle { id, token, from, to, held, due, attempts, now, kind, failed, order: _ }) => {
                let written = self.change(
                    id,
                    now,
                    |row| row.stage == from && row.token == token,
                    |row| (row.stage, row.held, row.due, row.attempts) = (to, held, due, attempts),
                );
                let entry = self.by_id.get(&id).and_then(|key| self.rows.get_mut(key));
                if let (Written::Done, Some(entry)) = (&written, entry) {
                    entry.kind = kind.or(entry.kind);
                    entry.failed.extend(failed);
                }
                written
            }
            Write::Cancel { id, now } => self.change(
                id,
                now,
                |row| !row.stage.is_ended(),
                |row| (row.stage, row.held) = (Stage::Cancelled, false),
            ),
            Write::Replay { ids, now } => {
                Written::Count(ids.into_iter().map(|id| u64::from(self.replay(id, now, None).is_done())).sum())
            }
            Write::ReplayAsNew { id, now, result } => self.replay(id, now, Some(result)),
            Write::Purge { ids, now } => Written::Count(ids.into_iter().map(|id| u64::from(self.purge(id, now))).sum()),
            Write::Bury { dsn, now, limit } => {
                let to = self.subscriptions.values().filter(|row| row.dsn == dsn);
                for id in to.map(|row| row.id).collect::<Vec<_>>() {
                    self.end_subscription(id, SubscriptionEnd::Gone, now);
                }
                Written::Ended(self.bury(&dsn, now, limit))
            }
            Write::Expire { now, limit } => Written::Ended(self.expire(now, limit)),
            Write::Clean { now, before, keyed_before, breakers_before, limit } => {
                self.breakers.retain(|_, open| open.until >= breakers_before);
                self.attachments.retain(|_, (_, row)| row.until >= breakers_before);
                self.consents.retain(|_, consent| consent.until >= breakers_before);
                let rows = self.clean(before, keyed_before, limit);
                let spent = self.end_spent(now, limit);
                Written::Count(rows.max(spent).max(self.clean_subscriptions(before, limit)))
            }
            Write::Claim(claim) => Written::Claimed(self.claim(&claim)),
            Write::GiveBack { claim } => self.give_back(claim),
            Write::Age { lanes, before, now, limit } => self.age(&lanes, before, now, limit),
            Write::PullIn(pull_in) => self.pull_in(pull_in),
            Write::OpenBreaker(open) => {
                self.breakers.insert(open.lane.clone(), open);
                Written::Done
            }
            Write::CloseBreaker(lane) => {
                self.breakers.remove(&lane);
                Written::Done
            }
            Write::Attach(attaching) => self.attach(attaching),
            Write::Rouse { dsn, now, limit } => Written::Count(self.rouse(&dsn, now, limit)),
            Write::Park(parking) => self.park(&parking),
            Write::KeepAttached(keeping) => self.keep_attached(keeping),
            Write::Consent(consent) => {
                self.consents.insert(consent.destination.clone(), consent);
                Written::Done
            }
            Write::Recover => self.recover(),
            #[cfg(feature = "seal")]
            Write::Seal(_) => Written::Done,
        }
    }

    fn replay(&mut self, id: TaskId, now: Micros, result: Option<Arc<Stored>>) -> Written {
        let expected = |row: &Row| row.stage == Stage::Dead;
        self.change(id, now, expected, |row| {
            (row.stage, row.held, row.due, row.first_due) = (Stage::Delivering, false, now, now);
            (row.attempts, row.token, row.expires) = (0, row.token + 1, Micros::NEVER);
            if result.is_some() {
                row.result = result;
            }
        })
    }

    fn purge(&mut self, id: TaskId, now: Micros) -> bool {
        let dead = |key: &u64| self.rows.get(key).is_some_and(|entry| entry.row.stage == Stage::Dead);
        let Some(key) = self.by_id.get(&id).copied().filter(dead) else { return false };
        self.release_next(key, now);
        self.forget(key);
        true
    }

    fn bury(&mut self, dsn: &Dsn, now: Micros, limit: usize) -> Vec<TaskId> {
        let on_its_way = |row: &Row| row.stage == Stage::Delivering && !row.held && row.dsn.as_ref() == Some(dsn);
        let rows = self.rows.values().map(|entry| &entry.row).filter(|row| on_its_way(row));
        let ids: Vec<TaskId> = rows.map(|row| row.id).take(limit).collect();
        for id in &ids {
            self.change(*id, now, |_| true, |row| (row.stage, row.due) = (Stage::Dead, now));
            if let Some(entry) = self.by_id.get(id).and_then(|key| self.rows.get_mut(key)) {
                entry.kind = Some(ErrorKind::Gone);
            }
        }
        ids
    }

    fn expire(&mut self, now: Micros, limit: usize) -> Vec<TaskId> {
        let expired = self.expiring.iter().take_while(|(expires, _)| *expires <= now).take(limit);
        let mut ids: Vec<TaskId> = expired.filter_map(|(_, key)| Some(self.rows.get(key)?.row.id)).collect();
        for id in &ids {
            self.change(*id, now, |_| true, |row| (row.stage, row.held, row.due) = (Stage::Expired, false, now));
        }
        ids.sort_unstable();
        ids
    }

    fn clean(&mut self, before: Micros, keyed_before: Micros, limit: usize) -> u64 {
        let is_old = |entry: &&Entry| {
            let before = if entry.row.idempotency.is_some() { keyed_before } else { before };
            entry.row.stage.is_ended() && entry.row.stage != Stage::Dead && entry.ended_at < before
        };
        let old: Vec<TaskId> = self.rows.values().filter(is_old).map(|entry| entry.row.id).take(limit).collect();
        for id in &old {
            if let Some(key) = self.by_id.get(id).copied() {
                self.forget(key);
            }
        }
        old.len() as u64
    }

    /// Those that the query asks for, oldest first, as many as it wants.
    fn dead(&self, query: &DeadLetterQuery) -> Vec<DeadLetter> {
        let dead = self.rows.values().filter(|entry| entry.row.stage == Stage::Dead);
        let mut letters: Vec<DeadLetter> = dead.filter_map(letter).collect();
        letters.retain(|letter| query.covers(letter));
        letters.sort_by_key(|letter| (letter.since, letter.id));
        letters.truncate(query.limit);
        letters
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
        self.let_go_of_all();
        Written::Done
    }

    fn give_back(&mut self, claim: u32) -> Written {
        let taken = self.rows.values().filter(|entry| entry.claim == Some(claim));
        let taken: Vec<TaskId> = taken.map(|entry| entry.row.id).collect();
        for id in taken {
            self.change(id, Micros(0), |_| true, |row| (row.held, row.token) = (false, row.token + 1));
        }
        Written::Done
    }

    fn age(&mut self, lanes: &[LaneKey], before: Micros, now: Micros, limit: usize) -> Written {
        let queues = lanes.iter().filter_map(|lane| self.queues.get(&Queue::Lane(lane.clone())));
        let due = queues.flat_map(|places| places.iter().take_while(|(due, _)| *due <= now));
        let rows = due.filter_map(|(_, key)| self.rows.get(key)).map(|entry| &entry.row);
        let aged: Vec<TaskId> = rows.filter(|row| row.first_due < before).map(|row| row.id).take(limit).collect();
        for id in &aged {
            let next = self.behind(*id);
            self.change(*id, now, |_| true, |row| row.stage = Stage::Dead);
            // The lane is to blame that is closed to this one as well: its age goes on.
            if let Some((next, first_due)) = next
                && let Some(entry) = self.rows.get_mut(&next)
            {
                Arc::make_mut(&mut entry.row).first_due = first_due;
            }
            if let Some(entry) = self.by_id.get(id).and_then(|key| self.rows.get_mut(key)) {
                entry.kind = entry.kind.or(Some(ErrorKind::TimedOut));
            }
        }
        Written::Ended(aged)
    }

    fn pull_in(&mut self, PullIn { now, latest, leapt: _ }: PullIn) -> Written {
        let mut nearer: Vec<(TaskId, Micros)> = Vec::new();
        for (due, key) in self.free.range((Micros(now.0.saturating_add(1)), 0)..(Micros::NEVER, 0)) {
            let Some(entry) = self.rows.get(key) else { continue };
            let since = entry.failed.iter().map(|attempt| attempt.time).fold(entry.row.first_due, Micros::max);
            let pulled = due.before(since.since(now)).min(latest);
            if pulled < *due {
                nearer.push((entry.row.id, pulled));
            }
        }
        for (id, due) in nearer {
            self.change(id, now, |_| true, |row| row.due = due);
        }
        Written::Done
    }

    /// The oldest due rows of all queues that may be taken from.
    fn claim(&mut self, claim: &Claim) -> Vec<Row> {
        let mut due: BTreeSet<(Micros, u64)> = BTreeSet::new();
        for (queue, places) in &self.queues {
            let is_wanted = match queue {
                Queue::Worker(name) => claim.workers.contains(name),
                Queue::Lane(lane) => !claim.left_out.contains(lane),
                Queue::None => false,
            };
            if is_wanted {
                due.extend(places.iter().take_while(|(due, _)| *due <= claim.now).take(claim.limit));
            }
        }
        let (mut claimed, mut bytes) = (Vec::new(), 0);
        for place in due.into_iter().take(claim.limit) {
            if bytes >= claim.bytes {
                break;
            }
            let Some(entry) = self.rows.get_mut(&place.1) else { continue };
            let queue = Queue::of(&entry.row);
            let row = Arc::make_mut(&mut entry.row);
            (row.held, row.token) = (true, row.token + 1);
            bytes += row.size();
            let taken = row.clone();
            entry.claim = Some(claim.number);
            self.unnote_free(&queue, place);
            claimed.push(self.current(taken));
        }
        claimed.sort_by_key(|row| (row.due, row.id));
        claimed
    }
}

impl Outbox for MemoryOutbox {}

impl Erase for MemoryOutbox {
    fn erase(&self) -> Erased {
        Erased(Arc::new(Self { state: Arc::clone(&self.state), hold: Arc::default() }))
    }
}

#[async_trait]
impl Store for MemoryOutbox {
    async fn start(&self) -> Result<(), OutboxError> {
        let mut state = self.state();
        if state.held_by.strong_count() > 0 {
            return Err(OutboxError::locked("this outbox has a dispatcher already"));
        }
        state.held_by = Arc::downgrade(&self.hold);
        state.recover();
        Ok(())
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        let written = self.state().apply(write);
        done(Ok(written));
        Ok(())
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    async fn insert_in(&self, connection: Connection<'_>, _row: Arc<Row>) -> Result<Written, AcceptError> {
        Err(AcceptError::OtherDatabase { transaction: connection.database(), outbox: "memory" })
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    async fn publish_in(&self, connection: Connection<'_>, _event: &FanOut) -> Result<u64, AcceptError> {
        Err(AcceptError::OtherDatabase { transaction: connection.database(), outbox: "memory" })
    }

    async fn subscription(&self, id: SubscriptionId) -> Result<Option<SubscriptionRow>, OutboxError> {
        Ok(self.state().subscriptions.get(&id).map(|row| SubscriptionRow::clone(row)))
    }

    async fn subscriptions(&self, query: &SubscriptionQuery) -> Result<Page<SubscriptionRow>, OutboxError> {
        Ok(self.state().page(query))
    }

    async fn next_due(&self, after: Micros) -> Result<Option<Micros>, OutboxError> {
        let state = self.state();
        let next = state.free.range((Micros(after.0.saturating_add(1)), 0)..).next();
        Ok(next.map(|(due, _)| *due).filter(|due| *due != Micros::NEVER))
    }

    async fn next_expiry(&self) -> Result<Option<Micros>, OutboxError> {
        Ok(self.state().expiring.first().map(|(expires, _)| *expires))
    }

    async fn find(&self, id: TaskId) -> Result<Option<Row>, OutboxError> {
        let state = self.state();
        let row = state.by_id.get(&id).and_then(|key| state.rows.get(key)).map(|entry| Row::clone(&entry.row));
        Ok(row.map(|row| state.current(row)))
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn others_wrote(&self) -> Result<bool, OutboxError> {
        Ok(false)
    }

    async fn waiting_workers(&self) -> Result<Vec<String>, OutboxError> {
        let state = self.state();
        let waiting = state.rows.values().map(|entry| &entry.row);
        let waiting = waiting.filter(|row| !row.held && matches!(row.stage, Stage::Accepted | Stage::Started));
        let names: BTreeSet<String> = waiting.filter_map(|row| row.worker.as_deref().map(str::to_owned)).collect();
        Ok(names.into_iter().collect())
    }

    async fn depth(&self, now: Micros) -> Result<(u64, Option<Micros>), OutboxError> {
        let state = self.state();
        let first = state.free.first().map(|(due, _)| *due).filter(|due| *due <= now);
        Ok((state.free.len() as u64, first))
    }

    async fn breakers(&self) -> Result<Vec<OpenBreaker>, OutboxError> {
        Ok(self.state().breakers.values().cloned().collect())
    }

    async fn consent(&self, destination: &Destination) -> Result<Option<StoredConsent>, OutboxError> {
        Ok(self.state().consents.get(destination).cloned())
    }

    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, OutboxError> {
        let items = self.state().dead(query);
        let next = (items.len() == query.limit).then(|| items.last().map(Cursor::after)).flatten();
        Ok(Page { items, next })
    }

    async fn dead_places(&self, query: &DeadLetterQuery) -> Result<Vec<Cursor>, OutboxError> {
        Ok(self.state().dead(query).iter().map(Cursor::after).collect())
    }

    async fn dead_letter(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError> {
        let state = self.state();
        let entry = state.by_id.get(&id).and_then(|key| state.rows.get(key));
        Ok(entry.filter(|entry| entry.row.stage == Stage::Dead).and_then(letter))
    }

    async fn close(&self) {
        let mut state = self.state();
        if Weak::ptr_eq(&state.held_by, &Arc::downgrade(&self.hold)) {
            state.held_by = Weak::new();
        }
    }
}

fn letter(entry: &Entry) -> Option<DeadLetter> {
    Some(DeadLetter {
        id: entry.row.id,
        kind: entry.kind?,
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
