//! What a webhook's answer means.

use callback_core::{Evidence, Phase, Receipt, SinkError};
use std::time::{Duration, SystemTime};

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
    use callback_core::ErrorKind::{self, Gone, Refused, Throttled, TooLarge, Unauthorized, Unavailable, Unroutable};

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
