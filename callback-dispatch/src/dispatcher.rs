//! The handle that everything starts from.

#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::Transaction;
use crate::{
    AcceptError, Attach, AttachError, Attachment, Bare, Clock, DeadLetters, EndError, Event, Health, Interrupted, Lane,
    Notice, Outbox, OutboxError, Outcome, Profile, Refusal, StartError, Subscriptions, SystemClock, Task, Validator,
    WorkerBuilder,
    clock::Micros,
    engine::{Consents, Engine, Expiring, Local, Outage},
    failpoint,
    lane::{Bounds, Lanes, OpenBreaker, Pool},
    measure,
    notice::Notices,
    outbox::{Store, Write, Written},
    outcome::OutcomeKind,
    state,
};
use callback_core::{Consent, Destination, Dsn, DsnError, Keys, Message, MessageId, Schedule, Sink, TaskId};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU32},
    },
    time::Duration,
};
use tokio::{
    runtime,
    sync::{Notify, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

/// How long what is left after the grace, and each sink, may take to end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Longer than any attempt takes that will ever end.
const LONGEST_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Accepts work durably, runs it, and delivers its result. Cheap to clone.
///
/// It goes on until [`close`](Self::close), or until the last handle is dropped: the dispatcher's and its workers'.
///
/// ```
/// use callback_core::MemorySink;
/// use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, Task, Work};
/// use serde_json::{Value, json};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sink = MemorySink::new();
/// let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink.clone()).start().await?;
/// let worker = dispatcher.worker("double", Interrupted::RunAgain).run(|task: Task| async move {
///     let number: u32 = task.json().map_err(|error| error.to_string())?;
///     Ok::<Value, String>(json!(number * 2))
/// })?;
///
/// worker.accept(Work::new(json!(21)).callback("memory://results".parse()?)).await?;
/// assert_eq!(sink.next("results").await.message.json::<u32>()?, 42);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Dispatcher(Arc<Handle>);

/// Ends the engine with the last handle.
pub(crate) struct Handle {
    pub(crate) engine: Arc<Engine>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.engine.closing.cancel();
        self.engine.closed.cancel();
    }
}

impl Dispatcher {
    /// Begins a dispatcher over this outbox.
    #[expect(clippy::needless_pass_by_value, reason = "an outbox is handed over")]
    pub fn builder(outbox: impl Outbox) -> DispatcherBuilder {
        DispatcherBuilder {
            store: outbox.erase().0,
            sinks: Vec::new(),
            local: HashSet::new(),
            keys: Keys::new(),
            schedule: Schedule::default(),
            deadline: Duration::from_secs(20),
            lane: Lane::default(),
            lanes: HashMap::new(),
            notices: Notices::default(),
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            source: "/".to_owned(),
            public_url: None,
            profiles: Vec::new(),
            validators: Vec::new(),
            body_limit: 1 << 20,
            subscription_limit: 10_000,
            consents: Vec::new(),
            consent_age: Duration::from_secs(24 * 60 * 60),
            memory: 64 << 20,
            accepting: 64 << 20,
            in_flight: 512,
            host_in_flight: 128,
            host_per_second: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// Begins a worker: the name under which tasks are stored, and what becomes of those that a crash cut short.
    pub fn worker(&self, name: impl Into<String>, interrupted: Interrupted) -> WorkerBuilder {
        WorkerBuilder::new(Arc::clone(&self.0), name.into(), interrupted)
    }

    /// Judges a Dsn as accepting it would.
    ///
    /// # Errors
    /// When no sink serves its scheme, or the sink refuses it.
    pub fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        self.engine().check(dsn)
    }

    /// Stores an event and sends it. Once this resolved, it cannot be lost.
    ///
    /// One for subscriptions goes to all that want it by then, each with a delivery of its own, stored with it in one
    /// transaction; the id is the event's. That of one for one destination is its delivery's. What nobody wants is not
    /// stored.
    ///
    /// # Errors
    /// When it was not accepted.
    pub async fn publish(&self, event: Event) -> Result<MessageId, AcceptError> {
        self.engine().publish(event).await
    }

    /// Stores an event in a transaction of the caller's own: it is sent if that commits, and never if it does not.
    ///
    /// Begin with `BEGIN IMMEDIATE` in SQLite (`pool.begin_with("BEGIN IMMEDIATE")`), and be short: while the transaction
    /// is open, nobody is accepted there. After the commit [`wake`](Self::wake) has it sent at once; without that it is
    /// found within about a second, by any dispatcher of the database.
    ///
    /// The transaction comes from a pool of the user's own, of sqlx 0.9: for SQLite on the file that
    /// `SqliteOutbox::path` names, for PostgreSQL on the database and schema of the outbox.
    /// How durable the commit is, its connection's settings say.
    ///
    /// In PostgreSQL an ordering key needs `READ COMMITTED`, the default. It is the transaction's until that ends: other
    /// messages of the key, and other requests under the idempotency key, wait for it, and are refused after 5 s. Nothing
    /// else waits.
    ///
    /// # Errors
    /// When it was not accepted: [`AcceptError::OtherDatabase`] for a transaction of another kind. After
    /// [`AcceptError::Outbox`] roll back: PostgreSQL commits nothing of the transaction, unless it was the isolation
    /// level that was refused.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub async fn publish_in(&self, transaction: &mut impl Transaction, event: Event) -> Result<MessageId, AcceptError> {
        self.engine().publish_in(transaction.connection(), event).await
    }

    /// What is known of a task.
    ///
    /// # Errors
    /// When the outbox cannot be read.
    pub async fn task(&self, id: TaskId) -> Result<Option<Task>, OutboxError> {
        let row = self.engine().store.find(id).await?.filter(|row| row.work.is_some());
        Ok(row.map(|row| Task::looked_up(Arc::new(row), self.engine().has_begun(id), Arc::clone(self.engine()))))
    }

    /// Waits until a task is over: with a callback, until it is delivered or dead.
    ///
    /// None if there is no such task; an event is none. Resolves early when the dispatcher closes, with a task that may
    /// not be over.
    ///
    /// # Errors
    /// When the outbox cannot be read.
    ///
    /// # Cancellation
    /// Nothing is lost.
    pub async fn wait(&self, id: TaskId) -> Result<Option<Task>, OutboxError> {
        loop {
            let mut waiter = self.engine().waiter(id);
            let Some(task) = self.task(id).await? else { return Ok(None) };
            if task.state().is_ended() || self.engine().closing.is_cancelled() {
                return Ok(Some(task));
            }
            tokio::select! {
                () = waiter.over() => {}
                () = self.engine().closing.cancelled() => {}
                // Another process may end it: by a replay that is delivered, for example.
                () = sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Ends a task: its run is dropped, and its Dsn is not told.
    ///
    /// Of several processes on a database only this one hears of it. What another has in hand goes on there, a run to its
    /// end, a message through one attempt; nothing of it is stored.
    ///
    /// # Errors
    /// When it is over, unknown, or the outbox failed.
    ///
    /// # Cancellation
    /// If the future is dropped, the task may be cancelled all the same.
    pub async fn cancel(&self, id: TaskId) -> Result<(), EndError> {
        let engine = self.engine();
        let cancelled = move |engine: &Engine| {
            engine.drop_task(id);
            engine.ended(id);
            // It may have held back others of its ordering key.
            engine.look_again();
        };
        match engine.write_then(Write::Cancel { id, now: engine.now() }, cancelled).await? {
            Written::Done => Ok(()),
            Written::Unknown => Err(EndError::Unknown),
            _ => Err(EndError::Ended),
        }
    }

    /// Ends work that was done elsewhere ([`Outcome::deferred`]), and delivers its outcome.
    ///
    /// May come before the handler has deferred: the first end that is stored wins.
    ///
    /// # Errors
    /// When it is over, unknown, cannot be sent, or the outbox failed. A deferred outcome is no end: [`EndError::Ended`].
    ///
    /// # Cancellation
    /// If the future is dropped, the work may have ended all the same.
    pub async fn complete(&self, id: TaskId, outcome: Outcome) -> Result<(), EndError> {
        let engine = self.engine();
        loop {
            let row = engine.store.find(id).await?.filter(|row| row.work.is_some()).ok_or(EndError::Unknown)?;
            if !row.stage.is_open() || outcome.kind == OutcomeKind::Deferred {
                return Err(EndError::Ended);
            }
            let result = Arc::new(engine.shape(&row, outcome.clone(), |failure| engine.words_of(&row, failure))?);
            let now = engine.now();
            let to = state::after_run(OutcomeKind::Completed, row.dsn.is_some());
            // It is delivered from the store: whoever completes work elsewhere does not wait for its delivery.
            let (token, order, events) = (row.token, row.order, Vec::new());
            let step = Write::Result { id, token, to, held: false, now, result, order, events };
            let completed = move |engine: &Engine| {
                engine.drop_run(&row);
                if to.is_ended() {
                    engine.ended(id);
                }
                engine.look_again();
            };
            if let Written::Done = engine.write_then(step, completed).await? {
                return Ok(());
            }
            // It has ended meanwhile, or was claimed, which is no end.
        }
    }

    /// Who wants which events.
    #[must_use]
    pub fn subscriptions(&self) -> Subscriptions {
        Subscriptions::of(Arc::clone(self.engine()))
    }

    /// What could not be delivered.
    #[must_use]
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::of(Arc::clone(self.engine()))
    }

    /// How the dispatcher is doing; asks the outbox, for at most 5 s.
    pub async fn health(&self) -> Health {
        let engine = self.engine();
        let read = timeout(CLOSE_LIMIT, engine.store.next_due(Micros::NEVER)).await;
        let outbox = read.unwrap_or_else(|_| Err(OutboxError::not_stored("it does not answer"))).err();
        let closing = engine.closing.is_cancelled();
        let refusal = match () {
            () if closing => Some(Refusal::Closing),
            () if engine.outage.is_on() => Some(Refusal::OutboxFails),
            () if engine.accepting.is_used_up() => Some(Refusal::Overloaded),
            () => None,
        };
        Health {
            refusal,
            outbox,
            waiting_writes: engine.writes.used(),
            waiting_bytes: engine.accepting.used(),
            memory_bytes: engine.memory.used(),
            in_hand: engine.in_hand(),
            closing,
        }
    }

    /// Attaches a Dsn of a [local sink](DispatcherBuilder::local_sink): what waits for it is attempted by this process, at
    /// once, and so is what comes, for as long as the [`Attachment`] lives.
    ///
    /// It is stored before this resolves. A former attachment of the Dsn, of this process or another, is in force no more, and
    /// its secret is void.
    ///
    /// # Errors
    /// When its scheme has no local sink, the sink refuses the Dsn, the dispatcher is closed, or the outbox failed.
    ///
    /// # Cancellation
    /// The Dsn may be attached, and let go of at once: then its client is away.
    pub async fn attach(&self, dsn: &Dsn, attach: Attach) -> Result<Attachment, AttachError> {
        self.engine().attach(dsn, None, attach).await
    }

    /// Attaches a Dsn again for a client that comes back, and shows what it was known by.
    ///
    /// `presented` is the digest of the secret that it shows: that of the last [`attach`](Self::attach) or `resume`, or the
    /// one that was presented then. So a client may come back that never heard of its last secret; once that was presented, the
    /// one before it is void.
    ///
    /// # Errors
    /// [`AttachError::Unknown`] when there is no such attachment, its time is over, or `presented` is another; and those of
    /// [`attach`](Self::attach).
    ///
    /// # Cancellation
    /// The Dsn may be attached, and let go of at once. The client may come back with what it presented.
    pub async fn resume(&self, dsn: &Dsn, presented: [u8; 32], attach: Attach) -> Result<Attachment, AttachError> {
        self.engine().attach(dsn, Some(presented), attach).await
    }

    /// Says that somebody else has stored something: it is looked for at once. Harmless when untrue.
    pub fn wake(&self) {
        self.engine().expiring.look_again();
        self.engine().look_again();
    }

    /// Closes: no new work is taken, what is in flight ends within `grace`, the rest stays stored for the next start.
    ///
    /// Sinks and outbox are closed too, each sink within 5 s; a sink that several dispatchers share is closed for all of
    /// them. Idempotent.
    pub async fn close(&self, grace: Duration) {
        let engine = self.engine();
        engine.closing.cancel();
        engine.tasks.close();
        if timeout(grace, engine.tasks.wait()).await.is_err() {
            engine.closed.cancel();
            // What is left gives its rows back to the store.
            let _ = timeout(CLOSE_LIMIT, engine.tasks.wait()).await;
        }
        engine.closed.cancel();
        let mut closed = Vec::new();
        for sink in engine.sinks.values() {
            // A sink of several schemes is closed once.
            let this = Arc::as_ptr(sink).addr();
            if closed.contains(&this) {
                continue;
            }
            closed.push(this);
            match timeout(CLOSE_LIMIT, sink.close()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(error = error.chain(), "a sink could not settle everything"),
                Err(_elapsed) => tracing::error!(?sink, "a sink did not close in time"),
            }
        }
        engine.leave_all(CLOSE_LIMIT).await;
        engine.store.close().await;
        engine.forget();
    }

    pub(crate) const fn of(handle: Arc<Handle>) -> Self {
        Self(handle)
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.0.engine
    }
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("engine", &self.0.engine).finish()
    }
}

/// Builds a [`Dispatcher`].
#[must_use]
pub struct DispatcherBuilder {
    store: Arc<dyn Store>,
    sinks: Vec<Arc<dyn Sink>>,
    local: HashSet<String>,
    keys: Keys,
    schedule: Schedule,
    deadline: Duration,
    lane: Lane,
    lanes: HashMap<Destination, Lane>,
    notices: Notices,
    retention: Duration,
    source: String,
    public_url: Option<Url>,
    profiles: Vec<Arc<dyn Profile>>,
    validators: Vec<Arc<dyn Validator>>,
    body_limit: usize,
    subscription_limit: usize,
    consents: Vec<Arc<dyn Consent>>,
    consent_age: Duration,
    memory: usize,
    accepting: usize,
    in_flight: usize,
    host_in_flight: usize,
    host_per_second: Option<f64>,
    clock: Arc<dyn Clock>,
}

impl DispatcherBuilder {
    /// Adds a sink; it serves its schemes, each scheme has one.
    pub fn sink(mut self, sink: impl Sink) -> Self {
        self.sinks.push(Arc::new(sink));
        self
    }

    /// Adds a sink whose destinations come to us: what goes to its schemes is attempted only while this process has
    /// [attached](Dispatcher::attach) the Dsn. Until then it waits, and uses up no attempt.
    ///
    /// What its `deliver` answers as [`Unavailable`](callback_core::ErrorKind::Unavailable) with
    /// [`Phase::Connect`](callback_core::Phase::Connect) was no attempt: the message waits for the next attachment, and is
    /// tried again a second later while this one is in force. After other failures it waits by the schedule, but for the next
    /// attachment at most. What goes to a Dsn that is not attached, and is not kept, is dead as
    /// [`Gone`](callback_core::ErrorKind::Gone). Lanes to such destinations have no breaker.
    pub fn local_sink(mut self, sink: impl Sink) -> Self {
        self.local.extend(sink.schemes().iter().map(|scheme| (*scheme).to_owned()));
        self.sink(sink)
    }

    /// Sets who signs: a [`Signer`](callback_core::Signer) for all, or [`Keys`] by caller and destination.
    ///
    /// Default: nothing is signed.
    pub fn signer(mut self, keys: impl Into<Keys>) -> Self {
        self.keys = keys.into();
        self
    }

    /// Sets when a failed delivery is tried again. Default: [`Schedule::default`].
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets how long one attempt may take, all of it. Default 20 s; what is longer than a day counts as a day.
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = if deadline.as_secs() < LONGEST_DEADLINE.as_secs() { deadline } else { LONGEST_DEADLINE };
        self
    }

    /// Sets the bounds of all lanes that have none of their own.
    pub const fn lane(mut self, lane: Lane) -> Self {
        self.lane = lane;
        self
    }

    /// Sets the bounds of the lanes to one destination.
    pub fn lane_for(mut self, destination: Destination, lane: Lane) -> Self {
        self.lanes.insert(destination, lane);
        self
    }

    /// Tells somebody of each [`Notice`]; may be called several times. The same is logged as a warning.
    ///
    /// The function is called where deliveries go on: it hands on what takes long. If it panics, nothing else does.
    pub fn on_notice(mut self, hook: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.notices.add(hook);
        self
    }

    /// Sets how long what has ended is kept, with its result. Default 7 days.
    ///
    /// It is deleted within a minute from then. What is dead is kept until it is [purged](DeadLetters::purge), and what has
    /// an idempotency key for 24 h at least.
    pub const fn retention(mut self, time: Duration) -> Self {
        self.retention = time;
        self
    }

    /// Sets who speaks: the `source` of all messages, a URI-reference. Default `/`.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// Adds a profile, under its name. [`Bare`](crate::Bare) is there without that.
    pub fn profile(mut self, profile: impl Profile) -> Self {
        self.profiles.push(Arc::new(profile));
        self
    }

    /// Sets under which URL tasks and subscriptions are served: links in messages are absolute then. Default: relative.
    ///
    /// `/tasks/{id}` and `/subscriptions/{id}` follow its path; its query and fragment are left out.
    pub fn public_url(mut self, url: Url) -> Self {
        self.public_url = Some(url);
        self
    }

    /// Judges subscriptions before they are stored; several are all asked, in this order.
    pub fn subscription_validator(mut self, validator: impl Validator) -> Self {
        self.validators.push(Arc::new(validator));
        self
    }

    /// Limits the subscriptions that one owner has at a time; those that have ended do not count. Default 10,000.
    ///
    /// What comes beyond it is refused as [`TooMany`](AcceptError::TooMany). Those without an owner are the operator's own,
    /// and have no limit. Of several processes on a database each may exceed it by what they store at the same moment.
    pub const fn subscription_limit(mut self, subscriptions: usize) -> Self {
        self.subscription_limit = subscriptions;
        self
    }

    /// Asks each destination of its schemes whether it lets us send there, before the first message. Default: nobody is asked.
    ///
    /// Of one that does not consent nothing is delivered: each attempt fails as
    /// [`Unauthorized`](callback_core::ErrorKind::Unauthorized), is made again by the schedule, and asks again, but for what
    /// follows such an answer to the same Dsn within 5 s. The consent of a destination (scheme, host and port) is stored, is for
    /// all its Dsns, and is asked for again after [`consent_age`](Self::consent_age). How many requests it allows, all callers
    /// together keep; of several processes on a database each does by itself.
    pub fn consent(mut self, consent: impl Consent) -> Self {
        self.consents.push(Arc::new(consent));
        self
    }

    /// Sets after how long a destination that has consented is asked again. Default 24 h.
    pub const fn consent_age(mut self, time: Duration) -> Self {
        self.consent_age = time;
        self
    }

    /// Limits requests, results and events, in bytes. Default 1 MiB.
    pub const fn body_limit(mut self, bytes: usize) -> Self {
        self.body_limit = bytes;
        self
    }

    /// Limits the attempts that are made at once to one destination, over all callers. Default 128, and at least what one
    /// of its lanes may have.
    pub const fn host_in_flight(mut self, attempts: usize) -> Self {
        self.host_in_flight = attempts;
        self
    }

    /// Limits the attempts that are begun a second to one destination, over all callers. Default: no limit.
    pub const fn host_per_second(mut self, attempts: f64) -> Self {
        self.host_per_second = Some(attempts);
        self
    }

    /// Limits the attempts that are made at once, over all lanes. Default 512; 0 counts as 1.
    ///
    /// Half of them, at most, go to destinations that could not be reached when last tried, or were never tried.
    pub const fn in_flight(mut self, attempts: usize) -> Self {
        self.in_flight = attempts;
        self
    }

    /// Limits what waits in memory, in bytes; the rest waits in the store. Default 64 MiB.
    pub const fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// Limits what waits to be stored for the first time, in bytes. Default 64 MiB; 0 counts as 1.
    ///
    /// What comes beyond it is refused as [`Overloaded`](AcceptError::Overloaded): a store that is slow or stuck is not
    /// answered with memory.
    pub const fn accept_limit(mut self, bytes: usize) -> Self {
        self.accepting = if bytes == 0 { 1 } else { bytes };
        self
    }

    /// Sets the clock. Default: the system's.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Takes the outbox and begins; what a crash left is delivered, and run once its worker is there.
    ///
    /// # Errors
    /// When another dispatcher has the outbox, it cannot be opened, or a setting cannot be used.
    pub async fn start(self) -> Result<Dispatcher, StartError> {
        Message::builder("a").source(&self.source).build().map_err(StartError::Source)?;
        let mut sinks: HashMap<String, Arc<dyn Sink>> = HashMap::new();
        for sink in self.sinks {
            for scheme in sink.schemes() {
                if sinks.insert((*scheme).to_owned(), Arc::clone(&sink)).is_some() {
                    return Err(StartError::SchemeTaken((*scheme).to_owned()));
                }
            }
        }
        let mut consents = Consents { by_scheme: HashMap::new(), age: self.consent_age };
        for consent in self.consents {
            for scheme in consent.schemes() {
                if consents.by_scheme.insert((*scheme).to_owned(), Arc::clone(&consent)).is_some() {
                    return Err(StartError::ConsentTaken((*scheme).to_owned()));
                }
            }
        }
        let mut profiles: HashMap<String, Arc<dyn Profile>> = HashMap::new();
        for profile in self.profiles {
            let name = profile.name().to_owned();
            if profiles.insert(name.clone(), profile).is_some() {
                return Err(StartError::ProfileTaken(name));
            }
        }
        profiles.entry(Bare::NAME.to_owned()).or_insert_with(|| Arc::new(Bare));
        let public_url = self.public_url.map(|mut url| {
            url.set_query(None);
            url.set_fragment(None);
            url.as_str().trim_end_matches('/').to_owned()
        });
        // What fails from here on keeps the outbox: all that may fail comes before.
        let breakers = self.store.breakers().await.map_err(StartError::Outbox)?;
        failpoint::reach("before-recovery");
        self.store
            .start()
            .await
            .map_err(|error| if error.is_locked() { StartError::Locked(error) } else { StartError::Outbox(error) })?;
        failpoint::reach("after-recovery");
        let wake = Arc::new(Notify::new());
        let in_flight = self.in_flight.clamp(1, Semaphore::MAX_PERMITS);
        let bounds = Bounds {
            lane: self.lane,
            special: self.lanes,
            local: self.local.clone(),
            host_in_flight: self.host_in_flight,
            host_per_second: self.host_per_second,
        };
        let closed = CancellationToken::new();
        let engine = Arc::new(Engine {
            local: Arc::new(Local::new(self.local, closed.clone())),
            store: self.store,
            sinks,
            keys: self.keys,
            schedule: self.schedule,
            deadline: self.deadline,
            clock: self.clock,
            source: self.source,
            public_url,
            profiles,
            validators: self.validators,
            body_limit: self.body_limit,
            subscription_limit: self.subscription_limit,
            lanes: Lanes::new(bounds, &wake),
            consents,
            notices: self.notices,
            expiring: Expiring::default(),
            outage: Outage::default(),
            writes: Pool::waking(usize::MAX, &wake),
            retention: self.retention,
            memory: Pool::waking(self.memory, &wake),
            accepting: Pool::waking(self.accepting, &wake),
            attempts: Semaphore::new(in_flight),
            doubtful: Semaphore::new(in_flight.div_ceil(2)),
            state: Mutex::default(),
            wake,
            claims: AtomicU32::new(0),
            behind: AtomicBool::new(true),
            latest: AtomicI64::new(i64::MIN),
            set_back: AtomicBool::new(false),
            closing: CancellationToken::new(),
            closed,
            tasks: TaskTracker::new(),
            runtime: runtime::Handle::current(),
        });
        let now = engine.now();
        let is_kept = |open: &&OpenBreaker| {
            open.until.after(OpenBreaker::KEPT) >= now && !engine.lanes.bounds().is_local(&open.lane.destination)
        };
        for open in breakers.iter().filter(is_kept) {
            engine.lanes.restore(open, open.until.since(now));
            measure::breaker_opened();
        }
        engine.tasks.spawn(Arc::clone(&engine).claim_until_closed());
        engine.tasks.spawn(Arc::clone(&engine).age_until_closed());
        engine.tasks.spawn(Arc::clone(&engine).count_until_closed());
        engine.tasks.spawn(Arc::clone(&engine).expire_until_closed());
        engine.tasks.spawn(Arc::clone(&engine).clean_until_closed());
        engine.tasks.spawn(Arc::clone(&engine).name_missing_handlers());
        if !engine.local.is_unused() {
            engine.tasks.spawn(Arc::clone(&engine).keep_attached_until_closed());
        }
        Ok(Dispatcher(Arc::new(Handle { engine })))
    }
}

impl fmt::Debug for DispatcherBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DispatcherBuilder").field("store", &self.store).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryOutbox, Work};
    use futures_util::FutureExt;

    #[tokio::test]
    async fn waits_that_are_over_or_given_up_leave_nothing_behind() {
        let dispatcher = Dispatcher::builder(MemoryOutbox::new()).start().await.expect("started");
        let handler = |task: Task| async move { Ok::<_, String>(task.payload().clone()) };
        let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(handler).expect("registered");
        let id = worker.accept(Work::new("x")).await.expect("accepted").id();
        assert!(dispatcher.wait(id).now_or_never().is_none(), "nobody has run it");
        for id in [id, id, TaskId::new()] {
            dispatcher.wait(id).await.expect("readable");
        }
        assert!(dispatcher.engine().state().waiting.is_empty());
    }
}
