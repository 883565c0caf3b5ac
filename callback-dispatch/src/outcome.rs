//! What a run came to.

use callback_core::{Payload, Problem};
use serde::{Deserialize, Serialize};
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
    pub(crate) answer: Answer,
}

/// What is kept of an outcome beside what is delivered, for those who look the task up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) headers: Vec<(String, String)>,
}

impl Answer {
    /// About how many bytes it takes in memory.
    pub(crate) fn size(&self) -> usize {
        self.headers.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
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
        Self::of(OutcomeKind::Completed, payload.into())
    }

    /// A failure of the work itself; it is delivered too. Its type is `callback.task.failed`.
    pub fn failed(payload: impl Into<Payload>) -> Self {
        Self::of(OutcomeKind::Failed, payload.into())
    }

    /// The work is done elsewhere: [`Dispatcher::complete`](crate::Dispatcher::complete) will end the task.
    ///
    /// Its time limit ends with the run: a task that nobody completes or cancels stays.
    #[must_use]
    pub fn deferred() -> Self {
        Self::of(OutcomeKind::Deferred, Payload::from(""))
    }

    pub(crate) const fn of(kind: OutcomeKind, payload: Payload) -> Self {
        Self { kind, payload, event_type: None, answer: Answer { status: None, headers: Vec::new() } }
    }

    /// Sets the type of the message: 1 to 255 printable ASCII characters.
    #[must_use]
    pub fn with_event_type(mut self, event_type: impl Into<String>) -> Self {
        self.event_type = Some(event_type.into());
        self
    }

    /// Keeps the HTTP status under which whoever looks the task up is to see it. It is no part of the message.
    #[must_use]
    pub const fn with_status(mut self, status: u16) -> Self {
        self.answer.status = Some(status);
        self
    }

    /// Keeps a header with which whoever looks the task up is to see it. It is no part of the message.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.answer.headers.push((name.into(), value.into()));
        self
    }

    /// The kept HTTP status.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        self.answer.status
    }

    /// The kept headers, in the order in which they were set.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.answer.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
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
    /// The result is larger than what is sent, in bytes; [`Task::outcome`](crate::Task::outcome) has it.
    #[error("the result is larger than {limit} bytes: it is kept with its task")]
    Kept {
        /// The most that is sent.
        limit: usize,
    },
    /// The handler gave an outcome that cannot be sent.
    #[error("the outcome cannot be sent: {0}")]
    Malformed(String),
    /// The handler panicked.
    #[error("the handler panicked")]
    Panicked,
    /// The run took longer than its limit.
    #[error("the work took longer than {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// The result is larger than the limit, in bytes, and is not kept.
    #[error("the result is larger than {limit} bytes")]
    TooLarge {
        /// The most that is sent, or kept where the work [asks for that](crate::Work::result_limit).
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
