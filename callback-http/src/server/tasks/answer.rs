//! What is said of a task.

use crate::server::{
    Body,
    problem::{self, json_response, no_store},
};
use callback_core::Problem;
use callback_dispatch::Outcome;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use std::time::Duration;

/// When to ask again for a task of this age: after a quarter of it, 1 to 60 s.
pub(super) fn retry_after(age: Duration) -> HeaderValue {
    HeaderValue::from((age.as_secs() / 4).clamp(1, 60))
}

/// What a task came to: the result under its own status, else 200, or 204 where it is empty; the failure as a problem under
/// its own status.
pub(super) fn result(outcome: &Outcome) -> Response<Body> {
    let payload = outcome.payload();
    if outcome.is_failed() {
        let (status, problem) = failure(payload.content_type(), payload.body());
        let mut response = json_response(Problem::CONTENT_TYPE, &problem);
        *response.status_mut() = status;
        return no_store(response);
    }
    let mut response = Response::new(Body::from(payload.body().clone()));
    let own = outcome.status().filter(|status| (200..400).contains(status));
    let own = own.and_then(|status| StatusCode::from_u16(status).ok());
    let empty = payload.body().is_empty();
    *response.status_mut() = own.unwrap_or(if empty { StatusCode::NO_CONTENT } else { StatusCode::OK });
    let headers = response.headers_mut();
    for (name, value) in outcome.headers() {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    if !empty && let Ok(content_type) = HeaderValue::from_str(payload.content_type()) {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    no_store(response)
}

/// A failure with its status: 500 if it is not a problem that names one from 400 on.
fn failure(content_type: &str, body: &[u8]) -> (StatusCode, Value) {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    if content_type == Problem::CONTENT_TYPE
        && let Some(problem) = json.as_ref().filter(|json| json.is_object())
    {
        let status = problem["status"].as_u64().filter(|status| (400..600).contains(status));
        let status = status.and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
        let mut problem = problem.clone();
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        problem["status"] = status.as_u16().into();
        return (status, problem);
    }
    // A JSON-RPC error, for example.
    let kind = problem::TASK_FAILED;
    let mut problem = json!({
        "type": kind.type_uri(), "title": kind.title, "status": kind.status, "detail": kind.text,
    });
    problem["answer"] = json.unwrap_or_else(|| String::from_utf8_lossy(body).into());
    (StatusCode::INTERNAL_SERVER_ERROR, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(outcome: &Outcome, status: u16, content_type: Option<&str>) {
        let response = result(outcome);
        assert_eq!(response.status().as_u16(), status, "{outcome:?}");
        let found = response.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().expect("ASCII"));
        assert_eq!(found, content_type, "{outcome:?}");
    }

    #[test]
    fn a_result_has_the_status_of_what_it_is() {
        check(&Outcome::completed("text"), 200, Some("text/plain; charset=utf-8"));
        check(&Outcome::completed(""), 204, None);
        check(&Outcome::completed("").with_status(201), 201, None);
        check(&Outcome::completed("text").with_status(202), 202, Some("text/plain; charset=utf-8"));
        for status in [0, 101, 400, 999] {
            check(&Outcome::completed("").with_status(status), 204, None);
        }
        check(&Outcome::failed("text"), 500, Some(Problem::CONTENT_TYPE));
        check(&Outcome::failed(json!({ "jsonrpc": "2.0" })), 500, Some(Problem::CONTENT_TYPE));
        for (status, expected) in [(409, 409), (599, 599), (200, 500), (99, 500), (600, 500)] {
            check(&Outcome::failed(Problem::new("no").with_status(status)), expected, Some(Problem::CONTENT_TYPE));
        }
        check(&Outcome::failed(Problem::new("no")), 500, Some(Problem::CONTENT_TYPE));
    }

    #[test]
    fn an_old_task_is_asked_for_less_often() {
        for (age, expected) in [(0, "1"), (7, "1"), (40, "10"), (10_000, "60")] {
            assert_eq!(retry_after(Duration::from_secs(age)), expected);
        }
    }
}
