//! What a webhook's answer means.

use callback_core::{Consented, ErrorKind, Evidence, Phase, Receipt, SinkError};
use http::{HeaderMap, HeaderValue, header};
use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

/// The receipt or error of a status and its `Retry-After` (RFC 9110 §10.2.3).
pub(crate) fn judge(status: u16, retry_after: Option<&str>, now: SystemTime) -> Result<Receipt, SinkError> {
    let wait = retry_after.and_then(|text| parse_retry_after(text, now));
    let error = match (status, wait) {
        (200..=299, _) => return Ok(Receipt::new(Evidence::Status(status))),
        (300..=399, _) => SinkError::refused("redirects are not followed"),
        (401 | 403 | 407, _) => SinkError::unauthorized("the receiver does not let us in"),
        (404, _) => SinkError::unroutable("nobody is there"),
        (410, _) => SinkError::gone("the receiver is gone for good"),
        (413, _) => SinkError::too_large("too large for the receiver"),
        (429, _) | (503, Some(_)) => SinkError::throttled("the receiver asks to wait"),
        (408 | 425 | 500..=599, _) => SinkError::unavailable("the receiver fails"),
        _ => SinkError::refused("the receiver does not take it"),
    };
    let error = error.with_status(status).with_phase(Phase::Answer);
    Err(match wait {
        Some(wait) => error.with_retry_after(wait),
        None => error,
    })
}

/// What a receiver was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) origin: &'a HeaderValue,
    pub(crate) per_minute: Option<NonZeroU32>,
}

/// What an answer to a handshake means (CloudEvents HTTP webhooks 1.0.2 §4.2): a header consents, whatever the status is.
///
/// Who was asked for a rate and names none allows what was asked.
pub(crate) fn consent(
    asked: &Asked<'_>,
    status: u16,
    headers: &HeaderMap,
    now: SystemTime,
) -> Result<Consented, SinkError> {
    let refused = |reason: &str| SinkError::unauthorized(reason).with_status(status).with_phase(Phase::Answer);
    let Some(allowed) = headers.get("webhook-allowed-origin").map(HeaderValue::as_bytes) else {
        let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        return Err(match judge(status, retry_after, now) {
            // One that fails, or is not there, may consent as soon as it is back. That it lacks the method is no failure.
            Err(error) if error.is_temporary() && status != 501 => error,
            Err(error) if error.kind() == ErrorKind::Gone => error,
            _ => refused("the receiver does not consent to webhooks of ours"),
        });
    };
    let allowed = allowed.trim_ascii();
    if allowed != b"*" && !allowed.eq_ignore_ascii_case(asked.origin.as_bytes()) {
        return Err(refused("the receiver consents to webhooks of another origin"));
    }
    let Some(rate) = headers.get("webhook-allowed-rate").map(HeaderValue::as_bytes) else {
        return Ok(Consented::new().per_minute(asked.per_minute));
    };
    match rate.trim_ascii() {
        b"*" => Ok(Consented::new()),
        digits => match parse_rate(digits) {
            Some(requests) => Ok(Consented::new().per_minute(Some(requests))),
            None => Err(refused("the rate that the receiver allows cannot be read")),
        },
    }
}

/// A positive number; more than fits is simply much.
fn parse_rate(digits: &[u8]) -> Option<NonZeroU32> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number = is_number.then(|| std::str::from_utf8(digits).ok()).flatten()?;
    NonZeroU32::new(number.parse().unwrap_or(u32::MAX))
}

/// Both forms: seconds, and a date, which may be past.
fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than fit are simply many.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::ErrorKind::{Gone, Refused, Throttled, TooLarge, Unauthorized, Unavailable, Unroutable};

    #[track_caller]
    fn check(status: u16, retry_after: Option<&str>, expected: Result<u16, ErrorKind>) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let judged = judge(status, retry_after, now);
        let judged = judged.map(|receipt| receipt.status().expect("a status")).map_err(|error| error.kind());
        assert_eq!(judged, expected, "{status} {retry_after:?}");
    }

    #[test]
    fn every_status_means_one_thing() {
        for status in 100..=999 {
            let expected = match status {
                200..=299 => Ok(status),
                401 | 403 | 407 => Err(Unauthorized),
                404 => Err(Unroutable),
                410 => Err(Gone),
                413 => Err(TooLarge),
                429 => Err(Throttled),
                408 | 425 | 500..=599 => Err(Unavailable),
                _ => Err(Refused),
            };
            check(status, None, expected);
        }
        check(503, Some("1"), Err(Throttled));
        check(503, Some("soon"), Err(Unavailable));
        check(500, Some("1"), Err(Unavailable));
    }

    #[test]
    fn a_header_consents_and_nothing_else_does() {
        let origin = HeaderValue::from_static("events.example.com");
        let asked = NonZeroU32::new(120);
        let answer = |asked, status, headers: &[(&'static str, &'static str)]| {
            let headers =
                headers.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
            let headers: HeaderMap = headers.collect();
            let judged =
                consent(&Asked { origin: &origin, per_minute: asked }, status, &headers, SystemTime::UNIX_EPOCH);
            judged.map(|consented| consented.requests_per_minute().map(NonZeroU32::get)).map_err(|error| {
                assert!(error.status() == Some(status) && error.phase() == Some(Phase::Answer), "{error:?}");
                error.kind()
            })
        };
        let (name, rate) = ("webhook-allowed-origin", "webhook-allowed-rate");
        for status in [200, 204, 405, 500] {
            assert_eq!(answer(None, status, &[(name, "events.example.com")]), Ok(None));
            assert_eq!(answer(None, status, &[(name, "*")]), Ok(None));
            assert_eq!(answer(None, status, &[(name, "Events.Example.COM")]), Ok(None));
            for other in ["example.com", "evil.events.example.com", "*.example.com", "null", ""] {
                assert_eq!(answer(None, status, &[(name, other)]), Err(Unauthorized), "{other}");
            }
        }
        for (text, allowed) in [
            ("120", Ok(Some(120))),
            ("1", Ok(Some(1))),
            ("*", Ok(None)),
            ("99999999999999", Ok(Some(u32::MAX))),
            ("0", Err(Unauthorized)),
            ("-1", Err(Unauthorized)),
            ("+1", Err(Unauthorized)),
            ("many", Err(Unauthorized)),
            ("", Err(Unauthorized)),
        ] {
            assert_eq!(answer(asked, 200, &[(name, "*"), (rate, text)]), allowed, "{text}");
            assert_eq!(answer(None, 200, &[(name, "*"), (rate, text)]), allowed, "{text}");
        }
        assert_eq!(answer(asked, 200, &[(name, "*")]), Ok(Some(120)), "what was asked is what is allowed");
        for (status, kind) in [
            (200, Unauthorized),
            (301, Unauthorized),
            (400, Unauthorized),
            (403, Unauthorized),
            (404, Unroutable),
            (405, Unauthorized),
            (410, Gone),
            (413, Unauthorized),
            (429, Throttled),
            (500, Unavailable),
            (501, Unauthorized),
            (503, Unavailable),
        ] {
            assert_eq!(answer(None, status, &[]), Err(kind), "{status}");
            assert_eq!(answer(None, status, &[(rate, "*")]), Err(kind), "{status}");
        }
    }

    #[test]
    fn retry_after_comes_in_two_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let table = [
            ("120", Some(120)),
            ("0", Some(0)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
        ];
        for (text, seconds) in table {
            assert_eq!(parse_retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
