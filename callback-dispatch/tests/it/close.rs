//! A graceful end.

use crate::support::{CustomSink, Gate, Home, accept, echo, ended, reaches, start};
use callback_core::MemorySink;
use callback_dispatch::{Dispatcher, Interrupted, Lane, TaskState, Work, Worker, WorkerError};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::yield_now;

on_each_outbox!(
    a_run_that_ends_within_the_grace_is_delivered,
    a_result_that_was_not_sent_is_left_to_the_next_life,
    an_attempt_that_ends_within_the_grace_counts,
    a_run_that_outlasts_the_grace_is_dropped_and_runs_again,
    a_run_that_must_not_run_again_is_reported_after_a_close_that_cut_it_short,
    an_attempt_that_outlasts_the_grace_is_made_again,
    what_waits_is_left_to_the_next_life,
    closing_twice_is_closing_once,
    whoever_waits_is_let_go,
    a_handler_that_holds_the_dispatcher_is_let_go,
);

const GRACE: Duration = Duration::from_secs(50);

/// Resolves once the dispatcher refuses work.
async fn closing(dispatcher: &Dispatcher) {
    while !matches!(dispatcher.worker("probe", Interrupted::Report).run(echo), Err(WorkerError::Closed)) {
        yield_now().await;
    }
}

async fn gated(home: &Home, sink: &MemorySink, gate: &Gate, interrupted: Interrupted) -> (Dispatcher, Worker) {
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("gate", interrupted).concurrency(1).run(gate.handler()).expect("registered");
    (dispatcher, worker)
}

async fn a_run_that_ends_within_the_grace_is_delivered(home: Home) {
    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let (dispatcher, worker) = gated(&home, &sink, &gate, Interrupted::Report).await;
    let id = accept(&worker, "in flight", "memory://results").await;
    watch.came().await;
    let ((), ()) = tokio::join!(dispatcher.close(GRACE), async {
        closing(&dispatcher).await;
        gate.open(1);
    });
    assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "in flight");

    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let (dispatcher, _worker) = gated(&home, &sink, &gate, Interrupted::Report).await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    watch.assert_nobody();
}

async fn a_result_that_was_not_sent_is_left_to_the_next_life(home: Home) {
    let (lane, mut delivering) = Gate::new();
    let (gate, mut watch) = Gate::new();
    gate.open(2);
    let builder = home.builder().await.sink(CustomSink::behind(&lane)).lane(Lane::default().in_flight(1));
    let dispatcher = start(builder).await;
    let worker = dispatcher.worker("gate", Interrupted::Report).run(gate.handler()).expect("registered");
    let first = accept(&worker, "first", "custom://a").await;
    assert_eq!(delivering.came().await, "first");
    let second = accept(&worker, "second", "custom://a").await;
    reaches(&dispatcher, second, TaskState::Delivering).await;
    dispatcher.close(Duration::ZERO).await;
    delivering.assert_nobody();
    assert_eq!((watch.came().await, watch.came().await), (json!("first"), json!("second")));

    // Neither is run again: the results are there.
    let (lane, _delivering) = Gate::new();
    lane.open(2);
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&lane))).await;
    let _worker = dispatcher.worker("gate", Interrupted::Report).run(gate.handler()).expect("registered");
    for id in [first, second] {
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    }
    watch.assert_nobody();
}

async fn an_attempt_that_ends_within_the_grace_counts(home: Home) {
    let (gate, mut watch) = Gate::new();
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&gate))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "in flight", "custom://a").await;
    watch.came().await;
    let ((), ()) = tokio::join!(dispatcher.close(GRACE), async {
        closing(&dispatcher).await;
        gate.open(1);
    });
    let dispatcher = start(home.builder().await).await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
}

async fn a_run_that_outlasts_the_grace_is_dropped_and_runs_again(home: Home) {
    let (gate, mut watch) = Gate::new();
    let (dispatcher, worker) = gated(&home, &MemorySink::new(), &gate, Interrupted::RunAgain).await;
    let id = accept(&worker, "in flight", "memory://results").await;
    watch.came().await;
    dispatcher.close(Duration::ZERO).await;
    assert_eq!(watch.left().await, "in flight");

    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let (dispatcher, _worker) = gated(&home, &sink, &gate, Interrupted::RunAgain).await;
    assert_eq!(watch.came().await, "in flight");
    gate.open(1);
    // An orderly end is no crash: it does not count among the starts that left it unfinished.
    assert_eq!(ended(&dispatcher, id).await.runs(), 1);
    assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "in flight");
}

async fn a_run_that_must_not_run_again_is_reported_after_a_close_that_cut_it_short(home: Home) {
    let (gate, mut watch) = Gate::new();
    let (dispatcher, worker) = gated(&home, &MemorySink::new(), &gate, Interrupted::Report).await;
    accept(&worker, "in flight", "memory://results").await;
    watch.came().await;
    dispatcher.close(Duration::ZERO).await;

    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let _life = gated(&home, &sink, &gate, Interrupted::Report).await;
    assert_eq!(sink.next("results").await.message.event_type(), "callback.task.failed");
    watch.assert_nobody();
}

async fn an_attempt_that_outlasts_the_grace_is_made_again(home: Home) {
    let (gate, mut watch) = Gate::new();
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&gate))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "in flight", "custom://a").await;
    watch.came().await;
    dispatcher.close(Duration::ZERO).await;
    watch.left().await;

    let (gate, mut watch) = Gate::new();
    gate.open(1);
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&gate))).await;
    assert_eq!(watch.came().await, "in flight");
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
}

async fn what_waits_is_left_to_the_next_life(home: Home) {
    let (gate, mut watch) = Gate::new();
    let (dispatcher, worker) = gated(&home, &MemorySink::new(), &gate, Interrupted::Report).await;
    accept(&worker, "first", "memory://others").await;
    watch.came().await;
    for number in 0..9 {
        accept(&worker, number, "memory://results").await;
    }
    let ((), ()) = tokio::join!(dispatcher.close(GRACE), async {
        closing(&dispatcher).await;
        gate.open(100);
    });
    watch.assert_nobody();

    let (sink, (gate, _watch)) = (MemorySink::new(), Gate::new());
    gate.open(100);
    let _life = gated(&home, &sink, &gate, Interrupted::Report).await;
    let mut arrived = Vec::new();
    for _ in 0..9 {
        arrived.push(sink.next("results").await.message.json::<u32>().expect("a number"));
    }
    arrived.sort_unstable();
    assert_eq!(arrived, (0..9).collect::<Vec<_>>());
    assert!(sink.take("others").is_empty());
}

async fn closing_twice_is_closing_once(home: Home) {
    let (gate, mut watch) = Gate::new();
    let (dispatcher, worker) = gated(&home, &MemorySink::new(), &gate, Interrupted::RunAgain).await;
    accept(&worker, "in flight", "memory://results").await;
    watch.came().await;
    let other = dispatcher.clone();
    tokio::join!(dispatcher.close(Duration::ZERO), other.close(Duration::ZERO));
    dispatcher.close(GRACE).await;
    assert_eq!(watch.left().await, "in flight");
}

async fn whoever_waits_is_let_go(home: Home) {
    let (gate, mut watch) = Gate::new();
    let (dispatcher, worker) = gated(&home, &MemorySink::new(), &gate, Interrupted::RunAgain).await;
    let id = accept(&worker, "in flight", "memory://results").await;
    watch.came().await;
    let waiting = async {
        let task = dispatcher.wait(id).await.expect("readable").expect("known");
        // Only now may the run end, and the close with it.
        gate.open(1);
        task.state()
    };
    let (state, ()) = tokio::join!(waiting, dispatcher.close(GRACE));
    assert_eq!(state, TaskState::Running);
}

async fn a_handler_that_holds_the_dispatcher_is_let_go(home: Home) {
    let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
    let (alive, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
    let held = (dispatcher.clone(), alive);
    let handler = move |_: callback_dispatch::Task| {
        let _ = &held;
        async { Ok::<_, Value>(json!(1)) }
    };
    let worker = dispatcher.worker("holding", Interrupted::RunAgain).run(handler).expect("registered");
    let id = worker.accept(Work::new("x")).await.expect("accepted").id();
    ended(&dispatcher, id).await;
    dispatcher.close(GRACE).await;
    assert_eq!(dropped.recv().await, None);
}
