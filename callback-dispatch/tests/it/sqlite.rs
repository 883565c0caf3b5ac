//! What only an outbox in a file has: a lock, a mode, other processes, and disks that fail.

use crate::support::{CustomSink, Gate, Home, accept, dsn, echo, ended, event, in_time, start};
use callback_core::{MemorySink, SinkError, TaskId};
use callback_dispatch::{
    AcceptError, DeadLetterQuery, DeadLetters, Dispatcher, Interrupted, StartError, TaskState, Work, Worker,
};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use std::{
    env,
    error::Error,
    process::Command,
    time::{Duration, Instant},
};

#[tokio::test]
async fn a_file_has_one_dispatcher_at_a_time() {
    let home = Home::sqlite();
    let first = start(home.builder().await).await;
    let second = home.builder().await.start().await.expect_err("the file is taken");
    let StartError::Locked(cause) = &second else { panic!("{second:?}") };
    assert!(cause.is_locked());
    let cause = cause.source().expect("a cause").to_string();
    assert!(cause.contains("outbox.db.lock"), "{cause}");

    first.close(Duration::ZERO).await;
    let second = start(home.builder().await).await;
    assert!(matches!(home.builder().await.start().await, Err(StartError::Locked(_))));
    second.close(Duration::ZERO).await;
}

#[tokio::test]
async fn a_dispatcher_that_is_dropped_frees_its_file_within_the_second_that_a_start_waits() {
    let home = Home::sqlite();
    drop(start(home.builder().await).await);
    // The engine's tasks end by themselves.
    start(home.builder().await).await;
}

#[tokio::test]
async fn a_breaker_that_cannot_be_read_is_passed_over() {
    let home = Home::sqlite();
    home.open_file().await;
    let strange = "INSERT INTO callback_breaker (lane, destination, times, until) VALUES (1, '', 1, 9e15)";
    home.stranger().await.execute(strange).await.expect("writable");
    start(home.builder().await).await;
}

/// So it is also in a build that could not read it.
#[tokio::test]
async fn a_sealed_file_is_not_opened_without_keys() {
    let home = Home::sqlite();
    home.open_file().await;
    let seal = "INSERT INTO callback_seal (key, proof) VALUES ('2026-11', x'ff')";
    home.stranger().await.execute(seal).await.expect("writable");
    let error = callback_dispatch::SqliteOutbox::open(home.path()).await.expect_err("refused");
    assert!(error.is_sealed(), "{error:?}");
    let cause = error.source().expect("a cause").to_string();
    assert_eq!(cause, "it is sealed with the key 2026-11, and no keys were given");
}

#[tokio::test]
async fn a_start_that_failed_leaves_the_file_free() {
    let home = Home::sqlite();
    let (gate, mut watch) = Gate::new();
    let (first, worker) = gated(&home, &gate).await;
    worker.accept(Work::new(json!(1))).await.expect("accepted");
    watch.came().await;
    first.close(Duration::ZERO).await;

    let mut stranger = home.stranger().await;
    let refuse = "UPDATE callback_outbox SET held = 1; \
                  CREATE TRIGGER refuse BEFORE UPDATE ON callback_outbox BEGIN SELECT RAISE(ABORT, 'refused'); END";
    stranger.execute(refuse).await.expect("writable");
    let outbox = home.open_file().await;
    let failed = Dispatcher::builder(outbox.clone()).start().await;
    assert!(matches!(failed, Err(StartError::Outbox(_))), "{failed:?}");
    stranger.execute("DROP TRIGGER refuse").await.expect("writable");
    start(Dispatcher::builder(outbox)).await.close(Duration::ZERO).await;
}

#[tokio::test]
async fn a_start_that_could_not_read_the_breakers_leaves_the_file_free() {
    let home = Home::sqlite();
    let outbox = home.open_file().await;
    let mut stranger = home.stranger().await;
    stranger.execute("ALTER TABLE callback_breaker RENAME TO elsewhere").await.expect("writable");
    let failed = Dispatcher::builder(outbox.clone()).start().await;
    assert!(matches!(failed, Err(StartError::Outbox(_))), "{failed:?}");
    stranger.execute("ALTER TABLE elsewhere RENAME TO callback_breaker").await.expect("writable");
    start(Dispatcher::builder(outbox)).await.close(Duration::ZERO).await;
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::sqlite();
    let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
    dispatcher.publish(event("memory://a", json!(1))).await.expect("published");
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let path = format!("{}{suffix}", home.path().display());
        let mode = std::fs::metadata(&path).expect("the file is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{path}");
    }
}

#[tokio::test]
async fn dead_letters_are_read_and_replayed_beside_a_running_dispatcher() {
    let home = Home::sqlite();
    let sink = MemorySink::new();
    sink.fail("results", SinkError::refused("not yet"));
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "body", "memory://results").await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);

    let beside = DeadLetters::new(home.open_file().await);
    let page = beside.list(&Default::default()).await.expect("readable");
    assert_eq!(page.items.iter().map(|letter| letter.id).collect::<Vec<TaskId>>(), [id]);
    let replayed = Instant::now();
    assert!(beside.replay(id).await.expect("writable"));
    assert!(!beside.replay(id).await.expect("writable"), "it is replayed once");
    let delivered = in_time(sink.next("results")).await;
    assert!(replayed.elapsed() < Duration::from_secs(5), "{:?}", replayed.elapsed());
    assert_eq!(delivered.message.id().to_string(), id.to_string());
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    assert!(beside.get(id).await.expect("readable").is_none());
}

async fn gated(home: &Home, gate: &Gate) -> (Dispatcher, Worker) {
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(gate)).sink(MemorySink::new())).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    (dispatcher, worker)
}

/// That work is refused as long as the store fails; that nothing of it is run; and that the service works afterwards.
async fn check_failing(home: &Home, payload: Value, heal: impl AsyncFnOnce()) {
    let (gate, mut watch) = Gate::new();
    let (dispatcher, worker) = gated(home, &gate).await;
    let refused = worker.accept(Work::new(payload).callback(dsn("memory://results"))).await;
    let Err(AcceptError::Outbox(error)) = &refused else { panic!("{refused:?}") };
    assert!(!error.is_unknown() && !error.is_locked(), "{error:?}");
    home.assert_empty().await;
    heal().await;
    let id = worker.accept(Work::new(json!("afterwards"))).await.expect("the service is alive").id();
    assert_eq!(watch.came().await, "afterwards");
    gate.open(1);
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Completed);
    watch.assert_nobody();
}

#[tokio::test]
async fn what_the_database_refuses_is_not_run() {
    let home = Home::sqlite();
    home.open_file().await;
    let mut stranger = home.stranger().await;
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON callback_outbox BEGIN SELECT RAISE(ABORT, 'refused'); END";
    stranger.execute(refuse).await.expect("writable");
    let heal = async || _ = stranger.execute("DROP TRIGGER refuse").await.expect("writable");
    in_time(check_failing(&home, json!("x"), heal)).await;
}

/// Takes as long as a statement waits for a lock: five seconds.
#[tokio::test]
async fn while_another_process_has_the_database_locked_nothing_is_accepted() {
    let home = Home::sqlite();
    let (gate, mut watch) = Gate::new();
    let (dispatcher, worker) = gated(&home, &gate).await;
    let mut stranger = home.stranger().await;
    let lock = stranger.begin_with("BEGIN IMMEDIATE").await.expect("locked");
    let refused = in_time(worker.accept(Work::new(json!("x")))).await;
    let Err(AcceptError::Outbox(error)) = &refused else { panic!("{refused:?}") };
    assert!(!error.is_unknown() && !error.is_locked(), "{error:?}");
    lock.rollback().await.expect("unlocked");
    home.assert_empty().await;

    worker.accept(Work::new(json!("afterwards"))).await.expect("the service is alive");
    assert_eq!(watch.came().await, "afterwards");
    dispatcher.close(Duration::ZERO).await;
    watch.assert_nobody();
}

#[tokio::test]
async fn a_stuck_store_is_answered_with_overload_not_with_memory() {
    let home = Home::sqlite();
    let dispatcher = start(home.builder().await.accept_limit(10_000)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let mut stranger = home.stranger().await;
    let lock = stranger.begin_with("BEGIN IMMEDIATE").await.expect("locked");
    let large = || Work::new(Value::from("x".repeat(20_000)));
    let mut first = Box::pin(worker.accept(large()));
    assert!(futures_util::poll!(&mut first).is_pending(), "it waits to be stored");
    assert!(matches!(worker.accept(large()).await, Err(AcceptError::Overloaded { .. })));
    lock.rollback().await.expect("unlocked");
    in_time(first).await.expect("accepted");
    worker.accept(large()).await.expect("there is room again");
}

#[tokio::test]
async fn a_dead_letter_that_cannot_be_read_hides_no_other_and_can_be_purged() {
    let home = Home::sqlite();
    let sink = CustomSink::new(|_| async { Err(SinkError::refused("no")) });
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let mut ids = Vec::new();
    for number in 0..3 {
        let id = accept(&worker, number, "custom://a").await;
        in_time(ended(&dispatcher, id)).await;
        ids.push(id);
    }
    let mut stranger = home.stranger().await;
    let spoil = "UPDATE callback_outbox SET result = 'no JSON' WHERE seq = 1; \
                 UPDATE callback_outbox SET kind = 'of tomorrow' WHERE seq = 2; \
                 UPDATE callback_attempt SET kind = 'of tomorrow' WHERE rowid = 3";
    stranger.execute(spoil).await.expect("writable");
    let letters = dispatcher.dead_letters();
    let (mut query, mut found) = (DeadLetterQuery::default().limit(1), Vec::new());
    loop {
        let page = letters.list(&query).await.expect("readable");
        found.extend(page.items.iter().map(|letter| (letter.id, letter.attempts.len())));
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!(found, [(ids[2], 0)]);
    assert_eq!(letters.purge(&DeadLetterQuery::default()).await.expect("writable"), 3);
    let attempts = sqlx::query_scalar("SELECT count(*) FROM callback_attempt");
    let attempts: i64 = attempts.fetch_one(&mut stranger).await.expect("readable");
    assert_eq!(attempts, 0, "attempts are left");
}

/// Set in the process whose files cannot grow.
#[cfg(unix)]
const SMALL_DISK: &str = "CALLBACK_TEST_SMALL_DISK";

/// The same test runs twice: once to start a process whose files the kernel keeps small, once in that process.
#[cfg(unix)]
#[tokio::test]
async fn on_a_full_disk_nothing_is_accepted() {
    if env::var_os(SMALL_DISK).is_some() {
        let home = Home::sqlite();
        // One body of a million bytes does not fit; a small one does.
        in_time(check_failing(&home, json!("x".repeat(1_000_000)), async || ())).await;
        return;
    }
    // Files of at most 512 blocks of 512 or 1,024 bytes; what grows beyond is an error, and no signal.
    let limited = "trap '' XFSZ; ulimit -f 512; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", limited])
        .arg(env::current_exe().expect("the test's own path"))
        .args(["sqlite::on_a_full_disk_nothing_is_accepted", "--exact", "--nocapture"])
        .env(SMALL_DISK, "1")
        .output()
        .expect("sh runs");
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}\n{errors}");
}
