//! Answers in JSON-RPC, and their HTTP status.

use super::{Body, problem::seconds};
use bytes::Bytes;
use callback_core::{Acknowledgment, RpcError, RpcId, RpcResponse};
use callback_dispatch::{AcceptError, Violation, Violations};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json as value};
use std::time::Duration;

/// One answer, and how it would be sent alone.
pub(super) struct Reply {
    pub(super) response: RpcResponse,
    status: StatusCode,
    retry_after: Option<Duration>,
    /// Of the task.
    location: Option<String>,
}

impl Reply {
    const fn of(response: RpcResponse, status: StatusCode) -> Self {
        Self { response, status, retry_after: None, location: None }
    }

    pub(super) fn accepted(response: RpcResponse, status: StatusCode, location: Option<String>) -> Self {
        Self { location, ..Self::of(response, status) }
    }

    pub(super) fn error(id: RpcId, error: RpcError) -> Self {
        let status = match error.code {
            RpcError::PARSE | RpcError::INVALID_REQUEST => StatusCode::BAD_REQUEST,
            _ => StatusCode::OK,
        };
        Self::of(RpcResponse::failure(id, error), status)
    }

    pub(super) fn rejected(response: RpcResponse) -> Self {
        match response.outcome {
            Ok(_) => Self::of(response, StatusCode::OK),
            Err(error) => Self::error(response.id, error),
        }
    }

    pub(super) fn too_large(limit: usize) -> Self {
        let reason = format!("the request is larger than {limit} bytes");
        let error = RpcError::at(RpcError::INVALID_REQUEST, "Invalid Request", "", reason);
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, ..Self::error(RpcId::Null, error) }
    }

    /// A request that cannot be read for its content coding.
    pub(super) fn coded() -> Self {
        let reason = "the body has a content coding: send it without Content-Encoding";
        let error = RpcError::at(RpcError::INVALID_REQUEST, "Invalid Request", "", reason);
        Self { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, ..Self::error(RpcId::Null, error) }
    }

    fn unavailable(id: RpcId, error: RpcError, retry_after: Duration) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { retry_after: Some(retry_after), ..Self::of(RpcResponse::failure(id, error), status) }
    }

    /// What a client is told whose call was not accepted.
    pub(super) fn not_accepted(id: RpcId, pointer: &str, error: &AcceptError) -> Self {
        let second = Duration::from_secs(1);
        let overloaded = |wait: Duration| {
            let data = serde_json::json!({ "retryAfter": seconds(wait) });
            RpcError::new(RpcError::OVERLOADED, "Overloaded").with_data(data)
        };
        let internal = |reason: &str| {
            RpcError::new(RpcError::INTERNAL, "Internal error").with_data(serde_json::json!({ "reason": reason }))
        };
        match error {
            AcceptError::Dsn(error) => {
                Self::error(id, RpcError::at(RpcError::INVALID_PARAMS, "Invalid params", pointer, error.to_string()))
            }
            AcceptError::Message(error) => {
                Self::error(id, RpcError::at(RpcError::INVALID_PARAMS, "Invalid params", pointer, error.to_string()))
            }
            AcceptError::Invalid(violations) => Self::error(id, invalid(pointer, violations)),
            AcceptError::Overloaded { retry_after } => Self::unavailable(id, overloaded(*retry_after), *retry_after),
            AcceptError::Closed => Self::unavailable(id, overloaded(second), second),
            AcceptError::Outbox(error) if error.is_unknown() => Self::unavailable(id, internal("unknown"), second),
            AcceptError::Outbox(_) => Self::unavailable(id, internal("the request could not be stored"), second),
            AcceptError::Conflict => {
                let data = serde_json::json!({ "reason": error.to_string() });
                let error = RpcError::new(RpcError::INVALID_PARAMS, "Invalid params").with_data(data);
                Self { status: StatusCode::UNPROCESSABLE_ENTITY, ..Self::error(id, error) }
            }
            AcceptError::TooLarge { limit } => {
                Self { response: RpcResponse { id, ..Self::too_large(*limit).response }, ..Self::too_large(*limit) }
            }
            other => {
                tracing::error!(error = %other, "a call could not be accepted");
                Self::error(id, internal("the service is not set up right"))
            }
        }
    }

    pub(super) fn into_http(self) -> Response<Body> {
        let mut response = json(to_json(&self.response));
        *response.status_mut() = self.status;
        if let Some(location) = self.location.and_then(|location| HeaderValue::try_from(location).ok()) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds(wait)));
        }
        response
    }
}

/// The first violation where every other reason stands, and all of them; each by its place in what was sent.
fn invalid(pointer: &str, violations: &Violations) -> RpcError {
    let call = pointer.split_once("/params").map_or("", |(call, _)| call);
    let place = |it: &Violation| value!({ "pointer": format!("{call}{}", it.pointer), "reason": it.reason });
    let all: Vec<Value> = violations.iter().map(place).collect();
    let mut data = all.first().cloned().unwrap_or_else(|| value!({}));
    data["violations"] = all.into();
    RpcError::new(RpcError::INVALID_PARAMS, "Invalid params").with_data(data)
}

pub(super) fn to_json(response: &RpcResponse) -> Bytes {
    // Strings, numbers and JSON values have a JSON form.
    serde_json::to_vec(response).unwrap_or_default().into()
}

pub(super) fn json(body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The protocol's acknowledgment.
pub(super) fn acknowledge(acknowledgment: &Acknowledgment, id: RpcId) -> RpcResponse {
    acknowledgment.to_rpc(id)
}
