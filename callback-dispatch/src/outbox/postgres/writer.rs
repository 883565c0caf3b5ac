//! Group commit: what waits shares a transaction.

mod aside;

use super::{
    apply::{self, Applied, By},
    lease::Process,
};
use crate::outbox::{Done, NotQueued, OutboxError, Write, Written, codec::Codec};
use aside::Aside;
use futures_util::FutureExt;
use sqlx::{Error, PgPool};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, sleep_until, timeout},
};

/// The most writes of one transaction.
const BATCH: usize = 512;

/// How often a full batch is halved until one write is left.
const HALVINGS: u32 = BATCH.ilog2() + 1;

/// More than can wait: what a dispatcher has in hand, and what it accepts, is bounded in bytes.
const QUEUE: usize = 1 << 17;

/// How often a batch is tried that was in another's way.
const TRIES: usize = 5;

/// How long a batch may take: a connection that is silent for longer is given up.
const LIMIT: Duration = Duration::from_secs(30);

/// Queues writes for one task that commits them in groups.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Job>,
    closing: watch::Sender<()>,
    /// Its sender lives as long as the task.
    alive: watch::Receiver<()>,
}

impl Writer {
    pub(super) fn start(pool: PgPool, codec: Codec, process: Arc<Process>) -> Self {
        let (queue, jobs) = mpsc::channel::<Job>(QUEUE);
        let (closing, closed) = watch::channel(());
        let (alive_until_dropped, alive) = watch::channel(());
        let task = Task { database: Database { pool, codec, process }, aside: Aside::default() };
        tokio::spawn(async move {
            task.run(jobs, closed).await;
            drop(alive_until_dropped);
        });
        Self { queue, closing, alive }
    }

    pub(super) fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        let room = self.queue.try_reserve().map_err(|error| match error {
            TrySendError::Full(()) => NotQueued::Full,
            TrySendError::Closed(()) => NotQueued::Closed,
        })?;
        room.send((write, Answer { done: Some(done), until: None }));
        Ok(())
    }

    /// Resolves when the task is over.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut alive = self.alive.clone();
        async move { while alive.changed().await.is_ok() {} }
    }

    /// Settles what is queued. Idempotent.
    pub(super) async fn close(&self) {
        let _ = self.closing.send(());
        self.ended().await;
    }
}

/// Commits what is queued.
struct Task {
    database: Database,
    aside: Aside,
}

impl Task {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>, mut closed: watch::Receiver<()>) {
        let mut taken = Vec::with_capacity(BATCH);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                _ = closed.changed(), if open => {
                    open = false;
                    jobs.close();
                }
                () = sleep_until(self.aside.again()), if !self.aside.is_empty() => self.try_again().await,
                count = jobs.recv_many(&mut taken, BATCH) => match count {
                    0 => break,
                    _ => self.store_batch(taken.drain(..)).await,
                },
            }
        }
        self.try_again().await;
        self.aside.refuse_all();
    }

    /// Stores what was set aside, as far as the way is free.
    async fn try_again(&mut self) {
        let begun = Instant::now();
        let mut jobs = self.aside.take().into_iter();
        while jobs.len() > 0 {
            self.store_batch(jobs.by_ref().take(BATCH)).await;
        }
        self.aside.rest(begun.elapsed());
    }

    /// Stores a batch, halving it in order for as long as one write of it is to blame.
    async fn store_batch(&mut self, batch: impl Iterator<Item = Job>) {
        let mut parts: Vec<(Vec<Write>, Vec<Answer>)> = vec![batch.filter_map(|job| self.aside.pass(job)).unzip()];
        let mut locked = 0;
        while let Some((mut writes, mut answers)) = parts.pop() {
            if writes.is_empty() {
                continue;
            }
            if locked > HALVINGS {
                // Not a row of one write is locked, but all that is tried.
                let error = OutboxError::not_stored("the tables are locked");
                answers.into_iter().for_each(|answer| answer.give(Err(error.clone())));
                continue;
            }
            match self.database.store(&writes).await {
                Ok(Applied { written, taken }) => {
                    locked = 0;
                    self.aside.note(&taken);
                    for (job, written) in writes.into_iter().zip(answers).zip(written) {
                        match written {
                            Some(written) => job.1.give(Ok(written)),
                            None => self.aside.push(job),
                        }
                    }
                }
                Err(failed) if failed.blame != Blame::All && writes.len() > 1 => {
                    locked += u32::from(failed.blame == Blame::Lock);
                    let half = writes.len() / 2;
                    parts.push((writes.split_off(half), answers.split_off(half)));
                    parts.push((writes, answers));
                }
                Err(failed) if failed.blame == Blame::Lock => {
                    locked += 1;
                    writes.into_iter().zip(answers).for_each(|job| self.aside.push(job));
                }
                Err(failed) => answers.into_iter().for_each(|answer| answer.give(Err(failed.error.clone()))),
            }
        }
    }
}

/// Where it is committed, and by whom.
struct Database {
    pool: PgPool,
    codec: Codec,
    process: Arc<Process>,
}

impl Database {
    /// Stores the writes in one transaction, or none of them.
    async fn store(&self, writes: &[Write]) -> Result<Applied, Failed> {
        let Self { pool, codec, process } = self;
        let mut tries = 1;
        loop {
            let by = By { codec, holder: process.holder(), locks: &[] };
            let applied = AssertUnwindSafe(apply_all(pool, by, writes)).catch_unwind();
            let (transaction, written) = match timeout(LIMIT, applied).await {
                Ok(Ok(Ok(applied))) => applied,
                Ok(Ok(Err(error))) if is_in_anothers_way(&error) && tries < TRIES => {
                    tries += 1;
                    continue;
                }
                Ok(Ok(Err(error))) => return Err(Failed::not_stored(&error)),
                Ok(Err(_panic)) => return Err(Failed::of_all(OutboxError::not_stored("applying writes panicked"))),
                Err(_elapsed) => {
                    return Err(Failed::of_all(OutboxError::not_stored("the database did not answer in time")));
                }
            };
            return match timeout(LIMIT, transaction.commit()).await {
                Ok(Ok(())) => Ok(written),
                Ok(Err(error)) if is_in_anothers_way(&error) && tries < TRIES => {
                    tries += 1;
                    continue;
                }
                // Whoever says why it did not commit has not.
                Ok(Err(error)) if blame(&error) != Blame::All => Err(Failed::not_stored(&error)),
                Ok(Err(error)) => Err(Failed::of_all(OutboxError::unknown(super::Told(&error).to_string()))),
                Err(_elapsed) => Err(Failed::of_all(OutboxError::unknown("the database did not answer in time"))),
            };
        }
    }
}

async fn apply_all(
    pool: &PgPool,
    by: By<'_>,
    writes: &[Write],
) -> Result<(sqlx::PgTransaction<'static>, Applied), Error> {
    let mut transaction = pool.begin_with(apply::BEGIN_BATCH).await?;
    let applied = apply::apply(&mut transaction, by, writes).await?;
    Ok((transaction, applied))
}

#[derive(Debug)]
struct Failed {
    error: OutboxError,
    blame: Blame,
}

impl Failed {
    fn not_stored(error: &Error) -> Self {
        let (told, blame) = (super::Told(error).to_string(), blame(error));
        let error = if blame == Blame::All { OutboxError::not_stored(told) } else { OutboxError::refused(told) };
        Self { error, blame }
    }

    fn of_all(error: OutboxError) -> Self {
        Self { error, blame: Blame::All }
    }
}

/// What a transaction failed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// The server, or the connection.
    All,
    /// A write of it: a value, a constraint, a trigger's refusal.
    Write,
    /// A lock that another keeps: later the way may be free.
    Lock,
}

fn blame(error: &Error) -> Blame {
    match error {
        Error::Encode(_) | Error::Decode(_) | Error::ColumnDecode { .. } => Blame::Write,
        _ if code(error) == Some("55P03") || is_in_anothers_way(error) => Blame::Lock,
        _ => match class(error) {
            Some("21" | "22" | "23" | "42" | "44" | "54" | "55" | "P0") => Blame::Write,
            _ => Blame::All,
        },
    }
}

/// A deadlock, or a conflict of serializable transactions: the next try may find the way free.
fn is_in_anothers_way(error: &Error) -> bool {
    class(error) == Some("40")
}

/// The class of the error that the server gave, <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn class(error: &Error) -> Option<&str> {
    code(error)?.get(..2)
}

fn code(error: &Error) -> Option<&str> {
    match error {
        Error::Database(error) => Some(error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?.code()),
        _ => None,
    }
}

/// A write, and who waits for it.
type Job = (Write, Answer);

/// Calls back exactly once: with a result, or on drop with an unknown outcome.
struct Answer {
    done: Option<Done>,
    /// When the write is refused, if it was set aside.
    until: Option<Instant>,
}

impl Answer {
    fn give(mut self, result: Result<Written, OutboxError>) {
        self.call(result);
    }

    fn call(&mut self, result: Result<Written, OutboxError>) {
        let Some(done) = self.done.take() else { return };
        // A panic here is the caller's own; it must not reach the other writes of the batch.
        if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
            tracing::error!("what is called when a write is done panicked");
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.call(Err(OutboxError::unknown("the outbox ended before it answered")));
        }
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}
