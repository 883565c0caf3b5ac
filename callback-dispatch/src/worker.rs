//! Handlers, and what accepts work for them.

#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::Transaction;
use crate::{
    AcceptError, Dispatcher, Failure, Outcome, Submission, Task, Validator, Violations, Work, WorkerError,
    dispatcher::Handle,
    engine::{Engine, WorkerEntry},
    profile::is_json,
    validator,
};
use async_trait::async_trait;
use callback_core::{Acknowledgment, Dsn, DsnError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, sync::Arc, time::Duration};

/// Does the work of a task.
///
/// Implemented for every `Fn(Task) -> impl Future<Output: Into<Outcome>>`: an [`Outcome`], or a `Result` of two that are
/// each `Into<Payload>`: JSON values, texts, bytes, problems, [`Payload`](callback_core::Payload)s.
///
/// # Cancellation
/// The future is dropped when the task is cancelled, when its time is over, and when the dispatcher closes. A cancel in
/// another process on the database is not heard of: the run goes on, and what it came to is not stored.
///
/// # Panics
/// A panic ends the run as [`Failure::Panicked`], and nothing else.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Does the work.
    async fn run(&self, task: Task) -> Outcome;

    /// Puts a failure of the engine's into the handler's own words. Default: problem details (RFC 9457), and so it is if
    /// this panics, or defers.
    fn failure(&self, task: &Task, failure: &Failure) -> Outcome {
        let _ = task;
        failure.to_outcome()
    }
}

#[async_trait]
impl<F, Fut> Handler for F
where
    F: Fn(Task) -> Fut + Send + Sync + 'static,
    Fut: Future<Output: Into<Outcome>> + Send,
{
    async fn run(&self, task: Task) -> Outcome {
        self(task).await.into()
    }
}

/// What becomes of work that a crash cut short. There is no default, so that nobody charges a card twice unawares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Interrupted {
    /// It is not run again: the Dsn gets [`Failure::Interrupted`]. A mark is stored before each run.
    Report,
    /// It is run again: the handler is idempotent under the task's id.
    ///
    /// A task that takes its process down is started three times, and reported then. Whatever was in hand at two of these
    /// ends, begun or not, is suspected: of a worker's suspects one runs at a time, beside all that is new.
    RunAgain,
}

/// Registers a [`Worker`].
#[must_use]
pub struct WorkerBuilder {
    handle: Arc<Handle>,
    name: String,
    interrupted: Interrupted,
    concurrency: usize,
    time_limit: Duration,
    validators: Vec<Arc<dyn Validator>>,
}

impl WorkerBuilder {
    pub(crate) const fn new(handle: Arc<Handle>, name: String, interrupted: Interrupted) -> Self {
        let time_limit = Duration::from_secs(600);
        Self { handle, name, interrupted, concurrency: 64, time_limit, validators: Vec::new() }
    }

    /// Judges work before it is stored and acknowledged; several are all asked, in this order.
    ///
    /// Work that says it is JSON, and cannot be read as such, is refused before: too deep, or too large a number, for example.
    pub fn validator(mut self, validator: impl Validator) -> Self {
        self.validators.push(Arc::new(validator));
        self
    }

    /// How many tasks run at once. Default 64; 0 counts as 1.
    pub const fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = if tasks == 0 { 1 } else { tasks };
        self
    }

    /// How long a run may take. Default 10 min; a task may name its own.
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Registers the handler; what a crash left to this name is begun at once.
    ///
    /// # Errors
    /// When the name is taken, or the dispatcher closed.
    pub fn run(self, handler: impl Handler) -> Result<Worker, WorkerError> {
        let name: Arc<str> = self.name.into();
        let (handler, wake) = (Arc::new(handler), &self.handle.engine.wake);
        let entry = WorkerEntry::new(handler, self.interrupted, self.concurrency, self.time_limit, wake);
        self.handle.engine.register(Arc::clone(&name), entry)?;
        Ok(Worker { handle: self.handle, name, validators: self.validators.into() })
    }
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Accepts work for one handler. Cheap to clone.
#[derive(Clone)]
pub struct Worker {
    handle: Arc<Handle>,
    name: Arc<str>,
    validators: Arc<[Arc<dyn Validator>]>,
}

impl Worker {
    /// The worker's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The dispatcher that it belongs to.
    #[must_use]
    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::of(Arc::clone(&self.handle))
    }

    /// Judges a Dsn as [`accept`](Self::accept) would.
    ///
    /// # Errors
    /// When no sink serves its scheme, or the sink refuses it.
    pub fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        self.engine().check(dsn)
    }

    /// Stores the work and acknowledges it. Once this resolved, it cannot be lost.
    ///
    /// # Errors
    /// When it was not accepted; nothing is run then.
    ///
    /// # Cancellation
    /// If the future is dropped, the work may have been accepted all the same.
    pub async fn accept(&self, work: Work) -> Result<Acknowledgment, AcceptError> {
        self.judge(&work).await?;
        self.engine().accept(&self.name, work).await
    }

    /// Stores the work in a transaction of the caller's own: it is done if that commits, and never if it does not.
    ///
    /// What [`Dispatcher::publish_in`](crate::Dispatcher::publish_in) says of the transaction holds here. The
    /// acknowledgment is true once it has committed.
    ///
    /// # Errors
    /// When it was not accepted.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub async fn accept_in(
        &self,
        transaction: &mut impl Transaction,
        work: Work,
    ) -> Result<Acknowledgment, AcceptError> {
        self.judge(&work).await?;
        self.engine().accept_in(transaction.connection(), &self.name, work).await
    }

    /// Asks the validators. What is too large is none of theirs.
    async fn judge(&self, work: &Work) -> Result<(), AcceptError> {
        if self.validators.is_empty() || work.payload.body().len() > self.engine().body_limit {
            return Ok(());
        }
        let content = match work.payload.parse() {
            Ok(content) => content,
            // A handler may pass over what cannot be read, and is not to get what nobody judged.
            Err(_) if is_json(work.payload.content_type()) => {
                return Err(AcceptError::Invalid(Violations::at("", "cannot be read as JSON")));
            }
            Err(_) => Value::Null,
        };
        let submission = Submission {
            operation: &work.context.operation,
            content: &content,
            callback: work.dsn.as_ref(),
            owner: work.owner.as_deref(),
        };
        validator::judge(&self.validators, &submission).await.map_err(AcceptError::Invalid)
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.handle.engine
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}
