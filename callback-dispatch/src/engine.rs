//! What all handles share, and the hand-over of what is stored.

mod accept;
mod attempt;
mod claim;
mod consent;
mod deliver;
mod expire;
#[cfg(test)]
mod faulty;
mod gone;
mod local;
mod outage;
mod run;
mod subscribe;
mod sweep;
mod unknown;
mod waiter;

pub(crate) use consent::Consents;
pub(crate) use expire::Expiring;
pub(crate) use local::Local;
pub(crate) use outage::Outage;

use crate::{
    Clock, Handler, Interrupted, OutboxError, Profile, SubscriptionId, Validator, WorkerError,
    clock::Micros,
    lane::{Lanes, OpenLane, Pool, Slot},
    notice::Notices,
    outbox::{Lease, Store, Write, Written},
    row::Row,
};
use callback_core::{Dsn, DsnError, Keys, Schedule, Sink, TaskId};
use futures_util::FutureExt;
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, oneshot},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// The first and the longest wait until what the store failed to do is tried again.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long what panicked waits in the store.
const AFTER_A_PANIC: Duration = Duration::from_secs(60);

/// A clock that is set back by less is a clock.
const LEAP: Duration = Duration::from_secs(1);

pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) sinks: HashMap<String, Arc<dyn Sink>>,
    pub(crate) keys: Keys,
    pub(crate) schedule: Schedule,
    pub(crate) deadline: Duration,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) source: String,
    /// Without a slash at its end.
    pub(crate) public_url: Option<String>,
    pub(crate) profiles: HashMap<String, Arc<dyn Profile>>,
    /// Those that judge subscriptions.
    pub(crate) validators: Vec<Arc<dyn Validator>>,
    pub(crate) body_limit: usize,
    /// How many subscriptions an owner may have.
    pub(crate) subscription_limit: usize,
    pub(crate) lanes: Lanes,
    pub(crate) consents: Consents,
    pub(crate) notices: Notices,
    /// What local sinks reach here.
    pub(crate) local: Arc<Local>,
    /// Bytes of rows in memory.
    pub(crate) memory: Arc<Pool>,
    pub(crate) expiring: Expiring,
    pub(crate) outage: Outage,
    /// Writes that wait to be stored.
    pub(crate) writes: Arc<Pool>,
    /// How long what has ended is kept.
    pub(crate) retention: Duration,
    pub(crate) state: Mutex<State>,
    /// Asks the claiming loop to look again.
    pub(crate) wake: Arc<Notify>,
    /// How often it was claimed.
    pub(crate) claims: AtomicU32,
    /// Whether something due may be in the store that nobody holds.
    pub(crate) behind: AtomicBool,
    /// The latest time that anybody was given since the clock was last set back, in microseconds.
    pub(crate) latest: AtomicI64,
    /// Whether the clock was set back, and due times that it gave before may be too far off.
    pub(crate) set_back: AtomicBool,
    /// Attempts over all lanes.
    pub(crate) attempts: Semaphore,
    /// Those of them that may go to destinations in trouble.
    pub(crate) doubtful: Semaphore,
    /// Bytes of rows that wait to be stored for the first time.
    pub(crate) accepting: Arc<Pool>,
    /// No new work, no new run, no new attempt.
    pub(crate) closing: CancellationToken,
    /// Runs and attempts in flight end.
    pub(crate) closed: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Where tasks run, wherever the outbox answers.
    pub(crate) runtime: Handle,
}

#[derive(Default)]
pub(crate) struct State {
    workers: HashMap<Arc<str>, Arc<WorkerEntry>>,
    in_hand: HashMap<TaskId, Arc<Hand>>,
    /// Dsns that are no more, until all that waited for them is given up.
    gone: Vec<Dsn>,
    pub(crate) waiting: HashMap<TaskId, Vec<oneshot::Sender<()>>>,
}

impl State {
    /// Whether what waits for this Dsn is being given up.
    fn is_gone(&self, dsn: &Dsn) -> bool {
        self.gone.contains(dsn)
    }
}

/// What is to be known of a row while it is in hand.
#[derive(Debug)]
pub(crate) struct Hand {
    /// The token of its claim.
    token: u32,
    /// The lease under which it was taken.
    lease: Lease,
    dsn: Option<Dsn>,
    cancelled: CancellationToken,
    /// Whether its handler was called.
    begun: AtomicBool,
    /// Whether the destination said to another message that this Dsn is no more.
    gone: AtomicBool,
    subscription: Option<SubscriptionId>,
    /// Whether that subscription was cancelled here.
    left: AtomicBool,
}

/// What is in hand, until this is dropped.
struct InHand<'a> {
    engine: &'a Engine,
    id: TaskId,
    hand: &'a Arc<Hand>,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(in_hand) = self.engine.state().in_hand.entry(self.id)
            && Arc::ptr_eq(in_hand.get(), self.hand)
        {
            in_hand.remove();
        }
    }
}

pub(crate) struct WorkerEntry {
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) interrupted: Interrupted,
    pub(crate) time_limit: Duration,
    pub(crate) runs: Semaphore,
    /// Those who may have taken a process down run one at a time, so that none is blamed for another of the worker.
    pub(crate) suspects: Semaphore,
    /// Those of them that wait for their turn here; the others wait in the store.
    pub(crate) waiting_suspects: Semaphore,
    slots: Arc<Pool>,
}

/// How many suspects of a worker wait in memory. They have no place there: others run meanwhile.
const WAITING_SUSPECTS: usize = 4;

impl WorkerEntry {
    pub(crate) fn new(
        handler: Arc<dyn Handler>,
        interrupted: Interrupted,
        concurrency: usize,
        time_limit: Duration,
        wake: &Arc<Notify>,
    ) -> Self {
        let runs = Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS));
        let slots = Pool::waking(concurrency.saturating_mul(4), wake);
        let (suspects, waiting_suspects) = (Semaphore::new(1), Semaphore::new(WAITING_SUSPECTS));
        Self { handler, interrupted, time_limit, runs, suspects, waiting_suspects, slots }
    }
}

/// A row's place in memory.
#[derive(Debug)]
pub(crate) struct Place {
    lane: Option<Arc<OpenLane>>,
    _stage: Slot,
    _memory: Slot,
}

impl Engine {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is a single step, so a panic elsewhere leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time. Whoever asks notices a clock that was set back.
    pub(crate) fn now(&self) -> Micros {
        let now = Micros::from(self.clock.now());
        let latest = Micros(self.latest.fetch_max(now.0, Ordering::AcqRel));
        if self.compare(latest, now) {
            self.latest.store(now.0, Ordering::Release);
        }
        now
    }

    /// Notices that the clock was set back between these times.
    pub(crate) fn compare(&self, earlier: Micros, later: Micros) -> bool {
        let leapt = later.after(LEAP) < earlier;
        if leapt {
            self.set_back.store(true, Ordering::Release);
        }
        leapt
    }

    pub(crate) fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        self.sink(dsn)?.check(dsn)
    }

    fn sink(&self, dsn: &Dsn) -> Result<&Arc<dyn Sink>, DsnError> {
        self.sinks.get(dsn.scheme()).ok_or_else(|| {
            let mut known: Vec<&str> = self.sinks.keys().map(String::as_str).collect();
            known.sort_unstable();
            DsnError::unknown_scheme(dsn.scheme(), &known)
        })
    }

    pub(crate) fn register(&self, name: Arc<str>, entry: WorkerEntry) -> Result<(), WorkerError> {
        if self.closing.is_cancelled() {
            return Err(WorkerError::Closed);
        }
        let mut state = self.state();
        if state.workers.contains_key(&name) {
            return Err(WorkerError::NameTaken(name.to_string()));
        }
        state.workers.insert(name, Arc::new(entry));
        drop(state);
        self.look_again();
        Ok(())
    }

    /// A place in memory for a row; none if it must stay in the store for now.
    pub(crate) fn reserve(&self, row: &Row) -> Option<Place> {
        let memory = self.memory.take(row.size())?;
        if row.stage.is_open() {
            let slots = Arc::clone(&self.state().workers.get(row.worker.as_ref()?)?.slots);
            Some(Place { lane: None, _stage: slots.take(1)?, _memory: memory })
        } else {
            if row.order.is_some() {
                // The store says when its turn is.
                return None;
            }
            let (lane, slot) = self.lanes.reserve(&row.lane()?)?;
            Some(Place { lane: Some(lane), _stage: slot, _memory: memory })
        }
    }

    /// Gives a stored row to the task that brings it to its end; without a place it waits in the store.
    ///
    /// The lease is that of before it was stored, or claimed.
    pub(crate) fn hand_over(self: &Arc<Self>, row: Arc<Row>, place: Option<Place>, lease: Lease) {
        let Some(place) = place else {
            self.look_again();
            return;
        };
        let mut state = self.state();
        let hand = Arc::new(Hand {
            token: row.token,
            lease,
            dsn: row.dsn.clone(),
            cancelled: CancellationToken::new(),
            begun: AtomicBool::new(false),
            gone: AtomicBool::new(row.dsn.as_ref().is_some_and(|dsn| state.is_gone(dsn))),
            subscription: row.subscribed.as_ref().map(|it| it.to.id),
            left: AtomicBool::new(false),
        });
        let former = state.in_hand.insert(row.id, Arc::clone(&hand));
        drop(state);
        if let Some(former) = former {
            // A later claim has the row: it was completed elsewhere while its run was waiting or going on.
            former.cancelled.cancel();
        }
        // One span from here to the receipt. The client's trace goes on in it, though a restart may lie between.
        let span =
            tracing::info_span!("callback", id = %row.id, worker = row.worker.as_deref(), trace = row.traceparent());
        self.tasks.spawn_on(Arc::clone(self).drive(row, place, hand).instrument(span), &self.runtime);
    }

    /// Brings a row as far as it goes now, and lets go of it.
    async fn drive(self: Arc<Self>, row: Arc<Row>, place: Place, hand: Arc<Hand>) {
        let (id, token) = (row.id, row.token);
        let driven = AssertUnwindSafe(async {
            let run = row.stage.is_open();
            let next = if run { self.run(&row, place, &hand).await } else { Some((row, place)) };
            if let Some((row, place)) = next {
                self.deliver(row, place, &hand).await;
            }
        });
        let _in_hand = InHand { engine: &self, id, hand: &hand };
        if driven.catch_unwind().await.is_err() {
            tracing::error!(%id, "what goes on with a task or event panicked: it is tried again later");
            self.give_back_held(id, token).await;
        }
    }

    /// Gives back to the store, for later, what this process has in hand still, wherever it stands by now.
    async fn give_back_held(&self, id: TaskId, token: u32) {
        let Some(Some(found)) = self.find_until_read(id).await else { return };
        if found.token == token && found.held && !found.stage.is_ended() {
            self.put_off(&found, AFTER_A_PANIC).await;
        }
    }

    /// Reads the row of this id, if there is one, however long the store takes to heal; none if the dispatcher closed before.
    async fn find_until_read(&self, id: TaskId) -> Option<Option<Row>> {
        let mut wait = FIRST_WAIT;
        loop {
            match self.store.find(id).await {
                Ok(row) => return Some(row),
                Err(error) => tracing::error!(error = %chain(&error), "a row could not be read, trying again"),
            }
            tokio::select! {
                () = self.closed.cancelled() => return None,
                () = sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
            }
        }
    }

    /// Stores a step, however long the store takes to heal; false if the row went elsewhere meanwhile.
    ///
    /// After a failure of unknown outcome a second try may find that it was stored at first: that counts as stored.
    pub(crate) async fn persist(&self, step: Write) -> bool {
        self.write_until_stored(step).await.is_some_and(|written| written.is_done())
    }

    /// Stores a write, however long the store takes to heal; none if the dispatcher closed before.
    pub(super) async fn write_until_stored(&self, step: Write) -> Option<Written> {
        let _waiting = self.writes.take_anyway(1);
        let mut outage = None;
        let mut may_be_stored = false;
        let mut wait = FIRST_WAIT;
        loop {
            match crate::outbox::write(&*self.store, step.clone()).await {
                Ok(written) if may_be_stored && !written.is_done() => return self.judge(&step, written).await,
                Ok(written) => return Some(written),
                Err(error) => {
                    may_be_stored |= error.is_unknown();
                    if error.is_outage() && outage.is_none() {
                        outage = Some(self.outage.wait());
                    }
                    tracing::error!(error = %chain(&error), "a step could not be stored, trying again");
                }
            }
            tokio::select! {
                () = self.closed.cancelled() => return None,
                () = self.outage.healed(), if outage.is_some() => {}
                () = sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
            }
        }
    }

    /// Stores a write; what follows from it happens where that is known, though the caller may have given up.
    pub(crate) async fn write_then(
        self: &Arc<Self>,
        write: Write,
        then: impl FnOnce(&Self) + Send + 'static,
    ) -> Result<Written, OutboxError> {
        let (sender, receiver) = oneshot::channel();
        let engine = Arc::clone(self);
        let done = Box::new(move |result: Result<Written, OutboxError>| {
            if matches!(result, Ok(Written::Done)) {
                then(&engine);
            }
            let _ = sender.send(result);
        });
        self.store.submit(write, done)?;
        receiver.await.unwrap_or_else(|_| Err(OutboxError::unknown("the outbox was closed")))
    }

    /// Wakes the claiming loop.
    pub(crate) fn look_again(&self) {
        self.behind.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Tells those who wait for a task that it is over.
    pub(crate) fn ended(&self, id: TaskId) {
        let waiting = self.state().waiting.remove(&id);
        waiting.into_iter().flatten().for_each(|waiting| _ = waiting.send(()));
    }

    pub(crate) fn worker(&self, name: &str) -> Option<Arc<WorkerEntry>> {
        self.state().workers.get(name).cloned()
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.state().in_hand.len()
    }

    /// Whether the handler of this task was called here.
    pub(crate) fn has_begun(&self, id: TaskId) -> bool {
        self.state().in_hand.get(&id).is_some_and(|hand| hand.begun.load(Ordering::Acquire))
    }

    /// Drops what goes on with a cancelled task.
    pub(crate) fn drop_task(&self, id: TaskId) {
        if let Some(hand) = self.state().in_hand.get(&id) {
            hand.cancelled.cancel();
        }
    }

    /// Lets nothing more be attempted of what is in hand for a cancelled subscription.
    pub(crate) fn leave_all_of(&self, id: SubscriptionId) {
        for hand in self.state().in_hand.values().filter(|hand| hand.subscription == Some(id)) {
            hand.left.store(true, Ordering::Release);
        }
    }

    /// Drops the run of this row, and nothing that came after it.
    pub(crate) fn drop_run(&self, row: &Row) {
        if let Some(hand) = self.state().in_hand.get(&row.id).filter(|hand| hand.token == row.token) {
            hand.cancelled.cancel();
        }
    }

    /// Lets go of handlers, which may hold the dispatcher, and of those who wait.
    pub(crate) fn forget(&self) {
        let State { workers, in_hand, waiting, .. } = std::mem::take(&mut *self.state());
        drop((workers, in_hand, waiting));
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("sinks", &self.sinks).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
