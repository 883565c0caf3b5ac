//! A sink of one's own: its proof, and its work with the dispatcher.

use callback_core::{
    Attempt, Dsn, ErrorKind, Message, Receipt, Sink, SinkError, async_trait,
    conformance::{Fault, Harness, Received, Skip},
};
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, Task, Work};
use callback_examples::FileSink;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant, SystemTime},
};
use tempfile::TempDir;

struct Folder(TempDir);

fn dsn(text: &str) -> Dsn {
    text.parse().expect("valid")
}

#[async_trait]
impl Harness for Folder {
    type Sink = FileSink;

    async fn start() -> Result<Self, Skip> {
        Ok(Self(tempfile::tempdir().expect("a folder")))
    }

    fn sink(&self) -> FileSink {
        FileSink::new([("results.ndjson", self.0.path().join("results.ndjson"))])
    }

    fn dsn(&self) -> Dsn {
        dsn("file:///results.ndjson")
    }

    async fn received(&self) -> Vec<Received> {
        let lines = fs::read_to_string(self.0.path().join("results.ndjson")).unwrap_or_default();
        let read = |line: &str| {
            // What is no JSON is a piece of a line, or empty.
            let mut line: Value = serde_json::from_str(line).ok()?;
            let id = line["id"].as_str().expect("a text").parse().expect("an id");
            let body: Vec<u8> = serde_json::from_value(line["body"].take()).expect("bytes");
            let headers: BTreeMap<String, String> = serde_json::from_value(line["headers"].take()).expect("texts");
            Some(Received::new(id, body).with_headers(headers))
        };
        lines.lines().filter_map(read).collect()
    }

    async fn inject(&self, _fault: Fault) -> Result<(), Skip> {
        Err(Skip::because("a folder has no far end that could misbehave"))
    }

    fn forbidden(&self) -> Result<(FileSink, Dsn), Skip> {
        Ok((self.sink(), dsn("file:///other.ndjson")))
    }

    fn skip(&self, clause: &str) -> Option<Skip> {
        (clause == "the_attributes_arrive").then(|| Skip::because("a line has no attributes"))
    }
}

callback_core::conformance!(Folder);

#[test]
fn a_sink_of_ones_own_is_short() {
    for source in [include_str!("../../src/file_sink.rs"), include_str!("../../src/redis_sink.rs")] {
        let lines = source.lines().count();
        assert!(lines < 60, "{lines} lines: {source}");
    }
}

#[tokio::test]
async fn a_sink_of_ones_own_is_delivered_to() {
    let folder = Folder::start().await.expect("a folder");
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(folder.sink()).start().await.expect("started");
    let echo = |task: Task| async move { Ok::<_, Value>(task.payload().clone()) };
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let work = Work::new(json!({ "id": 7 })).callback("file:///results.ndjson".parse().expect("valid"));
    let id = worker.accept(work).await.expect("accepted").id();
    dispatcher.wait(id).await.expect("readable");

    let line = fs::read_to_string(folder.0.path().join("results.ndjson")).expect("written");
    let line: Value = serde_json::from_str(&line).expect("one line of JSON, and an empty one");
    assert_eq!(line["id"], json!(id));
    let body: Vec<u8> = serde_json::from_value(line["body"].clone()).expect("bytes");
    assert_eq!(body, br#"{"id":7}"#);
}

#[tokio::test]
async fn a_piece_of_a_line_spoils_no_other_line() {
    let folder = Folder::start().await.expect("a folder");
    // As a full disk leaves it, or the end of the process.
    fs::write(folder.0.path().join("results.ndjson"), "\n{\"id\":\"cut").expect("written");
    deliver(&folder).await.expect("delivered");
    assert_eq!(folder.received().await.len(), 1);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_is_out_of_reach() {
    let folder = Folder::start().await.expect("a folder");
    std::os::unix::fs::symlink("/dev/full", folder.0.path().join("results.ndjson")).expect("a link");
    assert_eq!(deliver(&folder).await.expect_err("there is no room").kind(), ErrorKind::Unavailable);
}

async fn deliver(folder: &Folder) -> Result<Receipt, SinkError> {
    let message = Message::builder("a").build().expect("valid");
    let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + Duration::from_secs(60));
    folder.sink().deliver(&folder.dsn(), &message, &attempt).await
}

#[tokio::test]
async fn what_is_not_open_is_left_alone() {
    let folder = Folder::start().await.expect("a folder");
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(folder.sink()).start().await.expect("started");
    dispatcher.check(&folder.dsn()).expect("it is open");
    for dsn in [
        "file:///other",
        "file:///../results.ndjson",
        "file:///../x",
        "file:///a/b",
        "file:///",
        "file:///%2e%2e",
        "file:///..",
        "file:///x?y=z",
    ] {
        let checked = dsn.parse().map(|dsn| dispatcher.check(&dsn));
        assert!(!matches!(checked, Ok(Ok(()))), "{dsn}");
    }
}
