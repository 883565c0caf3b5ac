//! Encryption at rest: who reads the files, and who has which keys.

use crate::support::{CustomSink, Home, KEY, accept, dsn, echo, ended, in_time, start};
use callback_core::{Message, SinkError, TaskId};
use callback_dispatch::{
    DeadLetter, DeadLetters, Dispatcher, Interrupted, NewSubscription, Os1, Outcome, SealKeys, SqliteOutbox, Task,
    TaskState, Work,
};
use serde_json::json;
use sqlx::Executor;
use std::{error::Error, fs, path::Path, time::Duration};

/// In all that is secret, and in nothing else.
const PLANTED: &str = "planted-secret";

/// Other keys than that of [`Home::sealed_sqlite`], whose id is `test`.
const OTHER: &str = "other:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const IMPOSTOR: &str = "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn keys(text: &str) -> SealKeys {
    text.parse().expect("keys")
}

fn secret_dsn() -> callback_core::Dsn {
    dsn(&format!("custom://user:{PLANTED}@results/path-{PLANTED}?token={PLANTED}"))
}

fn secret_event() -> callback_dispatch::Event {
    let event = callback_dispatch::Event::to(secret_dsn(), "test.happened", json!({ "secret": PLANTED }));
    event.subject(PLANTED)
}

/// Refuses everything, and tells why.
async fn refusing(builder: callback_dispatch::DispatcherBuilder) -> Dispatcher {
    let sink = CustomSink::new(|_| async { Err(SinkError::refused(format!("no {PLANTED}"))) });
    start(builder.sink(sink).profile(Os1::new("x-hmac"))).await
}

/// A whole life: work that dies, work that ends, work that waits for nobody, and an event. Gives the dead one.
async fn live(dispatcher: &Dispatcher) -> TaskId {
    let handler = |task: Task| async move {
        task.publish(secret_event()).expect("published");
        Ok::<_, String>(json!({ "result": PLANTED, "of": task.operation() }))
    };
    let worker = dispatcher.worker("planted", Interrupted::RunAgain).run(handler).expect("registered");
    let work = || {
        Work::new(json!({ "secret": PLANTED }))
            .operation(PLANTED)
            .header("x-secret", PLANTED)
            .extension("secret", PLANTED)
            .pass_on("x-request-id", PLANTED)
            .correlation_id(PLANTED)
            .meta(PLANTED)
            .secret(PLANTED)
            .profile("os1")
    };
    let dead = worker.accept(work().callback(secret_dsn())).await.expect("accepted").id();
    let completed = worker.accept(work()).await.expect("accepted").id();
    assert_eq!(ended(dispatcher, dead).await.state(), TaskState::Dead);
    assert_eq!(ended(dispatcher, completed).await.state(), TaskState::Completed);
    let deferring = |_| async { Outcome::deferred() };
    let deferring = dispatcher.worker("deferring", Interrupted::RunAgain).run(deferring).expect("registered");
    deferring.accept(work().callback(secret_dsn())).await.expect("accepted");
    dispatcher.publish(secret_event()).await.expect("published");
    let subscription =
        NewSubscription::new(secret_dsn()).meta(json!({ "secret": PLANTED })).profile("os1").secret(PLANTED);
    dispatcher.subscriptions().create(subscription).await.expect("created");
    let event = callback_dispatch::Event::new("test.happened", json!({ "secret": PLANTED }));
    dispatcher.publish(event).await.expect("published");
    dead
}

#[track_caller]
fn check_letter(letter: Option<DeadLetter>) {
    let letter = letter.expect("it is dead");
    assert_eq!(letter.dsn.expose(), secret_dsn().expose());
    let result: serde_json::Value = letter.message.json().expect("JSON");
    assert_eq!(result, json!({ "result": PLANTED, "of": PLANTED }));
    assert_eq!(letter.message.header("x-request-id"), Some(PLANTED));
    let [attempt] = &letter.attempts[..] else { panic!("{letter:?}") };
    assert_eq!(attempt.reason, format!("refused: no {PLANTED}"));
}

async fn letter(outbox: SqliteOutbox, id: TaskId) -> Option<DeadLetter> {
    DeadLetters::new(outbox).get(id).await.expect("readable")
}

/// Whether the planted text is in any file beside this one, the log included.
fn is_planted(path: &Path) -> bool {
    let entries = fs::read_dir(path.parent().expect("a directory")).expect("readable");
    let files = entries.map(|entry| fs::read(entry.expect("readable").path()).expect("readable"));
    let contains = |file: Vec<u8>| file.windows(PLANTED.len()).any(|part| part == PLANTED.as_bytes());
    files.map(contains).fold(false, |found, here| found | here)
}

async fn check_files(home: Home, expected: bool) {
    let dispatcher = refusing(home.builder().await).await;
    let id = live(&dispatcher).await;
    assert_eq!(is_planted(&home.path()), expected, "while it is open");
    check_letter(dispatcher.dead_letters().get(id).await.expect("readable"));
    dispatcher.close(Duration::from_secs(1)).await;
    assert_eq!(is_planted(&home.path()), expected, "after it is closed");
    check_letter(letter(home.open_file().await, id).await);
}

#[tokio::test]
async fn who_reads_the_files_of_a_sealed_outbox_finds_no_secret() {
    in_time(check_files(Home::sealed_sqlite(), false)).await;
    // What finds nothing there finds it here.
    in_time(check_files(Home::sqlite(), true)).await;
}

/// That the file does not open with these keys, or none, and that the error says so.
async fn check_refused(path: &Path, keys: Option<&str>, expected: &str) {
    let opened = match keys {
        Some(text) => SqliteOutbox::open_sealed(path, self::keys(text)).await,
        None => SqliteOutbox::open(path).await,
    };
    let error = opened.expect_err("refused");
    assert!(error.is_sealed() && !error.is_unknown() && !error.is_locked(), "{error:?}");
    assert_eq!(error.to_string(), "the outbox is not opened by these keys");
    assert_eq!(error.source().expect("a cause").to_string(), expected);
}

#[tokio::test]
async fn a_sealed_outbox_opens_with_its_keys_alone() {
    let home = Home::sealed_sqlite();
    // The keys are known before anything is sealed with them.
    home.open_file().await;
    let path = home.path();
    check_refused(&path, None, "it is sealed with the key test, and no keys were given").await;
    check_refused(&path, Some(OTHER), "it is sealed with the key test, which is not among the keys").await;
    let impostor = "it is sealed with another key of the id test, for another place, or changed since";
    check_refused(&path, Some(IMPOSTOR), impostor).await;
    home.open_file().await;
}

#[tokio::test]
async fn an_outbox_that_was_plain_is_read_sealed_and_resealed() {
    let home = Home::sqlite();
    let dispatcher = refusing(home.builder().await).await;
    let id = live(&dispatcher).await;
    // Values of all sizes, within a page and over many.
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    for size in 0..200 {
        let work = Work::new(json!(PLANTED.repeat(size * 5)));
        worker.accept(work.header("x-secret", PLANTED.repeat(size))).await.expect("accepted");
    }
    dispatcher.close(Duration::from_secs(1)).await;
    let open = async || SqliteOutbox::open_sealed(home.path(), keys(KEY)).await.expect("it opens");
    check_letter(letter(open().await, id).await);
    assert!(is_planted(&home.path()));

    let outbox = open().await;
    assert!(outbox.reseal().await.expect("writable") > 200);
    assert_eq!(outbox.reseal().await.expect("writable"), 0, "all of it is sealed");
    check_letter(letter(outbox.clone(), id).await);
    assert!(is_planted(&home.path()), "what was replaced is still in free space");
    home.stranger().await.execute("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").await.expect("the file is rewritten");
    assert!(!is_planted(&home.path()));
    check_letter(letter(open().await, id).await);
}

#[tokio::test]
async fn a_key_is_changed_and_retired() {
    let home = Home::sealed_sqlite();
    let dispatcher = refusing(home.builder().await).await;
    let old = live(&dispatcher).await;
    dispatcher.close(Duration::from_secs(1)).await;

    let keys_of_both = keys(&format!("{OTHER},{KEY}"));
    let outbox = SqliteOutbox::open_sealed(home.path(), keys_of_both).await.expect("it opens");
    let dispatcher = refusing(Dispatcher::builder(outbox.clone())).await;
    let new = live(&dispatcher).await;
    for id in [old, new] {
        check_letter(dispatcher.dead_letters().get(id).await.expect("readable"));
    }
    check_refused(&home.path(), Some(KEY), "it is sealed with the key other, which is not among the keys").await;
    check_refused(&home.path(), Some(OTHER), "it is sealed with the key test, which is not among the keys").await;

    assert!(outbox.reseal().await.expect("writable") > 5, "beside the dispatcher");
    dispatcher.close(Duration::from_secs(1)).await;
    let outbox = SqliteOutbox::open_sealed(home.path(), keys(OTHER)).await.expect("it opens");
    for id in [old, new] {
        check_letter(letter(outbox.clone(), id).await);
    }
}

#[tokio::test]
async fn what_cannot_be_opened_keeps_the_old_key_needed() {
    let home = Home::sealed_sqlite();
    let dispatcher = refusing(home.builder().await).await;
    live(&dispatcher).await;
    dispatcher.close(Duration::from_secs(1)).await;
    let garble = "UPDATE callback_outbox SET work_body = NULL WHERE seq = 1";
    home.stranger().await.execute(garble).await.expect("writable");
    let keys_of_both = keys(&format!("{OTHER},{KEY}"));
    let outbox = SqliteOutbox::open_sealed(home.path(), keys_of_both).await.expect("it opens");
    let error = outbox.reseal().await.expect_err("unreadable");
    assert!(!error.is_unknown(), "{error:?}");
    check_refused(&home.path(), Some(OTHER), "it is sealed with the key test, which is not among the keys").await;
}

#[tokio::test]
async fn without_keys_nothing_is_resealed() {
    let home = Home::sqlite();
    let error = home.open_file().await.reseal().await.expect_err("refused");
    assert!(!error.is_unknown(), "{error:?}");
}

/// Work that waits while `change` is made to the file of row `1` and `2`: then `3` is run, and they are not.
async fn check_tampered(change: &'static str, expected: &str) {
    let home = Home::sealed_sqlite();
    let mut ids = Vec::new();
    let dispatcher =
        start(home.builder().await.sink(CustomSink::new(|_| async { Ok(crate::support::receipt()) }))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).concurrency(1);
    let worker = worker.run(|_: Task| std::future::pending::<Outcome>()).expect("registered");
    for number in 1..=3 {
        ids.push(accept(&worker, number, "custom://results").await);
    }
    dispatcher.close(Duration::ZERO).await;
    home.stranger().await.execute(change).await.expect("writable");

    let sink = callback_core::MemorySink::new();
    let (sender, mut delivered) = tokio::sync::mpsc::unbounded_channel::<Message>();
    let custom = CustomSink::new(move |given| {
        let _ = sender.send(given.message);
        async { Ok(crate::support::receipt()) }
    });
    let dispatcher = start(home.builder().await.sink(custom).sink(sink)).await;
    let _worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let message = delivered.recv().await.expect("the third is run");
    assert_eq!(message.id().to_string(), ids[2].to_string(), "{change}");
    for id in &ids[..2] {
        let error = dispatcher.task(*id).await.expect_err("unreadable");
        let cause = error.source().and_then(Error::source).or_else(|| error.source()).expect("a cause").to_string();
        assert!(cause.contains(expected), "{change}: {cause}");
    }
    assert_eq!(ended(&dispatcher, ids[2]).await.state(), TaskState::Delivered);
    // They were claimed with the third, and nobody gets them before the next start.
    let held = sqlx::query_scalar("SELECT count(*) FROM callback_outbox WHERE held = 1");
    let held: i64 = held.fetch_one(&mut home.stranger().await).await.expect("readable");
    assert_eq!(held, 2, "{change}");
    delivered.close();
    assert!(delivered.recv().await.is_none(), "{change}");
}

#[tokio::test]
async fn what_is_moved_changed_or_under_an_unknown_key_is_held_back_alone() {
    let refused = "it is sealed with another key of the id test, for another place, or changed since";
    for change in [
        // Between rows.
        "UPDATE callback_outbox SET work = (SELECT work FROM callback_outbox WHERE seq = 3) WHERE seq <= 2",
        "UPDATE callback_outbox SET dsn = (SELECT dsn FROM callback_outbox WHERE seq = 3) WHERE seq <= 2",
        "UPDATE callback_outbox SET work_body = (SELECT work_body FROM callback_outbox WHERE seq = 3) WHERE seq <= 2",
        // Between columns.
        "UPDATE callback_outbox SET dsn = work WHERE seq <= 2",
        "UPDATE callback_outbox SET work_body = work WHERE seq <= 2",
        "UPDATE callback_outbox SET result = work, result_body = work_body WHERE seq <= 2",
        // Cut.
        "UPDATE callback_outbox SET work = substr(work, 1, length(work) - 1) WHERE seq <= 2",
    ] {
        in_time(check_tampered(change, refused)).await;
    }
    let cut = "UPDATE callback_outbox SET work_body = NULL WHERE seq <= 2";
    in_time(check_tampered(cut, "it is no sealed value")).await;
    let gone = "UPDATE callback_outbox SET work = CAST(x'ff04' || 'gone' || substr(work, 7) AS BLOB) WHERE seq <= 2";
    in_time(check_tampered(gone, "it is sealed with the key gone, which is not among the keys")).await;
}
