use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::task::JoinHandle;

/// After so many writes the log is copied.
const EVERY: usize = 512;

/// Copies the log into the file on a connection of its own, while the writer goes on.
///
/// Left to itself SQLite does this within the `COMMIT` that makes the log long, and all who wait for that commit wait for
/// two fsyncs and a thousand pages more. What came in during the copy the writer copies by itself, which is little, so that the
/// log begins again from its start (<https://sqlite.org/wal.html> §2.3, §6).
#[derive(Debug)]
pub(super) struct Checkpoints {
    options: SqliteConnectOptions,
    writes: usize,
    running: Option<JoinHandle<Option<SqliteConnection>>>,
    connection: Option<SqliteConnection>,
}

impl Checkpoints {
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, writes: 0, running: None, connection: None }
    }

    /// Counts what was committed, and begins a copy when it is time.
    pub(super) fn committed(&mut self, writes: usize) {
        self.writes += writes;
        if self.writes < EVERY || self.running.is_some() {
            return;
        }
        self.writes = 0;
        let (options, connection) = (self.options.clone(), self.connection.take());
        self.running = Some(tokio::spawn(async move {
            let copied = async {
                let mut connection = match connection {
                    Some(connection) => connection,
                    None => options.connect().await?,
                };
                copy(&mut connection).await?;
                Ok::<_, sqlx::Error>(connection)
            };
            copied.await.inspect_err(|error| tracing::debug!(%error, "the log was not copied")).ok()
        }));
    }

    /// Resolves when a copy has ended; never, if none is made.
    ///
    /// Dropped before, it has changed nothing.
    pub(super) async fn copied(&mut self) {
        match &mut self.running {
            Some(running) => self.connection = running.await.ok().flatten(),
            None => std::future::pending().await,
        }
        self.running = None;
    }

    /// Waits for a copy that is made, and closes the connection.
    pub(super) async fn close(mut self) {
        if self.running.is_some() {
            self.copied().await;
        }
        if let Some(connection) = self.connection
            && let Err(error) = connection.close().await
        {
            tracing::debug!(%error, "the connection that copies the log did not close cleanly");
        }
    }
}

/// Copies what no reader needs as it was, without waiting for anybody.
pub(super) async fn copy(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(connection).await.map(drop)
}
