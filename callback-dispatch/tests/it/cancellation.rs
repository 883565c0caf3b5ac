//! Cancelling: whenever it comes, the run is dropped, and the Dsn is not told.

use crate::support::{CustomSink, Gate, Home, accept, dsn, echo, ended, event, reaches, receipt, start};
use callback_core::{MemorySink, Schedule, SinkError, TaskId};
use callback_dispatch::{EndError, Event, Interrupted, Lane, Task, TaskState, Work};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc;

on_each_outbox!(
    a_task_that_waits_for_its_turn_is_not_begun,
    a_run_is_dropped,
    a_result_that_waits_for_its_lane_is_not_sent,
    a_result_that_waits_for_a_retry_is_not_sent_again,
    a_receipt_after_the_cancel_changes_nothing,
    what_a_cancelled_run_published_is_not_sent,
    what_is_over_or_unknown_cannot_be_cancelled,
    whoever_waits_is_told,
);

async fn a_task_that_waits_for_its_turn_is_not_begun(home: Home) {
    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).concurrency(1);
    let worker = worker.run(gate.handler()).expect("registered");
    accept(&worker, "first", "memory://results").await;
    assert_eq!(watch.came().await, "first");
    // More than wait in memory: the later ones wait in the store.
    let mut others = Vec::new();
    for number in 0..8 {
        others.push(accept(&worker, number, "memory://results").await);
    }
    for id in &others {
        dispatcher.cancel(*id).await.expect("cancelled");
    }
    accept(&worker, "last", "memory://results").await;
    gate.open(2);
    assert_eq!(watch.came().await, "last");
    let mut arrived = [sink.next("results").await, sink.next("results").await].map(|it| it.message.body().clone());
    arrived.sort();
    assert_eq!(arrived, ["\"first\"", "\"last\""]);
    for id in others {
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Cancelled);
    }
}

async fn a_run_is_dropped(home: Home) {
    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    for (name, interrupted) in [("again", Interrupted::RunAgain), ("report", Interrupted::Report)] {
        let worker = dispatcher.worker(name, interrupted).concurrency(1).run(gate.handler()).expect("registered");
        let id = accept(&worker, "cancelled", "memory://results").await;
        assert_eq!(watch.came().await, "cancelled");
        dispatcher.cancel(id).await.expect("cancelled");
        assert_eq!(watch.left().await, "cancelled");
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Cancelled);

        // Its permit is free again, and its Dsn is not told.
        accept(&worker, "next", "memory://results").await;
        gate.open(1);
        assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "next");
        assert_eq!((watch.came().await, watch.left().await), (json!("next"), json!("next")));
    }
    dispatcher.close(Duration::from_secs(5)).await;
    assert!(sink.take("results").is_empty());
}

async fn a_result_that_waits_for_its_lane_is_not_sent(home: Home) {
    let (gate, mut watch) = Gate::new();
    let lane = Lane::default().in_flight(1);
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&gate)).lane(lane)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    accept(&worker, "first", "custom://busy").await;
    assert_eq!(watch.came().await, "first");
    let mut others = Vec::new();
    for number in 0..8 {
        others.push(accept(&worker, number, "custom://busy").await);
    }
    for id in others {
        reaches(&dispatcher, id, TaskState::Delivering).await;
        dispatcher.cancel(id).await.expect("cancelled");
    }
    accept(&worker, "last", "custom://busy").await;
    gate.open(2);
    assert_eq!(watch.came().await, "last");
}

async fn a_result_that_waits_for_a_retry_is_not_sent_again(home: Home) {
    let (sender, mut attempts) = mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let _ = sender.send((given.message.json::<Value>().unwrap_or_default(), given.attempt.number()));
        async { Err(SinkError::unavailable("down")) }
    });
    let schedule = Schedule::new([Duration::from_millis(200)]).expect("valid").jitter(0);
    let dispatcher = start(home.builder().await.sink(sink).schedule(schedule)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "cancelled", "custom://down").await;
    assert_eq!(attempts.recv().await, Some((json!("cancelled"), 1)));
    dispatcher.cancel(id).await.expect("cancelled");
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Cancelled);

    // This one's retry is due later than the cancelled one's would be.
    dispatcher.publish(event("custom://down", json!("other"))).await.expect("published");
    assert_eq!(attempts.recv().await, Some((json!("other"), 1)));
    assert_eq!(attempts.recv().await, Some((json!("other"), 2)));
}

async fn a_receipt_after_the_cancel_changes_nothing(home: Home) {
    let (gate, mut watch) = Gate::new();
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&gate))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "in flight", "custom://a").await;
    watch.came().await;
    dispatcher.cancel(id).await.expect("cancelled");
    gate.open(1);
    watch.left().await;
    dispatcher.close(Duration::from_secs(5)).await;
    let dispatcher = start(home.builder().await).await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Cancelled);
}

async fn what_a_cancelled_run_published_is_not_sent(home: Home) {
    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let inner = gate.clone();
    let handler = move |task: Task| {
        let gate = inner.clone();
        async move {
            let body = task.json::<Value>().unwrap_or_default();
            task.publish(Event::to(dsn("memory://audit"), "order.begun", body.clone())).expect("published");
            gate.pass(body.clone()).await;
            Ok::<_, Value>(body)
        }
    };
    let worker = dispatcher.worker("publishing", Interrupted::RunAgain).run(handler).expect("registered");
    let id = worker.accept(Work::new(json!("cancelled"))).await.expect("accepted").id();
    watch.came().await;
    dispatcher.cancel(id).await.expect("cancelled");
    watch.left().await;
    worker.accept(Work::new(json!("next"))).await.expect("accepted");
    gate.open(1);
    assert_eq!(sink.next("audit").await.message.json::<Value>().expect("JSON"), "next");
    dispatcher.close(Duration::from_secs(5)).await;
    assert!(sink.take("audit").is_empty());
}

async fn what_is_over_or_unknown_cannot_be_cancelled(home: Home) {
    let sink = CustomSink::new(|_| async { Ok(receipt()) });
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    assert!(matches!(dispatcher.cancel(TaskId::new()).await, Err(EndError::Unknown)));
    let id = accept(&worker, "x", "custom://a").await;
    ended(&dispatcher, id).await;
    assert!(matches!(dispatcher.cancel(id).await, Err(EndError::Ended)));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);

    let (gate, mut watch) = Gate::new();
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    let id = accept(&worker, "x", "custom://a").await;
    watch.came().await;
    dispatcher.cancel(id).await.expect("cancelled");
    assert!(matches!(dispatcher.cancel(id).await, Err(EndError::Ended)));
}

async fn whoever_waits_is_told(home: Home) {
    let (gate, mut watch) = Gate::new();
    let dispatcher = start(home.builder().await).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    let id = worker.accept(Work::new("x")).await.expect("accepted").id();
    watch.came().await;
    let (task, cancelled) = tokio::join!(ended(&dispatcher, id), dispatcher.cancel(id));
    cancelled.expect("cancelled");
    assert_eq!(task.state(), TaskState::Cancelled);
}
