//! Outboxes that outlive a dispatcher, sinks that do as they are told, and signals in place of sleeps.

use callback_core::{Attempt, Dsn, DsnError, Evidence, Message, Receipt, Sink, SinkError, TaskId, async_trait};
use callback_dispatch::{Dispatcher, DispatcherBuilder, Event, MemoryOutbox, Outbox, Task, TaskState, Worker};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Builder,
    sync::{Semaphore, mpsc},
    task::yield_now,
    time::timeout,
};

/// Longer than every test takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes tests of async functions that take a [`Home`]: one an outbox.
macro_rules! on_each_outbox {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use crate::support::{Home, in_time};

            #[tokio::test]
            async fn in_memory() {
                in_time(super::$name(Home::memory())).await;
            }

            #[cfg(feature = "sqlite")]
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_sqlite() {
                in_time(super::$name(Home::sqlite())).await;
            }

            #[cfg(all(feature = "sqlite", feature = "seal"))]
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_sealed_sqlite() {
                in_time(super::$name(Home::sealed_sqlite())).await;
            }

            #[cfg(feature = "postgres")]
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_postgres() {
                if let Some(home) = Home::postgres() {
                    in_time(super::$name(home)).await;
                }
            }
        }
    )* };
}

/// The same for functions that are not async, since they begin and end runtimes of their own.
macro_rules! over_lives_on_each_outbox {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            use crate::support::Home;

            #[test]
            fn in_memory() {
                super::$name(&Home::memory());
            }

            #[cfg(feature = "sqlite")]
            #[test]
            fn in_sqlite() {
                super::$name(&Home::sqlite());
            }

            #[cfg(all(feature = "sqlite", feature = "seal"))]
            #[test]
            fn in_sealed_sqlite() {
                super::$name(&Home::sealed_sqlite());
            }

            #[cfg(feature = "postgres")]
            #[test]
            fn in_postgres() {
                if let Some(home) = Home::postgres() {
                    super::$name(&home);
                }
            }
        }
    )* };
}

/// Fails a test that hangs.
pub(crate) async fn in_time<T>(test: impl Future<Output = T>) -> T {
    timeout(PATIENCE, Box::pin(test)).await.expect("the test ends in time")
}

/// A process that ends by itself.
pub(crate) fn lived<T>(life: impl Future<Output = T>) -> T {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(in_time(life))
}

/// A process that is killed once `life` is over: all its tasks are gone before `kept` is let go of.
///
/// It has one thread, so that no task goes on while others are gone already.
pub(crate) fn killed<T, K>(life: impl Future<Output = (T, K)>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (result, kept) = runtime.block_on(in_time(life));
    runtime.shutdown_timeout(PATIENCE);
    drop(kept);
    result
}

/// Where an outbox lives, so that it can be opened again.
pub(crate) enum Home {
    Memory(MemoryOutbox),
    #[cfg(feature = "sqlite")]
    Sqlite(tempfile::TempDir),
    #[cfg(all(feature = "sqlite", feature = "seal"))]
    SealedSqlite(tempfile::TempDir),
    #[cfg(feature = "postgres")]
    Postgres(Schema),
}

/// A schema of a test's own, and the runtime of the life that has it open.
#[cfg(feature = "postgres")]
pub(crate) struct Schema {
    server: String,
    name: String,
    life: std::sync::Mutex<Option<tokio::runtime::Id>>,
}

#[cfg(feature = "postgres")]
impl Schema {
    /// The URL of connections that see this schema and no other.
    pub(crate) fn url(&self) -> String {
        let separator = if self.server.contains('?') { '&' } else { '?' };
        format!("{}{separator}options=-csearch_path%3D{}", self.server, self.name)
    }

    /// A connection with nothing of ours on it.
    pub(crate) async fn stranger(&self) -> sqlx::PgConnection {
        use sqlx::{AssertSqlSafe, Connection, Executor};
        let mut connection = sqlx::PgConnection::connect(&self.url()).await.expect("the server can be reached");
        let create = format!("SET client_min_messages = warning; CREATE SCHEMA IF NOT EXISTS {}", self.name);
        connection.execute(AssertSqlSafe(create)).await.expect("a schema can be made");
        connection
    }

    async fn open(&self) -> callback_dispatch::PostgresOutbox {
        use sqlx::Executor;
        let mut stranger = self.stranger().await;
        let this = tokio::runtime::Handle::current().id();
        let former = self.life.lock().expect("not poisoned").replace(this);
        if former.is_some_and(|former| former != this) {
            // Nobody waits here until the lease of the life before is over.
            let over = "UPDATE callback_process SET alive_until = now() - interval '1 second'";
            stranger.execute(over).await.expect("writable");
        }
        self.connect().await
    }

    /// The outbox of one more process.
    pub(crate) async fn connect(&self) -> callback_dispatch::PostgresOutbox {
        callback_dispatch::PostgresOutbox::connect(&self.url()).await.expect("the outbox can be opened")
    }
}

/// What a sealed outbox is sealed with.
#[cfg(all(feature = "sqlite", feature = "seal"))]
pub(crate) const KEY: &str = "test:6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc=";

impl Home {
    pub(crate) fn memory() -> Self {
        Self::Memory(MemoryOutbox::new())
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().expect("a temporary directory"))
    }

    #[cfg(all(feature = "sqlite", feature = "seal"))]
    pub(crate) fn sealed_sqlite() -> Self {
        Self::SealedSqlite(tempfile::tempdir().expect("a temporary directory"))
    }

    /// In the server that `CALLBACK_TEST_POSTGRES` names. `scripts/postgres run cargo test` brings one along.
    #[cfg(feature = "postgres")]
    #[expect(clippy::print_stdout, reason = "a skip is told")]
    pub(crate) fn postgres() -> Option<Self> {
        let Ok(server) = std::env::var("CALLBACK_TEST_POSTGRES") else {
            assert!(std::env::var_os("CI").is_none(), "CALLBACK_TEST_POSTGRES is not set");
            println!("skipped: CALLBACK_TEST_POSTGRES is not set");
            return None;
        };
        let name = format!("test_{}", TaskId::new().to_string().replace('-', "_"));
        Some(Self::Postgres(Schema { server, name, life: std::sync::Mutex::default() }))
    }

    #[cfg_attr(
        not(any(feature = "sqlite", feature = "postgres")),
        expect(clippy::unused_async, reason = "a database is opened and read so")
    )]
    pub(crate) async fn open(&self) -> Arc<dyn Outbox> {
        match self {
            Self::Memory(outbox) => Arc::new(outbox.clone()),
            #[cfg(feature = "postgres")]
            Self::Postgres(schema) => Arc::new(schema.open().await),
            #[cfg(feature = "sqlite")]
            _ => Arc::new(self.open_file().await),
        }
    }

    pub(crate) async fn builder(&self) -> DispatcherBuilder {
        Dispatcher::builder(self.open().await)
    }

    #[cfg(feature = "sqlite")]
    pub(crate) async fn open_file(&self) -> callback_dispatch::SqliteOutbox {
        use callback_dispatch::SqliteOutbox;
        let opened = match self {
            #[cfg(feature = "seal")]
            Self::SealedSqlite(_) => SqliteOutbox::open_sealed(self.path(), KEY.parse().expect("a key")).await,
            _ => SqliteOutbox::open(self.path()).await,
        };
        opened.expect("the file can be opened")
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn path(&self) -> std::path::PathBuf {
        match self {
            Self::Sqlite(directory) => directory.path().join("outbox.db"),
            #[cfg(feature = "seal")]
            Self::SealedSqlite(directory) => directory.path().join("outbox.db"),
            _ => panic!("only an SQLite outbox has a file"),
        }
    }

    /// Another connection to the file, with nothing of ours on it.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn stranger(&self) -> sqlx::SqliteConnection {
        use sqlx::ConnectOptions;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.path());
        options.connect().await.expect("another connection")
    }

    /// That nothing is stored, as far as it can be seen from outside.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "postgres")),
        expect(clippy::unused_async, reason = "a database is opened and read so")
    )]
    pub(crate) async fn assert_empty(&self) {
        #[cfg(any(feature = "sqlite", feature = "postgres"))]
        let count = "SELECT count(*) FROM callback_outbox";
        let counted: Option<i64> = match self {
            Self::Memory(_) => None,
            #[cfg(feature = "postgres")]
            Self::Postgres(schema) => sqlx::query_scalar(count).fetch_one(&mut schema.stranger().await).await.ok(),
            #[cfg(feature = "sqlite")]
            _ => sqlx::query_scalar(count).fetch_one(&mut self.stranger().await).await.ok(),
        };
        assert!(matches!((self, counted), (Self::Memory(_), None) | (_, Some(0))), "{counted:?} rows are stored");
    }
}

pub(crate) async fn start(builder: DispatcherBuilder) -> Dispatcher {
    builder.start().await.expect("the dispatcher starts")
}

#[track_caller]
pub(crate) fn dsn(text: &str) -> Dsn {
    text.parse().expect("a valid Dsn")
}

pub(crate) fn event(to: &str, payload: Value) -> Event {
    Event::to(dsn(to), "test.happened", payload)
}

/// Waits until the task is over.
pub(crate) async fn ended(dispatcher: &Dispatcher, id: TaskId) -> Task {
    let task = dispatcher.wait(id).await.expect("the outbox can be read").expect("the task is known");
    assert!(task.state().is_ended(), "{task:?}");
    task
}

pub(crate) async fn task(dispatcher: &Dispatcher, id: TaskId) -> Task {
    dispatcher.task(id).await.expect("the outbox can be read").expect("the task is known")
}

/// Waits until the task stands there: it is on its way.
pub(crate) async fn reaches(dispatcher: &Dispatcher, id: TaskId, state: TaskState) {
    while task(dispatcher, id).await.state() != state {
        yield_now().await;
    }
}

/// A second thing to do, for a worker that echoes what it gets.
pub(crate) async fn echo(task: Task) -> Result<Value, Value> {
    Ok(task.json().unwrap_or(Value::Null))
}

/// Accepts `payload` for `worker`, its result for `to`.
pub(crate) async fn accept(worker: &Worker, payload: impl Into<Value>, to: &str) -> TaskId {
    let work = callback_dispatch::Work::new(payload.into()).callback(dsn(to));
    worker.accept(work).await.expect("the work is accepted").id()
}

pub(crate) fn receipt() -> Receipt {
    Receipt::new(Evidence::Acknowledged)
}

/// What a sink was given.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) dsn: Dsn,
    pub(crate) message: Message,
    pub(crate) attempt: Attempt,
}

type Deliver = dyn Fn(Given) -> BoxFuture<'static, Result<Receipt, SinkError>> + Send + Sync;

/// Serves `custom://…` by a function.
pub(crate) struct CustomSink(Box<Deliver>);

impl CustomSink {
    pub(crate) fn new<F, Fut>(deliver: F) -> Self
    where
        F: Fn(Given) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Receipt, SinkError>> + Send + 'static,
    {
        Self(Box::new(move |given| Box::pin(deliver(given))))
    }

    /// Takes nothing before the gate is open.
    pub(crate) fn behind(gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::new(move |given| {
            let gate = gate.clone();
            async move {
                gate.pass(given.message.json().unwrap_or(json!(null))).await;
                Ok(receipt())
            }
        })
    }
}

#[async_trait]
impl Sink for CustomSink {
    fn schemes(&self) -> &[&str] {
        &["custom"]
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        if dsn.authority() == "refused" { Err(DsnError::forbidden("nobody may send there")) } else { Ok(()) }
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        (self.0)(Given { dsn: dsn.clone(), message: message.clone(), attempt: attempt.clone() }).await
    }

    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

impl fmt::Debug for CustomSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomSink").finish_non_exhaustive()
    }
}

/// Holds whoever comes until it is opened, and tells who came, who left, and how many were there at once.
#[derive(Clone)]
pub(crate) struct Gate {
    came: mpsc::UnboundedSender<Value>,
    left: mpsc::UnboundedSender<Value>,
    open: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

/// The other side of a [`Gate`].
pub(crate) struct Watch {
    came: mpsc::UnboundedReceiver<Value>,
    left: mpsc::UnboundedReceiver<Value>,
}

impl Gate {
    pub(crate) fn new() -> (Self, Watch) {
        let (came, came_there) = mpsc::unbounded_channel();
        let (left, left_there) = mpsc::unbounded_channel();
        let (open, inside, most) = (Arc::new(Semaphore::new(0)), Arc::default(), Arc::default());
        (Self { came, left, open, inside, most }, Watch { came: came_there, left: left_there })
    }

    /// Lets so many pass.
    pub(crate) fn open(&self, times: usize) {
        self.open.add_permits(times);
    }

    /// How many were there at once, at most.
    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub(crate) async fn pass(&self, who: Value) {
        self.most.fetch_max(self.inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let _inside = Inside { gate: self, who: who.clone() };
        let _ = self.came.send(who);
        self.open.acquire().await.expect("a gate is not closed").forget();
    }

    /// A handler that passes the gate, then echoes.
    pub(crate) fn handler(&self) -> impl Fn(Task) -> BoxFuture<'static, Result<Value, Value>> + Send + Sync + use<> {
        let gate = self.clone();
        move |task| {
            let gate = gate.clone();
            Box::pin(async move {
                gate.pass(task.json().unwrap_or(Value::Null)).await;
                echo(task).await
            })
        }
    }
}

struct Inside<'a> {
    gate: &'a Gate,
    who: Value,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.gate.inside.fetch_sub(1, Ordering::SeqCst);
        let _ = self.gate.left.send(self.who.take());
    }
}

impl Watch {
    /// Who came next.
    pub(crate) async fn came(&mut self) -> Value {
        self.came.recv().await.expect("somebody comes")
    }

    /// Who left next: let through, or dropped.
    pub(crate) async fn left(&mut self) -> Value {
        self.left.recv().await.expect("somebody leaves")
    }

    /// That nobody came since.
    #[track_caller]
    pub(crate) fn assert_nobody(&mut self) {
        assert_eq!(self.came.try_recv().ok(), None, "somebody came");
    }
}
