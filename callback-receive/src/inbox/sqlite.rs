//! An inbox in an SQLite file.

mod apply;
mod codec;

use super::{Done, Expectation, Inbox, Micros, Started, Store, Waiting, Write};
use crate::{
    HandleId, InboxError, ReceiveError, dead_letter::DeadLetter, handle::Minter, listener::Position,
    transaction::Connection,
};
use apply::Rows;
use async_trait::async_trait;
use callback_core::Message;
use callback_store::{Database, Lock, Migrations, StoreError, SubmitError, WriteError, WriteErrorKind, Writer};
use sqlx::Row as _;
use std::{
    fmt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

/// How often a lock that another has is tried again, and after how long: a second in all.
const LOCK_WAITS: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(20);

/// How many writes wait: beyond that senders are told to come again.
const QUEUE: usize = 1 << 14;

const SCHEMA: &[(i64, &str, &str)] = &[(1, "inbox", include_str!("schema.sql"))];

/// An inbox in an SQLite file, with every commit synced to disk before a sender is answered.
///
/// Write-ahead log, `synchronous=FULL`, group commit. The file is created for its owner alone (mode 0600); it may be the
/// user's own, or that of a `SqliteOutbox`, so that one transaction takes a callback, changes a table and sends a message.
/// One running receiver has it, guarded by a lock that the kernel frees with the process.
pub struct SqliteInbox {
    database: Database,
    writer: Writer<Rows>,
    lock: Mutex<Option<Lock>>,
}

impl SqliteInbox {
    /// Opens the file, or creates it. Takes no lock: opening a receiver does.
    ///
    /// # Errors
    /// When the file cannot be opened, is no database, or cannot be made durable.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, InboxError> {
        let migrations = Migrations::new("callback_receive_migrations", SCHEMA);
        let database = Database::open(path, migrations).await?;
        let writer = database.writer(Rows, QUEUE).await?;
        Ok(Self { database, writer, lock: Mutex::default() })
    }

    /// The file, absolute, with links resolved: what a pool of the user's own opens for transactions in it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.database.path()
    }

    /// Takes the lock; waits for a moment, since what was dropped, or is being replaced, may be about to let go of it.
    async fn lock_soon(&self) -> Result<Lock, StoreError> {
        let mut waits = LOCK_WAITS;
        loop {
            match self.database.lock_as("inbox") {
                Err(StoreError::Locked { .. }) if waits > 0 => waits -= 1,
                other => return other,
            }
            sleep(LOCK_WAIT).await;
        }
    }

    async fn key(&self) -> Result<[u8; Minter::KEY], InboxError> {
        let mut connection = self.database.reader().acquire().await?;
        let key = "SELECT key FROM callback_inbox_key";
        let key: Option<Vec<u8>> = sqlx::query_scalar(key).fetch_optional(&mut *connection).await?;
        let key = key.ok_or_else(|| InboxError::not_stored("the inbox has no key"))?;
        key.try_into().map_err(|_| InboxError::not_stored("the inbox's key has another length"))
    }
}

impl Inbox for SqliteInbox {}

#[async_trait]
impl Store for SqliteInbox {
    async fn start(&self) -> Result<Started, InboxError> {
        let lock = self.lock_soon().await?;
        self.writer.write(apply::Job::Key(Minter::random_key())).await?;
        let key = self.key().await?;
        let expected = "SELECT handle, name, expires, own_key, \
             (SELECT count(*) FROM callback_inbox AS i WHERE i.handle = e.handle AND i.state = 0) AS waiting \
             FROM callback_expectation AS e";
        let rows = sqlx::query(expected).fetch_all(self.database.reader()).await?;
        let expectations = rows.iter().map(|row| -> Result<Expectation, sqlx::Error> {
            Ok(Expectation {
                handle: codec::handle(row.try_get("handle")?)?,
                name: row.try_get("name")?,
                expires: row.try_get::<Option<i64>, _>("expires")?.map(Micros),
                own_key: row.try_get("own_key")?,
                waiting: usize::try_from(row.try_get::<i64, _>("waiting")?).unwrap_or(0),
            })
        });
        let expectations = expectations.collect::<Result<_, _>>()?;
        let positions = "SELECT log, offset FROM callback_inbox_position ORDER BY log";
        let positions: Vec<Position> = sqlx::query_as(positions).fetch_all(self.database.reader()).await?;
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
        Ok(Started { key, expectations, positions })
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), InboxError> {
        let done = |result: Result<_, WriteError>| done(result.map_err(InboxError::from));
        self.writer
            .submit(apply::Job::Write(Box::new(write)), done)
            .map_err(|error: SubmitError| InboxError::not_stored(error))
    }

    async fn load(&self, handle: &HandleId, after: i64, most: usize) -> Result<Vec<Waiting>, InboxError> {
        let sql = "SELECT seq, due, head, body FROM callback_inbox \
             WHERE handle = ? AND seq > ? AND state = 0 ORDER BY seq LIMIT ?";
        let query = sqlx::query(sql).bind(handle.as_bytes()).bind(after).bind(codec::count(most));
        let rows = query.fetch_all(self.database.reader()).await?;
        let waiting = rows.iter().map(|row| {
            Ok(Waiting { seq: row.try_get("seq")?, due: Micros(row.try_get("due")?), message: codec::message(row)? })
        });
        Ok(waiting.collect::<Result<_, sqlx::Error>>()?)
    }

    async fn load_one(&self, seq: i64) -> Result<Option<Message>, InboxError> {
        let sql = "SELECT head, body FROM callback_inbox WHERE seq = ? AND state = 0";
        let row = sqlx::query(sql).bind(seq).fetch_optional(self.database.reader()).await?;
        Ok(row.as_ref().map(codec::message).transpose()?)
    }

    async fn knows(&self, handle: &HandleId, id: &str) -> Result<bool, InboxError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM callback_inbox WHERE handle = ? AND id = ?)";
        let query = sqlx::query_scalar(sql).bind(handle.as_bytes()).bind(id);
        Ok(query.fetch_one(self.database.reader()).await?)
    }

    async fn accept_in(
        &self,
        connection: Connection<'_>,
        handle: &HandleId,
        seq: i64,
        now: Micros,
    ) -> Result<bool, ReceiveError> {
        let Connection::Sqlite(connection) = connection;
        apply::accept_in(connection, handle, seq, now).await
    }

    async fn dead_letters(&self, after: u64, most: usize) -> Result<Vec<DeadLetter>, InboxError> {
        let sql = "SELECT seq, name, reason, since, head, body FROM callback_inbox \
             WHERE state = 2 AND seq > ? ORDER BY seq LIMIT ?";
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows = sqlx::query(sql).bind(after).bind(codec::count(most)).fetch_all(self.database.reader()).await?;
        let letters = rows.iter().map(|row| -> Result<DeadLetter, sqlx::Error> {
            Ok(DeadLetter {
                number: u64::try_from(row.try_get::<i64, _>("seq")?).unwrap_or(0),
                name: row.try_get("name")?,
                message: codec::message(row)?,
                reason: row.try_get::<Option<String>, _>("reason")?.unwrap_or_default(),
                since: Micros(row.try_get("since")?).to_system(),
            })
        });
        Ok(letters.collect::<Result<_, _>>()?)
    }

    async fn close(&self) {
        self.writer.close().await;
        self.database.close().await;
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl From<StoreError> for InboxError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Locked { .. } => Self::locked(error),
            _ => Self::not_stored(error),
        }
    }
}

impl From<WriteError> for InboxError {
    fn from(error: WriteError) -> Self {
        match error.kind() {
            WriteErrorKind::NotStored => Self::not_stored(error),
            _ => Self::unknown(error),
        }
    }
}

impl From<sqlx::Error> for InboxError {
    fn from(error: sqlx::Error) -> Self {
        Self::not_stored(error)
    }
}

impl fmt::Debug for SqliteInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteInbox").field("path", &self.path()).finish_non_exhaustive()
    }
}
