//! The outbox in PostgreSQL.

mod apply;
mod lease;
mod read;
mod seals;
mod text;
mod writer;

use super::{Done, Erase, Erased, Lease, NotQueued, Outbox, OutboxError, Store, Write, Written, codec::Codec};
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
use async_trait::async_trait;
use callback_core::{Destination, TaskId};
use lease::Process;
use sqlx::{
    ConnectOptions, Error, PgPool, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
    query, query_as, query_scalar,
};
use std::{
    borrow::Cow,
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use writer::Writer;

/// An outbox in a PostgreSQL database, 15 or later, shared by any number of processes.
///
/// Each process that runs a dispatcher has a lease, by the database's clock, and renews it at a third of its length.
/// What a process has in hand is given to the others when its lease is over, which is at once when it closes; what it
/// stores of that afterwards does not count. A process without a lease begins no run and no attempt.
///
/// All tables are called `callback_…`, in the first schema of the connection's `search_path`, and so is the table of
/// their migrations: a user's own tables and migrations live beside them. To make them, the role needs `CREATE` there
/// when the first process opens the outbox, and when the first one of a version with other tables does; afterwards it
/// needs to read and write them.
#[derive(Clone)]
pub struct PostgresOutbox(Arc<Inner>);

struct Inner {
    pool: PgPool,
    owns_pool: bool,
    writer: Writer,
    codec: Codec,
    process: Arc<Process>,
    started: AtomicBool,
    leaving: watch::Sender<()>,
    /// Its sender lives as long as the task that keeps the lease.
    left: Mutex<Option<watch::Receiver<()>>>,
}

/// Connections of a pool that is the outbox's own: one that writes, one that renews the lease, and readers.
const CONNECTIONS: u32 = 8;

/// How long a database may be out of reach before what is asked of it has failed.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Keeps those who open a new database at once apart; the number is chosen at random.
const MIGRATION_LOCK: i64 = 0x6361_6c6c_6261_636b;

const SCHEMA: &[(i64, &str, &str)] = &[(1, "outbox", include_str!("postgres/schema.sql"))];

impl PostgresOutbox {
    /// Opens the outbox at this URL, `postgres://user:password@host:port/database`, with a pool of its own.
    ///
    /// The URL is libpq's, parameters included: `sslmode=verify-full`, `options=-csearch_path%3Dmine`. Default lease:
    /// 30 s.
    ///
    /// # Errors
    /// As [`PostgresOutboxBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, OutboxError> {
        Self::builder().connect(url).await
    }

    /// Opens the outbox through a pool of the user's own, which stays open when the outbox is closed.
    ///
    /// # Errors
    /// As [`PostgresOutboxBuilder::with_pool`].
    pub async fn with_pool(pool: PgPool) -> Result<Self, OutboxError> {
        Self::builder().with_pool(pool).await
    }

    /// Begins an outbox that is opened with other settings.
    pub fn builder() -> PostgresOutboxBuilder {
        PostgresOutboxBuilder { lease: lease::DEFAULT, lost_commits_allowed: false, codec: Codec::default() }
    }

    /// Seals by the first key what is sealed by another one, or not at all, and forgets the other keys: they may go.
    ///
    /// Gives the number of rows and attempts that were changed. It may run beside dispatchers, and takes as long as reading
    /// the tables. What it replaces stays in the tables until `VACUUM FULL`, and in logs and backups. A process that still
    /// seals with another key must end before.
    ///
    /// # Errors
    /// When the outbox fails, a value cannot be opened, or there are no keys. What was resealed before that stays so, and
    /// no key is forgotten.
    #[cfg(feature = "seal")]
    pub async fn reseal(&self) -> Result<u64, OutboxError> {
        seals::reseal(self).await
    }
}

/// Opens a [`PostgresOutbox`].
#[derive(Clone, Debug)]
#[must_use]
pub struct PostgresOutboxBuilder {
    lease: Duration,
    lost_commits_allowed: bool,
    codec: Codec,
}

impl PostgresOutboxBuilder {
    /// Sets for how long a process counts as alive that has not been heard of. Default 30 s; at least 1 s.
    ///
    /// What a crash cut short waits so long. A process that the database does not hear of for so long, because it was
    /// stopped or cut off, is not told: its runs go on to their end, and others begin the same work meanwhile.
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = if lease.as_millis() < 1_000 { Duration::from_secs(1) } else { lease };
        self
    }

    /// Opens even a database that may lose in a crash what it said was stored: for tests, never in service.
    pub const fn allow_lost_commits(mut self) -> Self {
        self.lost_commits_allowed = true;
        self
    }

    /// Seals by these keys whatever secret is stored. Default: nothing is sealed.
    ///
    /// A database that was opened so once is not opened without its keys any more: [`OutboxError::is_sealed`]. All processes
    /// on it have them. What it had before stays as it is, and readable, until [`reseal`](PostgresOutbox::reseal).
    #[cfg(feature = "seal")]
    pub fn seal(mut self, keys: SealKeys) -> Self {
        self.codec = Codec::sealing(keys);
        self
    }

    /// Opens the outbox at this URL, with a pool of its own of at most 8 connections.
    ///
    /// # Errors
    /// When the URL is none, and as [`with_pool`](Self::with_pool).
    pub async fn connect(self, url: &str) -> Result<PostgresOutbox, OutboxError> {
        let options = PgConnectOptions::from_str(url).map_err(|error| not_stored(&error))?.disable_statement_logging();
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_LIMIT);
        let pool = pool.connect_lazy_with(options);
        let opened = self.open(pool.clone(), true).await;
        if opened.is_err() {
            pool.close().await;
        }
        opened
    }

    /// Opens the outbox through this pool.
    ///
    /// One connection commits what is written, one renews the lease and looks for the dead, and each read takes one: the
    /// dispatcher's own, of which a few may meet (what is due, what expires, the depth), and those that are asked for
    /// (tasks, dead letters, health). None is kept between transactions. Whoever uses up the pool makes them wait: once the
    /// lease is over, nothing new is begun, and others have the work. Where that may happen, [`connect`](Self::connect)
    /// has connections of its own.
    ///
    /// # Errors
    /// When the database cannot be reached, its tables cannot be made, are of a newer version, or what it commits would
    /// not survive a crash: `fsync=off`, or `synchronous_commit=off` for these connections. `local` and the others are
    /// durable on the server itself; that a standby has it too is the operator's choice.
    pub async fn with_pool(self, pool: PgPool) -> Result<PostgresOutbox, OutboxError> {
        self.open(pool, false).await
    }

    async fn open(self, pool: PgPool, owns_pool: bool) -> Result<PostgresOutbox, OutboxError> {
        if !self.lost_commits_allowed {
            check_durable(&pool).await?;
        }
        migrate(&pool).await?;
        let process = Arc::new(Process::new(self.lease));
        let writer = Writer::start(pool.clone(), self.codec.clone(), Arc::clone(&process));
        let inner = Inner {
            pool,
            owns_pool,
            writer,
            codec: self.codec,
            process,
            started: AtomicBool::new(false),
            leaving: watch::Sender::new(()),
            left: Mutex::default(),
        };
        let outbox = PostgresOutbox(Arc::new(inner));
        seals::check(&outbox).await?;
        Ok(outbox)
    }
}

async fn check_durable(pool: &PgPool) -> Result<(), OutboxError> {
    let settings = "SELECT current_setting('fsync'), current_setting('synchronous_commit')";
    let (fsync, commit): (String, String) =
        query_as(settings).fetch_one(pool).await.map_err(|error| not_stored(&error))?;
    if !is_durable(&fsync, &commit) {
        let reason =
            format!("the database has fsync={fsync} and synchronous_commit={commit}: a crash may lose what it stored");
        return Err(OutboxError::not_stored(reason));
    }
    Ok(())
}

/// Whether a commit is on the server's disk when it is told; what standbys have by then is the operator's choice.
fn is_durable(fsync: &str, synchronous_commit: &str) -> bool {
    fsync != "off" && synchronous_commit != "off"
}

/// Makes the tables, in one transaction: of several processes that open a new database at once, one makes them.
async fn migrate(pool: &PgPool) -> Result<(), OutboxError> {
    let steps = SCHEMA.iter().map(|&(version, description, sql)| {
        let description = Cow::Borrowed(description);
        Migration::new(version, description, MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(steps.collect());
    migrator.dangerous_set_table_name("callback_dispatch_migrations");
    migrator.set_locking(false);
    let migrated = async {
        if is_migrated(pool, &migrator).await? {
            return Ok(());
        }
        let mut transaction = pool.begin().await?;
        query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *transaction).await?;
        // Not `run`, whose future the compiler cannot see to be `Send`, <https://github.com/rust-lang/rust/issues/100013>.
        migrator.run_direct(None, &mut *transaction, false).await?;
        transaction.commit().await?;
        Ok::<_, MigrateError>(())
    };
    migrated.await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => not_stored(&error),
        other => OutboxError::not_stored(other),
    })
}

/// Whether all is there already: the migrator asks for leave to make its own table even then.
async fn is_migrated(pool: &PgPool, migrator: &Migrator) -> Result<bool, Error> {
    let exists = "SELECT to_regclass('callback_dispatch_migrations') IS NOT NULL";
    if !query_scalar(exists).fetch_one(pool).await? {
        return Ok(false);
    }
    let applied = "SELECT version, checksum FROM callback_dispatch_migrations WHERE success ORDER BY version";
    let applied: Vec<(i64, Vec<u8>)> = query_as(applied).fetch_all(pool).await?;
    Ok(migrator
        .iter()
        .map(|step| (step.version, &*step.checksum))
        .eq(applied.iter().map(|(version, sum)| (*version, &**sum))))
}

impl Outbox for PostgresOutbox {}

impl Erase for PostgresOutbox {
    fn erase(&self) -> Erased {
        Erased(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Store for PostgresOutbox {
    async fn start(&self) -> Result<(), OutboxError> {
        let inner = &self.0;
        if inner.started.swap(true, Ordering::AcqRel) {
            return Err(OutboxError::locked("this outbox has a dispatcher already: open another"));
        }
        let begun = async {
            inner.process.register(&inner.pool).await.map_err(|error| not_stored(&error))?;
            super::write(self, Write::Recover).await.map(drop)
        };
        if let Err(error) = begun.await {
            inner.started.store(false, Ordering::Release);
            return Err(error);
        }
        let (left_when_dropped, left) = watch::channel(());
        let (process, pool, leaving) = (Arc::clone(&inner.process), inner.pool.clone(), inner.leaving.subscribe());
        let written = inner.writer.ended();
        tokio::spawn(async move {
            process.live(pool, leaving, written).await;
            drop(left_when_dropped);
        });
        *inner.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
        Ok(())
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        self.0.writer.submit(write, done)
    }

    async fn insert_in(&self, connection: Connection<'_>, row: Arc<Row>) -> Result<Written, AcceptError> {
        match connection {
            Connection::Postgres(connection) => {
                let inserted = async {
                    if row.order.is_some() && !apply::sees_others(connection).await? {
                        let reason = "an ordering key needs a transaction that is READ COMMITTED";
                        return Ok(Err(OutboxError::refused(reason)));
                    }
                    apply::insert_in(connection, &self.0.codec, &row).await.map(Ok)
                };
                inserted.await.unwrap_or_else(|error| Err(not_stored(&error))).map_err(AcceptError::Outbox)
            }
            #[cfg(feature = "sqlite")]
            other => Err(AcceptError::OtherDatabase { transaction: other.database(), outbox: "PostgreSQL" }),
        }
    }

    async fn publish_in(&self, connection: Connection<'_>, event: &FanOut) -> Result<u64, AcceptError> {
        match connection {
            Connection::Postgres(connection) => {
                let published = async {
                    if !apply::sees_others(connection).await? {
                        let reason = "an event for subscriptions needs a transaction that is READ COMMITTED";
                        return Ok(Err(OutboxError::refused(reason)));
                    }
                    apply::publish_in(connection, &self.0.codec, event).await.map(Ok)
                };
                published.await.unwrap_or_else(|error| Err(not_stored(&error))).map_err(AcceptError::Outbox)
            }
            #[cfg(feature = "sqlite")]
            other => Err(AcceptError::OtherDatabase { transaction: other.database(), outbox: "PostgreSQL" }),
        }
    }

    async fn subscription(&self, id: SubscriptionId) -> Result<Option<SubscriptionRow>, OutboxError> {
        read::subscription(&self.0.pool, &self.0.codec, id).await.map_err(|error| not_stored(&error))
    }

    async fn subscriptions(&self, query: &SubscriptionQuery) -> Result<Page<SubscriptionRow>, OutboxError> {
        read::subscriptions(&self.0.pool, &self.0.codec, query).await.map_err(|error| not_stored(&error))
    }

    async fn next_due(&self, after: Micros) -> Result<Option<Micros>, OutboxError> {
        read::next_due(&self.0.pool, after).await.map_err(|error| not_stored(&error))
    }

    async fn next_expiry(&self) -> Result<Option<Micros>, OutboxError> {
        read::next_expiry(&self.0.pool, self.0.process.id()).await.map_err(|error| not_stored(&error))
    }

    async fn find(&self, id: TaskId) -> Result<Option<Row>, OutboxError> {
        read::find(&self.0.pool, &self.0.codec, id).await.map_err(|error| not_stored(&error))
    }

    fn is_shared(&self) -> bool {
        true
    }

    /// Whether anything is there to be claimed, now or later: who stored it, and when, the database does not tell.
    async fn others_wrote(&self) -> Result<bool, OutboxError> {
        let next = read::next_due(&self.0.pool, Micros(i64::MIN)).await.map_err(|error| not_stored(&error))?;
        Ok(next.is_some())
    }

    async fn waiting_workers(&self) -> Result<Vec<String>, OutboxError> {
        read::waiting_workers(&self.0.pool).await.map_err(|error| not_stored(&error))
    }

    async fn depth(&self, now: Micros) -> Result<(u64, Option<Micros>), OutboxError> {
        read::depth(&self.0.pool, now).await.map_err(|error| not_stored(&error))
    }

    async fn breakers(&self) -> Result<Vec<OpenBreaker>, OutboxError> {
        read::breakers(&self.0.pool).await.map_err(|error| not_stored(&error))
    }

    async fn consent(&self, destination: &Destination) -> Result<Option<StoredConsent>, OutboxError> {
        read::consent(&self.0.pool, destination).await.map_err(|error| not_stored(&error))
    }

    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, OutboxError> {
        read::dead_letters(&self.0.pool, &self.0.codec, query).await.map_err(|error| not_stored(&error))
    }

    async fn dead_places(&self, query: &DeadLetterQuery) -> Result<Vec<Cursor>, OutboxError> {
        read::dead_places(&self.0.pool, query).await.map_err(|error| not_stored(&error))
    }

    async fn dead_letter(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError> {
        read::dead_letter(&self.0.pool, &self.0.codec, id).await.map_err(|error| not_stored(&error))
    }

    fn lease(&self) -> Lease {
        self.0.process.lease()
    }

    fn is_leased(&self, lease: Lease) -> bool {
        self.0.process.is_leased(lease)
    }

    async fn close(&self) {
        let inner = &self.0;
        inner.writer.close().await;
        let _ = inner.leaving.send(());
        let left = inner.left.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(mut left) = left {
            let _ = left.changed().await;
        }
        if inner.owns_pool {
            inner.pool.close().await;
        }
    }
}

/// An error of the database's, without what its detail may quote of a row.
fn not_stored(error: &Error) -> OutboxError {
    OutboxError::not_stored(Told(error).to_string())
}

/// What may be told of an error: a server quotes rows, with all that is in them, in what comes beside the message.
struct Told<'a>(&'a Error);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Error::Database(error) => match error.code() {
                Some(code) => write!(f, "{} ({code})", error.message()),
                None => f.write_str(error.message()),
            },
            other => f.write_str(&crate::engine::chain(other)),
        }
    }
}

impl fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOutbox").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
