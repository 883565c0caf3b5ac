//! Runs accepted requests.

use crate::server::{
    Body,
    problem::{self, Kind},
    stored::{Stored, Unanswered},
};
use async_trait::async_trait;
use bytes::Bytes;
use callback_core::{BoxError, Payload, Problem};
use callback_dispatch::{Failure, Handler, Outcome, Task};
use http::{HeaderMap, Request, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt;
use tower_service::Service;

/// Runs accepted requests through an HTTP service: what a [`Worker`](callback_dispatch::Worker) is given.
///
/// The service sees the stored request and nothing else: a `POST`, its path, query, content type and body, the headers and
/// extensions that the layer keeps, and the [`Task`] among the extensions. The first run and every later one are the same.
///
/// An answer below 400 is the result. Its content type and body are delivered; its status and `Content-Disposition`,
/// `Content-Encoding`, `Content-Language`, `ETag`, `Last-Modified`, `Link` and `Location` are kept for those who fetch it, up
/// to 16 values of 1,024 bytes. From 400 it is a failure: problem details under that status, those of the service itself if it
/// gave any, which are delivered too.
pub struct TaskHandler<S>(Stored<S>);

/// As much of a text is told in a problem, in bytes.
const LONGEST_DETAIL: usize = 1_024;

impl<S> TaskHandler<S> {
    /// A handler that calls this service: the very one that the layer wraps.
    pub const fn new(service: S) -> Self {
        Self(Stored::new(service))
    }

    /// Sets an extension again that [`keep_extension`](super::TaskLayerBuilder::keep_extension) stored under this name.
    ///
    /// A request whose extension cannot be read any more is not run without it: its task fails.
    #[must_use]
    pub fn extension<T>(mut self, name: impl Into<String>) -> Self
    where
        T: DeserializeOwned + Clone + Send + Sync + 'static,
    {
        self.0.extension::<T>(name.into());
        self
    }
}

#[async_trait]
impl<S, B> Handler for TaskHandler<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    async fn run(&self, task: Task) -> Outcome {
        let request = match self.0.request(&task) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(task = %task.id(), %error, "a kept extension cannot be read");
                return failed(problem::TASK_FAILED, "A kept extension cannot be read.");
            }
        };
        match self.0.call(request).await {
            Ok(response) => outcome(response),
            Err(unanswered @ Unanswered::TooLarge { .. }) => failed(problem::RESULT_TOO_LARGE, unanswered.to_string()),
            Err(unanswered @ Unanswered::Failed) => failed(problem::TASK_FAILED, unanswered.to_string()),
        }
    }

    fn failure(&self, _task: &Task, failure: &Failure) -> Outcome {
        let kind = match failure {
            Failure::Interrupted => problem::TASK_INTERRUPTED,
            Failure::TimedOut(_) => problem::TASK_TIMED_OUT,
            Failure::TooLarge { .. } | Failure::Kept { .. } => problem::RESULT_TOO_LARGE,
            _ => problem::TASK_FAILED,
        };
        failed(kind, failure.to_string())
    }
}

fn failed(kind: &Kind, detail: impl Into<String>) -> Outcome {
    Outcome::failed(kind.to_problem(detail))
}

/// What an answer comes to.
fn outcome(response: Response<Bytes>) -> Outcome {
    let (parts, body) = response.into_parts();
    if parts.status.as_u16() < 400 {
        let content_type = content_type(&parts.headers).unwrap_or("application/octet-stream");
        let outcome = Outcome::completed(Payload::new(content_type, body)).with_status(parts.status.as_u16());
        return kept(&parts.headers).fold(outcome, |outcome, (name, value)| outcome.with_header(name, value));
    }
    let problem = problem_of(parts.status, content_type(&parts.headers).unwrap_or_default(), &body);
    Outcome::failed(Payload::new(Problem::CONTENT_TYPE, problem.to_string()))
}

/// The headers of an answer that are kept beside its content type.
const KEPT: [&str; 7] =
    ["content-disposition", "content-encoding", "content-language", "etag", "last-modified", "link", "location"];

/// How many values of them are kept, and of how many bytes each.
const MOST_VALUES: usize = 16;
const LONGEST_VALUE: usize = 1_024;

fn kept(headers: &HeaderMap) -> impl Iterator<Item = (&'static str, &str)> {
    let values = KEPT.into_iter().flat_map(|name| headers.get_all(name).iter().map(move |value| (name, value)));
    let readable = values.filter_map(|(name, value)| Some((name, value.to_str().ok()?)));
    readable.filter(|(_, value)| value.len() <= LONGEST_VALUE).take(MOST_VALUES)
}

/// The problem that an answer is, or is put into.
fn problem_of(status: StatusCode, content_type: &str, body: &Bytes) -> Value {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let status = status.as_u16();
    match json {
        Some(mut own @ Value::Object(_)) if essence == Problem::CONTENT_TYPE => {
            own["status"] = status.into();
            own
        }
        json => {
            let kind = problem::TASK_FAILED;
            let mut problem = json!({
                "type": kind.type_uri(),
                "title": kind.title,
                "status": status,
                "detail": format!("The service answered {status}."),
            });
            match json {
                Some(answer) => problem["answer"] = answer,
                None if essence.starts_with("text/") => {
                    let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST_DETAIL)]);
                    problem["detail"] = text.trim().into();
                }
                None => {}
            }
            problem
        }
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

impl<S> fmt::Debug for TaskHandler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandler").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, content_type: &str, body: &'static str, expected: &Value) {
        let status = StatusCode::from_u16(status).expect("a status");
        assert_eq!(&problem_of(status, content_type, &Bytes::from_static(body.as_bytes())), expected);
    }

    #[test]
    fn a_failure_is_a_problem_under_its_own_status() {
        let failed = |status: u16| {
            let detail = format!("The service answered {status}.");
            json!({ "type": "/problems/task-failed", "title": "The task failed", "status": status, "detail": detail })
        };
        let with = |mut problem: Value, name: &str, value: Value| {
            problem[name] = value;
            problem
        };
        let own = json!({ "type": "/stock", "title": "Out of stock", "status": 409, "left": 0 });
        check(
            409,
            "application/problem+json; charset=utf-8",
            r#"{"type":"/stock","title":"Out of stock","left":0}"#,
            &own,
        );
        check(409, "application/problem+json", r#"{"type":"/stock","title":"Out of stock","left":0,"status":1}"#, &own);
        check(500, "application/json", r#"{"a":1}"#, &with(failed(500), "answer", json!({ "a": 1 })));
        check(400, "text/plain", " no \n", &with(failed(400), "detail", json!("no")));
        check(502, "image/png", "PNG", &failed(502));
        check(503, "", "", &failed(503));
        check(404, "application/problem+json", "no JSON", &failed(404));
    }

    #[test]
    fn an_answer_below_400_is_a_result() {
        let response = Response::builder()
            .status(201)
            .header("content-type", "text/csv")
            .header("location", "/orders/7")
            .header("etag", "x".repeat(1_025))
            .header("set-cookie", "a=b")
            .header("link", "</a>; rel=a")
            .header("link", "</b>; rel=b")
            .body(Bytes::from("a,b"));
        let outcome = outcome(response.expect("an answer"));
        assert!(!outcome.is_failed());
        assert_eq!(outcome.status(), Some(201));
        let kept = [("link", "</a>; rel=a"), ("link", "</b>; rel=b"), ("location", "/orders/7")];
        assert_eq!(outcome.headers().collect::<Vec<_>>(), kept);
        assert_eq!((outcome.payload().content_type(), &outcome.payload().body()[..]), ("text/csv", &b"a,b"[..]));
    }
}
