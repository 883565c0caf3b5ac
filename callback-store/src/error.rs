use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use sqlx::migrate::MigrateError;

/// Says why a database could not be opened or locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file could not be created, opened or locked.
    #[error("cannot use the file {}", path.display())]
    File {
        /// The file in question.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another holder, in this process or another, has the lock.
    #[error("the lock {} is held: another engine runs on this database", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// SQLite could not open the database.
    #[error("cannot open the database {}", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// The database does not keep the durability that was asked for.
    #[error("the database has journal_mode={journal_mode} and synchronous={synchronous}, not wal and 2 (FULL)")]
    NotDurable {
        /// `PRAGMA journal_mode` as read back.
        journal_mode: String,
        /// `PRAGMA synchronous` as read back.
        synchronous: i64,
    },
    /// The schema could not be brought up to date, or is newer than this program.
    #[error("cannot migrate by the table {table}")]
    Migration {
        /// The table that records the owner's migrations.
        table: String,
        /// What went wrong with which version.
        source: MigrateError,
    },
}

/// Says why a write was not queued; it is not stored and nobody is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many writes wait as the queue may hold.
    #[error("the write queue is full")]
    Full,
    /// The writer is closed, or its runtime is gone.
    #[error("the writer is closed")]
    Closed,
}

/// Says that a write failed, and whether it may be stored all the same.
///
/// `source()` is the [`sqlx::Error`] if there is one. Clones share it.
#[derive(Clone)]
pub struct WriteError {
    inner: Arc<Inner>,
}

/// What is known about a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteErrorKind {
    /// Nothing of the write is in the database.
    NotStored,
    /// The write may or may not be in the database.
    ///
    /// The connection broke in `COMMIT`, the disk failed in it (the frames may have reached the log, and a recovery would
    /// find them), the transaction had ended before it, or the runtime ended before the answer.
    Unknown,
}

struct Inner {
    kind: WriteErrorKind,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Open(#[from] StoreError),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("the code that applies writes panicked")]
    Panicked,
    #[error("{writes} writes were applied with {answers} answers")]
    Answers { writes: usize, answers: usize },
    #[error("the writer ended before it answered")]
    Ended,
}

impl WriteError {
    /// Returns whether the write may be stored.
    #[must_use]
    pub fn kind(&self) -> WriteErrorKind {
        self.inner.kind
    }

    pub(crate) fn not_stored(cause: impl Into<Cause>) -> Self {
        Self::new(WriteErrorKind::NotStored, cause.into())
    }

    pub(crate) fn unknown(cause: impl Into<Cause>) -> Self {
        Self::new(WriteErrorKind::Unknown, cause.into())
    }

    fn new(kind: WriteErrorKind, cause: Cause) -> Self {
        let inner = Arc::new(Inner { kind, cause });
        Self { inner }
    }

    pub(crate) fn cause(&self) -> &Cause {
        &self.inner.cause
    }

    /// Tells the fault of one write from that of the disk, the lock or the connection.
    #[must_use]
    pub fn is_of_one_write(&self) -> bool {
        self.kind() == WriteErrorKind::NotStored && self.cause().is_of_one_write()
    }
}

impl fmt::Debug for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteError").field("kind", &self.inner.kind).field("cause", &self.inner.cause).finish()
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.inner.kind {
            WriteErrorKind::NotStored => "the write is not stored",
            WriteErrorKind::Unknown => "the write may or may not be stored",
        })
    }
}

impl Error for WriteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match &self.inner.cause {
            Cause::Database(error) => error,
            Cause::Open(error) => error,
            Cause::Submit(error) => error,
            cause @ (Cause::Panicked | Cause::Answers { .. } | Cause::Ended) => cause,
        })
    }
}

impl Cause {
    /// Whether the thread of the connection is gone.
    pub(crate) fn is_worker_crashed(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::WorkerCrashed))
    }

    /// Whether a `ROLLBACK` failed because there was nothing left to roll back.
    pub(crate) fn is_no_transaction(&self) -> bool {
        self.has(&[Code::ERROR])
    }

    /// Whether a `COMMIT` that failed so has left nothing in the log, provided that the transaction is over.
    ///
    /// An I/O error or lack of memory may follow the commit frame, which a recovery would then find. Plain `ERROR` means
    /// that the transaction had ended before, and something may have been written outside of it.
    pub(crate) fn commits_nothing(&self) -> bool {
        self.has(&[Code::BUSY, Code::LOCKED, Code::READONLY, Code::INTERRUPT, Code::FULL, Code::CONSTRAINT])
    }

    fn is_of_one_write(&self) -> bool {
        let of_one_value = matches!(
            self,
            Self::Database(
                sqlx::Error::Encode(_)
                    | sqlx::Error::Decode(_)
                    | sqlx::Error::ColumnDecode { .. }
                    | sqlx::Error::ColumnNotFound(_)
                    | sqlx::Error::ColumnIndexOutOfBounds { .. }
                    | sqlx::Error::InvalidArgument(_)
                    | sqlx::Error::RowNotFound
            )
        );
        of_one_value || self.has(&[Code::ERROR, Code::TOOBIG, Code::CONSTRAINT, Code::MISMATCH, Code::RANGE])
    }

    fn has(&self, codes: &[Code]) -> bool {
        let Self::Database(error) = self else {
            return false;
        };
        Code::of(error).is_some_and(|code| codes.contains(&code))
    }
}

/// Whether another connection was in the way.
pub(crate) fn is_busy(error: &sqlx::Error) -> bool {
    Code::of(error) == Some(Code::BUSY)
}

/// The primary result code that SQLite gave, <https://sqlite.org/rescode.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Code(i32);

impl Code {
    const ERROR: Self = Self(1);
    const BUSY: Self = Self(5);
    const LOCKED: Self = Self(6);
    const READONLY: Self = Self(8);
    const INTERRUPT: Self = Self(9);
    const FULL: Self = Self(13);
    const TOOBIG: Self = Self(18);
    const CONSTRAINT: Self = Self(19);
    const MISMATCH: Self = Self(20);
    const RANGE: Self = Self(25);

    fn of(error: &sqlx::Error) -> Option<Self> {
        let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
        Some(Self(extended & 0xff))
    }
}
