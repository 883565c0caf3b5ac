//! What a handler gets, and what is known of a task later.

use crate::{
    AcceptError, Event, Outcome,
    engine::Engine,
    outcome::OutcomeKind,
    row::{Published, Row, Stage, Stored, Whole},
};
use callback_core::{MessageId, Payload, TaskId};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// One accepted task: what its handler gets, and what is known of it later. Cheap to clone.
///
/// Whoever keeps it keeps the dispatcher's engine, and so its outbox, until the dispatcher is closed.
#[derive(Clone)]
pub struct Task(Arc<Inner>);

struct Inner {
    row: Arc<Row>,
    state: TaskState,
    outcome: Option<Outcome>,
    /// None once the outcome is on its way, and for a task that was looked up.
    published: Mutex<Option<Vec<Published>>>,
    engine: Arc<Engine>,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskState {
    /// Stored, and not begun here. In another process on the database it may run, unless a mark is stored before its runs:
    /// [`Interrupted::Report`](crate::Interrupted::Report).
    Accepted,
    /// Its handler runs, or the work is done elsewhere.
    Running,
    /// Its result is stored, and on its way.
    Delivering,
    /// Ended: its result is stored; no Dsn was named.
    Completed,
    /// Ended: the destination accepted the result.
    Delivered,
    /// Ended: the result was given up; it can be replayed.
    Dead,
    /// Ended: cancelled.
    Cancelled,
    /// Ended: it was not done in time.
    Expired,
}

impl TaskState {
    /// Whether the task is over.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        match self {
            Self::Accepted | Self::Running | Self::Delivering => false,
            Self::Completed | Self::Delivered | Self::Dead | Self::Cancelled | Self::Expired => true,
        }
    }
}

impl Task {
    /// What a handler gets.
    pub(crate) fn of_run(row: Arc<Row>, engine: Arc<Engine>) -> Self {
        Self::new(row, true, Some(Vec::new()), engine)
    }

    /// What is known of a task.
    pub(crate) fn looked_up(row: Arc<Row>, is_running: bool, engine: Arc<Engine>) -> Self {
        Self::new(row, is_running, None, engine)
    }

    fn new(row: Arc<Row>, is_running: bool, published: Option<Vec<Published>>, engine: Arc<Engine>) -> Self {
        let state = match row.stage {
            Stage::Accepted if !is_running => TaskState::Accepted,
            Stage::Accepted | Stage::Started | Stage::Deferred => TaskState::Running,
            Stage::Delivering => TaskState::Delivering,
            Stage::Completed => TaskState::Completed,
            Stage::Delivered => TaskState::Delivered,
            Stage::Dead => TaskState::Dead,
            Stage::Cancelled => TaskState::Cancelled,
            Stage::Expired => TaskState::Expired,
        };
        let outcome = row.result.as_deref().map(outcome);
        Self(Arc::new(Inner { row, state, outcome, published: Mutex::new(published), engine }))
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.0.row.id
    }

    /// What is asked for: a JSON-RPC method, for example. Empty where none was named.
    #[must_use]
    pub fn operation(&self) -> &str {
        self.0.row.work.as_ref().map_or("", |work| &work.context.operation)
    }

    /// The request.
    ///
    /// # Panics
    /// Never: whatever is a task has a request.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.0.row.work.as_ref().expect("a task has a request").payload
    }

    /// Reads the request as JSON.
    ///
    /// # Errors
    /// When it is no JSON of this shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        self.payload().parse()
    }

    /// The value of a kept header; names are compared without regard to case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The headers that were kept.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers = self.0.row.work.as_ref().map(|work| work.context.headers.iter());
        headers.into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value that was kept under this name.
    #[must_use]
    pub fn extension(&self, name: &str) -> Option<&Value> {
        self.0.row.work.as_ref()?.context.extensions.get(name)
    }

    /// On whose behalf it is done.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.0.row.owner.as_deref()
    }

    /// The client's correlation id.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.row.work.as_ref()?.context.correlation_id.as_deref()
    }

    /// Where the task stood when it was looked up, or handed to its handler.
    #[must_use]
    pub fn state(&self) -> TaskState {
        self.0.state
    }

    /// Which run this may be, from 1: one more than the processes that died with it in hand, begun or not.
    #[must_use]
    pub fn runs(&self) -> u32 {
        self.0.row.starts.saturating_add(1)
    }

    /// When it was accepted.
    #[must_use]
    pub fn accepted_at(&self) -> SystemTime {
        self.0.row.accepted_at.to_system()
    }

    /// What it came to, once that is stored: the whole of it, where its Dsn got [`Failure::Kept`](crate::Failure::Kept).
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        self.0.outcome.as_ref()
    }

    /// Publishes an event with the outcome: stored in the same transaction, or not at all.
    ///
    /// What is for subscriptions goes to those that want it when the outcome is stored; the id is the event's then, and the
    /// delivery's where it is for one destination.
    ///
    /// A run that is repeated publishes again, but only the run whose outcome is stored has its events sent; that outcome
    /// may be a failure.
    ///
    /// # Errors
    /// [`AcceptError::Ended`] outside of the run: once the handler has returned, or on a task that was looked up. Else
    /// when the event could never be sent: its Dsn, size, or attributes.
    pub fn publish(&self, event: Event) -> Result<MessageId, AcceptError> {
        let event = self.0.engine.event(event)?;
        let id = match &event {
            Published::To(row) => row.id.into(),
            Published::All(event) => event.stored.message.event_id().clone(),
        };
        let mut published = self.0.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.as_mut().ok_or(AcceptError::Ended)?.push(event);
        Ok(id)
    }

    pub(crate) fn time_limit(&self) -> Option<Duration> {
        self.0.row.work.as_ref()?.context.time_limit
    }

    pub(crate) fn take_published(&self) -> Vec<Published> {
        self.0.published.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }
}

/// What was stored, as the handler gave it.
fn outcome(stored: &Stored) -> Outcome {
    let kept = stored.kept.as_deref().cloned().unwrap_or_default();
    let (payload, failed, event_type) = match kept.whole {
        Some(Whole { payload, failed }) => (payload, failed, None),
        None => (stored.message.payload().clone(), stored.failed, Some(stored.message.event_type().to_owned())),
    };
    let kind = if failed { OutcomeKind::Failed } else { OutcomeKind::Completed };
    Outcome { event_type, answer: kept.answer, ..Outcome::of(kind, payload) }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("id", &self.id())
            .field("operation", &self.operation())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
