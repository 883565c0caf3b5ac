//! What ends by time: tasks and events that expire, and what is deleted some time after its end.

use crate::support::{
    CustomSink, Gate, Home, accept, dsn, echo, ended, event, killed, lived, reaches, receipt, start, task,
};
use callback_core::{MemorySink, SinkError, TaskId};
use callback_dispatch::{
    DeadLetterQuery, Dispatcher, EndError, Interrupted, Lane, MemoryOutbox, Outcome, Task, TaskState, TokioClock, Work,
    Worker,
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::{future::pending, time::Duration};
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep},
};

on_each_outbox!(
    a_run_that_is_not_over_in_time_is_dropped,
    a_result_that_waits_for_a_retry_expires,
    work_that_is_done_elsewhere_expires_too,
    an_event_that_waited_too_long_is_not_attempted,
    what_is_over_in_time_stays_so,
    a_replay_is_not_bound_by_the_former_time,
    what_has_ended_long_ago_is_deleted_and_dead_letters_are_kept,
);

over_lives_on_each_outbox!(what_expired_while_nobody_was_there_is_ended);

const SOON: Duration = Duration::from_millis(20);

async fn expiring(worker: &Worker, payload: Value, after: Duration) -> TaskId {
    let work = Work::new(payload).callback(dsn("custom://a")).expires_in(after);
    worker.accept(work).await.expect("accepted").id()
}

/// Waits until what expires within `SOON` has expired.
async fn soon(dispatcher: &Dispatcher) {
    let hung = dispatcher.worker("hung", Interrupted::RunAgain).run(|_| pending::<Outcome>());
    let id = expiring(&hung.expect("registered"), json!("hung"), SOON).await;
    assert_eq!(ended(dispatcher, id).await.state(), TaskState::Expired);
}

async fn a_run_that_is_not_over_in_time_is_dropped(home: Home) {
    let (gate, mut watch) = Gate::new();
    let sink = CustomSink::new(|_| async { panic!("the Dsn is not told") });
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).concurrency(1);
    let worker = worker.run(gate.handler()).expect("registered");
    let running = expiring(&worker, json!("running"), SOON).await;
    let waiting = expiring(&worker, json!("waiting"), SOON).await;
    assert_eq!(ended(&dispatcher, running).await.state(), TaskState::Expired);
    assert_eq!(ended(&dispatcher, waiting).await.state(), TaskState::Expired);
    assert_eq!((watch.came().await, watch.left().await), (json!("running"), json!("running")));
    assert!(matches!(dispatcher.cancel(running).await, Err(EndError::Ended)));
    assert!(dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("readable").items.is_empty());
}

async fn a_result_that_waits_for_a_retry_expires(home: Home) {
    let sink = CustomSink::new(|_| async { Err(SinkError::unavailable("down")) });
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = expiring(&worker, json!(1), Duration::from_millis(500)).await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Expired);
    assert!(dispatcher.dead_letters().get(id).await.expect("readable").is_none());
}

async fn work_that_is_done_elsewhere_expires_too(home: Home) {
    let dispatcher = start(home.builder().await.sink(CustomSink::new(|_| pending()))).await;
    let defer = |_: Task| async { Outcome::deferred() };
    let worker = dispatcher.worker("defer", Interrupted::RunAgain).run(defer).expect("registered");
    let id = expiring(&worker, json!(1), SOON).await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Expired);
    let late = dispatcher.complete(id, Outcome::completed("late")).await;
    assert!(matches!(late, Err(EndError::Ended)), "{late:?}");
}

async fn an_event_that_waited_too_long_is_not_attempted(home: Home) {
    let (gate, mut watch) = Gate::new();
    let builder = home.builder().await.sink(CustomSink::behind(&gate)).lane(Lane::default().in_flight(1));
    let dispatcher = start(builder).await;
    dispatcher.publish(event("custom://a", json!("first"))).await.expect("published");
    assert_eq!(watch.came().await, "first");
    for _ in 0..10 {
        dispatcher.publish(event("custom://a", json!("late")).expires_in(SOON)).await.expect("published");
    }
    soon(&dispatcher).await;
    dispatcher.publish(event("custom://a", json!("last"))).await.expect("published");
    gate.open(2);
    assert_eq!(watch.came().await, "last");
}

async fn what_is_over_in_time_stays_so(home: Home) {
    let dispatcher = start(home.builder().await.sink(CustomSink::new(|_| async { Ok(receipt()) }))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = expiring(&worker, json!(1), Duration::from_secs(3_600)).await;
    soon(&dispatcher).await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
}

async fn a_replay_is_not_bound_by_the_former_time(home: Home) {
    let sink = MemorySink::new();
    sink.fail("results", SinkError::refused("no"));
    let dispatcher = start(home.builder().await.sink(sink.clone()).sink(CustomSink::new(|_| pending()))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let work = Work::new(json!(1)).callback(dsn("memory://results")).expires_in(Duration::from_millis(500));
    let id = worker.accept(work).await.expect("accepted").id();
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
    let hung = dispatcher.worker("hung", Interrupted::RunAgain).run(|_| pending::<Outcome>()).expect("registered");
    let later = expiring(&hung, json!(1), Duration::from_millis(500)).await;
    assert_eq!(ended(&dispatcher, later).await.state(), TaskState::Expired);
    assert!(dispatcher.dead_letters().replay(id).await.expect("writable"));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
}

fn what_expired_while_nobody_was_there_is_ended(home: &Home) {
    let id = killed(async {
        let dispatcher = start(home.builder().await.sink(CustomSink::new(|_| pending()))).await;
        let hung = dispatcher.worker("hung", Interrupted::RunAgain).run(|_| pending::<Outcome>()).expect("registered");
        let id = expiring(&hung, json!(1), Duration::from_secs(2)).await;
        reaches(&dispatcher, id, TaskState::Running).await;
        (id, (dispatcher, hung))
    });
    lived(async {
        // Its worker is not there either.
        let dispatcher = start(home.builder().await).await;
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Expired);
    });
}

async fn what_has_ended_long_ago_is_deleted_and_dead_letters_are_kept(home: Home) {
    let sink = CustomSink::new(|given| async move {
        if given.dsn.authority() == "dead" { Err(SinkError::refused("no")) } else { Ok(receipt()) }
    });
    let dispatcher = start(home.builder().await.sink(sink).retention(Duration::ZERO)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let dead = accept(&worker, "dead", "custom://dead").await;
    // More than are deleted at once.
    let ids = join_all((0..450).map(|number| accept(&worker, number, "custom://a"))).await;
    for id in ids {
        while dispatcher.task(id).await.expect("readable").is_some() {
            yield_now().await;
        }
    }
    assert_eq!(task(&dispatcher, dead).await.state(), TaskState::Dead);
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn what_is_deleted_takes_its_attempts_and_events_with_it() {
    let home = Home::sqlite();
    let sink = CustomSink::new(|given| async move {
        if given.attempt.number() == 1 { Err(SinkError::unavailable("down")) } else { Ok(receipt()) }
    });
    let schedule = callback_core::Schedule::new([Duration::from_millis(1); 2]).expect("valid");
    let builder = home.builder().await.sink(sink).schedule(schedule).retention(Duration::ZERO);
    let dispatcher = start(builder).await;
    dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    crate::support::in_time(async {
        let mut stranger = home.stranger().await;
        loop {
            let sql = "SELECT (SELECT count(*) FROM callback_outbox) + (SELECT count(*) FROM callback_attempt)";
            let left: i64 = sqlx::query_scalar(sql).fetch_one(&mut stranger).await.expect("readable");
            if left == 0 {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn on_paused_time() -> (Dispatcher, Worker) {
    let builder = Dispatcher::builder(MemoryOutbox::new()).clock(TokioClock::default());
    let dispatcher = start(builder.sink(CustomSink::new(|_| async { Ok(receipt()) }))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    (dispatcher, worker)
}

#[tokio::test(start_paused = true)]
async fn a_task_may_take_all_the_time_that_it_was_given() {
    let (dispatcher, _worker) = on_paused_time().await;
    let hung = dispatcher.worker("hung", Interrupted::RunAgain).time_limit(Duration::MAX);
    let hung = hung.run(|_| pending::<Outcome>()).expect("registered");
    let (day, begun) = (Duration::from_secs(86_400), Instant::now());
    let id = expiring(&hung, json!(1), day).await;
    let sooner = expiring(&hung, json!(1), day / 2).await;
    assert_eq!(ended(&dispatcher, sooner).await.state(), TaskState::Expired);
    assert!(!task(&dispatcher, id).await.state().is_ended());
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Expired);
    assert!(begun.elapsed() >= day);
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_not_attempted_again() {
    let (sender, mut attempts) = mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let _ = sender.send(given.attempt.number());
        async { Err(SinkError::unavailable("down")) }
    });
    let dispatcher = start(Dispatcher::builder(MemoryOutbox::new()).clock(TokioClock::default()).sink(sink)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    // The first retry is after about 5 s, the second after 5 min.
    let id = expiring(&worker, json!(1), Duration::from_secs(60)).await;
    let task = ended(&dispatcher, id).await;
    assert_eq!(task.state(), TaskState::Expired);
    assert!(task.outcome().is_some(), "its result can be fetched");
    dispatcher.publish(event("custom://a", json!(1)).expires_in(Duration::from_secs(60))).await.expect("published");
    sleep(Duration::from_secs(86_400)).await;
    let numbers: Vec<u32> = std::iter::from_fn(|| attempts.try_recv().ok()).collect();
    assert_eq!(numbers, [1, 2, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_is_kept_for_seven_days() {
    let (dispatcher, worker) = on_paused_time().await;
    let id = accept(&worker, 1, "custom://a").await;
    ended(&dispatcher, id).await;
    let day = Duration::from_secs(86_400);
    sleep(7 * day - Duration::from_secs(60)).await;
    assert!(task(&dispatcher, id).await.outcome().is_some());
    sleep(Duration::from_secs(180)).await;
    assert!(dispatcher.task(id).await.expect("readable").is_none());
}
