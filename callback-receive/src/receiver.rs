//! What user code holds, whatever the transport.

use crate::{
    Callback, DeadLetters, Expect, HandleId, Inbox, InboxError, Intake, Listener, ReceiveError, Verdict,
    handle::Minter,
    inbox::{Expectation, Micros, Started, Store, Write, Written},
    memory::Memory,
    named::{Filling, Named, PAGE},
    registry::{Handle, Registry},
    slot::Slot,
    sync::{Mutex, lock},
};
use callback_core::{Message, Verifier};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime,
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

/// How often what is old is forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// How long an inbox that failed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// How long after an acceptance in a transaction it is first looked whether that was committed.
const RECHECK: Duration = Duration::from_millis(20);

/// Takes callbacks in, and hands them to the code that waits for them. Cheap to clone.
///
/// It takes them in for as long as it, a clone, or a [`Callback`] of it lives, or until [`close`](Self::close).
#[derive(Clone, Debug)]
pub struct Receiver(pub(crate) Arc<Shared>);

impl Receiver {
    /// Begins a receiver.
    pub fn builder() -> ReceiverBuilder {
        ReceiverBuilder {
            inbox: None,
            verifier: None,
            remember: (Duration::from_secs(100 * 3600), 1_000_000),
            settings: Settings {
                body_limit: 1 << 20,
                answer_within: Duration::from_secs(15),
                queue: 64,
                backlog: 10_000,
                remember: Duration::ZERO,
                most: 0,
            },
        }
    }

    /// Opens a handle that lives as long as the [`Callback`] that is given back: **direct** mode.
    ///
    /// A sender is answered with the verdict of the code that waits. Does no I/O.
    ///
    /// # Panics
    /// When the system has no randomness.
    pub fn spawn(&self) -> Callback {
        let slot = Arc::new(Slot::new(self.0.minter.mint()));
        self.0.registry.insert(slot.handle, Handle::Spawned(Arc::clone(&slot)));
        if self.0.is_closing() {
            slot.end(&Verdict::RetryLater(None));
        }
        Callback::spawned(slot, Arc::clone(&self.0))
    }

    /// Opens the handle of this name, or comes back to it: **inbox** mode. Awaited, it gives a [`Callback`].
    ///
    /// The handle, its Dsn, and what came in for it are stored until [`Callback::finish`] or its expiry, through restarts. A
    /// sender is answered once his message is stored; the verdict is local. Without an inbox this is
    /// [`ReceiveError::NoInbox`]; a name is 1 to 255 bytes without control characters, and held once at a time.
    pub fn expect(&self, name: impl Into<String>) -> Expect {
        Expect::new(Arc::clone(&self.0), name.into())
    }

    /// Holds all named handles that nobody holds: after a restart, what was outstanding. In the order of their names.
    ///
    /// One that was expected with a key of its own takes messages again once [`Callback::verifier`] gave it the key.
    ///
    /// # Errors
    /// When there is no inbox, or the receiver is closed.
    #[expect(clippy::unused_async, reason = "an inbox that others share will be asked")]
    pub async fn resume_all(&self) -> Result<Vec<Callback>, ReceiveError> {
        self.0.inbox()?;
        if self.0.is_closing() {
            return Err(ReceiveError::Closed);
        }
        let names = lock(&self.0.names);
        let mut all: Vec<Arc<Named>> = names.values().filter_map(Name::handle).collect();
        drop(names);
        all.retain(|named| named.attach());
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all.into_iter().map(|named| Callback::named(named, Arc::clone(&self.0), true)).collect())
    }

    /// What was refused, or waited for a handle that ended.
    #[must_use]
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters(Arc::clone(&self.0))
    }

    /// How many handles are open, named ones included, and those that ended with a delivery in hand.
    #[must_use]
    pub fn open_handles(&self) -> usize {
        self.0.registry.len()
    }

    /// How many ids were forgotten before their time, since there were too many: [`ReceiverBuilder::remember`].
    #[must_use]
    pub fn evicted_ids(&self) -> u64 {
        lock(&self.0.memory).evicted()
    }

    /// Takes nothing more in, waits for what is in hand, and ends all handles: `next()` gives `None`.
    ///
    /// Who offers meanwhile is told to come again. Named handles and what waits for them stay in the inbox.
    ///
    /// # Errors
    /// [`ReceiveError::Unanswered`] if deliveries were in hand when `grace` was over. They come again; all else is done.
    ///
    /// # Cancellation
    /// Dropped, it stays closed to senders; call it again to end it.
    pub async fn close(&self, grace: Duration) -> Result<(), ReceiveError> {
        let shared = &self.0;
        shared.closing.store(true, Ordering::SeqCst);
        let begun = tokio::time::Instant::now();
        let listener = shared.listener.close();
        tokio::pin!(listener);
        let is_closed = timeout(grace, &mut listener).await.is_ok();
        let left = grace.saturating_sub(begun.elapsed());
        let unanswered = match timeout(left, shared.in_hand.none()).await {
            Ok(()) => 0,
            Err(_elapsed) => shared.in_hand.count(),
        };
        let verdict = Verdict::RetryLater(None);
        for handle in shared.registry.all() {
            match handle {
                Handle::Spawned(slot) => {
                    slot.end(&verdict);
                    slot.answer_all(&verdict);
                }
                Handle::Named(named) => named.end(),
            }
        }
        if !is_closed {
            listener.await;
        }
        let listening = lock(&shared.listening).take();
        if let Some(listening) = listening {
            // It has ended, or failed and said so.
            let _ = listening.await;
        }
        shared.closed.store(true, Ordering::SeqCst);
        if let Some(inbox) = &shared.inbox {
            inbox.close().await;
        }
        if unanswered > 0 { Err(ReceiveError::Unanswered(unanswered)) } else { Ok(()) }
    }
}

/// Builds a [`Receiver`].
#[derive(Debug)]
#[must_use]
pub struct ReceiverBuilder {
    inbox: Option<Arc<dyn Store>>,
    verifier: Option<Verifier>,
    remember: (Duration, usize),
    settings: Settings,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) body_limit: usize,
    pub(crate) answer_within: Duration,
    pub(crate) queue: usize,
    pub(crate) backlog: usize,
    pub(crate) remember: Duration,
    pub(crate) most: usize,
}

impl ReceiverBuilder {
    /// Sets where named handles and their messages are stored. Default: nowhere; [`Receiver::expect`] is an error then.
    pub fn inbox(mut self, inbox: impl Inbox) -> Self {
        self.inbox = Some(inbox.erase());
        self
    }

    /// Sets the keys that every message must be signed by, unless its handle has its own. Default: none, nothing is judged.
    pub fn verifier(mut self, verifier: Verifier) -> Self {
        self.verifier = Some(verifier);
        self
    }

    /// Sets how many bytes a body may have. Default 1 MiB.
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.settings.body_limit = bytes;
        self
    }

    /// Sets how long a sender waits for a verdict before he is told to come again. Default 15 s, below a sender's own 20 s.
    pub fn answer_within(mut self, time: Duration) -> Self {
        self.settings.answer_within = time;
        self
    }

    /// Sets how many messages a spawned handle has at once, waiting or in hand. Default 64; 0 counts as 1.
    ///
    /// They stay when their sender has given up, until they are taken or the handle ends: whoever knows a handle that nobody
    /// reads may fill it with this many bodies.
    pub fn queue(mut self, messages: usize) -> Self {
        self.settings.queue = messages.max(1);
        self
    }

    /// Sets how many messages wait in the inbox for one named handle. Default 10,000; 0 counts as 1.
    pub fn backlog(mut self, messages: usize) -> Self {
        self.settings.backlog = messages.max(1);
        self
    }

    /// Sets for how long ids of accepted messages are known, and how many at most. Default 100 h, 1,000,000.
    ///
    /// The time should be longer than a sender's whole schedule. Those of spawned handles are in memory, about 64 bytes each;
    /// those of named ones in the inbox, where what has no verdict is known whatever its age. Where there are too many the
    /// oldest go, counted by `callback_receive_ids_evicted_total` and [`Receiver::evicted_ids`].
    pub fn remember(mut self, time: Duration, ids: usize) -> Self {
        self.remember = (time, ids);
        self
    }

    /// Starts to take messages in.
    ///
    /// # Errors
    /// When the inbox fails, or another receiver has it ([`InboxError::is_locked`]).
    ///
    /// # Panics
    /// Outside of a Tokio runtime with time, or when the system has no randomness.
    pub async fn open(self, listener: impl Listener) -> Result<Receiver, ReceiveError> {
        let Self { inbox, verifier, remember: (remember, most), settings } = self;
        let settings = Settings { remember, most, ..settings };
        let started = match &inbox {
            Some(inbox) => inbox.start().await?,
            None => Started { key: Minter::random_key(), expectations: Vec::new(), positions: Vec::new() },
        };
        let listener: Arc<dyn Listener> = Arc::new(listener);
        let mut positions = started.positions;
        if let Some(inbox) = &inbox {
            let begins = listener.begin(&positions);
            if !begins.is_empty() {
                pass(inbox, begins.clone()).await?;
                positions.extend(begins);
            }
        }
        let shared = Arc::new(Shared {
            listener: Arc::clone(&listener),
            inbox,
            registry: Registry::new(),
            names: Mutex::default(),
            memory: Mutex::new(Memory::new(remember, most)),
            minter: Minter::new(&started.key),
            verifier,
            settings,
            positions,
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            in_hand: Arc::default(),
            runtime: runtime::Handle::current(),
            listening: Mutex::default(),
        });
        for expectation in started.expectations {
            shared.register(expectation);
        }
        if shared.inbox.is_some() {
            tokio::spawn(sweep(Arc::downgrade(&shared)));
        }
        let intake = Intake::new(&shared);
        let task = tokio::spawn(listen(listener, intake, Arc::downgrade(&shared)));
        *lock(&shared.listening) = Some(task);
        Ok(Receiver(shared))
    }
}

/// Stores positions before there is a receiver.
async fn pass(inbox: &Arc<dyn Store>, positions: Vec<(String, i64)>) -> Result<(), ReceiveError> {
    let (sender, receiver) = oneshot::channel();
    let done = move |written| {
        // Whoever opens the receiver may have gone.
        let _ = sender.send(written);
    };
    inbox.submit(Write::Pass { positions }, Box::new(done))?;
    receiver.await.map_err(|_| ReceiveError::Closed)?.map(drop).map_err(ReceiveError::from)
}

/// Runs the listener; when it ends by itself, nobody waits for ever.
async fn listen(listener: Arc<dyn Listener>, intake: Intake, shared: Weak<Shared>) {
    let _end = EndAll(shared);
    listener.listen(intake).await;
}

struct EndAll(Weak<Shared>);

impl Drop for EndAll {
    fn drop(&mut self) {
        let Some(shared) = self.0.upgrade() else { return };
        if shared.is_closing() {
            return;
        }
        tracing::error!("the listener has ended by itself: nothing comes in any more");
        shared.closing.store(true, Ordering::SeqCst);
        for handle in shared.registry.all() {
            match handle {
                Handle::Spawned(slot) => drop(slot.end(&Verdict::RetryLater(None))),
                Handle::Named(named) => named.end(),
            }
        }
    }
}

/// Forgets what is old, as long as there is a receiver.
async fn sweep(shared: Weak<Shared>) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let Settings { remember, most, .. } = shared.settings;
        let write = Write::Forget { before: Micros::now().before(remember), most };
        let forgotten = shared.write_then(write, |written| match written {
            Written::Count(evicted) if evicted > 0 => {
                metrics::counter!("callback_receive_ids_evicted_total").increment(evicted);
            }
            _ => {}
        });
        match forgotten.await {
            Ok(()) => {}
            Err(ReceiveError::Closed) => return,
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "old ids are not forgotten"),
        }
    }
}

/// What a receiver, its callbacks and its listener share.
pub(crate) struct Shared {
    pub(crate) listener: Arc<dyn Listener>,
    pub(crate) inbox: Option<Arc<dyn Store>>,
    pub(crate) registry: Registry,
    pub(crate) names: Mutex<HashMap<String, Name>>,
    pub(crate) memory: Mutex<Memory>,
    pub(crate) minter: Minter,
    pub(crate) verifier: Option<Verifier>,
    pub(crate) settings: Settings,
    pub(crate) positions: Vec<(String, i64)>,
    /// Nothing more comes in.
    closing: AtomicBool,
    /// Nothing more is written.
    closed: AtomicBool,
    pub(crate) in_hand: Arc<InHand>,
    pub(crate) runtime: runtime::Handle,
    listening: Mutex<Option<JoinHandle<()>>>,
}

/// What a name stands for.
pub(crate) enum Name {
    /// A handle that is being stored.
    OnItsWay,
    Handle(Arc<Named>),
}

impl Name {
    fn handle(&self) -> Option<Arc<Named>> {
        match self {
            Self::OnItsWay => None,
            Self::Handle(named) => Some(Arc::clone(named)),
        }
    }
}

impl Shared {
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub(crate) fn inbox(&self) -> Result<&Arc<dyn Store>, ReceiveError> {
        let inbox = self.inbox.as_ref().ok_or(ReceiveError::NoInbox)?;
        if self.closed.load(Ordering::SeqCst) { Err(ReceiveError::Closed) } else { Ok(inbox) }
    }

    /// Writes, and does something with what came of it, even if nobody waits any more.
    ///
    /// # Cancellation
    /// Dropped, the write and what follows it are done all the same.
    pub(crate) async fn write_then<T: Send + 'static>(
        &self,
        write: Write,
        then: impl FnOnce(Written) -> T + Send + 'static,
    ) -> Result<T, ReceiveError> {
        let inbox = self.inbox()?;
        let (sender, receiver) = oneshot::channel();
        let done = move |written: Result<Written, InboxError>| {
            // Whoever asked may have gone.
            let _ = sender.send(written.map(then));
        };
        inbox.submit(write, Box::new(done))?;
        receiver.await.map_err(|_| ReceiveError::Closed)?.map_err(ReceiveError::from)
    }

    /// Makes a stored handle known; it ends by itself when its time is over.
    pub(crate) fn register(self: &Arc<Self>, expectation: Expectation) -> Arc<Named> {
        let (name, expires) = (expectation.name.clone(), expectation.expires);
        let named = Arc::new(Named::new(expectation));
        self.registry.insert(named.handle, Handle::Named(Arc::clone(&named)));
        lock(&self.names).insert(name, Name::Handle(Arc::clone(&named)));
        if let Some(expires) = expires {
            self.expire_at(&named, expires);
        }
        if self.is_closing() {
            named.end();
        }
        named
    }

    /// Ends a named handle at a time.
    pub(crate) fn expire_at(self: &Arc<Self>, named: &Arc<Named>, expires: Micros) {
        let (shared, handle) = (Arc::downgrade(self), Arc::downgrade(named));
        let expiry = self.runtime.spawn(async move {
            loop {
                let left = expires.since(Micros::now());
                if left.is_zero() {
                    break;
                }
                sleep(left).await;
            }
            loop {
                let (Some(shared), Some(named)) = (shared.upgrade(), handle.upgrade()) else { return };
                match shared.end_named(&named, "expired").await {
                    Ok(()) | Err(ReceiveError::Closed) => return,
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "a handle does not end in the inbox");
                        drop((shared, named));
                        sleep(PAUSE).await;
                    }
                }
            }
        });
        named.set_expiry(expires, expiry.abort_handle());
    }

    /// Ends a named handle in the inbox, then in memory.
    pub(crate) async fn end_named(
        self: &Arc<Self>,
        named: &Arc<Named>,
        reason: &'static str,
    ) -> Result<(), ReceiveError> {
        let (shared, ended) = (Arc::clone(self), Arc::clone(named));
        let write = Write::End { handle: named.handle, reason, now: Micros::now() };
        let end = move |_| {
            shared.registry.remove(&ended.handle);
            let mut names = lock(&shared.names);
            // By then another may have its name.
            let is_its = |name: &Name| matches!(name, Name::Handle(named) if Arc::ptr_eq(named, &ended));
            let removed = if names.get(&*ended.name).is_some_and(is_its) { names.remove(&*ended.name) } else { None };
            drop(names);
            drop(removed);
            ended.end();
        };
        self.write_then(write, end).await
    }

    /// Ends a spawned handle.
    pub(crate) fn end_spawned(&self, slot: &Slot) {
        if slot.end(&Verdict::Ended) {
            self.registry.remove(&slot.handle);
        }
    }

    /// Settles a message of a spawned handle.
    pub(crate) fn settle_spawned(&self, slot: &Slot, number: u64, verdict: &Verdict) {
        if slot.settle(number, verdict, &self.memory, tokio::time::Instant::now()) {
            self.registry.remove(&slot.handle);
        }
    }

    /// A dead letter waits again.
    pub(crate) fn replayed(self: &Arc<Self>, handle: &HandleId, seq: i64) {
        if let Some(Handle::Named(named)) = self.registry.find(handle) {
            named.replayed(seq);
            self.come_back(&named, seq, Duration::ZERO);
        }
    }

    /// Reads the inbox for a handle, outside of every lock.
    pub(crate) fn fill(self: &Arc<Self>, named: &Arc<Named>, filling: Filling) {
        let (shared, named) = (Arc::downgrade(self), Arc::clone(named));
        self.runtime.spawn(async move {
            let mut next = Some(filling);
            while let Some(filling) = next {
                let Some(shared) = shared.upgrade() else { return };
                let Some(inbox) = shared.inbox.clone() else { return };
                match inbox.load(&named.handle, filling.after, PAGE).await {
                    Ok(page) => {
                        let filled = named.filled(filling, page, Micros::now());
                        for (seq, due) in filled.later {
                            shared.come_back(&named, seq, due.since(Micros::now()));
                        }
                        next = filled.next;
                    }
                    Err(error) => {
                        tracing::error!(error = &error as &dyn std::error::Error, "the inbox cannot be read");
                        drop((shared, inbox));
                        sleep(PAUSE).await;
                        next = named.not_filled(filling);
                    }
                }
            }
        });
    }

    /// Hands a message over again after a wait; it is read again then.
    pub(crate) fn come_back(self: &Arc<Self>, named: &Arc<Named>, seq: i64, wait: Duration) {
        let (shared, named) = (Arc::downgrade(self), Arc::downgrade(named));
        self.runtime.spawn(async move {
            sleep(wait).await;
            loop {
                let (Some(shared), Some(named)) = (shared.upgrade(), named.upgrade()) else { return };
                let Some(inbox) = shared.inbox.clone() else { return };
                match inbox.load_one(seq).await {
                    Ok(message) => return named.back(seq, message),
                    Err(error) if named.is_ended() => {
                        return tracing::debug!(error = &error as &dyn std::error::Error, "a closed inbox is not read");
                    }
                    Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "the inbox cannot be read"),
                }
                drop((shared, named, inbox));
                sleep(PAUSE).await;
            }
        });
    }

    /// A message in hand was dropped, or its verdict not stored.
    pub(crate) fn dropped(self: &Arc<Self>, named: &Arc<Named>, seq: i64, message: Message) {
        if let Some(wait) = named.dropped(seq, message) {
            self.come_back(named, seq, wait);
        }
    }

    /// Looks what became of the transaction in which a message was accepted.
    ///
    /// The question is a write, so that it is answered when the transaction is over.
    pub(crate) fn recheck(self: &Arc<Self>, named: Arc<Named>, seq: i64, message: Message, in_hand: InHandGuard) {
        let shared = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let mut wait = RECHECK;
            loop {
                sleep(wait).await;
                let Some(shared) = shared.upgrade() else { return };
                match shared
                    .write_then(Write::Recheck { seq }, |written| matches!(written, Written::Changed(true)))
                    .await
                {
                    Ok(false) => named.settled(seq),
                    Ok(true) => shared.dropped(&named, seq, message),
                    Err(ReceiveError::Closed) => {}
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "a transaction is not over");
                        wait = PAUSE;
                        continue;
                    }
                }
                drop(in_hand);
                return;
            }
        });
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("listener", &self.listener)
            .field("inbox", &self.inbox)
            .field("verifier", &self.verifier)
            .field("settings", &self.settings)
            .field("handles", &self.registry.len())
            .finish_non_exhaustive()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(listening) = lock(&self.listening).take() {
            listening.abort();
        }
    }
}

/// Counts deliveries that have no verdict.
#[derive(Debug, Default)]
pub(crate) struct InHand {
    count: AtomicUsize,
    changed: Notify,
}

impl InHand {
    pub(crate) fn one(self: &Arc<Self>) -> InHandGuard {
        self.count.fetch_add(1, Ordering::SeqCst);
        InHandGuard(Arc::clone(self))
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    async fn none(&self) {
        loop {
            let changed = self.changed.notified();
            if self.count() == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// One delivery in hand.
#[derive(Debug)]
pub(crate) struct InHandGuard(Arc<InHand>);

impl Drop for InHandGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}
