//! A store that fails, and heals.

use crate::{
    AcceptError, Dispatcher, Interrupted, MemoryOutbox, Outbox, OutboxError, Refusal, Task, Work, Worker,
    clock::Micros,
    dead_letter::{Cursor, DeadLetter, DeadLetterQuery, Page},
    lane::OpenBreaker,
    outbox::{Done, Erase, Erased, NotQueued, Store, Write},
    row::Row,
};
use async_trait::async_trait;
use callback_core::TaskId;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// An outbox in memory that stores nothing while it is told to fail; notes what it stored.
#[derive(Clone, Debug, Default)]
struct Failing {
    inner: MemoryOutbox,
    fails: Arc<AtomicBool>,
    stored: Arc<Mutex<Vec<&'static str>>>,
}

impl Outbox for Failing {}

impl Erase for Failing {
    fn erase(&self) -> Erased {
        Erased(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Store for Failing {
    async fn start(&self) -> Result<(), OutboxError> {
        self.inner.start().await
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        if self.fails.load(Ordering::SeqCst) {
            done(Err(OutboxError::not_stored("the disk is full")));
            return Ok(());
        }
        let name = match write {
            Write::Insert(_) => Some("insert"),
            Write::Result { .. } => Some("result"),
            _ => None,
        };
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).extend(name);
        self.inner.submit(write, done)
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    async fn insert_in(
        &self,
        connection: crate::transaction::Connection<'_>,
        row: Arc<Row>,
    ) -> Result<crate::outbox::Written, AcceptError> {
        self.inner.insert_in(connection, row).await
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

    async fn others_wrote(&self) -> Result<Option<bool>, OutboxError> {
        self.inner.others_wrote().await
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

    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, OutboxError> {
        self.inner.dead_letters(query).await
    }

    async fn dead_places(&self, query: &DeadLetterQuery) -> Result<Vec<Cursor>, OutboxError> {
        self.inner.dead_places(query).await
    }

    async fn dead_letter(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError> {
        self.inner.dead_letter(id).await
    }

    async fn close(&self) {}
}

/// A dispatcher whose handler waits for a permit; it adds one to the other semaphore when it begins.
async fn begin(outbox: &Failing, concurrency: usize) -> (Dispatcher, Worker, Arc<Semaphore>, Arc<Semaphore>) {
    let dispatcher = Dispatcher::builder(outbox.clone()).start().await.expect("started");
    let (begun, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let handler = {
        let (begun, gate) = (Arc::clone(&begun), Arc::clone(&gate));
        move |task: Task| {
            let (begun, gate) = (Arc::clone(&begun), Arc::clone(&gate));
            async move {
                begun.add_permits(1);
                gate.acquire().await.expect("open").forget();
                Ok::<_, String>(task.payload().clone())
            }
        }
    };
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).concurrency(concurrency);
    let worker = worker.run(handler).expect("registered");
    (dispatcher, worker, begun, gate)
}

#[tokio::test(start_paused = true)]
async fn results_wait_and_are_stored_before_anything_new() {
    let outbox = Failing::default();
    let (dispatcher, worker, begun, gate) = begin(&outbox, 3).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(worker.accept(Work::new(number.to_string())).await.expect("accepted").id());
    }
    begun.acquire_many(3).await.expect("open").forget();
    assert!(dispatcher.health().await.is_well());

    outbox.fails.store(true, Ordering::SeqCst);
    gate.add_permits(5);
    while dispatcher.health().await.waiting_writes < 3 {
        sleep(Duration::from_millis(1)).await;
    }
    let health = dispatcher.health().await;
    assert_eq!((health.refusal, health.in_hand, health.closing), (Some(Refusal::OutboxFails), 5, false));
    assert!(health.outbox.is_none() && health.memory_bytes > 0, "{health:?}");
    let refused = worker.accept(Work::new("new")).await;
    assert!(matches!(refused, Err(AcceptError::Outbox(_))), "{refused:?}");
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(begun.available_permits(), 0, "nothing else is run: its result would wait, too");

    outbox.stored.lock().expect("not poisoned").clear();
    outbox.fails.store(false, Ordering::SeqCst);
    let accepted = async {
        while worker.accept(Work::new("new")).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(2), accepted).await.expect("it is accepted soon after");
    let stored: Vec<&str> = outbox.stored.lock().expect("not poisoned").clone();
    let first = stored.iter().position(|write| *write == "insert");
    assert!(first.is_some_and(|first| first >= 3), "three results waited: {stored:?}");
    gate.add_permits(1);
    for id in ids {
        assert!(dispatcher.wait(id).await.expect("readable").is_some_and(|task| task.state().is_ended()));
    }
    let health = dispatcher.health().await;
    assert!(health.is_well(), "{health:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_dispatcher_says_so() {
    let outbox = Failing::default();
    let (dispatcher, _worker, _begun, _gate) = begin(&outbox, 1).await;
    dispatcher.close(Duration::ZERO).await;
    let health = dispatcher.health().await;
    assert_eq!((health.refusal, health.closing, health.is_well()), (Some(Refusal::Closing), true, false));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_while_nothing_waits_is_asked_again() {
    let outbox = Failing::default();
    let (_dispatcher, worker, _begun, _gate) = begin(&outbox, 1).await;
    outbox.fails.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(matches!(worker.accept(Work::new("x")).await, Err(AcceptError::Outbox(_))));
    }
    outbox.fails.store(false, Ordering::SeqCst);
    worker.accept(Work::new("x")).await.expect("accepted at once");
}
