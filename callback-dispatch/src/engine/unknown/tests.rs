//! A store whose answers are lost.

use crate::{
    AcceptError, Dispatcher, Event, Interrupted, MemoryOutbox, NewSubscription, Task, TaskState, TokioClock, Work,
    Worker,
    clock::Micros,
    engine::faulty::Faulty,
    outbox::{Claim, Store, Write},
    row::Published,
};
use callback_core::{MemorySink, SinkError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// A dispatcher whose handler counts its runs.
async fn begin(outbox: &Faulty, interrupted: Interrupted) -> (Dispatcher, Worker, Arc<AtomicUsize>) {
    let dispatcher = Dispatcher::builder(outbox.clone()).start().await.expect("started");
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let handler = move |task: Task| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Ok::<_, String>(task.payload().clone()) }
    };
    let worker = dispatcher.worker("a", interrupted).run(handler).expect("registered");
    (dispatcher, worker, runs)
}

fn store(outbox: &MemoryOutbox, write: Write) {
    assert!(outbox.submit(write, Box::new(drop)).is_ok());
}

/// Whether it failed with an unknown outcome.
#[track_caller]
fn is_unknown<T: std::fmt::Debug>(accepted: Result<T, AcceptError>) -> bool {
    match accepted {
        Err(AcceptError::Outbox(error)) => error.is_unknown(),
        other => panic!("{other:?}"),
    }
}

async fn completed(dispatcher: &Dispatcher, id: callback_core::TaskId) {
    let ended = timeout(Duration::from_secs(60), dispatcher.wait(id)).await.expect("it ends");
    assert_eq!(ended.expect("readable").map(|task| task.state()), Some(TaskState::Completed));
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_though_nobody_said_so_is_acknowledged_and_run() {
    let outbox = Faulty::default();
    let (dispatcher, worker, runs) = begin(&outbox, Interrupted::RunAgain).await;
    outbox.faults.lose("insert", store);
    let id = worker.accept(Work::new("work")).await.expect("accepted").id();
    completed(&dispatcher, id).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_within_five_seconds_is_run_all_the_same_if_it_was_stored() {
    let outbox = Faulty::default();
    let (dispatcher, worker, runs) = begin(&outbox, Interrupted::RunAgain).await;
    let faults = Arc::clone(&outbox.faults);
    outbox.faults.lose("insert", move |inner, write| {
        store(inner, write);
        faults.fails.store(true, Ordering::SeqCst);
    });
    let work = || Work::new("work").idempotency_key("key");
    let begun = Instant::now();
    assert!(is_unknown(worker.accept(work()).await));
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    sleep(Duration::from_secs(600)).await;
    assert_eq!(runs.load(Ordering::SeqCst), 0);

    outbox.faults.fails.store(false, Ordering::SeqCst);
    let again = async {
        loop {
            match worker.accept(work()).await {
                Ok(acknowledgment) => return acknowledgment.id(),
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let id = timeout(Duration::from_secs(5), again).await.expect("it is acknowledged");
    completed(&dispatcher, id).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_stored_leaves_its_idempotency_key_free() {
    let outbox = Faulty::default();
    let (dispatcher, worker, runs) = begin(&outbox, Interrupted::RunAgain).await;
    outbox.faults.lose("insert", |_, _| {});
    let work = || Work::new("work").idempotency_key("key");
    assert!(!is_unknown(worker.accept(work()).await));
    let id = worker.accept(work()).await.expect("accepted").id();
    completed(&dispatcher, id).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// Its transaction was open still: the commit comes when it is asked for.
#[tokio::test(start_paused = true)]
async fn what_is_stored_while_it_is_asked_for_is_acknowledged_and_run() {
    let outbox = Faulty::default();
    let (dispatcher, worker, runs) = begin(&outbox, Interrupted::RunAgain).await;
    let faults = Arc::clone(&outbox.faults);
    outbox.faults.lose("insert", move |_, insert| {
        faults.lose("confirm", |inner, _| store(inner, insert));
    });
    let work = || Work::new("work").idempotency_key("key");
    let id = worker.accept(work()).await.expect("accepted").id();
    assert_eq!(worker.accept(work()).await.expect("accepted").id(), id);
    completed(&dispatcher, id).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_others_have_taken_meanwhile_is_not_run_here() {
    let outbox = Faulty::default();
    let (_dispatcher, worker, runs) = begin(&outbox, Interrupted::RunAgain).await;
    outbox.faults.lose("insert", |inner, write| {
        store(inner, write);
        take_over(inner);
    });
    worker.accept(Work::new("work")).await.expect("accepted");
    sleep(Duration::from_secs(600)).await;
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

/// What another process does when the lease of this one is over.
fn take_over(outbox: &MemoryOutbox) {
    store(outbox, Write::Recover);
    let workers = vec!["a".into()];
    store(
        outbox,
        Write::Claim(Claim {
            number: 0,
            now: Micros(i64::MAX - 1),
            limit: 1,
            bytes: usize::MAX,
            workers,
            left_out: Vec::new(),
            found: None,
        }),
    );
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_was_stored_though_nobody_said_so_counts() {
    let outbox = Faulty::default();
    let (dispatcher, worker, runs) = begin(&outbox, Interrupted::Report).await;
    outbox.faults.lose("settle", store);
    let id = worker.accept(Work::new("work")).await.expect("accepted").id();
    completed(&dispatcher, id).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn without_its_mark_nothing_is_run_that_another_process_has_taken_over() {
    let outbox = Faulty::default();
    let (_dispatcher, worker, runs) = begin(&outbox, Interrupted::Report).await;
    outbox.faults.lose("settle", |inner, _| take_over(inner));
    worker.accept(Work::new("work")).await.expect("accepted");
    sleep(Duration::from_secs(600)).await;
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_only_when_the_lease_is_over_is_not_begun() {
    let outbox = Faulty::default();
    let (dispatcher, worker, runs) = begin(&outbox, Interrupted::Report).await;
    let faults = Arc::clone(&outbox.faults);
    outbox.faults.lose("settle", move |inner, write| {
        store(inner, write);
        faults.lease.store(1, Ordering::SeqCst);
    });
    let id = worker.accept(Work::new("work")).await.expect("accepted").id();
    completed(&dispatcher, id).await;
    let row = outbox.inner.find(id).await.expect("readable").expect("known");
    let (claims, was_interrupted) = (row.token, row.result.is_none_or(|result| result.failed));
    assert_eq!((runs.load(Ordering::SeqCst), claims), (1, 1), "it runs once it was taken under the next lease");
    assert!(!was_interrupted, "it was given back without its mark");
}

#[tokio::test(start_paused = true)]
async fn what_a_claim_took_though_nobody_said_so_is_given_back_and_delivered_once() {
    let (outbox, sink) = (Faulty::default(), MemorySink::new());
    let elsewhere = Dispatcher::builder(MemoryOutbox::new()).sink(MemorySink::new()).start().await.expect("started");
    let to = "memory://events".parse().expect("a valid Dsn");
    let event = elsewhere.engine().event(Event::to(to, "a.b", "event")).expect("valid");
    let Published::To(row) = event else { panic!("it has a Dsn") };
    store(&outbox.inner, Write::Insert(row));

    outbox.faults.lose("claim", store);
    let _dispatcher = Dispatcher::builder(outbox).sink(sink.clone()).start().await.expect("started");
    timeout(Duration::from_secs(60), sink.next("events")).await.expect("it is delivered");
    sleep(Duration::from_secs(600)).await;
    assert!(sink.take("events").is_empty());
}

/// A dispatcher with one subscriber, `memory://events`.
async fn subscribed(outbox: &Faulty) -> (Dispatcher, MemorySink) {
    let sink = MemorySink::new();
    let builder = Dispatcher::builder(outbox.clone()).sink(sink.clone()).clock(TokioClock::default());
    let dispatcher = builder.start().await.expect("started");
    let new = NewSubscription::new("memory://events".parse().expect("a valid Dsn"));
    dispatcher.subscriptions().create(new).await.expect("created");
    (dispatcher, sink)
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_stored_though_nobody_said_so_is_published() {
    let outbox = Faulty::default();
    let (dispatcher, sink) = subscribed(&outbox).await;
    outbox.faults.lose("publish", store);
    let id = dispatcher.publish(Event::new("a.b", "event")).await.expect("published");
    let delivered = timeout(Duration::from_secs(60), sink.next("events")).await.expect("it is delivered");
    assert_eq!(delivered.message.event_id(), &id);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_not_stored_is_said_to_be_so() {
    let outbox = Faulty::default();
    let (dispatcher, sink) = subscribed(&outbox).await;
    outbox.faults.lose("publish", |_, _| {});
    assert!(!is_unknown(dispatcher.publish(Event::new("a.b", "event")).await));
    sleep(Duration::from_secs(600)).await;
    assert!(sink.take("events").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_not_known_within_five_seconds_is_delivered_all_the_same_if_it_was_stored() {
    let outbox = Faulty::default();
    let (dispatcher, sink) = subscribed(&outbox).await;
    let faults = Arc::clone(&outbox.faults);
    outbox.faults.lose("publish", move |inner, write| {
        store(inner, write);
        faults.fails.store(true, Ordering::SeqCst);
    });
    let begun = Instant::now();
    assert!(is_unknown(dispatcher.publish(Event::new("a.b", "event")).await));
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    outbox.faults.fails.store(false, Ordering::SeqCst);
    timeout(Duration::from_secs(60), sink.next("events")).await.expect("it is delivered");
}

#[tokio::test(start_paused = true)]
async fn an_event_of_unknown_outcome_expires_in_time() {
    let outbox = Faulty::default();
    let (dispatcher, sink) = subscribed(&outbox).await;
    sink.fail("events", SinkError::unavailable("down"));
    outbox.faults.lose("publish", store);
    let event = Event::new("a.b", "event").expires_in(Duration::from_secs(2));
    dispatcher.publish(event).await.expect("published");
    let waiting = async || outbox.inner.depth(Micros(0)).await.expect("readable").0;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(waiting().await, 1, "it waits for its retry");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(waiting().await, 0);
}
