//! What a broker's answer means.

use callback_core::{ErrorKind, Evidence, Phase, Receipt, SinkError};
use lapin::{Error, ErrorKind as LapinErrorKind, protocol::AMQPErrorKind};
use std::borrow::Cow;

/// Why a message was not delivered: a [`SinkError`] that can be cloned, since one failure is that of many messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) phase: Phase,
    /// Holds nothing that the broker wrote: it repeats names, which a Dsn masks.
    pub(crate) text: Cow<'static, str>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, phase: Phase, text: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, phase, text: text.into() }
    }

    /// The connection is gone, and with it what was not confirmed.
    pub(crate) fn lost() -> Self {
        Self::new(ErrorKind::Unavailable, Phase::Answer, "the connection was lost before the broker confirmed")
    }
}

impl From<Failure> for SinkError {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, failure.text).with_phase(failure.phase)
    }
}

/// What the broker said of one message, once nothing can change it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has the message.
    Confirmed,
    /// No queue took the message; the reply code of `basic.return`.
    Returned(u16),
    /// It could not store the message.
    Nacked,
}

/// The receipt or error of a verdict.
pub(crate) fn judge(verdict: Verdict) -> Result<Receipt, SinkError> {
    match verdict {
        Verdict::Confirmed => Ok(Receipt::new(Evidence::Confirmed)),
        Verdict::Returned(code) => Err(failure(code, "", Phase::Answer).into()),
        Verdict::Nacked => {
            Err(SinkError::unavailable("the broker could not store the message").with_phase(Phase::Answer))
        }
    }
}

/// Whom an error that ended a channel or a connection is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// The login, or the vhost: the connection was not open yet.
    Login,
    /// The queue or exchange that a channel was opened for; no message was published on it.
    Place,
    /// One message: no other was on the channel that the broker closed.
    Message,
    /// One of several on the channel that the broker closed, without saying which.
    Several,
    /// The connection, for whatever reason: nothing is known of any message on it.
    Connection,
}

/// What a channel or connection that failed means for what was underway.
///
/// A message is given up only for an error of its own channel with it alone; whoever cannot be the culprit is tried again.
pub(crate) fn broken(error: &Error, phase: Phase, about: About) -> Failure {
    use ErrorKind::{Unauthorized, Unavailable, Unroutable};
    match error.kind() {
        LapinErrorKind::ProtocolError(error) => {
            let failure = failure(error.get_id(), error.get_message().as_str(), phase);
            // By the specification such an error ends the connection, whoever made it.
            let is_of_channel = matches!(error.kind(), AMQPErrorKind::Soft(_));
            let is_believed = match about {
                About::Login => matches!(failure.kind, Unauthorized | Unroutable),
                About::Place => is_of_channel && matches!(failure.kind, Unauthorized | Unroutable),
                About::Message => is_of_channel,
                About::Several => is_of_channel && failure.kind == Unroutable,
                About::Connection => false,
            };
            if is_believed || failure.kind == Unavailable {
                failure
            } else {
                Failure::new(Unavailable, phase, "the broker closed channel or connection, not for this message alone")
            }
        }
        LapinErrorKind::ChannelsLimitReached => {
            Failure::new(ErrorKind::Throttled, phase, "the broker allows no more channels")
        }
        LapinErrorKind::MissingHeartbeatError => Failure::new(Unavailable, phase, "the broker was silent for too long"),
        _ if phase == Phase::Answer => Failure::lost(),
        _ => Failure::new(Unavailable, phase, "the connection failed"),
    }
}

/// Whether the broker closes a channel in this way for a single message on it.
pub(crate) fn is_about_one_message(error: &Error) -> bool {
    let kind = broken(error, Phase::Answer, About::Message).kind;
    matches!(kind, ErrorKind::Refused | ErrorKind::TooLarge | ErrorKind::Unauthorized)
}

/// The reply codes of AMQP 0-9-1 §1.2, as RabbitMQ uses them.
fn failure(code: u16, text: &str, phase: Phase) -> Failure {
    let (kind, name) = match code {
        311 => (ErrorKind::TooLarge, "CONTENT_TOO_LARGE"),
        312 => (ErrorKind::Unroutable, "NO_ROUTE"),
        313 => (ErrorKind::Unroutable, "NO_CONSUMERS"),
        320 => (ErrorKind::Unavailable, "CONNECTION_FORCED"),
        402 => (ErrorKind::Unroutable, "INVALID_PATH"),
        403 => (ErrorKind::Unauthorized, "ACCESS_REFUSED"),
        404 => (ErrorKind::Unroutable, "NOT_FOUND"),
        405 => (ErrorKind::Unavailable, "RESOURCE_LOCKED"),
        // RabbitMQ has no code of its own for a message above its `max_message_size`.
        406 if text.contains("message size") => (ErrorKind::TooLarge, "PRECONDITION_FAILED"),
        406 => (ErrorKind::Refused, "PRECONDITION_FAILED"),
        501 => (ErrorKind::Unavailable, "FRAME_ERROR"),
        502 => (ErrorKind::Unavailable, "SYNTAX_ERROR"),
        503 => (ErrorKind::Unavailable, "COMMAND_INVALID"),
        504 => (ErrorKind::Unavailable, "CHANNEL_ERROR"),
        505 => (ErrorKind::Unavailable, "UNEXPECTED_FRAME"),
        506 => (ErrorKind::Unavailable, "RESOURCE_ERROR"),
        // No such vhost, or none for this user: RabbitMQ tells them apart in words only.
        530 => (ErrorKind::Unauthorized, "NOT_ALLOWED"),
        540 => (ErrorKind::Unavailable, "NOT_IMPLEMENTED"),
        541 => (ErrorKind::Unavailable, "INTERNAL_ERROR"),
        _ => (ErrorKind::Unavailable, "unknown to AMQP 0-9-1"),
    };
    Failure::new(kind, phase, format!("the broker answers {code}, {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind::{Refused, Throttled, TooLarge, Unauthorized, Unavailable, Unroutable};
    use lapin::{ConnectionState, protocol::AMQPError};
    use std::io;

    const CODES: [(u16, ErrorKind); 18] = [
        (311, TooLarge),
        (312, Unroutable),
        (313, Unroutable),
        (320, Unavailable),
        (402, Unroutable),
        (403, Unauthorized),
        (404, Unroutable),
        (405, Unavailable),
        (406, Refused),
        (501, Unavailable),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (505, Unavailable),
        (506, Unavailable),
        (530, Unauthorized),
        (540, Unavailable),
        (541, Unavailable),
    ];

    #[test]
    fn every_reply_code_means_one_thing() {
        for code in 200..600 {
            let expected = CODES.iter().find(|(known, _)| *known == code).map_or(Unavailable, |(_, kind)| *kind);
            assert_eq!(failure(code, "", Phase::Answer).kind, expected, "{code}");
            let returned = judge(Verdict::Returned(code)).expect_err("not delivered");
            assert_eq!((returned.kind(), returned.phase()), (expected, Some(Phase::Answer)), "{code}");
        }
    }

    #[test]
    fn a_verdict_is_a_receipt_or_an_error() {
        let receipt = judge(Verdict::Confirmed).expect("delivered");
        assert_eq!(receipt.evidence(), &Evidence::Confirmed);
        assert_eq!(judge(Verdict::Nacked).expect_err("not delivered").kind(), Unavailable);
    }

    fn protocol_error(code: u16, text: &str) -> Error {
        LapinErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).expect("a known code")).into()
    }

    #[test]
    fn a_message_above_the_limit_is_told_by_its_text() {
        let text = "PRECONDITION_FAILED - message size 70000 is larger than configured max size 65536";
        assert_eq!(broken(&protocol_error(406, text), Phase::Answer, About::Message).kind, TooLarge);
        assert_eq!(broken(&protocol_error(406, "invalid expiration"), Phase::Answer, About::Message).kind, Refused);
    }

    #[test]
    fn nobody_pays_for_another() {
        let believed = |about: About| match about {
            About::Login => &[312, 313, 402, 403, 404, 530][..],
            About::Place => &[312, 313, 403, 404],
            About::Message => &[311, 312, 313, 403, 404, 406],
            About::Several => &[312, 313, 404],
            About::Connection => &[],
        };
        for about in [About::Login, About::Place, About::Message, About::Several, About::Connection] {
            for (code, kind) in CODES {
                if AMQPError::from_id(code, "".into()).is_none() {
                    continue;
                }
                let expected = if believed(about).contains(&code) { kind } else { Unavailable };
                assert_eq!(broken(&protocol_error(code, ""), Phase::Answer, about).kind, expected, "{code} {about:?}");
            }
        }
        assert!(is_about_one_message(&protocol_error(406, "")) && is_about_one_message(&protocol_error(403, "")));
        assert!(!is_about_one_message(&protocol_error(404, "")) && !is_about_one_message(&protocol_error(501, "")));
    }

    #[test]
    fn what_is_no_answer_is_a_lost_connection() {
        let io_error = || Error::from(io::Error::other("planted"));
        let table = [
            (io_error(), Phase::Connect, Unavailable),
            (io_error(), Phase::Answer, Unavailable),
            (LapinErrorKind::MissingHeartbeatError.into(), Phase::Answer, Unavailable),
            (LapinErrorKind::InvalidConnectionState(ConnectionState::Closed).into(), Phase::Answer, Unavailable),
            (LapinErrorKind::ChannelsLimitReached.into(), Phase::Connect, Throttled),
        ];
        for (error, phase, kind) in table {
            let failure = broken(&error, phase, About::Message);
            assert_eq!((failure.kind, failure.phase), (kind, phase), "{error}");
        }
    }

    #[test]
    fn no_error_repeats_what_the_broker_wrote() {
        let error = protocol_error(404, "NOT_FOUND - no exchange 'planted' in vhost 'planted'");
        let failure = SinkError::from(broken(&error, Phase::Connect, About::Place));
        assert!(!format!("{failure:?} {}", failure.chain()).contains("planted"));
        assert_eq!(failure.chain(), "unroutable (connect): the broker answers 404, NOT_FOUND");
    }
}
