//! A store that fails, and heals.

use crate::{AcceptError, Dispatcher, Interrupted, Refusal, Task, Work, Worker, engine::faulty::Faulty};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// A dispatcher whose handler waits for a permit; it adds one to the other semaphore when it begins.
async fn begin(outbox: &Faulty, concurrency: usize) -> (Dispatcher, Worker, Arc<Semaphore>, Arc<Semaphore>) {
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
    let outbox = Faulty::default();
    let (dispatcher, worker, begun, gate) = begin(&outbox, 3).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(worker.accept(Work::new(number.to_string())).await.expect("accepted").id());
    }
    begun.acquire_many(3).await.expect("open").forget();
    assert!(dispatcher.health().await.is_well());

    outbox.faults.fails.store(true, Ordering::SeqCst);
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

    outbox.faults.stored().clear();
    outbox.faults.fails.store(false, Ordering::SeqCst);
    let accepted = async {
        while worker.accept(Work::new("new")).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(2), accepted).await.expect("it is accepted soon after");
    let stored: Vec<&str> = outbox.faults.stored().clone();
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
    let outbox = Faulty::default();
    let (dispatcher, _worker, _begun, _gate) = begin(&outbox, 1).await;
    dispatcher.close(Duration::ZERO).await;
    let health = dispatcher.health().await;
    assert_eq!((health.refusal, health.closing, health.is_well()), (Some(Refusal::Closing), true, false));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_while_nothing_waits_is_asked_again() {
    let outbox = Faulty::default();
    let (_dispatcher, worker, _begun, _gate) = begin(&outbox, 1).await;
    outbox.faults.fails.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(matches!(worker.accept(Work::new("x")).await, Err(AcceptError::Outbox(_))));
    }
    outbox.faults.fails.store(false, Ordering::SeqCst);
    worker.accept(Work::new("x")).await.expect("accepted at once");
}
