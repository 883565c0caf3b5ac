//! Group commit: what waits shares a transaction.

use super::{
    apply::{self, By},
    lease::Process,
};
use crate::outbox::{Done, NotQueued, OutboxError, Write, Written, codec::Codec};
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
    time::timeout,
};

/// The most writes of one transaction.
const BATCH: usize = 512;

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

type Job = (Write, Answer);

impl Writer {
    pub(super) fn start(pool: PgPool, codec: Codec, process: Arc<Process>) -> Self {
        let (queue, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let (closing, mut closed) = watch::channel(());
        let (alive_until_dropped, alive) = watch::channel(());
        tokio::spawn(async move {
            let mut taken = Vec::with_capacity(BATCH);
            let mut open = true;
            loop {
                tokio::select! {
                    biased;
                    _ = closed.changed(), if open => {
                        open = false;
                        jobs.close();
                    }
                    count = jobs.recv_many(&mut taken, BATCH) => match count {
                        0 => break,
                        _ => store_in_parts(&pool, &codec, &process, taken.drain(..)).await,
                    },
                }
            }
            drop(alive_until_dropped);
        });
        Self { queue, closing, alive }
    }

    pub(super) fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        let room = self.queue.try_reserve().map_err(|error| match error {
            TrySendError::Full(()) => NotQueued::Full,
            TrySendError::Closed(()) => NotQueued::Closed,
        })?;
        room.send((write, Answer(Some(done))));
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

/// Stores a batch, halving it in order for as long as one write of it is to blame.
async fn store_in_parts(pool: &PgPool, codec: &Codec, process: &Process, batch: impl Iterator<Item = Job>) {
    let mut parts: Vec<(Vec<Write>, Vec<Answer>)> = vec![batch.unzip()];
    while let Some((mut writes, mut answers)) = parts.pop() {
        match store(pool, codec, process, &writes).await {
            Ok(written) => answers.into_iter().zip(written).for_each(|(answer, written)| answer.give(Ok(written))),
            Err(failed) if failed.is_of_one_write && writes.len() > 1 => {
                let half = writes.len() / 2;
                parts.push((writes.split_off(half), answers.split_off(half)));
                parts.push((writes, answers));
            }
            Err(failed) => answers.into_iter().for_each(|answer| answer.give(Err(failed.error.clone()))),
        }
    }
}

#[derive(Debug)]
struct Failed {
    error: OutboxError,
    is_of_one_write: bool,
}

impl Failed {
    fn not_stored(error: &Error) -> Self {
        Self { error: super::not_stored(error), is_of_one_write: is_of_one_write(error) }
    }

    fn of_all(error: OutboxError) -> Self {
        Self { error, is_of_one_write: false }
    }
}

/// Stores the writes in one transaction, or none of them.
async fn store(pool: &PgPool, codec: &Codec, process: &Process, writes: &[Write]) -> Result<Vec<Written>, Failed> {
    let mut tries = 1;
    loop {
        let by = By { codec, holder: process.holder() };
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
            Ok(Err(error)) if is_of_one_write(&error) || is_in_anothers_way(&error) => Err(Failed::not_stored(&error)),
            Ok(Err(error)) => Err(Failed::of_all(OutboxError::unknown(super::Told(&error).to_string()))),
            Err(_elapsed) => Err(Failed::of_all(OutboxError::unknown("the database did not answer in time"))),
        };
    }
}

async fn apply_all(
    pool: &PgPool,
    by: By<'_>,
    writes: &[Write],
) -> Result<(sqlx::PgTransaction<'static>, Vec<Written>), Error> {
    let mut transaction = pool.begin_with(apply::BEGIN).await?;
    let written = apply::apply(&mut transaction, by, writes).await?;
    Ok((transaction, written))
}

/// Tells the fault of one write from that of the server or the connection: a value, a constraint, a trigger's refusal, a
/// lock that another keeps.
fn is_of_one_write(error: &Error) -> bool {
    match error {
        Error::Encode(_) | Error::Decode(_) | Error::ColumnDecode { .. } => true,
        Error::Database(_) => matches!(class(error), Some("21" | "22" | "23" | "42" | "44" | "54" | "55" | "P0")),
        _ => false,
    }
}

/// A deadlock, or a conflict of serializable transactions: the next try may find the way free.
fn is_in_anothers_way(error: &Error) -> bool {
    class(error) == Some("40")
}

/// The class of the error that the server gave, <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn class(error: &Error) -> Option<&str> {
    let code = match error {
        Error::Database(error) => error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?.code(),
        _ => return None,
    };
    code.get(..2)
}

/// Calls back exactly once: with a result, or on drop with an unknown outcome.
struct Answer(Option<Done>);

impl Answer {
    fn give(mut self, result: Result<Written, OutboxError>) {
        self.call(result);
    }

    fn call(&mut self, result: Result<Written, OutboxError>) {
        let Some(done) = self.0.take() else { return };
        // A panic here is the caller's own; it must not reach the other writes of the batch.
        if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
            tracing::error!("what is called when a write is done panicked");
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.call(Err(OutboxError::unknown("the outbox ended before it answered")));
        }
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}
