//! A sink of one's own: appends each message to the file of `file:///name`, a line each.

use crate::support::{dsn, ended, start};
use callback_core::{Attempt, Dsn, DsnError, Evidence, Message, Receipt, Sink, SinkError, async_trait};
use callback_dispatch::{AcceptError, Dispatcher, Interrupted, MemoryOutbox, Task, TaskState, Work};
use serde_json::{Value, json};
use std::{fs, fs::OpenOptions, io::Write, path::PathBuf};
use tokio::task::spawn_blocking;

/// Writes into this folder alone.
#[derive(Debug)]
struct FileSink(PathBuf);

impl FileSink {
    fn path(&self, dsn: &Dsn) -> Result<PathBuf, DsnError> {
        dsn.params().finish()?;
        match dsn.path().strip_prefix('/') {
            Some(name) if !name.is_empty() && !name.contains(['/', '%']) => Ok(self.0.join(name)),
            _ => Err(DsnError::invalid("the path must be one file name")),
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    fn schemes(&self) -> &[&str] {
        &["file"]
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        self.path(dsn).map(drop)
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let path = self.path(dsn)?;
        let line = json!({ "id": message.id().as_str(), "attempt": attempt.number(), "body": &message.body()[..] });
        let written = spawn_blocking(move || {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(format!("{line}\n").as_bytes())?;
            file.sync_data()
        });
        written.await.map_err(SinkError::unavailable)??;
        Ok(Receipt::new(Evidence::Custom("fsync")))
    }

    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_sink_of_ones_own_delivers_and_is_asked_before_the_acknowledgment() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let sink = FileSink(folder.path().to_owned());
    let dispatcher = start(Dispatcher::builder(MemoryOutbox::new()).sink(sink)).await;
    let echo = |task: Task| async move { Ok::<_, Value>(task.payload().clone()) };
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = worker.accept(Work::new("text").callback(dsn("file:///results.ndjson"))).await.expect("accepted").id();
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    let written = fs::read_to_string(folder.path().join("results.ndjson")).expect("it is there");
    let line: Value = serde_json::from_str(&written).expect("one line");
    assert_eq!(line, json!({ "id": id, "attempt": 1, "body": b"text" }));

    for wrong in ["file:///a/b", "file:///..%2fa", "file:///a?b=c", "file:///"] {
        let refused = worker.accept(Work::new("text").callback(dsn(wrong))).await;
        assert!(matches!(refused, Err(AcceptError::Dsn(_))), "{wrong}: {refused:?}");
    }
}
