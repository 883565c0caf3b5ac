//! A sink of one's own, with the dispatcher.

use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, Task, Work};
use callback_examples::FileSink;
use serde_json::{Value, json};
use std::fs;

#[tokio::test]
async fn a_sink_of_ones_own_is_delivered_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let dispatcher =
        Dispatcher::builder(MemoryOutbox::new()).sink(FileSink::new(folder.path())).start().await.expect("started");
    let echo = |task: Task| async move { Ok::<_, Value>(task.payload().clone()) };
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let work = Work::new(json!({ "id": 7 })).callback("file:///results.ndjson".parse().expect("valid"));
    let id = worker.accept(work).await.expect("accepted").id();
    dispatcher.wait(id).await.expect("readable");

    let line = fs::read_to_string(folder.path().join("results.ndjson")).expect("written");
    let line: Value = serde_json::from_str(&line).expect("one line of JSON");
    assert_eq!(line["id"], json!(id));
    let body: Vec<u8> = serde_json::from_value(line["body"].clone()).expect("bytes");
    assert_eq!(body, br#"{"id":7}"#);
}

#[tokio::test]
async fn it_leaves_its_folder_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let dispatcher =
        Dispatcher::builder(MemoryOutbox::new()).sink(FileSink::new(folder.path())).start().await.expect("started");
    for dsn in ["file:///../x", "file:///a/b", "file:///", "file:///%2e%2e", "file:///..", "file:///x?y=z"] {
        let checked = dsn.parse().map(|dsn| dispatcher.check(&dsn));
        assert!(!matches!(checked, Ok(Ok(()))), "{dsn}");
    }
}
