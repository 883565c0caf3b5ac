//! A run: from an accepted row to its stored result.

use super::{Engine, Hand, Place, WorkerEntry};
use crate::{
    EndError, Failure, Interrupted, Outcome, Task, failpoint, measure,
    outbox::{Settle, Write},
    outcome::{Answer, OutcomeKind},
    row::{Kept, Published, Row, Stage, Stored, Whole},
    state::{self, Begin},
};
use callback_core::{Message, MessageError};
use futures_util::FutureExt;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::timeout;
use tracing::Instrument;

/// How long a suspect waits in the store while others wait for their turn in memory.
const PUT_OFF: Duration = Duration::from_secs(1);

impl Engine {
    /// Runs a task and stores its outcome; the row to be delivered, if there is one and it has a place.
    pub(super) async fn run(self: &Arc<Self>, row: &Arc<Row>, place: Place, hand: &Hand) -> Option<(Arc<Row>, Place)> {
        let worker = self.worker(row.worker.as_deref()?);
        let Some(worker) = worker else {
            self.release(row).await;
            return None;
        };
        let interrupted = row.work.as_ref().and_then(|work| work.context.interrupted).unwrap_or(worker.interrupted);
        let begin = state::begin(row.stage, row.starts, interrupted);
        let is_suspect = (begin, interrupted) == (Begin::MarkThenRun, Interrupted::RunAgain);
        let mut place = Some(place);
        let waiting = if is_suspect { worker.waiting_suspects.try_acquire().ok() } else { None };
        if is_suspect {
            place = None;
            if waiting.is_none() {
                self.put_off(row, PUT_OFF).await;
                return None;
            }
        }
        let permits = async {
            // A suspect waits for its turn before it takes a run from the others.
            let alone = if is_suspect { worker.suspects.acquire().await.ok() } else { None };
            drop(waiting);
            let run = worker.runs.acquire().await.ok();
            // The result could not be stored: those that wait are enough in memory.
            self.outage.over().await;
            (alone, run)
        };
        let permits = tokio::select! {
            biased;
            () = hand.cancelled.cancelled() => return None,
            () = self.closing.cancelled() => None,
            permits = permits => Some(permits),
        };
        // Without a lease another process may have the row.
        let Some(permits) = permits.filter(|_| self.store.is_leased(hand.lease)) else {
            self.release(row).await;
            self.look_again();
            return None;
        };

        let place = place.or_else(|| self.place(row))?;
        let task = Task::of_run(Arc::clone(row), Arc::clone(self));
        let outcome = match begin {
            Begin::Report => self.words(&worker, &task, &Failure::Interrupted),
            Begin::Run | Begin::MarkThenRun => {
                if begin == Begin::MarkThenRun {
                    let mark = self.settle(row, Stage::Started, true);
                    if !self.persist(Write::Settle(mark)).await {
                        return None;
                    }
                    // That may have taken long.
                    if !self.store.is_leased(hand.lease) {
                        self.take_mark_off(row).await;
                        self.look_again();
                        return None;
                    }
                }
                failpoint::reach("after-run-mark");
                hand.begun.store(true, Ordering::Release);
                tokio::select! {
                    biased;
                    () = hand.cancelled.cancelled() => return None,
                    () = self.closed.cancelled() => {
                        // What may run again is given back; what may not keeps its mark, and is reported.
                        tracing::warn!(task = %row.id, "the dispatcher closed before the work was done");
                        match (begin, interrupted) {
                            (Begin::Run, _) => self.release(row).await,
                            (_, Interrupted::RunAgain) => self.take_mark_off(row).await,
                            (_, Interrupted::Report) => {}
                        }
                        return None;
                    }
                    outcome = self.call(&worker, &task) => outcome,
                }
            }
        };
        let (alone, run) = permits;
        drop(run);
        let next = self.store_outcome(row, &worker, &task, outcome, place).await;
        // Until its result is stored it has the mark: no other may have one.
        drop(alone);
        next
    }

    /// Calls the handler within the task's limit.
    async fn call(&self, worker: &WorkerEntry, task: &Task) -> Outcome {
        let limit = task.time_limit().unwrap_or(worker.time_limit);
        let _running = measure::Ongoing::run();
        let span = tracing::info_span!("run", operation = task.operation());
        let run = AssertUnwindSafe(async { worker.handler.run(task.clone()).await }.instrument(span)).catch_unwind();
        failpoint::reach("before-run");
        let ended = timeout(limit, run).await;
        failpoint::reach("after-run");
        let failure = match ended {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(_panic)) => Failure::Panicked,
            Err(_elapsed) => Failure::TimedOut(limit),
        };
        tracing::warn!(task = %task.id(), operation = task.operation(), %failure, "a run failed");
        self.words(worker, task, &failure)
    }

    /// A failure in the handler's words; in the engine's where the handler has none.
    fn words(&self, worker: &WorkerEntry, task: &Task, failure: &Failure) -> Outcome {
        let own = catch_unwind(AssertUnwindSafe(|| worker.handler.failure(task, failure)));
        match own {
            Ok(outcome) if outcome.kind != OutcomeKind::Deferred => return outcome,
            Ok(_) => tracing::error!(task = %task.id(), "the handler deferred when it was to word a failure"),
            Err(_panic) => tracing::error!(task = %task.id(), "the handler panicked when it was to word a failure"),
        }
        failure.to_outcome()
    }

    /// A failure in the words of the handler of this row; in the engine's where nobody has registered one.
    pub(crate) fn words_of(self: &Arc<Self>, row: &Row, failure: &Failure) -> Outcome {
        let worker = row.worker.as_deref().and_then(|name| self.worker(name));
        let task = Task::of_run(Arc::new(row.clone()), Arc::clone(self));
        worker.map_or_else(|| failure.to_outcome(), |worker| self.words(&worker, &task, failure))
    }

    async fn store_outcome(
        self: &Arc<Self>,
        row: &Arc<Row>,
        worker: &WorkerEntry,
        task: &Task,
        outcome: Outcome,
        place: Place,
    ) -> Option<(Arc<Row>, Place)> {
        let events = task.take_published();
        let published = events.clone();
        let expires = events.iter().map(Published::expires).min();
        if outcome.kind == OutcomeKind::Deferred {
            if self.persist(Write::Defer { id: row.id, token: row.token, events }).await {
                measure_published(&published);
                expires.into_iter().for_each(|expires| self.expiring.expect(expires));
                self.look_again();
            }
            return None;
        }
        let words = |failure: &Failure| self.words(worker, task, failure);
        let result = self.shape(row, outcome, words).or_else(|unfit| {
            let failure = Failure::from(unfit);
            tracing::warn!(task = %row.id, %failure, "an outcome cannot be sent");
            // Words for a failure are short, and say what the limit is: it is not for them.
            self.message(row, self.words(worker, task, &failure)).or_else(|_| self.message(row, failure.to_outcome()))
        });
        let result = match result {
            Ok(result) => Arc::new(result),
            Err(unfit) => {
                // The engine's own words can be sent.
                tracing::error!(task = %row.id, failure = %Failure::from(unfit), "no outcome can be sent");
                self.give_back_held(row.id, row.token).await;
                return None;
            }
        };
        let now = self.now();
        let mut next = Row::clone(row);
        next.stage = state::after_run(OutcomeKind::Completed, row.dsn.is_some());
        (next.due, next.first_due) = (now, now);
        // What is kept is for the store alone, and counts until it is there.
        let kept = result.kept.as_ref().map_or(0, |kept| kept.size());
        let _kept = self.memory.take_anyway(kept);
        next.result = Some(if kept > 0 { Arc::new(result.without_kept()) } else { Arc::clone(&result) });
        drop(place);
        let place = if next.stage == Stage::Delivering { self.reserve(&next) } else { None };
        next.held = place.is_some();
        let _memory = place.is_none().then(|| self.memory.take_anyway(next.size()));
        let (id, token, to, held, order) = (row.id, row.token, next.stage, next.held, row.order);
        let write = Write::Result { id, token, to, held, now, result, order, events };
        if !self.persist(write).await {
            return None;
        }
        failpoint::reach("after-result");
        measure_published(&published);
        expires.into_iter().for_each(|expires| self.expiring.expect(expires));
        if next.stage.is_ended() {
            self.ended(row.id);
        }
        if !published.is_empty() || (next.stage == Stage::Delivering && !next.held) {
            self.look_again();
        }
        Some((Arc::new(next), place?))
    }

    /// Makes the message of an outcome: of one that is too large and to be kept, a failure in these words.
    pub(crate) fn shape(
        &self,
        row: &Row,
        outcome: Outcome,
        words: impl FnOnce(&Failure) -> Outcome,
    ) -> Result<Stored, Unfit> {
        let (bytes, limit) = (outcome.payload.body().len(), self.body_limit);
        if bytes <= limit {
            return self.message(row, outcome);
        }
        let most = row.work.as_ref().and_then(|work| work.context.result_limit).unwrap_or_default().max(limit);
        if bytes > most {
            return Err(Unfit::TooLarge { limit: most });
        }
        let failure = Failure::Kept { limit };
        let mut stored = self.message(row, words(&failure)).or_else(|_| self.message(row, failure.to_outcome()))?;
        let whole = Whole { failed: outcome.is_failed(), payload: outcome.payload };
        stored.kept = Some(Arc::new(Kept { answer: outcome.answer, whole: Some(whole) }));
        Ok(stored)
    }

    fn message(&self, row: &Row, outcome: Outcome) -> Result<Stored, Unfit> {
        let failed = outcome.is_failed();
        let kept = (outcome.answer != Answer::default())
            .then(|| Arc::new(Kept { answer: outcome.answer.clone(), whole: None }));
        let mut message = Message::builder(outcome.event_type())
            .id(row.id.into())
            .source(&self.source)
            .subject(row.id.to_string())
            .time(self.clock.now())
            .payload(outcome.payload);
        let context = row.work.as_ref().map(|work| &work.context);
        if let Some(context) = context {
            for (name, value) in &context.pass_on {
                message = message.header(name, value);
            }
            if let Some(id) = &context.correlation_id {
                message = message.correlation_id(id);
            }
        }
        let message = message.build().map_err(Unfit::Malformed)?;
        Ok(Stored {
            message,
            failed,
            traceparent: context.and_then(|context| context.traceparent.clone()),
            service: None,
            kept,
        })
    }

    /// A step of a row that has not been attempted.
    pub(super) fn settle(&self, row: &Row, to: Stage, held: bool) -> Settle {
        let now = self.now();
        Settle {
            id: row.id,
            token: row.token,
            from: row.stage,
            to,
            held,
            // What is in hand was due: if that is still to come, the clock was set back.
            due: row.due.min(now),
            attempts: row.attempts,
            now,
            kind: None,
            failed: None,
            order: row.order,
        }
    }

    /// Gives a row back to the store whose run was ended, but not by a crash.
    async fn take_mark_off(&self, row: &Row) {
        let marked = Row { stage: Stage::Started, ..Row::clone(row) };
        self.persist(Write::Settle(self.settle(&marked, Stage::Accepted, false))).await;
    }

    /// Gives a row back to the store for a while.
    pub(super) async fn put_off(&self, row: &Row, wait: Duration) {
        let step = self.settle(row, row.stage, false);
        self.persist(Write::Settle(Settle { due: self.now().after(wait), ..step })).await;
        self.wake.notify_one();
    }

    /// Gives a row back to the store: somebody will claim it.
    pub(super) async fn release(&self, row: &Row) {
        self.persist(Write::Settle(self.settle(row, row.stage, false))).await;
    }
}

/// Of those that go to subscriptions, each counts as one here: how many want it, the outbox knows.
fn measure_published(events: &[Published]) {
    for event in events {
        match event {
            Published::To(row) => measure::accepted(row),
            Published::All(_) => measure::published(1),
        }
    }
}

/// An outcome that no message can carry.
#[derive(Debug)]
pub(crate) enum Unfit {
    Malformed(MessageError),
    TooLarge { limit: usize },
}

impl From<Unfit> for Failure {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Malformed(error) => Self::Malformed(error.to_string()),
            Unfit::TooLarge { limit } => Self::TooLarge { limit },
        }
    }
}

impl From<Unfit> for EndError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Malformed(error) => Self::Message(error),
            Unfit::TooLarge { limit } => Self::TooLarge { limit },
        }
    }
}
