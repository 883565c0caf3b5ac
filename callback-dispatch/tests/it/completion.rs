//! Work that is done elsewhere.

use crate::support::{Gate, Home, accept, dsn, ended, event, reaches, start, task};
use callback_core::{MemorySink, Payload, TaskId};
use callback_dispatch::{EndError, Event, Interrupted, Outcome, Task, TaskState, Work};
use serde_json::{Value, json};

on_each_outbox!(
    what_is_deferred_ends_when_it_is_completed,
    what_is_deferred_without_a_dsn_is_kept,
    a_completion_may_come_before_the_handler_defers,
    a_completion_may_come_before_the_handler_begins,
    only_the_first_completion_counts,
    what_is_over_or_unknown_cannot_be_completed,
    a_completion_that_cannot_be_sent_ends_nothing,
    what_a_handler_published_before_it_deferred_is_sent,
);

async fn deferring(_: Task) -> Outcome {
    Outcome::deferred()
}

async fn what_is_deferred_ends_when_it_is_completed(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("deferring", Interrupted::RunAgain).run(deferring).expect("registered");
    for (outcome, event_type) in [
        (Outcome::completed(json!("done")), "callback.task.completed"),
        (Outcome::failed(json!("done")), "callback.task.failed"),
    ] {
        let work = Work::new(json!(null)).callback(dsn("memory://results")).correlation_id("ray");
        let id = worker.accept(work).await.expect("accepted").id();
        reaches(&dispatcher, id, TaskState::Running).await;
        dispatcher.complete(id, outcome).await.expect("completed");
        let message = sink.next("results").await.message;
        assert_eq!((message.event_type(), &message.body()[..]), (event_type, &b"\"done\""[..]));
        assert_eq!((message.id().to_string(), message.correlation_id()), (id.to_string(), Some("ray")));
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    }
}

async fn what_is_deferred_without_a_dsn_is_kept(home: Home) {
    let dispatcher = start(home.builder().await).await;
    let worker = dispatcher.worker("deferring", Interrupted::RunAgain).run(deferring).expect("registered");
    let id = worker.accept(Work::new("x")).await.expect("accepted").id();
    let (task, completed) =
        tokio::join!(ended(&dispatcher, id), dispatcher.complete(id, Outcome::completed(json!("done"))));
    completed.expect("completed");
    assert_eq!(task.state(), TaskState::Completed);
    assert_eq!(task.outcome().map(Outcome::payload), Some(&Payload::from(json!("done"))));
}

async fn a_completion_may_come_before_the_handler_defers(home: Home) {
    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("gate", Interrupted::Report).run(gate.handler()).expect("registered");
    let id = accept(&worker, "by the handler", "memory://results").await;
    watch.came().await;
    dispatcher.complete(id, Outcome::completed(json!("from elsewhere"))).await.expect("completed");
    // The handler's future is dropped: nobody opened the gate.
    watch.left().await;
    assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "from elsewhere");
    ended(&dispatcher, id).await;
    dispatcher.close(std::time::Duration::from_secs(5)).await;
    assert!(sink.take("results").is_empty());
}

async fn a_completion_may_come_before_the_handler_begins(home: Home) {
    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).concurrency(1);
    let worker = worker.run(gate.handler()).expect("registered");
    accept(&worker, "first", "memory://results").await;
    assert_eq!(watch.came().await, "first");
    // More than wait in memory: some wait in the store, and both can be completed.
    let mut others = Vec::new();
    for number in 0..8 {
        others.push(accept(&worker, number, "memory://results").await);
    }
    for id in &others {
        dispatcher.complete(*id, Outcome::completed(json!("from elsewhere"))).await.expect("completed");
        assert_eq!(sink.next("results").await.message.id().to_string(), id.to_string());
    }
    gate.open(1);
    assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "first");
    watch.assert_nobody();
}

async fn only_the_first_completion_counts(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("deferring", Interrupted::RunAgain).run(deferring).expect("registered");
    let id = accept(&worker, json!(null), "memory://results").await;
    let complete = |number: u32| dispatcher.complete(id, Outcome::completed(json!(number)));
    let ends = tokio::join!(complete(1), complete(2), complete(3));
    let ends = [ends.0, ends.1, ends.2];
    assert_eq!(ends.iter().filter(|end| end.is_ok()).count(), 1, "{ends:?}");
    assert_eq!(ends.iter().filter(|end| matches!(end, Err(EndError::Ended))).count(), 2, "{ends:?}");
    let winner = ends.iter().position(Result::is_ok).expect("one counted") + 1;
    assert_eq!(sink.next("results").await.message.json::<usize>().expect("JSON"), winner);
    ended(&dispatcher, id).await;
    assert!(matches!(complete(4).await, Err(EndError::Ended)));
    dispatcher.close(std::time::Duration::from_secs(5)).await;
    assert!(sink.take("results").is_empty());
}

async fn what_is_over_or_unknown_cannot_be_completed(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("deferring", Interrupted::RunAgain).run(deferring).expect("registered");
    let done = || Outcome::completed(json!("done"));

    assert!(matches!(dispatcher.complete(TaskId::new(), done()).await, Err(EndError::Unknown)));
    let event = dispatcher.publish(event("memory://results", json!("event"))).await.expect("published");
    let event = event.as_str().parse().expect("a task's id");
    assert!(matches!(dispatcher.complete(event, done()).await, Err(EndError::Unknown)));

    let id = accept(&worker, json!(null), "memory://results").await;
    assert!(matches!(dispatcher.complete(id, Outcome::deferred()).await, Err(EndError::Ended)));
    dispatcher.cancel(id).await.expect("cancelled");
    assert!(matches!(dispatcher.complete(id, done()).await, Err(EndError::Ended)));
}

async fn a_completion_that_cannot_be_sent_ends_nothing(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).body_limit(16)).await;
    let worker = dispatcher.worker("deferring", Interrupted::RunAgain).run(deferring).expect("registered");
    let id = accept(&worker, json!(null), "memory://results").await;

    let large = dispatcher.complete(id, Outcome::completed("x".repeat(17))).await;
    assert!(matches!(large, Err(EndError::TooLarge { limit: 16 })), "{large:?}");
    let malformed = dispatcher.complete(id, Outcome::completed("x").with_event_type("no type")).await;
    assert!(matches!(malformed, Err(EndError::Message(_))), "{malformed:?}");
    assert!(!task(&dispatcher, id).await.state().is_ended());

    dispatcher.complete(id, Outcome::completed("x".repeat(16))).await.expect("completed");
    assert_eq!(sink.next("results").await.message.body().len(), 16);
}

async fn what_a_handler_published_before_it_deferred_is_sent(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let handler = |task: Task| async move {
        task.publish(Event::to(dsn("memory://audit"), "order.begun", json!("event"))).expect("published");
        Outcome::deferred()
    };
    let worker = dispatcher.worker("publishing", Interrupted::RunAgain).run(handler).expect("registered");
    let id = accept(&worker, json!(null), "memory://results").await;
    assert_eq!(sink.next("audit").await.message.event_type(), "order.begun");
    assert_eq!(task(&dispatcher, id).await.state(), TaskState::Running);
}
