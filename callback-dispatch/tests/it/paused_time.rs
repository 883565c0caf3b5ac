//! A user's own tests: no network, no waiting.

use callback_core::{ErrorKind, MemorySink, SinkError};
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, Outcome, Task, TaskState, TokioClock, Work};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

async fn double(task: Task) -> Result<Value, String> {
    let number: u32 = task.json().map_err(|error| error.to_string())?;
    Ok(json!(number * 2))
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_was_down_gets_its_result_five_seconds_later() {
    let sink = MemorySink::new();
    sink.fail("results", SinkError::unavailable("down"));
    let dispatcher = Dispatcher::builder(MemoryOutbox::new())
        .sink(sink.clone())
        .clock(TokioClock::default())
        .start()
        .await
        .expect("started");
    let worker = dispatcher.worker("double", Interrupted::RunAgain).run(double).expect("registered");

    let begun = Instant::now();
    let work = Work::new(json!(21)).callback("memory://results".parse().expect("valid"));
    let acknowledgment = worker.accept(work).await.expect("accepted");
    let delivered = sink.next("results").await;

    assert_eq!(delivered.message.json::<u32>().expect("a number"), 42);
    assert_eq!(delivered.attempt.number(), 2);
    assert!(begun.elapsed() >= Duration::from_secs(4));
    let task = dispatcher.wait(acknowledgment.id()).await.expect("readable").expect("known");
    assert_eq!(task.state(), TaskState::Delivered);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_a_dead_letter() {
    let sink = MemorySink::new();
    sink.fail("results", SinkError::refused("no"));
    let dispatcher = Dispatcher::builder(MemoryOutbox::new())
        .sink(sink)
        .clock(TokioClock::default())
        .start()
        .await
        .expect("started");
    let echo = |task: Task| async move { Outcome::completed(task.payload().clone()) };
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let work = Work::new("hello").callback("memory://results".parse().expect("valid"));
    let acknowledgment = worker.accept(work).await.expect("accepted");
    let task = dispatcher.wait(acknowledgment.id()).await.expect("readable").expect("known");
    assert_eq!(task.state(), TaskState::Dead);
    let dead = dispatcher.dead_letters().list(&Default::default()).await.expect("readable");
    assert_eq!(dead.items[0].attempts[0].kind, ErrorKind::Refused);
}
