mod answer;
mod checkpoint;
mod session;
mod task;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;

use sqlx::SqliteConnection;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::Instrument;

use self::answer::Answer;
pub(crate) use self::session::Session;
use self::task::{Settled, Task};
use crate::{SubmitError, WriteError};

/// What a writer does with a batch: it turns many writes into few statements.
pub trait Apply: Send + 'static {
    /// One write, as it is queued.
    type Write: Send + Sync + 'static;
    /// The answer to one write.
    type Written: Send + 'static;

    /// Applies up to 512 writes, in the order of the queue, inside a transaction that the writer begins and commits.
    ///
    /// Returns one answer a write, in order. It must not begin, commit or roll back, nor hide an error that SQLite gave. The
    /// same writes may come again, in smaller batches, after their transaction was rolled back.
    ///
    /// # Errors
    ///
    /// An error, a panic or a wrong number of answers rolls the batch back. If the error is of one write's making (a
    /// constraint, a type), the batch is halved until that write fails alone; otherwise (disk, lock, panic) all of it fails.
    fn apply<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
        writes: &'a [Self::Write],
    ) -> impl Future<Output = Result<Vec<Self::Written>, sqlx::Error>> + Send + 'a;
}

/// Queues writes for one thread that commits them in groups. Clones share it.
///
/// Whatever waits, up to 512 writes, shares a transaction and its fsync. No write waits for company. When all clones are
/// dropped, what is queued is settled, as by [`close`](Self::close).
pub struct Writer<A: Apply> {
    queue: mpsc::Sender<Job<A>>,
    closing: Arc<Notify>,
    /// Its sender lives as long as the task.
    alive: watch::Receiver<()>,
}

/// What waits in the queue.
enum Job<A: Apply> {
    Write(A::Write, Answer<A::Written>),
    OthersWrote(Answer<bool>),
}

impl<A: Apply> Writer<A> {
    pub(crate) fn start(apply: A, session: Session, queue: usize) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(queue.max(1));
        let (alive_until_dropped, alive) = watch::channel(());
        let closing = Arc::new(Notify::new());
        let (settled, mut to_answer) = mpsc::unbounded_channel::<Settled<A>>();
        let task = Task::new(apply, session, receiver, Arc::clone(&closing), settled);
        // Those who wait are told by the runtime that they live on, while the writer goes on with the next batch.
        tokio::spawn(async move {
            while let Some(settled) = to_answer.recv().await {
                settled.answer();
            }
            drop(alive_until_dropped);
        });
        // A thread of its own: each statement is a hop to SQLite's thread and back, and on a busy runtime the way back
        // is a wait behind all tasks that are ready, several times a commit.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let started = runtime.and_then(|runtime| {
            let subscriber = tracing::dispatcher::get_default(Clone::clone);
            let run = move || {
                tracing::dispatcher::with_default(&subscriber, || {
                    runtime.block_on(task.run().instrument(tracing::debug_span!("callback-store writer")));
                });
            };
            thread::Builder::new().name("callback-store".to_owned()).spawn(run).map(drop)
        });
        started.map(|()| Self { queue: sender, closing, alive })
    }

    /// Queues a write; `done` is called once, with what became of it.
    ///
    /// `done` is called in the order of the queue, on the runtime that started the writer, after `COMMIT` or a failure: it
    /// must be short and not block. The write is carried out whether or not anybody waits for it. Should the runtime end
    /// first, `done` is called with [`Unknown`](crate::WriteErrorKind::Unknown).
    ///
    /// # Errors
    ///
    /// [`SubmitError`] if it was not queued; then `done` is not called.
    pub fn submit(
        &self,
        write: A::Write,
        done: impl FnOnce(Result<A::Written, WriteError>) + Send + 'static,
    ) -> Result<(), SubmitError> {
        let room = self.queue.try_reserve().map_err(|error| match error {
            TrySendError::Full(()) => SubmitError::Full,
            TrySendError::Closed(()) => SubmitError::Closed,
        })?;
        room.send(Job::Write(write, Answer::new(done)));
        Ok(())
    }

    /// Queues a write like [`submit`](Self::submit), but waits for room in the queue.
    ///
    /// # Errors
    ///
    /// [`SubmitError::Closed`]; then `done` is not called.
    ///
    /// # Cancellation
    ///
    /// Dropped before it resolves, it has queued nothing, and `done` is not called.
    pub async fn submit_wait(
        &self,
        write: A::Write,
        done: impl FnOnce(Result<A::Written, WriteError>) + Send + 'static,
    ) -> Result<(), SubmitError> {
        let room = self.queue.reserve().await.map_err(|_| SubmitError::Closed)?;
        room.send(Job::Write(write, Answer::new(done)));
        Ok(())
    }

    /// Writes and waits for the answer.
    ///
    /// # Errors
    ///
    /// [`WriteError::kind`] says whether the write may be stored. A writer that is closed stores nothing.
    ///
    /// # Cancellation
    ///
    /// Dropped while the queue is full, nothing is written; dropped later, the write goes its way.
    pub async fn write(&self, write: A::Write) -> Result<A::Written, WriteError> {
        self.ask(|answer| Job::Write(write, answer)).await
    }

    /// Returns whether another connection or process has committed since the last question.
    ///
    /// The first question looks back to the start of the writer. Its own commits do not count. True also if the
    /// connection had to be reopened since, which nobody can tell then.
    ///
    /// # Errors
    ///
    /// If the database cannot be asked.
    pub async fn others_wrote(&self) -> Result<bool, WriteError> {
        self.ask(Job::OthersWrote).await
    }

    /// Settles what is queued, then closes the connection. Idempotent.
    ///
    /// Once it has resolved, what is submitted is [`SubmitError::Closed`].
    ///
    /// # Cancellation
    ///
    /// Once polled it goes on without its caller.
    pub async fn close(&self) {
        self.closing.notify_one();
        // The task sends nothing, so this ends when the task does.
        let _ = self.alive.clone().changed().await;
    }

    async fn ask<T: Send + 'static>(&self, job: impl FnOnce(Answer<T>) -> Job<A>) -> Result<T, WriteError> {
        let room = self.queue.reserve().await;
        let room = room.map_err(|_| WriteError::not_stored(SubmitError::Closed))?;
        let (sender, receiver) = oneshot::channel();
        room.send(job(Answer::new(move |result| {
            // Whoever asked may have gone.
            let _ = sender.send(result);
        })));
        receiver.await.expect("an answer is always given, by its drop at the latest")
    }
}

impl<A: Apply> Clone for Writer<A> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), closing: Arc::clone(&self.closing), alive: self.alive.clone() }
    }
}

impl<A: Apply> fmt::Debug for Writer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("room", &self.queue.capacity()).field("closed", &self.queue.is_closed()).finish()
    }
}
