//! Why a delivery failed, and what that means for the next attempt.

use crate::{DsnError, Forbidden};
use std::{error::Error, fmt, io, time::Duration};

/// Any error, boxed.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Why a sink could not deliver: a kind that says what to do next, and the cause.
///
/// `Display` prints this level only; the cause is [`source`](Error::source). A sink puts no secret into it.
///
/// ```
/// use callback_core::{ErrorKind, SinkError};
/// use std::time::Duration;
///
/// let error = SinkError::throttled("slow down").with_status(429).with_retry_after(Duration::from_secs(7));
/// assert_eq!(error.kind(), ErrorKind::Throttled);
/// assert!(error.is_temporary());
/// assert_eq!(error.to_string(), "throttled (status 429)");
/// ```
pub struct SinkError(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    phase: Option<Phase>,
    status: Option<u16>,
    retry_after: Option<Duration>,
    source: BoxError,
}

const _: () = assert!(size_of::<SinkError>() == size_of::<usize>());

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident $kind:ident)*) => { $(
        $(#[$doc])*
        pub fn $name(source: impl Into<BoxError>) -> Self {
            Self::new(ErrorKind::$kind, source)
        }
    )* };
}

impl SinkError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, source: impl Into<BoxError>) -> Self {
        Self(Box::new(Inner { kind, phase: None, status: None, retry_after: None, source: source.into() }))
    }

    constructors! {
        /// The policy does not let us send there.
        forbidden Forbidden
        /// The destination says that it is no more.
        gone Gone
        /// The destination will never take this message.
        refused Refused
        /// The destination asks us to slow down.
        throttled Throttled
        /// The deadline passed: whether it was delivered is unknown.
        timed_out TimedOut
        /// The destination does not take a message of this size.
        too_large TooLarge
        /// The destination does not accept our credentials.
        unauthorized Unauthorized
        /// The destination cannot be reached, or fails.
        unavailable Unavailable
        /// Nobody is at this address yet.
        unroutable Unroutable
    }

    /// Says in which phase the attempt failed.
    #[must_use]
    pub fn with_phase(mut self, phase: Phase) -> Self {
        self.0.phase = Some(phase);
        self
    }

    /// Says which HTTP status, or code of the same meaning, the destination gave.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    /// Says how long the destination asked us to wait.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// What the failure means.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.0.kind.is_temporary()
    }

    /// The phase that failed, where the sink knows it.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        self.0.phase
    }

    /// The HTTP status, or a code of the same meaning.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// How long the destination asked us to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// This level and all causes in one line, for a log or a dead letter.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let level = error.to_string();
            if !text.ends_with(&level) {
                text.push_str(": ");
                text.push_str(&level);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind.fmt(f)?;
        match (self.0.status, self.0.phase) {
            (Some(status), _) => write!(f, " (status {status})"),
            (None, Some(phase)) => write!(f, " ({phase})"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Debug for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkError")
            .field("kind", &self.0.kind)
            .field("phase", &self.0.phase)
            .field("status", &self.0.status)
            .field("retry_after", &self.0.retry_after)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for SinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0.source)
    }
}

/// A Dsn that the sink cannot use: [`ErrorKind::Refused`], or [`ErrorKind::Forbidden`] by policy.
impl From<DsnError> for SinkError {
    fn from(error: DsnError) -> Self {
        let kind = match error.kind() {
            crate::DsnErrorKind::Forbidden => ErrorKind::Forbidden,
            _ => ErrorKind::Refused,
        };
        Self::new(kind, error).with_phase(Phase::Policy)
    }
}

impl From<Forbidden> for SinkError {
    fn from(error: Forbidden) -> Self {
        Self::forbidden(error).with_phase(Phase::Policy)
    }
}

/// [`ErrorKind::TimedOut`] for a time-out, else [`ErrorKind::Unavailable`].
impl From<io::Error> for SinkError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::timed_out(error),
            _ => Self::unavailable(error),
        }
    }
}

/// What a failed attempt means. Each transport maps its own answers to these by one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The policy forbids the address. Not retried.
    Forbidden,
    /// The destination is no more (HTTP 410). Not retried.
    Gone,
    /// The destination will never take this message. Not retried.
    Refused,
    /// Slow down. Retried.
    Throttled,
    /// The deadline passed; the outcome is unknown. Retried.
    TimedOut,
    /// Too large for the destination. Not retried.
    TooLarge,
    /// Our credentials are not accepted. Retried, skipping the schedule's first three steps.
    Unauthorized,
    /// Out of reach, or failing. Retried.
    Unavailable,
    /// Nobody is there yet (HTTP 404, a queue that does not exist). Retried.
    Unroutable,
}

impl ErrorKind {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Forbidden, "forbidden"),
        (Self::Gone, "gone"),
        (Self::Refused, "refused"),
        (Self::Throttled, "throttled"),
        (Self::TimedOut, "timed out"),
        (Self::TooLarge, "too large"),
        (Self::Unauthorized, "unauthorized"),
        (Self::Unavailable, "unavailable"),
        (Self::Unroutable, "unroutable"),
    ];

    /// Whether another attempt may succeed.
    #[must_use]
    pub const fn is_temporary(self) -> bool {
        match self {
            Self::Forbidden | Self::Gone | Self::Refused | Self::TooLarge => false,
            Self::Throttled | Self::TimedOut | Self::Unauthorized | Self::Unavailable | Self::Unroutable => true,
        }
    }

    /// The kind in words, as [`Display`](fmt::Display) prints it and a store keeps it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// The kind of this name; the mirror of [`as_str`](Self::as_str).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The part of an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// The policy or the Dsn itself.
    Policy,
    /// The name of the host.
    Resolve,
    /// The connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// Sending the message.
    Write,
    /// The destination's answer.
    Answer,
}

impl Phase {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Policy, "policy"),
        (Self::Resolve, "resolve"),
        (Self::Connect, "connect"),
        (Self::Tls, "tls"),
        (Self::Write, "write"),
        (Self::Answer, "answer"),
    ];

    /// The phase in a word, as [`Display`](fmt::Display) prints it and a store keeps it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(phase, _)| *phase == self).map_or("", |(_, name)| name)
    }

    /// The phase of this name; the mirror of [`as_str`](Self::as_str).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(phase, _)| *phase)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_prints_its_own_level_only() {
        let error = SinkError::unavailable("connection refused").with_phase(Phase::Connect);
        assert_eq!(error.to_string(), "unavailable (connect)");
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("connection refused"));
        assert_eq!(error.chain(), "unavailable (connect): connection refused");
    }

    #[test]
    fn an_io_time_out_is_of_unknown_outcome() {
        assert_eq!(SinkError::from(io::Error::from(io::ErrorKind::TimedOut)).kind(), ErrorKind::TimedOut);
        assert_eq!(SinkError::from(io::Error::from(io::ErrorKind::NotFound)).kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn names_and_kinds_mirror_each_other() {
        for (kind, name) in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(name), Some(kind));
        }
        for (phase, name) in Phase::ALL {
            assert_eq!(Phase::from_name(name), Some(phase));
        }
        assert_eq!(ErrorKind::from_name("no kind"), None);
    }
}
