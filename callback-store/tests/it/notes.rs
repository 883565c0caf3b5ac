//! The database that the tests write to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use callback_store::{Apply, Database, Migrations, OpenOptions, Writer};
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};
use tempfile::TempDir;
use tokio::sync::oneshot;

pub(crate) struct Notes {
    pub(crate) database: Database,
    pub(crate) directory: TempDir,
}

impl Notes {
    pub(crate) async fn open() -> Self {
        Self::open_with(OpenOptions::new()).await
    }

    pub(crate) async fn open_with(options: OpenOptions) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let database = options.open(directory.path().join("notes.db"), migrations()).await.expect("the database opens");
        Self { database, directory }
    }

    pub(crate) async fn writer(&self, queue: usize) -> (Writer<Insert>, Applied) {
        let applied = Applied::default();
        let insert = Insert { applied: applied.clone() };
        let writer = self.database.writer(insert, queue).await.expect("the writer starts");
        (writer, applied)
    }

    /// Another connection that may write.
    pub(crate) async fn stranger(&self) -> SqliteConnection {
        sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.database.path())
            .connect()
            .await
            .expect("a second connection opens")
    }

    pub(crate) async fn ids(&self) -> Vec<i64> {
        ids(self.database.reader()).await
    }
}

pub(crate) async fn ids(reader: &SqlitePool) -> Vec<i64> {
    sqlx::query_scalar("SELECT id FROM note ORDER BY rowid").fetch_all(reader).await.expect("the notes can be read")
}

pub(crate) fn migrations() -> Migrations {
    let create = "CREATE TABLE note (id INTEGER NOT NULL UNIQUE, text TEXT NOT NULL DEFAULT '')";
    Migrations::new("note_migrations", &[(1, "notes", create)])
}

/// What reached the database code.
#[derive(Clone, Default)]
pub(crate) struct Applied {
    calls: Arc<AtomicUsize>,
}

impl Applied {
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

pub(crate) struct Insert {
    applied: Applied,
}

pub(crate) enum Write {
    Note(i64),
    /// Runs on the writer's connection, and answers with the first column if there is one.
    Sql(&'static str),
    Panic,
    /// Tells when the batch is being applied, and holds it until let go.
    Hold(std::sync::Mutex<Option<Held>>),
    /// Has `COMMIT` fail by turning it into a rollback.
    RefuseCommit,
    /// Lets the connection's thread die at its next command.
    KillConnection(Arc<std::sync::atomic::AtomicBool>),
    /// Gives no answer.
    Unanswered,
}

pub(crate) struct Held {
    entered: oneshot::Sender<()>,
    let_go: oneshot::Receiver<()>,
}

impl Write {
    /// A write that stops the writer: the receiver tells when it has, the sender lets it go on.
    pub(crate) fn hold() -> (Self, oneshot::Receiver<()>, oneshot::Sender<()>) {
        let (entered, is_entered) = oneshot::channel();
        let (go_on, let_go) = oneshot::channel();
        let held = Held { entered, let_go };
        (Self::Hold(std::sync::Mutex::new(Some(held))), is_entered, go_on)
    }
}

impl Apply for Insert {
    type Write = Write;
    type Written = i64;

    async fn apply<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
        writes: &'a [Write],
    ) -> Result<Vec<i64>, sqlx::Error> {
        self.applied.calls.fetch_add(1, Ordering::SeqCst);
        let mut answers = Vec::new();
        for write in writes {
            answers.push(match write {
                Write::Note(id) => {
                    let insert = sqlx::query("INSERT INTO note (id) VALUES (?)").bind(id);
                    insert.execute(&mut *connection).await?;
                    *id
                }
                Write::Sql(sql) => {
                    let row = sqlx::query_scalar(*sql).fetch_optional(&mut *connection).await?;
                    row.unwrap_or_default()
                }
                Write::Panic => panic!("on purpose"),
                Write::Hold(held) => {
                    let held = held.lock().expect("nobody panics with it").take();
                    let held = held.expect("the batch is applied once");
                    held.entered.send(()).expect("the test waits for it");
                    // The test may also end without letting go.
                    let _ = held.let_go.await;
                    0
                }
                Write::RefuseCommit => {
                    connection.lock_handle().await?.set_commit_hook(|| false);
                    0
                }
                Write::KillConnection(armed) => {
                    armed.store(true, Ordering::SeqCst);
                    0
                }
                Write::Unanswered => continue,
            });
        }
        Ok(answers)
    }
}
