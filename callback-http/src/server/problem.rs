//! What went wrong, as `application/problem+json` (RFC 9457). The kinds are listed in `docs/problems.md`.
#![cfg_attr(not(feature = "axum"), expect(dead_code, reason = "the routes say the rest"))]

use super::{
    Body,
    body::{Untaken, wanting_no_coding},
    expression::Place,
};
use callback_core::{DsnError, DsnErrorKind, Problem};
use callback_dispatch::{AcceptError, OutboxError, Violations};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use std::{error::Error, time::Duration};

/// A kind of problem: what its `type`, `title` and `status` say, and what it means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) status: u16,
    pub(super) title: &'static str,
    pub(super) text: &'static str,
}

macro_rules! kinds {
    ($($kind:ident $name:literal $status:literal $title:literal $text:literal)*) => {
        $(pub(super) const $kind: &Kind = &Kind { name: $name, status: $status, title: $title, text: $text };)*
        /// All of them, as the documentation lists them.
        pub(super) const ALL: &[&Kind] = &[$($kind),*];
    };
}

kinds! {
    INVALID_REQUEST "invalid-request" 400 "The request is not well formed"
        "A header or parameter is there twice, or cannot be read. The detail names it."
    BODY_UNREADABLE "body-unreadable" 400 "The body could not be read"
        "The connection broke off before the end of the body."
    BODY_INVALID "body-invalid" 400 "The body is no JSON"
        "It cannot be read as its content type says."
    CALLER_UNKNOWN "caller-unknown" 403 "The caller is not known"
        "Tasks and subscriptions belong to somebody, and the request does not say to whom."
    CALLBACK_FORBIDDEN "callback-forbidden" 403 "The callback is not accepted"
        "The service does not send there: the policy does not open the address, or nothing serves the scheme. Each entry of `errors` names the place and the reason."
    TASK_OVER "task-over" 403 "The task is over"
        "What has ended cannot be cancelled."
    SUBSCRIPTION_OVER "subscription-over" 403 "The subscription has ended"
        "What has ended is neither changed nor cancelled."
    SUBSCRIPTIONS_TOO_MANY "subscriptions-too-many" 403 "The caller has too many subscriptions"
        "It has as many as it may have. The detail names the limit: one must end before another is made."
    NOT_FOUND "not-found" 404 "There is no such resource"
        "It is unknown, no longer kept, or not the caller's."
    NO_RESULT_YET "no-result-yet" 404 "There is no result yet"
        "The task is not done. Ask again after the time in `Retry-After`."
    METHOD_NOT_ALLOWED "method-not-allowed" 405 "The resource does not have this method"
        "`Allow` lists those that it has."
    TASK_CANCELLED "task-cancelled" 410 "The task was cancelled"
        "There is no result, and there will be none."
    TASK_EXPIRED "task-expired" 410 "The task expired"
        "It was not done in time. There is no result, and there will be none."
    TOO_LARGE "too-large" 413 "The body is too large"
        "The detail names the limit."
    UNSUPPORTED_MEDIA_TYPE "unsupported-media-type" 415 "The body has another media type"
        "JSON is read here. A change is `application/merge-patch+json`, or JSON."
    CODING_UNSUPPORTED "content-coding-unsupported" 415 "The body has a content coding"
        "What it asks for could not be read. Send it without `Content-Encoding`."
    CALLBACK_INVALID "callback-invalid" 422 "The callback cannot be used"
        "It is no URL that anything can be sent to. Each entry of `errors` names the place and the reason."
    INVALID_MEMBER "invalid-member" 422 "A member of the request cannot be used"
        "Each entry of `errors` names the place and the reason."
    KEY_REUSED "idempotency-key-reused" 422 "Another request has this idempotency key"
        "A key stands for one request: same method, path and body."
    INTERNAL "internal" 500 "The service failed"
        "It has a fault, or is not set up right. Nothing was stored; it is nothing that the request could mend."
    TASK_FAILED "task-failed" 500 "The task failed"
        "The work came to a failure. `status` is what the work itself answered."
    TASK_INTERRUPTED "task-interrupted" 500 "The task was interrupted"
        "A crash cut the work short, and it is not run again. It may have been done in part."
    RESULT_TOO_LARGE "result-too-large" 500 "The result is too large"
        "The work was done, and what it came to is larger than a message may be. The detail says whether it is kept: then it is served with its task."
    OVERLOADED "overloaded" 503 "The service is overloaded"
        "Nothing was stored. Try again after the time in `Retry-After`."
    UNAVAILABLE "unavailable" 503 "The service cannot store or read at the moment"
        "Try again after the time in `Retry-After`."
    OUTCOME_UNKNOWN "outcome-unknown" 503 "Whether the request was stored is unknown"
        "It may be done all the same. With an idempotency key the request can be sent again without harm."
    TASK_TIMED_OUT "task-timed-out" 504 "The task took too long"
        "The work was given up at its time limit. It may have been done in part."
}

impl Kind {
    /// A URI reference, relative to the root of the service.
    pub(super) fn type_uri(&self) -> String {
        format!("/problems/{}", self.name)
    }

    /// Such a problem, in the members of the core's type.
    pub(super) fn to_problem(&self, detail: impl Into<String>) -> Problem {
        let mut problem = Problem::new(self.title).with_status(self.status).with_detail(detail);
        problem.type_uri = Some(self.type_uri());
        problem
    }
}

/// Explains each kind of problem as a text: to be nested at `/problems`, where the `type` of every problem points.
#[cfg(feature = "axum")]
pub fn problem_router() -> axum::Router {
    ALL.iter().fold(axum::Router::new(), |router, kind| {
        let text = format!("{} ({})\n\n{}\n", kind.title, kind.status, kind.text);
        router.route(&format!("/{}", kind.name), axum::routing::get(move || std::future::ready(text.clone())))
    })
}

/// A refusal, before it is an answer.
#[derive(Debug)]
pub(super) struct Refusal {
    kind: &'static Kind,
    detail: Option<String>,
    errors: Vec<Value>,
    retry_after: Option<Duration>,
}

/// How long a client waits before it tries again what failed here.
const SECOND: Duration = Duration::from_secs(1);

impl Refusal {
    pub(super) const fn new(kind: &'static Kind) -> Self {
        Self { kind, detail: None, errors: Vec::new(), retry_after: None }
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(super) const fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Adds what is wrong at one place (RFC 9457 §3: `errors`, with a JSON Pointer as a URI fragment).
    pub(super) fn at(mut self, place: &Place, reason: impl Into<String>) -> Self {
        let mut error = json!({ "detail": reason.into() });
        match place {
            Place::Pointer(pointer) => error["pointer"] = format!("#{pointer}").into(),
            Place::Header(name) => error["header"] = name.as_str().into(),
            Place::Parameter(name) => error["parameter"] = name.as_str().into(),
            Place::Request => {}
        }
        self.errors.push(error);
        self
    }

    /// All that is wrong with the members of a body.
    pub(super) fn violations(violations: &Violations) -> Self {
        violations.iter().fold(Self::new(INVALID_MEMBER), |refusal, violation| {
            refusal.at(&Place::Pointer(violation.pointer.clone()), violation.reason.as_str())
        })
    }

    pub(super) fn too_large(limit: usize) -> Self {
        Self::new(TOO_LARGE).detail(format!("The body is larger than {limit} bytes."))
    }

    /// A body that was not taken in.
    pub(super) fn untaken<B>(untaken: &Untaken<B>, limit: usize) -> Self {
        match untaken {
            Untaken::Longer(..) => Self::too_large(limit),
            Untaken::Failed => Self::new(BODY_UNREADABLE),
        }
    }

    /// A callback that is not taken: 403 if it is well formed, 422 if it is not.
    pub(super) fn callback(place: &Place, error: &DsnError) -> Self {
        let kind = match error.kind() {
            DsnErrorKind::Forbidden | DsnErrorKind::UnknownScheme => CALLBACK_FORBIDDEN,
            _ => CALLBACK_INVALID,
        };
        Self::new(kind).at(place, error.to_string())
    }

    /// The store failed at a question.
    pub(super) fn outbox(error: &OutboxError) -> Self {
        tracing::error!(%error, cause = error.source(), "the outbox failed");
        Self::new(if error.is_unknown() { OUTCOME_UNKNOWN } else { UNAVAILABLE }).retry_after(SECOND)
    }

    /// What a client is told whose request was not accepted.
    pub(super) fn not_accepted(place: &Place, error: &AcceptError) -> Self {
        match error {
            AcceptError::Dsn(error) => Self::callback(place, error),
            AcceptError::Message(error) => Self::new(INVALID_MEMBER).detail(error.to_string()),
            AcceptError::Invalid(violations) => Self::violations(violations),
            AcceptError::Extension => Self::new(INVALID_MEMBER).detail(error.to_string()),
            AcceptError::Conflict => Self::new(KEY_REUSED),
            AcceptError::Overloaded { retry_after } => Self::new(OVERLOADED).retry_after(*retry_after),
            AcceptError::Closed => Self::new(OVERLOADED).retry_after(SECOND),
            AcceptError::TooLarge { limit } => Self::too_large(*limit),
            AcceptError::TooMany { limit } => Self::new(SUBSCRIPTIONS_TOO_MANY)
                .detail(format!("The caller has {limit} subscriptions, and may have no more.")),
            AcceptError::Outbox(error) => Self::outbox(error),
            other => {
                tracing::error!(error = %other, "a request could not be accepted");
                Self::new(INTERNAL)
            }
        }
    }

    pub(super) fn into_http(self) -> Response<Body> {
        let detail = self.detail.as_deref().unwrap_or(self.kind.text);
        let mut problem = json!({
            "type": self.kind.type_uri(), "title": self.kind.title, "status": self.kind.status, "detail": detail,
        });
        if !self.errors.is_empty() {
            problem["errors"] = self.errors.into();
        }
        let mut response = json_response(Problem::CONTENT_TYPE, &problem);
        if self.kind == CODING_UNSUPPORTED {
            response = wanting_no_coding(response);
        }
        *response.status_mut() = StatusCode::from_u16(self.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds(wait)));
        }
        response
    }
}

/// Whole seconds, at least one.
pub(super) fn seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

pub(super) fn json_response(content_type: &'static str, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes::Bytes::from(value.to_string())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The media type of HAL (draft-kelly-json-hal).
pub(super) const HAL: &str = "application/hal+json";

/// An answer in HAL that nobody may keep: what stands in it is soon otherwise, and a URL in it may be a secret.
pub(super) fn hal(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = json_response(HAL, body);
    *response.status_mut() = status;
    no_store(response)
}

pub(super) fn no_store(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The answer of a route.
#[cfg(feature = "axum")]
pub(super) fn settle(answer: Result<Response<Body>, Refusal>) -> Response<axum::body::Body> {
    no_store(answer.unwrap_or_else(Refusal::into_http)).map(axum::body::Body::new)
}

#[cfg(feature = "axum")]
pub(super) async fn not_found() -> Response<axum::body::Body> {
    settle(Err(Refusal::new(NOT_FOUND)))
}

#[cfg(feature = "axum")]
pub(super) async fn method_not_allowed() -> Response<axum::body::Body> {
    settle(Err(Refusal::new(METHOD_NOT_ALLOWED)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_kind_has_a_row_in_the_documentation() {
        let documented = include_str!("../../../docs/problems.md");
        let rows: Vec<&str> = documented.lines().filter(|line| line.starts_with("| `/problems/")).collect();
        let expected: Vec<String> = ALL
            .iter()
            .map(|kind| format!("| `{}` | {} | {} | {} |", kind.type_uri(), kind.status, kind.title, kind.text))
            .collect();
        assert_eq!(rows, expected);
        assert_eq!(ALL.iter().map(|kind| kind.name).collect::<HashSet<_>>().len(), ALL.len());
    }

    /// No exchange brings it about at will: a commit whose answer is lost, and a store that stays silent.
    #[tokio::test]
    async fn an_unknown_outcome_is_that_of_its_golden_file() {
        use http_body_util::BodyExt;
        let response = Refusal::new(OUTCOME_UNKNOWN).retry_after(SECOND).into_http();
        let (parts, body) = response.into_parts();
        let header = |name| parts.headers[name].to_str().expect("ASCII");
        let body = body.collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let text = format!(
            "{}\ncontent-type: {}\nretry-after: {}\n\n{body:#}\n",
            parts.status.as_u16(),
            header("content-type"),
            header("retry-after")
        );
        assert_eq!(text, include_str!("../../tests/golden/problems/outcome-unknown.txt"));
    }

    #[test]
    fn a_callback_is_refused_by_what_is_wrong_with_it() {
        let place = Place::Pointer("/callbackUrl".into());
        for (error, kind) in [
            (DsnError::forbidden("private"), CALLBACK_FORBIDDEN),
            (DsnError::unknown_scheme("ftp", &["https"]), CALLBACK_FORBIDDEN),
            (DsnError::invalid("no host"), CALLBACK_INVALID),
        ] {
            assert_eq!(Refusal::callback(&place, &error).kind, kind, "{error}");
        }
    }
}
