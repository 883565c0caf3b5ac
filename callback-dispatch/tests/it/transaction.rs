//! What is stored in a user's own transaction is there if that commits, and never was if it does not.

#[cfg(feature = "sqlite")]
use crate::support::in_time;
use crate::support::{Home, dsn, echo, ended, event, start};
use callback_core::{MemorySink, TaskId};
use callback_dispatch::{
    AcceptError, Dispatcher, Event, Interrupted, NewSubscription, TaskState, Transaction, Work, Worker,
};
use serde_json::json;
use sqlx::{
    Database, Executor, Pool, SqlSafeStr,
    migrate::{Migrate, Migration, MigrationType, Migrator},
};
use std::borrow::Cow;

/// Makes tests of functions that take a [`Site`]: one a database.
macro_rules! in_each_database {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use crate::support::{Home, in_time};

            #[cfg(feature = "sqlite")]
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_sqlite() {
                in_time(super::$name(super::sqlite(Home::sqlite()).await)).await;
            }

            #[cfg(feature = "postgres")]
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_postgres() {
                if let Some(home) = Home::postgres() {
                    in_time(super::$name(super::postgres(home).await)).await;
                }
            }
        }
    )* };
}

in_each_database!(
    committed_without_a_wake_is_delivered,
    woken_before_a_rollback_is_never_sent,
    an_event_for_subscriptions_is_sent_if_it_is_committed,
    a_transaction_dropped_by_a_panic_is_never_sent,
    our_migrations_and_the_users_live_in_one_database,
    a_dispatcher_that_is_closed_stores_nothing,
);

/// A user's own pool on the outbox's database, with a table of his own.
struct Site<DB: Database> {
    home: Home,
    pool: Pool<DB>,
    begin: &'static str,
}

#[cfg(feature = "sqlite")]
async fn sqlite(home: Home) -> Site<sqlx::Sqlite> {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(home.open_file().await.path());
    let pool = Pool::connect_with(options).await.expect("another pool");
    with_table(Site { home, pool, begin: "BEGIN IMMEDIATE" }).await
}

#[cfg(feature = "postgres")]
async fn postgres(home: Home) -> Site<sqlx::Postgres> {
    home.open().await;
    let Home::Postgres(schema) = &home else { panic!("not in PostgreSQL") };
    let pool = Pool::connect(&schema.url()).await.expect("another pool");
    with_table(Site { home, pool, begin: "BEGIN" }).await
}

async fn with_table<DB: Database>(site: Site<DB>) -> Site<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    let mut connection = site.pool.acquire().await.expect("a connection");
    (&mut *connection).execute("CREATE TABLE business (number INTEGER)").await.expect("writable");
    site
}

impl<DB: Database> Site<DB> {
    async fn begin(&self) -> sqlx::Transaction<'static, DB> {
        self.pool.begin_with(self.begin).await.expect("a transaction")
    }

    async fn started(&self) -> (Dispatcher, Worker, MemorySink) {
        let sink = MemorySink::new();
        let dispatcher = start(self.home.builder().await.sink(sink.clone())).await;
        let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
        (dispatcher, worker, sink)
    }

    /// Stores a line of the user's, an event and a task in a transaction.
    async fn store(dispatcher: &Dispatcher, worker: &Worker, transaction: &mut sqlx::Transaction<'static, DB>) -> TaskId
    where
        for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
        sqlx::Transaction<'static, DB>: Transaction,
    {
        (&mut **transaction).execute("INSERT INTO business VALUES (1)").await.expect("writable");
        dispatcher.publish_in(transaction, event("memory://events", json!(1))).await.expect("published");
        let work = Work::new(json!(2)).callback(dsn("memory://results"));
        worker.accept_in(transaction, work).await.expect("accepted").id()
    }

    /// That nothing of a transaction is there, and nothing of it is sent.
    async fn assert_nothing(self, dispatcher: &Dispatcher, worker: &Worker, sink: &MemorySink, id: TaskId)
    where
        for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    {
        assert!(dispatcher.task(id).await.expect("readable").is_none());
        self.home.assert_empty().await;
        let mut connection = self.pool.acquire().await.expect("a connection");
        let left = (&mut *connection).fetch_optional("SELECT * FROM business").await.expect("readable");
        assert!(left.is_none(), "the user's own line is there");
        drop(connection);
        // What is sent afterwards is all that is ever sent.
        dispatcher.publish(event("memory://events", json!("after"))).await.expect("published");
        let work = Work::new(json!("after")).callback(dsn("memory://results"));
        let after = worker.accept(work).await.expect("accepted").id();
        ended(dispatcher, after).await;
        for name in ["events", "results"] {
            assert_eq!(sink.next(name).await.message.json::<String>().expect("text"), "after");
        }
    }
}

async fn committed_without_a_wake_is_delivered<DB: Database>(site: Site<DB>)
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    sqlx::Transaction<'static, DB>: Transaction,
{
    let (dispatcher, worker, sink) = site.started().await;
    let mut transaction = site.begin().await;
    let id = Site::store(&dispatcher, &worker, &mut transaction).await;
    assert!(dispatcher.task(id).await.expect("readable").is_none(), "nobody sees it before the commit");
    transaction.commit().await.expect("committed");
    assert_eq!(sink.next("events").await.message.json::<u32>().expect("a number"), 1);
    let result = sink.next("results").await.message;
    assert_eq!((result.id().to_string(), result.json::<u32>().expect("a number")), (id.to_string(), 2));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
}

async fn woken_before_a_rollback_is_never_sent<DB: Database>(site: Site<DB>)
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    sqlx::Transaction<'static, DB>: Transaction,
{
    let (dispatcher, worker, sink) = site.started().await;
    let mut transaction = site.begin().await;
    let id = Site::store(&dispatcher, &worker, &mut transaction).await;
    dispatcher.wake();
    tokio::task::yield_now().await;
    transaction.rollback().await.expect("rolled back");
    site.assert_nothing(&dispatcher, &worker, &sink, id).await;
}

async fn an_event_for_subscriptions_is_sent_if_it_is_committed<DB: Database>(site: Site<DB>)
where
    sqlx::Transaction<'static, DB>: Transaction,
{
    let (dispatcher, _worker, sink) = site.started().await;
    for new in [NewSubscription::new(dsn("memory://a")), NewSubscription::new(dsn("memory://b")).ordered()] {
        dispatcher.subscriptions().create(new).await.expect("created");
    }
    for (number, commits) in [(1, false), (2, true), (3, true)] {
        let mut transaction = site.begin().await;
        let event = Event::new("order.placed", json!(number)).ordering_key("key");
        dispatcher.publish_in(&mut transaction, event).await.expect("published");
        if commits {
            transaction.commit().await.expect("committed");
            dispatcher.wake();
        } else {
            transaction.rollback().await.expect("rolled back");
        }
    }
    for number in [2, 3] {
        for name in ["a", "b"] {
            assert_eq!(sink.next(name).await.message.json::<u32>().expect("a number"), number, "{name}");
        }
    }
}

async fn a_transaction_dropped_by_a_panic_is_never_sent<DB: Database>(site: Site<DB>)
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    sqlx::Transaction<'static, DB>: Transaction,
{
    let (dispatcher, worker, sink) = site.started().await;
    let mut transaction = site.begin().await;
    let id = Site::store(&dispatcher, &worker, &mut transaction).await;
    let handler = tokio::spawn(async move {
        let _open = transaction;
        std::panic::resume_unwind(Box::new("a handler's bug"));
    });
    assert!(handler.await.is_err_and(|ended| ended.is_panic()));
    dispatcher.wake();
    site.assert_nothing(&dispatcher, &worker, &sink, id).await;
}

async fn our_migrations_and_the_users_live_in_one_database<DB: Database>(site: Site<DB>)
where
    DB::Connection: Migrate,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    sqlx::Transaction<'static, DB>: Transaction,
{
    let step = |version, sql: &'static str| {
        Migration::new(version, Cow::Borrowed("the user's"), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let first = step(1, "CREATE TABLE users_first (number INTEGER)");
    let second = step(2, "CREATE TABLE users_second (number INTEGER)");
    for steps in [vec![first.clone()], vec![first, second]] {
        let mut connection = site.pool.acquire().await.expect("a connection");
        let migrated = Migrator::with_migrations(steps).run_direct(None, &mut *connection, false).await;
        migrated.expect("the user's migrations meet no stranger");
        drop(connection);
        let (dispatcher, worker, sink) = site.started().await;
        let mut transaction = site.begin().await;
        (&mut *transaction).execute("INSERT INTO users_first VALUES (1)").await.expect("writable");
        Site::store(&dispatcher, &worker, &mut transaction).await;
        transaction.commit().await.expect("committed");
        sink.next("results").await;
        dispatcher.close(std::time::Duration::ZERO).await;
    }
}

async fn a_dispatcher_that_is_closed_stores_nothing<DB: Database>(site: Site<DB>)
where
    sqlx::Transaction<'static, DB>: Transaction,
{
    let (dispatcher, worker, _sink) = site.started().await;
    dispatcher.close(std::time::Duration::ZERO).await;
    let mut transaction = site.begin().await;
    let published = dispatcher.publish_in(&mut transaction, event("memory://events", json!(1))).await;
    assert!(matches!(published, Err(AcceptError::Closed)), "{published:?}");
    let accepted = worker.accept_in(&mut transaction, Work::new(json!(1))).await;
    assert!(matches!(accepted, Err(AcceptError::Closed)), "{accepted:?}");
    transaction.commit().await.expect("committed");
    site.home.assert_empty().await;
}

#[cfg(feature = "sqlite")]
async fn refused<DB: Database>(dispatcher: &Dispatcher, site: &Site<DB>) -> String
where
    sqlx::Transaction<'static, DB>: Transaction,
{
    let mut transaction = site.begin().await;
    let published = dispatcher.publish_in(&mut transaction, event("memory://events", json!(1))).await;
    let error = published.expect_err("it is of another database");
    assert!(matches!(error, AcceptError::OtherDatabase { .. }), "{error:?}");
    let to_all = dispatcher.publish_in(&mut transaction, Event::new("order.placed", json!(1))).await;
    assert_eq!(to_all.expect_err("it is of another database").to_string(), error.to_string());
    transaction.rollback().await.expect("rolled back");
    error.to_string()
}

/// Both ways, where there is a PostgreSQL.
#[cfg(all(feature = "sqlite", feature = "postgres"))]
#[tokio::test]
async fn a_transaction_of_the_other_database_is_refused() {
    in_time(async {
        let Some(home) = Home::postgres() else { return };
        let (sqlite, postgres) = (sqlite(Home::sqlite()).await, postgres(home).await);
        let told = refused(&sqlite.started().await.0, &postgres).await;
        assert_eq!(told, "the transaction is of PostgreSQL, the outbox is in SQLite");
        let told = refused(&postgres.started().await.0, &sqlite).await;
        assert_eq!(told, "the transaction is of SQLite, the outbox is in PostgreSQL");
    })
    .await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn an_outbox_in_memory_refuses_every_transaction() {
    let site = sqlite(Home::sqlite()).await;
    let dispatcher = start(Dispatcher::builder(callback_dispatch::MemoryOutbox::new()).sink(MemorySink::new())).await;
    let told = in_time(refused(&dispatcher, &site)).await;
    assert_eq!(told, "the transaction is of SQLite, the outbox is in memory");
}
