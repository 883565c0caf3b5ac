//! A sink of one's own: appends each message to the file that is open as `file:///name`, a line each.
use callback_core::{Attempt, Dsn, DsnError, Evidence, Message, Receipt, Sink, SinkError, async_trait};
use serde_json::{Map, json};
use std::{collections::BTreeMap, fmt::Display, fs, io::Write, path::PathBuf, time::Instant};
use tokio_util::task::TaskTracker;

/// Writes into files that the operator named: a client says which, and no path.
#[derive(Clone, Debug)]
pub struct FileSink {
    files: BTreeMap<String, PathBuf>,
    writing: TaskTracker,
}

impl FileSink {
    /// A sink for these files, each under a name.
    pub fn new(files: impl IntoIterator<Item = (impl Display, impl Into<PathBuf>)>) -> Self {
        let files = files.into_iter().map(|(name, path)| (format!("/{name}"), path.into())).collect();
        Self { files, writing: TaskTracker::new() }
    }
    fn path(&self, dsn: &Dsn) -> Result<PathBuf, DsnError> {
        dsn.params().finish()?;
        match dsn.scheme() {
            "file" => self.files.get(dsn.path()).cloned().ok_or_else(|| DsnError::forbidden("no such file is open")),
            other => Err(DsnError::unknown_scheme(other, self.schemes())),
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
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
            file.lock()?; // What was cut short before, on a full disk say, ends with the first newline, and is no JSON.
            file.write_all(format!("\n{line}\n").as_bytes())?;
            file.sync_data().and_then(|()| fs::File::open(path.with_file_name("."))?.sync_all())
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
