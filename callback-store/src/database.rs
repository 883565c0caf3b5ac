use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use crate::error::is_busy;
use crate::lock::owner_only;
use crate::writer::Session;
use crate::{Apply, Lock, Migrations, StoreError, Writer};

const READERS: u32 = 4;

/// At so many pages, 16 MiB, SQLite itself copies the log into the file: large writes make it long before the writer does so.
const LOG_PAGES: &str = "4096";

/// An open SQLite database. Clones share it.
#[derive(Clone, Debug)]
pub struct Database {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    write: SqliteConnectOptions,
    reader: SqlitePool,
}

impl Database {
    /// Opens or creates the file with the default [`OpenOptions`], and migrates it.
    ///
    /// A file that is created has mode 0600 before SQLite touches it, and `-wal` and `-shm` inherit it; a file that was there
    /// keeps its mode. The journal is a write-ahead log with `synchronous=FULL`: what is committed survives a power cut.
    /// Takes no [`Lock`].
    ///
    /// # Errors
    ///
    /// [`StoreError::File`], [`StoreError::Database`], [`StoreError::Migration`], and [`StoreError::NotDurable`] if the
    /// settings do not read back as set.
    pub async fn open(path: impl AsRef<Path>, migrations: Migrations) -> Result<Self, StoreError> {
        OpenOptions::new().open(path, migrations).await
    }

    /// Returns the database file, absolute, with links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Returns the read connections: at most 4, read-only, opened when first used.
    ///
    /// A read transaction that is left open keeps the log from being reset, and so lets it grow.
    #[must_use]
    pub fn reader(&self) -> &SqlitePool {
        &self.inner.reader
    }

    /// Starts a writer with a thread and a connection of its own.
    ///
    /// `queue` bounds how many writes wait, besides those in the transaction that runs; 0 counts as 1.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`] or [`StoreError::NotDurable`] if the connection cannot be opened as it must be,
    /// [`StoreError::File`] if the system has no thread left.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub async fn writer<A: Apply>(&self, apply: A, queue: usize) -> Result<Writer<A>, StoreError> {
        let session = Session::open(self.inner.write.clone()).await?;
        let started = Writer::start(apply, session, queue);
        started.map_err(|source| StoreError::File { path: self.inner.path.clone(), source })
    }

    /// Takes the kernel lock on `<database file>.lock`, mode 0600, without waiting.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] names the file if another holder has it, also in this process; [`StoreError::File`] otherwise.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        Lock::take(&self.inner.path, "lock")
    }

    /// Takes the kernel lock on `<database file>.<role>.lock`, like [`lock`](Self::lock).
    ///
    /// Engines of different roles run on one database beside each other. The role becomes part of a file name as it stands.
    ///
    /// # Errors
    ///
    /// Those of [`lock`](Self::lock).
    pub fn lock_as(&self, role: &'static str) -> Result<Lock, StoreError> {
        Lock::take(&self.inner.path, &format!("{role}.lock"))
    }

    /// Closes the read connections, after those in use are returned. Writers close themselves.
    pub async fn close(&self) {
        self.inner.reader.close().await;
    }
}

/// How to open a [`Database`], where the defaults do not fit.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    busy_timeout: Duration,
}

impl OpenOptions {
    /// Starts with the defaults: a busy timeout of 5 s.
    #[must_use]
    pub fn new() -> Self {
        let busy_timeout = Duration::from_secs(5);
        Self { busy_timeout }
    }

    /// Sets how long a statement waits for a lock of another connection; at most 24 days.
    #[must_use]
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        // SQLite counts milliseconds in an i32.
        self.busy_timeout = timeout.min(Duration::from_secs(24 * 24 * 60 * 60));
        self
    }

    /// Opens or creates the file, like [`Database::open`].
    ///
    /// # Errors
    ///
    /// Those of [`Database::open`].
    pub async fn open(self, path: impl AsRef<Path>, migrations: Migrations) -> Result<Database, StoreError> {
        let path = create(path.as_ref())?;
        let shared = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(self.busy_timeout)
            .foreign_keys(false)
            .disable_statement_logging();
        let write = shared.clone().synchronous(SqliteSynchronous::Full).pragma("wal_autocheckpoint", LOG_PAGES);

        let log = write.clone().journal_mode(SqliteJournalMode::Wal);
        let mut connection = connect_in_turn(&log, self.busy_timeout).await?;
        migrations
            .run(&mut connection)
            .await
            .map_err(|source| StoreError::Migration { table: migrations.table().into(), source })?;
        connection.close().await.map_err(|source| StoreError::Database { path: path.clone(), source })?;

        let reader = SqlitePoolOptions::new().max_connections(READERS).connect_lazy_with(shared.read_only(true));
        let inner = Arc::new(Inner { path, write, reader });
        Ok(Database { inner })
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Opens a connection that may write, and makes sure that its commits are durable.
pub(crate) async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, StoreError> {
    let failed = |source| StoreError::Database { path: options.get_filename().to_owned(), source };
    let mut connection = options.connect().await.map_err(failed)?;
    let journal_mode = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.map_err(failed)?;
    let synchronous = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut connection).await.map_err(failed)?;
    check_durable(journal_mode, synchronous)?;
    Ok(connection)
}

/// Opens the first connection, which makes a new database one with a write-ahead log.
///
/// Of several that do so at once SQLite refuses all but one without waiting, since they would wait for each other.
async fn connect_in_turn(options: &SqliteConnectOptions, patience: Duration) -> Result<SqliteConnection, StoreError> {
    let start = Instant::now();
    loop {
        match connect(options).await {
            Err(StoreError::Database { source, .. }) if is_busy(&source) && start.elapsed() < patience => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result,
        }
    }
}

fn check_durable(journal_mode: String, synchronous: i64) -> Result<(), StoreError> {
    if journal_mode == "wal" && synchronous == 2 {
        return Ok(());
    }
    Err(StoreError::NotDurable { journal_mode, synchronous })
}

/// Creates the file for its owner alone if it is missing, and resolves its path.
///
/// Links are resolved so that every way to the file leads to the same lock. A file that exists is not opened: closing it
/// would drop the POSIX locks that SQLite holds on it in this process, <https://sqlite.org/howtocorrupt.html> §2.2.
fn create(path: &Path) -> Result<PathBuf, StoreError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    owner_only(&mut options);
    options
        .open(path)
        .map(drop)
        .or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })
        .and_then(|()| path.canonicalize())
        .map_err(|source| StoreError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(journal_mode: &str, synchronous: i64, expected: bool) {
        assert_eq!(check_durable(journal_mode.into(), synchronous).is_ok(), expected);
    }

    #[test]
    fn nothing_but_a_synchronous_log_is_durable() {
        check("wal", 2, true);
        check("wal", 1, false);
        check("wal", 0, false);
        check("delete", 2, false);
        check("memory", 2, false);
    }
}
