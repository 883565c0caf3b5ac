//! A sink of one's own: appends each message to the file of `file:///name`, a line each.

use async_trait::async_trait;
use callback_core::{Attempt, Dsn, DsnError, Evidence, Message, Receipt, Sink, SinkError};
use serde_json::json;
use std::{fs::OpenOptions, io::Write, path::PathBuf};
use tokio::task::spawn_blocking;

/// Writes into this folder alone.
#[derive(Clone, Debug)]
pub struct FileSink(PathBuf);

impl FileSink {
    /// A sink for the files of this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    fn path(&self, dsn: &Dsn) -> Result<PathBuf, DsnError> {
        dsn.params().finish()?;
        match dsn.path().strip_prefix('/') {
            Some(name) if !matches!(name, "" | "." | "..") && !name.contains(['/', '%']) => Ok(self.0.join(name)),
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
        let line = json!({ "id": message.id(), "attempt": attempt.number(), "body": &message.body()[..] });
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
