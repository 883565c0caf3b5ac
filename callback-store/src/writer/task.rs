use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::{Notify, mpsc};

use super::answer::Answer;
use super::checkpoint::Checkpoints;
use super::session::Session;
use super::{Apply, Job};
use crate::WriteError;
use crate::error::Cause;

const BATCH: usize = 512;

/// The one task that writes: it takes what waits, commits it, answers, and starts again.
pub(super) struct Task<A: Apply> {
    apply: A,
    session: Session,
    checkpoints: Checkpoints,
    queue: mpsc::Receiver<Job<A>>,
    closing: Arc<Notify>,
    settled: mpsc::UnboundedSender<Settled<A>>,
}

/// A batch that was stored, or not, and those who are to be told.
pub(super) struct Settled<A: Apply> {
    answers: Vec<Answer<A::Written>>,
    result: Result<Vec<A::Written>, WriteError>,
}

impl<A: Apply> Settled<A> {
    /// Tells everybody, in the order of the queue.
    pub(super) fn answer(self) {
        match self.result {
            Ok(written) => self.answers.into_iter().zip(written).for_each(|(answer, written)| answer.give(Ok(written))),
            Err(error) => self.answers.into_iter().for_each(|answer| answer.give(Err(error.clone()))),
        }
    }
}

impl<A: Apply> Task<A> {
    pub(super) fn new(
        apply: A,
        session: Session,
        queue: mpsc::Receiver<Job<A>>,
        closing: Arc<Notify>,
        settled: mpsc::UnboundedSender<Settled<A>>,
    ) -> Self {
        let checkpoints = Checkpoints::new(session.options().clone());
        Self { apply, session, checkpoints, queue, closing, settled }
    }

    pub(super) async fn run(mut self) {
        let mut jobs = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = self.closing.notified() => self.queue.close(),
                // Without a runtime nobody is left to be told.
                () = self.settled.closed(), if !self.queue.is_closed() => self.queue.close(),
                () = self.checkpoints.copied() => self.session.checkpoint().await,
                taken = self.queue.recv_many(&mut jobs, BATCH) => match taken {
                    0 => break,
                    _ => self.settle(jobs.drain(..)).await,
                },
            }
        }
        self.checkpoints.close().await;
        self.session.close().await;
    }

    async fn settle(&mut self, jobs: impl Iterator<Item = Job<A>>) {
        let mut writes = Vec::new();
        let mut answers = Vec::new();
        let mut questions = Vec::new();
        for job in jobs {
            match job {
                Job::Write(write, answer) => {
                    writes.push(write);
                    answers.push(answer);
                }
                Job::OthersWrote(answer) => questions.push(answer),
            }
        }
        if !writes.is_empty() {
            self.store_in_parts(writes, answers).await;
        }
        for question in questions {
            question.give(self.session.others_wrote().await);
        }
    }

    /// Stores a batch, halving it in order for as long as one write of it is to blame.
    async fn store_in_parts(&mut self, writes: Vec<A::Write>, answers: Vec<Answer<A::Written>>) {
        let mut parts = vec![(writes, answers)];
        while let Some((mut writes, mut answers)) = parts.pop() {
            let result = self.store(&writes).await;
            match result {
                Err(error) if error.is_of_one_write() && writes.len() > 1 => {
                    let half = writes.len() / 2;
                    parts.push((writes.split_off(half), answers.split_off(half)));
                    parts.push((writes, answers));
                }
                result => {
                    if let Err(error) = &result {
                        tracing::debug!(?error, writes = writes.len(), "a batch failed");
                    }
                    let _ = self.settled.send(Settled { answers, result });
                }
            }
        }
    }

    /// Stores the writes in one transaction, or none of them.
    async fn store(&mut self, writes: &[A::Write]) -> Result<Vec<A::Written>, WriteError> {
        match self.apply(writes).await {
            Ok(written) => {
                self.session.commit().await?;
                self.checkpoints.committed(writes.len());
                Ok(written)
            }
            Err(error) => {
                self.session.roll_back(error.cause()).await;
                Err(error)
            }
        }
    }

    async fn apply(&mut self, writes: &[A::Write]) -> Result<Vec<A::Written>, WriteError> {
        let Self { apply, session, .. } = self;
        let connection = session.begin().await?;
        let applied = AssertUnwindSafe(async { apply.apply(connection, writes).await });
        let written = match applied.catch_unwind().await {
            Ok(result) => result.map_err(WriteError::not_stored)?,
            Err(_) => return Err(WriteError::not_stored(Cause::Panicked)),
        };
        if written.len() != writes.len() {
            let (writes, answers) = (writes.len(), written.len());
            return Err(WriteError::not_stored(Cause::Answers { writes, answers }));
        }
        Ok(written)
    }
}
