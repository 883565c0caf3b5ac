//! What a sender is told.

use bytes::Bytes;
use callback_core::Problem;
use callback_receive::Verdict;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use std::time::Duration;

/// Answers are small, and there at once.
pub(super) type Answer = Response<Full<Bytes>>;

/// When a sender is told to come again, where nobody says when.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The methods that a handle has.
const ALLOW: &str = "POST, OPTIONS";

/// The answer of a verdict.
pub(super) fn of(verdict: Verdict) -> Answer {
    match verdict {
        Verdict::Accepted | Verdict::Duplicate => Answer::default(),
        Verdict::Ended => problem(StatusCode::GONE, "the callback has ended"),
        Verdict::Refused(problem) => refused(problem),
        Verdict::RetryLater(wait) => retry_later(wait),
        Verdict::TooLarge => problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
        Verdict::Unknown => problem(StatusCode::NOT_FOUND, "there is no such callback"),
        Verdict::Unverified => {
            let mut answer = problem(StatusCode::UNAUTHORIZED, "the signature is missing or does not count");
            // RFC 9110 §15.5.2 asks for it.
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Webhook-Signature"));
            answer
        }
        // What this does not know is not taken.
        _ => retry_later(None),
    }
}

/// Come again; whole seconds, one at least.
pub(super) fn retry_later(wait: Option<Duration>) -> Answer {
    let wait = wait.unwrap_or(RETRY_AFTER);
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    let mut answer = problem(StatusCode::SERVICE_UNAVAILABLE, "not now");
    answer.headers_mut().insert(header::RETRY_AFTER, seconds.max(1).into());
    answer
}

pub(super) fn method_not_allowed() -> Answer {
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, "a callback is a POST");
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(ALLOW));
    answer
}

/// The answer to a handshake (CloudEvents HTTP webhooks 1.0.2 §4.2): whoever knows the handle may send to it.
pub(super) fn consent(origin: Option<&HeaderValue>, rate: Option<&HeaderValue>) -> Answer {
    let mut answer = Answer::default();
    let headers = answer.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(ALLOW));
    if let Some(origin) = origin {
        headers.insert("webhook-allowed-origin", origin.clone());
        if rate.is_some() {
            headers.insert("webhook-allowed-rate", HeaderValue::from_static("*"));
        }
    }
    answer
}

pub(super) fn problem(status: StatusCode, title: &str) -> Answer {
    with_problem(status, Problem::new(title))
}

fn refused(problem: Problem) -> Answer {
    with_problem(StatusCode::FORBIDDEN, problem)
}

fn with_problem(status: StatusCode, problem: Problem) -> Answer {
    // Strings and a number have a JSON form.
    let body = serde_json::to_vec(&problem.with_status(status.as_u16())).unwrap_or_default();
    let mut answer = Answer::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(Problem::CONTENT_TYPE));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(verdict: &Verdict, status: u16, retry_after: Option<&str>) {
        let answer = of(verdict.clone());
        assert_eq!(answer.status(), status, "{verdict:?}");
        assert_eq!(
            answer.headers().get(header::RETRY_AFTER).map(|value| value.to_str().expect("visible")),
            retry_after
        );
        assert_eq!(answer.status().is_success(), verdict.is_taken());
        assert_eq!(answer.headers().contains_key(header::CONTENT_TYPE), !verdict.is_taken());
    }

    #[test]
    fn every_verdict_has_its_status() {
        check(&Verdict::Accepted, 200, None);
        check(&Verdict::Duplicate, 200, None);
        check(&Verdict::Ended, 410, None);
        check(&Verdict::Refused(Problem::new("no").with_status(500)), 403, None);
        check(&Verdict::RetryLater(None), 503, Some("5"));
        check(&Verdict::RetryLater(Some(Duration::from_millis(1))), 503, Some("1"));
        check(&Verdict::RetryLater(Some(Duration::ZERO)), 503, Some("1"));
        check(&Verdict::RetryLater(Some(Duration::from_secs(7))), 503, Some("7"));
        check(&Verdict::RetryLater(Some(Duration::MAX)), 503, Some("18446744073709551615"));
        check(&Verdict::TooLarge, 413, None);
        check(&Verdict::Unknown, 404, None);
        check(&Verdict::Unverified, 401, None);
    }
}
