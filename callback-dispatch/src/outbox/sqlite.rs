//! The outbox in an SQLite file.

mod apply;
mod read;
mod seals;

use super::{Claim, Done, Erase, Erased, NotQueued, Outbox, OutboxError, Store, Write, Written, codec::Codec};
#[cfg(feature = "seal")]
use crate::SealKeys;
use crate::{
    AcceptError,
    clock::Micros,
    dead_letter::{Cursor, DeadLetter, DeadLetterQuery, Page},
    lane::{OpenBreaker, StoredConsent},
    row::Row,
    subscription::{FanOut, SubscriptionId, SubscriptionQuery, SubscriptionRow},
    transaction::Connection,
};
use apply::Rows;
use async_trait::async_trait;
use callback_core::{Destination, TaskId};
use callback_store::{Database, Lock, Migrations, StoreError, SubmitError, WriteError, WriteErrorKind, Writer};
use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

/// How often a lock that another has is tried again, and after how long: a second in all.
const LOCK_WAITS: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(20);

/// The default outbox: an SQLite file, with every commit synced to disk.
///
/// Write-ahead log, `synchronous=FULL`, group commit. The file is created for its owner alone (mode 0600). It holds one
/// running dispatcher, guarded by a lock that the kernel frees with the process; other processes may read dead letters
/// and replay them meanwhile.
#[derive(Clone)]
pub struct SqliteOutbox(Arc<Inner>);

struct Inner {
    database: Database,
    writer: Writer<Rows>,
    codec: Codec,
    rows: Rows,
    lock: Mutex<Option<Lock>>,
}

/// More than can wait: what a dispatcher has in hand, and what it accepts, is bounded in bytes.
const QUEUE: usize = 1 << 17;

const SCHEMA: &[(i64, &str, &str)] = &[(1, "outbox", include_str!("sqlite/schema.sql"))];

impl SqliteOutbox {
    /// Opens the file, or creates it. Takes no lock: starting a dispatcher does.
    ///
    /// # Errors
    /// When the file cannot be opened, is no database, cannot be made durable, or is sealed.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OutboxError> {
        Self::open_by(path.as_ref(), Codec::default()).await
    }

    /// Opens the file, or creates it, and seals by these keys whatever secret is stored from then on.
    ///
    /// A file that was opened so once is not opened without its keys any more. What it had before stays as it is, and
    /// readable, until [`reseal`](Self::reseal). [`SealKeys`] says what is sealed.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and [`OutboxError::is_sealed`] when a key that the file needs is missing, or is another
    /// one under its id.
    #[cfg(feature = "seal")]
    pub async fn open_sealed(path: impl AsRef<Path>, keys: SealKeys) -> Result<Self, OutboxError> {
        Self::open_by(path.as_ref(), Codec::sealing(keys)).await
    }

    async fn open_by(path: &Path, codec: Codec) -> Result<Self, OutboxError> {
        let migrations = Migrations::new("callback_dispatch_migrations", SCHEMA);
        let database = Database::open(path, migrations).await?;
        let rows = Rows::new(codec.clone());
        let writer = database.writer(rows.clone(), QUEUE).await?;
        seals::check(&database, &writer, &codec).await?;
        Ok(Self(Arc::new(Inner { database, writer, codec, rows, lock: Mutex::default() })))
    }

    /// Seals by the first key what is sealed by another one, or not at all, and forgets the other keys: they may go.
    ///
    /// Gives the number of rows and attempts that were changed. It may run beside a dispatcher, and takes as long as reading
    /// the file. What it replaces stays in the file's free space and its log until `VACUUM; PRAGMA wal_checkpoint(TRUNCATE)`
    /// has rewritten both. A process that still seals with another key must end before.
    ///
    /// # Errors
    /// When the outbox fails, a value cannot be opened, or there are no keys. What was resealed before that stays so, and
    /// no key is forgotten.
    #[cfg(feature = "seal")]
    pub async fn reseal(&self) -> Result<u64, OutboxError> {
        seals::reseal(&self.0.writer).await
    }

    /// The file, absolute, with links resolved: what a pool of the user's own opens for transactions in it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.database.path()
    }
}

impl SqliteOutbox {
    /// Takes the lock; waits for a moment, since what was dropped, or is being replaced, may be about to let go of it.
    async fn lock_soon(&self) -> Result<Lock, StoreError> {
        let mut waits = LOCK_WAITS;
        loop {
            match self.0.database.lock() {
                Err(StoreError::Locked { .. }) if waits > 0 => waits -= 1,
                other => return other,
            }
            sleep(LOCK_WAIT).await;
        }
    }
}

impl Outbox for SqliteOutbox {}

impl Erase for SqliteOutbox {
    fn erase(&self) -> Erased {
        Erased(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Store for SqliteOutbox {
    async fn start(&self) -> Result<(), OutboxError> {
        let lock = self.lock_soon().await?;
        // With the lock in hand, whoever held something is dead.
        super::write(self, Write::Recover).await?;
        *self.0.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
        Ok(())
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        let done = |result: Result<Written, WriteError>| done(result.map_err(OutboxError::from));
        self.0.writer.submit(write, done).map_err(|error| match error {
            SubmitError::Full => NotQueued::Full,
            _ => NotQueued::Closed,
        })
    }

    async fn insert_in(&self, connection: Connection<'_>, row: Arc<Row>) -> Result<Written, AcceptError> {
        match connection {
            Connection::Sqlite(connection) => {
                let inserted = self.0.rows.insert_once(connection, &row).await;
                inserted.map_err(|error| AcceptError::Outbox(error.into()))
            }
            #[cfg(feature = "postgres")]
            other => Err(AcceptError::OtherDatabase { transaction: other.database(), outbox: "SQLite" }),
        }
    }

    async fn publish_in(&self, connection: Connection<'_>, event: &FanOut) -> Result<u64, AcceptError> {
        match connection {
            Connection::Sqlite(connection) => {
                let published = self.0.rows.fan_out(connection, event).await;
                published.map_err(|error| AcceptError::Outbox(error.into()))
            }
            #[cfg(feature = "postgres")]
            other => Err(AcceptError::OtherDatabase { transaction: other.database(), outbox: "SQLite" }),
        }
    }

    async fn subscription(&self, id: SubscriptionId) -> Result<Option<SubscriptionRow>, OutboxError> {
        Ok(read::subscription(self.0.database.reader(), &self.0.codec, id).await?)
    }

    async fn subscriptions(&self, query: &SubscriptionQuery) -> Result<Page<SubscriptionRow>, OutboxError> {
        Ok(read::subscriptions(self.0.database.reader(), &self.0.codec, query).await?)
    }

    async fn look(&self, claim: Claim) -> Result<Option<Claim>, OutboxError> {
        let mut connection = self.0.database.reader().acquire().await?;
        let found = apply::look(&mut connection, &claim).await?;
        Ok((!found.is_empty()).then_some(Claim { found: Some(found), ..claim }))
    }

    async fn next_due(&self, after: Micros) -> Result<Option<Micros>, OutboxError> {
        Ok(read::next_due(self.0.database.reader(), after).await?)
    }

    async fn next_expiry(&self) -> Result<Option<Micros>, OutboxError> {
        Ok(read::next_expiry(self.0.database.reader()).await?)
    }

    async fn find(&self, id: TaskId) -> Result<Option<Row>, OutboxError> {
        Ok(read::find(self.0.database.reader(), &self.0.codec, id).await?)
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn others_wrote(&self) -> Result<bool, OutboxError> {
        Ok(self.0.writer.others_wrote().await?)
    }

    async fn waiting_workers(&self) -> Result<Vec<String>, OutboxError> {
        Ok(read::waiting_workers(self.0.database.reader()).await?)
    }

    async fn depth(&self, now: Micros) -> Result<(u64, Option<Micros>), OutboxError> {
        Ok(read::depth(self.0.database.reader(), now).await?)
    }

    async fn breakers(&self) -> Result<Vec<OpenBreaker>, OutboxError> {
        Ok(read::breakers(self.0.database.reader()).await?)
    }

    async fn consent(&self, destination: &Destination) -> Result<Option<StoredConsent>, OutboxError> {
        Ok(read::consent(self.0.database.reader(), destination).await?)
    }

    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, OutboxError> {
        Ok(read::dead_letters(self.0.database.reader(), &self.0.codec, query).await?)
    }

    async fn dead_places(&self, query: &DeadLetterQuery) -> Result<Vec<Cursor>, OutboxError> {
        Ok(read::dead_places(self.0.database.reader(), query).await?)
    }

    async fn dead_letter(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError> {
        Ok(read::dead_letter(self.0.database.reader(), &self.0.codec, id).await?)
    }

    async fn close(&self) {
        self.0.writer.close().await;
        self.0.database.close().await;
        self.0.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl From<StoreError> for OutboxError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Locked { .. } => Self::locked(error),
            _ => Self::not_stored(error),
        }
    }
}

impl From<WriteError> for OutboxError {
    fn from(error: WriteError) -> Self {
        match error.kind() {
            WriteErrorKind::NotStored if error.is_of_one_write() => Self::refused(error),
            WriteErrorKind::NotStored => Self::not_stored(error),
            _ => Self::unknown(error),
        }
    }
}

impl From<sqlx::Error> for OutboxError {
    fn from(error: sqlx::Error) -> Self {
        Self::not_stored(error)
    }
}

impl fmt::Debug for SqliteOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteOutbox").field("path", &self.path()).finish_non_exhaustive()
    }
}
