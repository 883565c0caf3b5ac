//! Accepted, run, stored, delivered: what arrives, and what the handler sees.

use crate::support::{Home, accept, dsn, echo, ended, event, start, task};
use callback_core::{MemorySink, Payload, TaskId};
use callback_dispatch::{AcceptError, Dispatcher, Event, Interrupted, Outcome, Task, TaskState, Work};
use serde_json::{Value, json};
use tokio::sync::mpsc;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

on_each_outbox!(
    a_result_is_delivered_under_the_tasks_id,
    an_outcome_has_its_type,
    a_handler_sees_what_was_kept_and_nothing_else,
    without_a_dsn_the_outcome_is_kept,
    waiting_for_an_unknown_task_tells_so,
    an_event_is_delivered_under_an_id_of_its_own,
    what_a_handler_publishes_goes_out_with_its_outcome,
);

async fn a_result_is_delivered_under_the_tasks_id(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).source("/orders")).await;
    let double = |task: Task| async move { Ok::<_, Value>(json!(task.json::<u32>().unwrap_or(0) * 2)) };
    let worker = dispatcher.worker("double", Interrupted::RunAgain).run(double).expect("registered");
    let work = Work::new(json!(21))
        .callback(dsn("memory://results"))
        .owner("acme")
        .correlation_id("ray 7")
        .header("x-kept", "for the handler")
        .pass_on("X-Request-Id", "r-1")
        .pass_on("traceparent", TRACE);
    let acknowledgment = worker.accept(work).await.expect("accepted");
    assert_eq!(acknowledgment.dsn(), Some(&dsn("memory://results")));

    let delivered = sink.next("results").await;
    let (message, id) = (&delivered.message, acknowledgment.id().to_string());
    assert_eq!(message.id().as_str(), id);
    assert_eq!(message.event_id().as_str(), id);
    assert_eq!(message.subject(), Some(&*id));
    assert_eq!(message.event_type(), "callback.task.completed");
    assert_eq!(message.source(), "/orders");
    assert_eq!(message.correlation_id(), Some("ray 7"));
    assert_eq!(message.headers().collect::<Vec<_>>(), [("x-request-id", "r-1")]);
    assert_eq!((message.content_type(), &message.body()[..]), ("application/json", &b"42"[..]));
    assert_eq!(delivered.dsn, dsn("memory://results"));
    assert_eq!((delivered.attempt.number(), delivered.attempt.traceparent()), (1, Some(TRACE)));

    let task = ended(&dispatcher, acknowledgment.id()).await;
    assert_eq!(task.state(), TaskState::Delivered);
    assert_eq!(task.outcome().map(|outcome| outcome.payload().clone()), Some(Payload::from(json!(42))));
    assert!(sink.take("results").is_empty(), "it is delivered once");
}

async fn an_outcome_has_its_type(home: Home) {
    let table: [(Outcome, &str, bool, Value); 5] = [
        (Ok::<_, Value>(json!(1)).into(), "callback.task.completed", false, json!(1)),
        (Err::<Value, _>(json!(2)).into(), "callback.task.failed", true, json!(2)),
        (Outcome::failed(json!(3)), "callback.task.failed", true, json!(3)),
        (Outcome::completed(json!(4)).with_event_type("order.done"), "order.done", false, json!(4)),
        (Outcome::failed(json!(5)).with_event_type("order.lost"), "order.lost", true, json!(5)),
    ];
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    for (number, (outcome, event_type, failed, body)) in table.into_iter().enumerate() {
        let worker = dispatcher.worker(format!("worker {number}"), Interrupted::Report);
        let handler = move |_: Task| std::future::ready(outcome.clone());
        let worker = worker.run(handler).expect("registered");
        let work = Work::new(json!(null)).callback(dsn("memory://results"));
        let id = worker.accept(work).await.expect("accepted").id();
        let message = sink.next("results").await.message;
        assert_eq!((message.event_type(), message.json::<Value>().expect("JSON")), (event_type, body));
        let outcome = ended(&dispatcher, id).await.outcome().cloned().expect("an outcome");
        assert_eq!(outcome.is_failed(), failed, "{event_type}");
    }
}

async fn a_handler_sees_what_was_kept_and_nothing_else(home: Home) {
    let dispatcher = start(home.builder().await).await;
    let (sender, mut tasks) = mpsc::unbounded_channel();
    let handler = move |task: Task| {
        let _ = sender.send(task.clone());
        echo(task)
    };
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(handler).expect("registered");
    let work = Work::new(Payload::new("text/x-order", "12345"))
        .operation("Order.process")
        .owner("acme")
        .correlation_id("ray")
        .header("X-Tenant", "7")
        .extension("customer", json!({ "id": 7 }))
        .pass_on("x-request-id", "only for the receiver")
        .pass_on("traceparent", TRACE);
    let id = worker.accept(work).await.expect("accepted").id();

    let task = tasks.recv().await.expect("it runs");
    assert_eq!((task.id(), task.runs(), task.state()), (id, 1, TaskState::Running));
    assert_eq!((task.operation(), task.owner(), task.correlation_id()), ("Order.process", Some("acme"), Some("ray")));
    assert_eq!(task.payload(), &Payload::new("text/x-order", "12345"));
    assert_eq!(task.headers().collect::<Vec<_>>(), [("X-Tenant", "7")]);
    assert_eq!(
        (task.header("x-tenant"), task.header("x-request-id"), task.header("traceparent")),
        (Some("7"), None, None)
    );
    assert_eq!((task.extension("customer"), task.extension("other")), (Some(&json!({ "id": 7 })), None));
    assert!(task.outcome().is_none());
    assert_eq!(ended(&dispatcher, id).await.accepted_at(), task.accepted_at());
}

async fn without_a_dsn_the_outcome_is_kept(home: Home) {
    let dispatcher = start(home.builder().await).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let acknowledgment = worker.accept(Work::new(json!("kept"))).await.expect("accepted");
    assert_eq!(acknowledgment.dsn(), None);
    for task in [ended(&dispatcher, acknowledgment.id()).await, task(&dispatcher, acknowledgment.id()).await] {
        assert_eq!(task.state(), TaskState::Completed);
        let outcome = task.outcome().expect("the outcome is stored");
        assert_eq!((outcome.is_failed(), outcome.payload()), (false, &Payload::from(json!("kept"))));
    }
}

async fn waiting_for_an_unknown_task_tells_so(home: Home) {
    let dispatcher = start(home.builder().await).await;
    assert!(dispatcher.wait(TaskId::new()).await.expect("readable").is_none());
    assert!(dispatcher.task(TaskId::new()).await.expect("readable").is_none());
}

async fn an_event_is_delivered_under_an_id_of_its_own(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).source("/orders")).await;
    let publish = |event: Event| dispatcher.publish(event);
    let plain = Event::to(dsn("memory://audit"), "order.completed", json!(7));

    let id = publish(plain.clone()).await.expect("published");
    let message = sink.next("audit").await.message;
    assert_eq!((message.id(), message.event_id(), message.subject()), (&id, &id, Some(id.as_str())));
    assert_eq!(
        (message.event_type(), message.source(), &message.body()[..]),
        ("order.completed", "/orders", &b"7"[..])
    );

    let event_id: callback_core::MessageId = "order-7".parse().expect("valid");
    let id = publish(plain.id(event_id.clone()).subject("order 7")).await.expect("published");
    let message = sink.next("audit").await.message;
    assert_eq!((message.id(), message.event_id(), message.subject()), (&id, &event_id, Some("order 7")));

    // An event is no task.
    let id = id.as_str().parse().expect("a task's id");
    assert!(dispatcher.task(id).await.expect("readable").is_none());
}

/// Publishes one event, then answers.
async fn publishing(task: Task) -> Result<Value, String> {
    let event = Event::to(dsn("memory://audit"), "order.completed", json!("event"));
    let id = task.publish(event).map_err(|error| error.to_string())?;
    Ok(json!(id.as_str()))
}

async fn what_a_handler_publishes_goes_out_with_its_outcome(home: Home) {
    let sink = MemorySink::new();
    let dispatcher: Dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("publishing", Interrupted::RunAgain).run(publishing).expect("registered");
    for work in [Work::new("no Dsn"), Work::new("a Dsn").callback(dsn("memory://results"))] {
        let id = worker.accept(work).await.expect("accepted").id();
        let outcome = ended(&dispatcher, id).await.outcome().cloned().expect("an outcome");
        let message = sink.next("audit").await.message;
        assert_eq!(outcome.payload(), &Payload::from(json!(message.id().as_str())));
        assert_eq!(&message.body()[..], b"\"event\"");
    }
}

#[tokio::test]
async fn what_is_published_outside_of_the_run_is_refused() {
    let home = Home::memory();
    let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
    let (sender, mut tasks) = mpsc::unbounded_channel();
    let handler = move |task: Task| {
        let sent = sender.send(task);
        async move { sent.map(|()| json!(1)).map_err(|_| json!(2)) }
    };
    let worker = dispatcher.worker("keeps", Interrupted::RunAgain).run(handler).expect("registered");
    let id = accept(&worker, "x", "memory://results").await;
    let kept = tasks.recv().await.expect("run");
    let looked_up = ended(&dispatcher, id).await;
    for task in [kept, looked_up] {
        let published = task.publish(event("memory://results", json!(3)));
        assert!(matches!(published, Err(AcceptError::Ended)), "{published:?}");
    }
}
