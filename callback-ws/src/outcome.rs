//! What a peer's answer means.

use crate::wire::{Subprotocol, Verdict};
use callback_core::{Attempt, ErrorKind, Evidence, Phase, Receipt, SinkError};
use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// Why a message was not delivered: a [`SinkError`] that can be cloned, since one failure is that of many messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) phase: Phase,
    /// The HTTP status of a handshake.
    pub(crate) status: Option<u16>,
    pub(crate) retry_after: Option<Duration>,
    /// Holds nothing that the peer wrote.
    pub(crate) text: Cow<'static, str>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, phase: Phase, text: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, phase, status: None, retry_after: None, text: text.into() }
    }

    pub(crate) fn unavailable(phase: Phase, text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unavailable, phase, text)
    }
}

impl From<Failure> for SinkError {
    fn from(failure: Failure) -> Self {
        let mut error = Self::new(failure.kind, failure.text).with_phase(failure.phase);
        if let Some(status) = failure.status {
            error = error.with_status(status);
        }
        match failure.retry_after {
            Some(wait) => error.with_retry_after(wait),
            None => error,
        }
    }
}

/// What counts as delivered under this subprotocol.
pub(crate) fn receipt(subprotocol: Subprotocol) -> Receipt {
    Receipt::new(if subprotocol.acknowledges() { Evidence::Acknowledged } else { Evidence::Pong })
}

/// The receipt or failure of a verdict under `callback.v1`.
pub(crate) fn judge(verdict: Verdict) -> Result<Receipt, Failure> {
    let failure = |kind, text: &'static str| Err(Failure::new(kind, Phase::Answer, text));
    match verdict {
        Verdict::Acknowledged => Ok(receipt(Subprotocol::CallbackV1)),
        Verdict::Later(retry_after) => {
            let failure = Failure::new(ErrorKind::Throttled, Phase::Answer, "the peer asks to wait");
            Err(Failure { retry_after, ..failure })
        }
        Verdict::Refused => failure(ErrorKind::Refused, "the peer refuses the message"),
        Verdict::Gone => failure(ErrorKind::Gone, "the peer is gone for good"),
    }
}

/// Why a server that answered the handshake with another status than 101 is not delivered to.
///
/// As over HTTP; but a server that answers 2xx is no WebSocket server, perhaps not yet.
pub(crate) fn handshake(status: u16, retry_after: Option<&str>, now: SystemTime) -> Failure {
    use ErrorKind::{Gone, Refused, Throttled, TooLarge, Unauthorized, Unavailable, Unroutable};
    let wait = retry_after.and_then(|text| parse_retry_after(text, now));
    let (kind, text) = match (status, wait) {
        (200..=299 | 404, _) => (Unroutable, "there is no WebSocket server"),
        (300..=399, _) => (Refused, "redirects are not followed"),
        (401 | 403 | 407, _) => (Unauthorized, "the server does not let us in"),
        (410, _) => (Gone, "the server is gone for good"),
        (413, _) => (TooLarge, "the handshake is too large for the server"),
        (429, _) | (503, Some(_)) => (Throttled, "the server asks to wait"),
        (408 | 425 | 500..=599, _) => (Unavailable, "the server fails"),
        _ => (Refused, "the server does not take the handshake"),
    };
    Failure { status: Some(status), retry_after: wait, ..Failure::new(kind, Phase::Answer, text) }
}

/// Both forms (RFC 9110 §10.2.3): seconds, and a date, which may be past.
fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than fit are simply many.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Why a message was not delivered that alone was unacknowledged when the peer closed with this code (RFC 6455 §7.4).
pub(crate) fn closed(code: Option<u16>) -> Failure {
    use ErrorKind::{Refused, Throttled, TooLarge, Unavailable};
    let kind = match code {
        Some(1003 | 1007 | 1008) => Refused,
        Some(1009) => TooLarge,
        Some(1013) => Throttled,
        _ => Unavailable,
    };
    Failure::new(kind, Phase::Answer, closed_text(code))
}

/// The same for each of several messages: nobody knows whom the code is about.
pub(crate) fn closed_among_several(code: Option<u16>) -> Failure {
    Failure::unavailable(Phase::Answer, closed_text(code))
}

fn closed_text(code: Option<u16>) -> String {
    match code {
        Some(code) => format!("the peer closed the connection with {code}"),
        None => "the peer closed the connection".to_owned(),
    }
}

/// The deadline passed.
pub(crate) fn too_late() -> SinkError {
    SinkError::timed_out("no answer in time").with_phase(Phase::Answer)
}

/// Whether an attempt has no time left.
pub(crate) fn is_over(attempt: &Attempt) -> bool {
    attempt.deadline() <= Instant::now().into_std()
}

/// Why a frame was left unwritten: its time was over, or the connection's was.
pub(crate) fn unwritten(attempt: &Attempt) -> SinkError {
    if is_over(attempt) {
        return too_late();
    }
    SinkError::unavailable("the connection was closed").with_phase(Phase::Write)
}

/// Whether a code says that a message is the cause.
pub(crate) fn is_about_a_message(code: Option<u16>) -> bool {
    matches!(code, Some(1003 | 1007 | 1008 | 1009))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind::{Gone, Refused, Throttled, TimedOut, TooLarge, Unauthorized, Unavailable, Unroutable};

    #[test]
    fn every_close_code_means_one_thing() {
        for code in (0..=5_000).map(Some).chain([None]) {
            let expected = match code {
                Some(1003 | 1007 | 1008) => Refused,
                Some(1009) => TooLarge,
                Some(1013) => Throttled,
                _ => Unavailable,
            };
            assert_eq!(closed(code).kind, expected, "{code:?}");
            assert_eq!(closed_among_several(code).kind, Unavailable, "{code:?}");
            assert_eq!(is_about_a_message(code), matches!(expected, Refused | TooLarge), "{code:?}");
        }
    }

    #[test]
    fn every_verdict_means_one_thing() {
        let seven = Some(Duration::from_secs(7));
        assert_eq!(judge(Verdict::Acknowledged).expect("delivered").evidence(), &Evidence::Acknowledged);
        for (verdict, kind, retry_after) in [
            (Verdict::Later(None), Throttled, None),
            (Verdict::Later(seven), Throttled, seven),
            (Verdict::Refused, Refused, None),
            (Verdict::Gone, Gone, None),
        ] {
            let error = SinkError::from(judge(verdict).expect_err("not delivered"));
            assert_eq!((error.kind(), error.retry_after(), error.phase()), (kind, retry_after, Some(Phase::Answer)));
        }
    }

    #[test]
    fn every_status_of_a_handshake_means_one_thing() {
        for status in 100..=999 {
            let expected = match status {
                200..=299 | 404 => Unroutable,
                401 | 403 | 407 => Unauthorized,
                410 => Gone,
                413 => TooLarge,
                429 => Throttled,
                408 | 425 | 500..=599 => Unavailable,
                _ => Refused,
            };
            let error = SinkError::from(handshake(status, None, SystemTime::now()));
            assert_eq!((error.kind(), error.status()), (expected, Some(status)), "{status}");
        }
    }

    #[test]
    fn the_time_to_wait_has_two_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:51:37 GMT", Some(120)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(handshake(503, Some(text), now).retry_after, expected.map(Duration::from_secs), "{text}");
            let kind = if expected.is_some() { Throttled } else { Unavailable };
            assert_eq!(handshake(503, Some(text), now).kind, kind, "{text}");
        }
    }

    #[test]
    fn the_evidence_is_that_of_the_subprotocol() {
        assert_eq!(receipt(Subprotocol::CallbackV1).evidence(), &Evidence::Acknowledged);
        assert_eq!(receipt(Subprotocol::CloudEvents).evidence(), &Evidence::Pong);
        assert_eq!(receipt(Subprotocol::Bare).evidence(), &Evidence::Pong);
    }

    #[test]
    fn a_frame_left_unwritten_after_its_deadline_timed_out() {
        let unwritten = |deadline| unwritten(&Attempt::new(1, SystemTime::now(), deadline)).kind();
        let now = std::time::Instant::now();
        assert_eq!(unwritten(now), TimedOut);
        assert_eq!(unwritten(now + Duration::from_secs(60)), Unavailable);
    }
}
