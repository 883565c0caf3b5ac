//! A method that takes its process down.

use callback_core::MemorySink;
use callback_dispatch::{Dispatcher, Interrupted, SqliteOutbox, Task, Work};
use serde_json::{Value, json};
use std::{env, fs::OpenOptions, io::Write, path::PathBuf, process};

/// The processes share a folder: the store, and a byte for each time the method was started.
const FOLDER: &str = "CALLBACK_ABORT_FOLDER";

#[test]
fn a_method_that_aborts_the_process_is_reported_after_its_third_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let life = || {
        process::Command::new(env::current_exe().expect("known"))
            .args(["abort::one_life", "--exact", "--ignored"])
            .env(FOLDER, folder.path())
            .output()
            .expect("this very program")
    };
    let lives: Vec<bool> = (0..4).map(|_| life().status.success()).collect();
    assert_eq!(lives, [false, false, false, true]);
    assert_eq!(std::fs::read(folder.path().join("starts")).expect("written").len(), 3);
}

#[tokio::test]
#[ignore = "one life of the process that the test above starts several times"]
async fn one_life() {
    let folder = PathBuf::from(env::var_os(FOLDER).expect("started by the other test"));
    let store = folder.join("outbox.db");
    let is_first = !store.exists();
    let sink = MemorySink::new();
    let outbox = SqliteOutbox::open(store).await.expect("opened");
    let dispatcher = Dispatcher::builder(outbox).sink(sink.clone()).start().await.expect("started");
    let method = move |_: Task| {
        let mut starts = OpenOptions::new().create(true).append(true).open(folder.join("starts")).expect("opened");
        starts.write_all(b"x").expect("written");
        async { process::abort() as Result<Value, Value> }
    };
    let worker = dispatcher.worker("abort", Interrupted::RunAgain).run(method).expect("registered");
    if is_first {
        let work = Work::new(json!(null)).callback("memory://results".parse().expect("valid"));
        worker.accept(work).await.expect("accepted");
    }
    // The life that gets here reports, and goes on.
    let message = sink.next("results").await.message;
    assert_eq!(message.event_type(), "callback.task.failed");
    let problem: Value = message.json().expect("JSON");
    assert!(problem["title"].as_str().is_some_and(|title| title.contains("interrupted")), "{problem}");
}
