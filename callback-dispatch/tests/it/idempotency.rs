//! A request that is sent again under its idempotency key.

use crate::support::{Gate, Home, dsn, echo, ended, start, task};
use callback_core::MemorySink;
use callback_dispatch::{AcceptError, Dispatcher, Interrupted, MemoryOutbox, TaskState, TokioClock, Work, Worker};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::sleep;

on_each_outbox!(
    a_request_that_is_sent_again_is_done_once,
    another_request_under_the_key_is_refused,
    a_key_is_of_its_worker_and_owner,
    of_many_at_once_one_is_stored,
    a_key_is_known_in_another_life,
);

fn work(payload: Value) -> Work {
    Work::new(payload).callback(dsn("memory://results")).operation("Order.run").idempotency_key("key")
}

async fn life(home: &Home, sink: &MemorySink) -> (Dispatcher, Worker) {
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    (dispatcher, worker)
}

async fn a_request_that_is_sent_again_is_done_once(home: Home) {
    let sink = MemorySink::new();
    let (dispatcher, worker) = life(&home, &sink).await;
    let first = worker.accept(work(json!(1))).await.expect("accepted");
    assert_eq!(worker.accept(work(json!(1))).await.expect("accepted").id(), first.id());
    assert_eq!(ended(&dispatcher, first.id()).await.state(), TaskState::Delivered);
    let again = worker.accept(work(json!(1))).await.expect("accepted");
    assert_eq!((again.id(), again.to_rpc(1.into())), (first.id(), first.to_rpc(1.into())));
    let other = worker.accept(work(json!(1)).idempotency_key("another")).await.expect("accepted");
    ended(&dispatcher, other.id()).await;
    assert_eq!(sink.take("results").len(), 2);
}

async fn another_request_under_the_key_is_refused(home: Home) {
    let (_dispatcher, worker) = life(&home, &MemorySink::new()).await;
    worker.accept(work(json!(1))).await.expect("accepted");
    for other in [
        work(json!(2)),
        work(json!(1)).operation("Order.cancel"),
        work(json!(1)).callback(dsn("memory://others")),
        Work::new("1").callback(dsn("memory://results")).operation("Order.run").idempotency_key("key"),
    ] {
        let refused = worker.accept(other).await;
        assert!(matches!(refused, Err(AcceptError::Conflict)), "{refused:?}");
    }
}

async fn a_key_is_of_its_worker_and_owner(home: Home) {
    let (dispatcher, worker) = life(&home, &MemorySink::new()).await;
    let other = dispatcher.worker("other", Interrupted::RunAgain).run(echo).expect("registered");
    let mut ids = BTreeSet::new();
    for (worker, work) in [
        (&worker, work(json!(1))),
        (&worker, work(json!(1)).owner("")),
        (&worker, work(json!(1)).owner("acme")),
        (&other, work(json!(1))),
    ] {
        assert!(ids.insert(worker.accept(work).await.expect("accepted").id().to_string()));
    }
}

async fn of_many_at_once_one_is_stored(home: Home) {
    let (gate, mut watch) = Gate::new();
    let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    let accepted = join_all((0..50).map(|number| worker.accept(work(json!(number % 2))))).await;
    let ids: BTreeSet<String> =
        accepted.iter().filter_map(|accepted| accepted.as_ref().ok()).map(|it| it.id().to_string()).collect();
    assert_eq!((ids.len(), accepted.iter().filter(|accepted| accepted.is_ok()).count()), (1, 25));
    watch.came().await;
    gate.open(50);
    dispatcher.close(Duration::from_secs(30)).await;
    watch.assert_nobody();
}

async fn a_key_is_known_in_another_life(home: Home) {
    let sink = MemorySink::new();
    let (dispatcher, worker) = life(&home, &sink).await;
    let id = worker.accept(work(json!(1))).await.expect("accepted").id();
    ended(&dispatcher, id).await;
    dispatcher.close(Duration::ZERO).await;
    let (_dispatcher, worker) = life(&home, &sink).await;
    assert_eq!(worker.accept(work(json!(1))).await.expect("accepted").id(), id);
    assert!(matches!(worker.accept(work(json!(2))).await, Err(AcceptError::Conflict)));
}

#[tokio::test(start_paused = true)]
async fn a_key_is_kept_for_a_day_though_nothing_else_is() {
    let sink = MemorySink::new();
    let builder = Dispatcher::builder(MemoryOutbox::new()).clock(TokioClock::default()).sink(sink);
    let dispatcher = start(builder.retention(Duration::ZERO)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = worker.accept(work(json!(1))).await.expect("accepted").id();
    ended(&dispatcher, id).await;
    let day = Duration::from_secs(86_400);
    sleep(day - Duration::from_secs(10)).await;
    assert_eq!(task(&dispatcher, id).await.state(), TaskState::Delivered);
    assert_eq!(worker.accept(work(json!(1))).await.expect("accepted").id(), id);
    sleep(Duration::from_secs(20)).await;
    assert_ne!(worker.accept(work(json!(1))).await.expect("accepted").id(), id);
}
