//! What a run came to.

use callback_core::{Payload, Problem};
use std::time::Duration;

/// What a run came to: a result, a failure, or that the work is done elsewhere.
///
/// Both a result and a failure are delivered. A handler may return `Result<impl Into<Payload>, impl Into<Payload>>`.
///
/// ```
/// use callback_dispatch::Outcome;
/// use serde_json::json;
///
/// let outcome: Outcome = Err::<serde_json::Value, _>("out of stock").into();
/// assert!(outcome.is_failed());
/// assert_eq!(Outcome::completed(json!(42)).payload().body(), "42");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub(crate) kind: OutcomeKind,
    pub(crate) payload: Payload,
    pub(crate) event_type: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutcomeKind {
    Completed,
    Deferred,
    Failed,
}

impl Outcome {
    /// A result. Its type is `callback.task.completed`.
    pub fn completed(payload: impl Into<Payload>) -> Self {
        Self { kind: OutcomeKind::Completed, payload: payload.into(), event_type: None }
    }

    /// A failure of the work itself; it is delivered too. Its type is `callback.task.failed`.
    pub fn failed(payload: impl Into<Payload>) -> Self {
        Self { kind: OutcomeKind::Failed, payload: payload.into(), event_type: None }
    }

    /// The work is done elsewhere: [`Dispatcher::complete`](crate::Dispatcher::complete) will end the task.
    ///
    /// Its time limit ends with the run: a task that nobody completes or cancels stays.
    #[must_use]
    pub fn deferred() -> Self {
        Self { kind: OutcomeKind::Deferred, payload: Payload::from(""), event_type: None }
    }

    /// Sets the type of the message: 1 to 255 printable ASCII characters.
    #[must_use]
    pub fn with_event_type(mut self, event_type: impl Into<String>) -> Self {
        self.event_type = Some(event_type.into());
        self
    }

    /// Whether it is a failure.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.kind == OutcomeKind::Failed
    }

    /// What is delivered; empty for a deferred outcome.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.payload
    }

    pub(crate) fn event_type(&self) -> &str {
        match (&self.event_type, self.kind) {
            (Some(event_type), _) => event_type,
            (None, OutcomeKind::Failed) => "callback.task.failed",
            (None, _) => "callback.task.completed",
        }
    }
}

impl<P: Into<Payload>, E: Into<Payload>> From<Result<P, E>> for Outcome {
    fn from(result: Result<P, E>) -> Self {
        match result {
            Ok(payload) => Self::completed(payload),
            Err(payload) => Self::failed(payload),
        }
    }
}

/// Why the engine itself ended a run; a [`Handler`](crate::Handler) puts it into its own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A crash cut the run short, and it must not, or not once more, be run again.
    #[error("the work was interrupted and is not run again")]
    Interrupted,
    /// The handler gave an outcome that cannot be sent.
    #[error("the outcome cannot be sent: {0}")]
    Malformed(String),
    /// The handler panicked.
    #[error("the handler panicked")]
    Panicked,
    /// The run took longer than its limit.
    #[error("the work took longer than {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The result is larger than the limit, in bytes.
    #[error("the result is larger than {limit} bytes")]
    TooLarge {
        /// The most that is sent.
        limit: usize,
    },
}

impl Failure {
    /// The failure as a problem (RFC 9457): the default words.
    #[must_use]
    pub fn to_outcome(&self) -> Outcome {
        let status = match self {
            Self::TimedOut(_) => 504,
            _ => 500,
        };
        Outcome::failed(Problem::new(self.to_string()).with_status(status))
    }
}
