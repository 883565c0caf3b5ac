//! A sink of one's own: appends each message to the file of `file:///name`, a line each.

use callback_core::{Attempt, Dsn, DsnError, Evidence, Message, Receipt, Sink, SinkError, async_trait};
use serde_json::{Map, json};
use std::{fs::OpenOptions, io::Write, path::PathBuf, time::Instant};
use tokio_util::task::TaskTracker;

/// Writes into one folder alone.
#[derive(Clone, Debug)]
pub struct FileSink {
    folder: PathBuf,
    writing: TaskTracker,
}

impl FileSink {
    /// A sink for the files of this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), writing: TaskTracker::new() }
    }
    fn path(&self, dsn: &Dsn) -> Result<PathBuf, DsnError> {
        dsn.params().finish()?;
        match dsn.path().strip_prefix('/') {
            _ if dsn.scheme() != "file" => Err(DsnError::unknown_scheme(dsn.scheme(), self.schemes())),
            Some(name) if !matches!(name, "" | "." | "..") && !name.contains(['/', '%']) => Ok(self.folder.join(name)),
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
        let (path, _in_flight, now) = (self.path(dsn)?, self.writing.token(), Instant::now());
        if self.writing.is_closed() {
            return Err(SinkError::unavailable("the sink is closed"));
        }
        let left = attempt.deadline().checked_duration_since(now).ok_or_else(|| SinkError::timed_out("over"))?;
        let headers: Map<_, _> = attempt.headers(message).map(|(name, value)| (name.into(), value.into())).collect();
        let line = json!({ "id": message.id(), "headers": headers, "body": &message.body()[..] });
        let written = self.writing.spawn_blocking(move || {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(format!("{line}\n").as_bytes())?;
            file.sync_data()
        });
        tokio::time::timeout(left, written).await.map_err(SinkError::timed_out)?.map_err(SinkError::unavailable)??;
        Ok(Receipt::new(Evidence::Custom("fsync")))
    }
    async fn close(&self) -> Result<(), SinkError> {
        self.writing.close();
        self.writing.wait().await;
        Ok(())
    }
}
