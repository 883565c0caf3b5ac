//! An outbox for tests, with faults.

#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::{AcceptError, outbox::Written};
use crate::{
    MemoryOutbox, Outbox, OutboxError, SubscriptionId, SubscriptionQuery,
    clock::Micros,
    dead_letter::{Cursor, DeadLetter, DeadLetterQuery, Page},
    lane::{OpenBreaker, StoredConsent},
    outbox::{Done, Erase, Erased, Lease, NotQueued, Store, Write},
    row::Row,
    subscription::SubscriptionRow,
};
use async_trait::async_trait;
use callback_core::{Destination, TaskId};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

/// An outbox in memory that fails as it is told to, and notes what it stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Faulty {
    pub(super) inner: MemoryOutbox,
    pub(super) faults: Arc<Faults>,
}

#[derive(Default)]
pub(super) struct Faults {
    /// Whether it stores nothing.
    pub(super) fails: AtomicBool,
    /// Whether it is shared, and does not say what others do.
    pub(super) is_shared: AtomicBool,
    /// The lease that it has.
    pub(super) lease: AtomicU64,
    /// How often it does not say whether others wrote.
    pub(super) is_silent: AtomicUsize,
    stored: Mutex<Vec<&'static str>>,
    lost: Mutex<Vec<(&'static str, Lost)>>,
    late: Mutex<Vec<&'static str>>,
    answers: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
}

/// What becomes of a write whose answer is lost.
type Lost = Box<dyn FnOnce(&MemoryOutbox, Write) + Send>;

impl Faults {
    /// What was stored, in order.
    pub(super) fn stored(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loses the answer to the next write of this name, so that its outcome is unknown; `lost` may store it, or not.
    pub(super) fn lose(&self, name: &'static str, lost: impl FnOnce(&MemoryOutbox, Write) + Send + 'static) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push((name, Box::new(lost)));
    }

    /// Stores the next write of this name at once, and says so when it is told to.
    pub(super) fn answer_late(&self, name: &'static str) {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).push(name);
    }

    /// Gives the answers that are late.
    pub(super) fn answer(&self) {
        let answers = std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        answers.into_iter().for_each(|answer| answer());
    }

    fn is_late(&self, name: &str) -> bool {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let place = late.iter().position(|of| *of == name);
        place.map(|place| late.remove(place)).is_some()
    }

    fn lost(&self, name: &str) -> Option<Lost> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let place = lost.iter().position(|(of, _)| *of == name)?;
        Some(lost.remove(place).1)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}

fn name(write: &Write) -> &'static str {
    match write {
        Write::Insert(_) => "insert",
        Write::Result { .. } => "result",
        Write::Confirm { .. } => "confirm",
        Write::Settle(_) => "settle",
        Write::Claim(_) => "claim",
        Write::Attach(_) => "attach",
        Write::KeepAttached(_) => "keep",
        Write::Rouse { .. } => "rouse",
        Write::Publish(_) => "publish",
        Write::ConfirmEvent(_) => "confirm event",
        Write::Cancel { .. } => "cancel",
        Write::EndSubscription { .. } => "end subscription",
        _ => "other",
    }
}

impl Outbox for Faulty {}

impl Erase for Faulty {
    fn erase(&self) -> Erased {
        Erased(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Store for Faulty {
    async fn start(&self) -> Result<(), OutboxError> {
        self.inner.start().await
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        if self.faults.fails.load(Ordering::SeqCst) {
            done(Err(OutboxError::not_stored("the disk is full")));
            return Ok(());
        }
        if let Some(lost) = self.faults.lost(name(&write)) {
            lost(&self.inner, write);
            done(Err(OutboxError::unknown("the connection was lost")));
            return Ok(());
        }
        self.faults.stored().push(name(&write));
        if self.faults.is_late(name(&write)) {
            let faults = Arc::clone(&self.faults);
            let late = Box::new(move |result| {
                let mut answers = faults.answers.lock().unwrap_or_else(PoisonError::into_inner);
                answers.push(Box::new(move || done(result)));
            });
            return self.inner.submit(write, late);
        }
        self.inner.submit(write, done)
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    async fn insert_in(
        &self,
        connection: crate::transaction::Connection<'_>,
        row: Arc<Row>,
    ) -> Result<Written, AcceptError> {
        self.inner.insert_in(connection, row).await
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    async fn publish_in(
        &self,
        connection: crate::transaction::Connection<'_>,
        event: &crate::subscription::FanOut,
    ) -> Result<u64, AcceptError> {
        self.inner.publish_in(connection, event).await
    }

    async fn subscription(&self, id: SubscriptionId) -> Result<Option<SubscriptionRow>, OutboxError> {
        self.inner.subscription(id).await
    }

    async fn subscriptions(&self, query: &SubscriptionQuery) -> Result<Page<SubscriptionRow>, OutboxError> {
        self.inner.subscriptions(query).await
    }

    async fn next_due(&self, after: Micros) -> Result<Option<Micros>, OutboxError> {
        self.inner.next_due(after).await
    }

    async fn next_expiry(&self) -> Result<Option<Micros>, OutboxError> {
        self.inner.next_expiry().await
    }

    async fn find(&self, id: TaskId) -> Result<Option<Row>, OutboxError> {
        self.inner.find(id).await
    }

    fn is_shared(&self) -> bool {
        self.faults.is_shared.load(Ordering::SeqCst)
    }

    async fn others_wrote(&self) -> Result<bool, OutboxError> {
        let silent = self.faults.is_silent.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if silent.is_ok() { Err(OutboxError::not_stored("it does not answer")) } else { Ok(true) }
    }

    async fn waiting_workers(&self) -> Result<Vec<String>, OutboxError> {
        self.inner.waiting_workers().await
    }

    async fn depth(&self, now: Micros) -> Result<(u64, Option<Micros>), OutboxError> {
        self.inner.depth(now).await
    }

    async fn breakers(&self) -> Result<Vec<OpenBreaker>, OutboxError> {
        self.inner.breakers().await
    }

    async fn consent(&self, destination: &Destination) -> Result<Option<StoredConsent>, OutboxError> {
        self.inner.consent(destination).await
    }

    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, OutboxError> {
        self.inner.dead_letters(query).await
    }

    async fn dead_places(&self, query: &DeadLetterQuery) -> Result<Vec<Cursor>, OutboxError> {
        self.inner.dead_places(query).await
    }

    async fn dead_letter(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError> {
        self.inner.dead_letter(id).await
    }

    fn lease(&self) -> Lease {
        Lease(self.faults.lease.load(Ordering::SeqCst))
    }

    fn is_leased(&self, lease: Lease) -> bool {
        self.lease() == lease
    }

    async fn close(&self) {}
}
