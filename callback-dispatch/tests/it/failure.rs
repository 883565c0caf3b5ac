//! Handlers and sinks that do not do their part.

use crate::support::{CustomSink, Gate, Home, accept, dsn, ended, event, receipt, start};
use callback_core::{MemorySink, Message, Problem, Schedule, async_trait};
use callback_dispatch::{
    Dispatcher, Failure, Handler, Interrupted, MemoryOutbox, Outcome, Task, TaskState, TokioClock, Work,
};
use serde_json::{Value, json};
use std::{future::pending, time::Duration};
use tokio::{sync::mpsc, time::Instant};

on_each_outbox!(
    a_handler_that_panics_fails_its_task_alone,
    a_result_that_is_too_large_becomes_a_failure,
    a_result_that_is_too_large_is_kept_where_the_work_asks_for_it,
    status_and_headers_of_an_outcome_are_kept_beside_its_message,
    a_malformed_type_becomes_a_failure,
    a_failure_is_put_into_the_handlers_own_words,
    a_handler_that_has_no_words_fails_by_the_engines,
    a_sink_that_panics_is_tried_again,
    a_run_that_takes_too_long_is_dropped,
);

#[track_caller]
fn check(message: &Message, failure: &Failure, status: u16) {
    assert_eq!((message.event_type(), message.content_type()), ("callback.task.failed", Problem::CONTENT_TYPE));
    let problem: Value = message.json().expect("a problem");
    assert_eq!((&problem["title"], &problem["status"]), (&json!(failure.to_string()), &json!(status)));
}

/// Panics, or does whatever else it is told.
async fn obedient(task: Task) -> Outcome {
    match task.json::<Value>().unwrap_or_default().as_str() {
        Some("panic") => panic!("the handler was told to"),
        Some("large") => Outcome::completed("x".repeat(1_001)),
        Some("malformed") => Outcome::completed("x").with_event_type("no type"),
        Some("hang") => pending().await,
        _ => Outcome::completed(task.payload().clone()),
    }
}

/// Has words of its own for every failure.
struct Worded;

#[async_trait]
impl Handler for Worded {
    async fn run(&self, task: Task) -> Outcome {
        obedient(task).await
    }

    fn failure(&self, task: &Task, failure: &Failure) -> Outcome {
        Outcome::failed(json!({ "task": task.id(), "failure": failure.to_string() })).with_event_type("own.failed")
    }
}

/// Panics even when it is asked for words.
struct Speechless;

/// Defers when it is asked for words.
struct Deferring;

#[async_trait]
impl Handler for Deferring {
    async fn run(&self, task: Task) -> Outcome {
        obedient(task).await
    }

    fn failure(&self, _: &Task, _: &Failure) -> Outcome {
        Outcome::deferred()
    }
}

#[async_trait]
impl Handler for Speechless {
    async fn run(&self, task: Task) -> Outcome {
        obedient(task).await
    }

    fn failure(&self, _: &Task, _: &Failure) -> Outcome {
        panic!("no words")
    }
}

async fn a_handler_that_panics_fails_its_task_alone(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("obedient", Interrupted::RunAgain).concurrency(1).run(obedient).expect("registered");
    for _ in 0..3 {
        let id = accept(&worker, "panic", "memory://results").await;
        check(&sink.next("results").await.message, &Failure::Panicked, 500);
        let task = ended(&dispatcher, id).await;
        assert!(task.outcome().is_some_and(Outcome::is_failed));
    }
    accept(&worker, "fine", "memory://results").await;
    assert_eq!(sink.next("results").await.message.json::<Value>().expect("JSON"), "fine");
}

async fn a_result_that_is_too_large_becomes_a_failure(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).body_limit(1_000)).await;
    let worker = dispatcher.worker("obedient", Interrupted::RunAgain).run(obedient).expect("registered");
    accept(&worker, "large", "memory://results").await;
    check(&sink.next("results").await.message, &Failure::TooLarge { limit: 1_000 }, 500);
}

async fn a_result_that_is_too_large_is_kept_where_the_work_asks_for_it(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).body_limit(1_000)).await;
    let worker = dispatcher.worker("obedient", Interrupted::RunAgain).run(obedient).expect("registered");
    let large = Outcome::completed("x".repeat(1_001));
    let work = |limit| Work::new(json!("large")).result_limit(limit);
    for to in [Some("memory://results"), None] {
        let work = to.iter().fold(work(1_001), |work, to| work.callback(dsn(to)));
        let id = worker.accept(work).await.expect("accepted").id();
        if to.is_some() {
            check(&sink.next("results").await.message, &Failure::Kept { limit: 1_000 }, 500);
        }
        let task = ended(&dispatcher, id).await;
        let outcome = task.outcome().expect("it has one");
        assert!(!outcome.is_failed());
        assert_eq!(outcome.payload(), large.payload());
        // The message is as small as it says, and nothing larger waits in memory.
        assert!(dispatcher.health().await.memory_bytes < 10_000);
    }
    // What is completed elsewhere is kept, too.
    let deferring = dispatcher.worker("deferring", Interrupted::RunAgain);
    let deferring = deferring.run(async |_: Task| Outcome::deferred()).expect("registered");
    let id = deferring.accept(work(1_001).callback(dsn("memory://results"))).await.expect("accepted").id();
    dispatcher.complete(id, large.clone().with_status(201)).await.expect("completed");
    check(&sink.next("results").await.message, &Failure::Kept { limit: 1_000 }, 500);
    let outcome = ended(&dispatcher, id).await.outcome().expect("it has one").clone();
    assert_eq!((outcome.payload(), outcome.status()), (large.payload(), Some(201)));

    let id = worker.accept(work(1_000).callback(dsn("memory://results"))).await.expect("accepted").id();
    check(&sink.next("results").await.message, &Failure::TooLarge { limit: 1_000 }, 500);
    assert!(ended(&dispatcher, id).await.outcome().is_some_and(Outcome::is_failed));
}

async fn status_and_headers_of_an_outcome_are_kept_beside_its_message(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("creating", Interrupted::RunAgain);
    let created = Outcome::completed("new").with_status(201).with_header("location", "/new").with_header("etag", "1");
    let outcome = created.clone();
    let worker = worker.run(move |_: Task| std::future::ready(outcome.clone())).expect("registered");
    let id = accept(&worker, json!(null), "memory://results").await;
    let message = sink.next("results").await.message;
    assert_eq!((message.body(), message.headers().count()), (&"new".into(), 0));
    let outcome = ended(&dispatcher, id).await.outcome().expect("it has one").clone();
    assert_eq!((outcome.status(), outcome.payload()), (Some(201), created.payload()));
    assert_eq!(outcome.headers().collect::<Vec<_>>(), [("location", "/new"), ("etag", "1")]);
}

async fn a_malformed_type_becomes_a_failure(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("obedient", Interrupted::RunAgain).run(obedient).expect("registered");
    accept(&worker, "malformed", "memory://results").await;
    let reason = Message::builder("no type").build().expect_err("malformed").to_string();
    check(&sink.next("results").await.message, &Failure::Malformed(reason), 500);
}

async fn a_failure_is_put_into_the_handlers_own_words(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).body_limit(1_000)).await;
    let worker = dispatcher.worker("worded", Interrupted::RunAgain).run(Worded).expect("registered");
    for (told, failure) in [("panic", Failure::Panicked), ("large", Failure::TooLarge { limit: 1_000 })] {
        let id = accept(&worker, told, "memory://results").await;
        let message = sink.next("results").await.message;
        assert_eq!(message.event_type(), "own.failed");
        let expected = json!({ "task": id, "failure": failure.to_string() });
        assert_eq!(message.json::<Value>().expect("JSON"), expected);
    }
}

async fn a_handler_that_has_no_words_fails_by_the_engines(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).body_limit(1_000)).await;
    let worker = dispatcher.worker("speechless", Interrupted::RunAgain).run(Speechless).expect("registered");
    let deferring = dispatcher.worker("deferring", Interrupted::RunAgain).run(Deferring).expect("registered");
    for (told, failure) in [("panic", Failure::Panicked), ("large", Failure::TooLarge { limit: 1_000 })] {
        for worker in [&worker, &deferring] {
            accept(worker, told, "memory://results").await;
            check(&sink.next("results").await.message, &failure, 500);
        }
    }
}

async fn a_sink_that_panics_is_tried_again(home: Home) {
    let (sender, mut attempts) = mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let number = given.attempt.number();
        let _ = sender.send(number);
        assert!(number > 1, "the sink panics at its first attempt");
        async { Ok(receipt()) }
    });
    let schedule = Schedule::new([Duration::from_millis(1)]).expect("valid");
    let dispatcher = start(home.builder().await.sink(sink).schedule(schedule)).await;
    let worker = dispatcher.worker("obedient", Interrupted::RunAgain).run(obedient).expect("registered");
    let id = accept(&worker, "fine", "custom://a").await;
    assert_eq!((attempts.recv().await, attempts.recv().await), (Some(1), Some(2)));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    dispatcher.publish(event("custom://a", json!(1))).await.expect("the engine is alive");
    assert_eq!(attempts.recv().await, Some(1));
}

async fn a_run_that_takes_too_long_is_dropped(home: Home) {
    let (sink, (gate, mut watch)) = (MemorySink::new(), Gate::new());
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let limit = Duration::from_millis(20);
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).time_limit(limit);
    let worker = worker.run(gate.handler()).expect("registered");
    let id = accept(&worker, "slow", "memory://results").await;
    assert_eq!((watch.came().await, watch.left().await), (json!("slow"), json!("slow")));
    check(&sink.next("results").await.message, &Failure::TimedOut(limit), 504);
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
}

#[tokio::test(start_paused = true)]
async fn a_task_may_name_its_own_limit() {
    let sink = MemorySink::new();
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink.clone()).clock(TokioClock::default());
    let dispatcher = start(builder).await;
    let worker = dispatcher.worker("obedient", Interrupted::RunAgain).time_limit(Duration::from_secs(60));
    let worker = worker.run(obedient).expect("registered");
    for (own, expected) in [(None, 60), (Some(10), 10), (Some(120), 120)] {
        let mut work = Work::new(json!("hang")).callback(dsn("memory://results"));
        if let Some(own) = own {
            work = work.time_limit(Duration::from_secs(own));
        }
        let begun = Instant::now();
        worker.accept(work).await.expect("accepted");
        check(&sink.next("results").await.message, &Failure::TimedOut(Duration::from_secs(expected)), 504);
        let took = begun.elapsed().as_secs_f64();
        assert!((took - Duration::from_secs(expected).as_secs_f64()).abs() < 0.1, "{took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_of_its_own_a_run_has_ten_minutes() {
    let sink = MemorySink::new();
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink.clone()).clock(TokioClock::default());
    let dispatcher = start(builder).await;
    let worker = dispatcher.worker("obedient", Interrupted::RunAgain).run(obedient).expect("registered");
    accept(&worker, "hang", "memory://results").await;
    check(&sink.next("results").await.message, &Failure::TimedOut(Duration::from_secs(600)), 504);
}
