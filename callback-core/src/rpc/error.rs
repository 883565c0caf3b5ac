//! The error object of a response.

use super::members::Envelope;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;

/// What a method comes to: its result, or the error that it answers with.
pub type RpcOutcome<T> = Result<T, RpcError>;

/// An error object (JSON-RPC 2.0 §5.1).
///
/// ```
/// use callback_core::RpcError;
///
/// let error = RpcError::at(RpcError::INVALID_PARAMS, "Invalid params", "/params/orderId", "expected a string");
/// assert_eq!(error.data.as_ref().unwrap()["pointer"], "/params/orderId");
/// assert_eq!(error.to_string(), "Invalid params (-32602)");
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(try_from = "Envelope")]
#[error("{message} ({code})")]
pub struct RpcError {
    /// The kind of error; -32768 to -32000 are reserved.
    pub code: i64,
    /// The kind of error in a few words.
    pub message: String,
    /// More about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// The data is not printed.
impl fmt::Debug for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, message, data: _ } = self;
        f.debug_struct("RpcError").field("code", code).field("message", message).finish_non_exhaustive()
    }
}

impl RpcError {
    /// The body is no JSON.
    pub const PARSE: i64 = -32700;
    /// The JSON is no request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters are wrong, or what stands under `$rpc`.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The service failed: its store, a panic, an answer that is no response.
    pub const INTERNAL: i64 = -32603;
    /// Too much to do; `data.retryAfter` says when to come again, in seconds.
    pub const OVERLOADED: i64 = -32000;
    /// The result is too large to be delivered.
    pub const RESULT_TOO_LARGE: i64 = -32010;
    /// The method did not end within its time limit.
    pub const TIMED_OUT: i64 = -32011;
    /// The process ended while the method ran, and it is not run again.
    pub const INTERRUPTED: i64 = -32012;
    /// The task was cancelled.
    pub const CANCELLED: i64 = -32013;

    /// An error of this code, without data.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// Says more about it.
    #[must_use]
    pub fn with_data(mut self, data: impl Into<Value>) -> Self {
        self.data = Some(data.into());
        self
    }

    /// An error at one place of the request: `data` holds `pointer` (RFC 6901) and `reason`.
    pub fn at(code: i64, message: impl Into<String>, pointer: &str, reason: impl Into<String>) -> Self {
        Self::new(code, message).with_data(json!({ "pointer": pointer, "reason": reason.into() }))
    }

    pub(super) fn parse(reason: impl Into<String>) -> Self {
        Self::at(Self::PARSE, "Parse error", "", reason)
    }

    pub(super) fn invalid_request(pointer: &str, reason: impl Into<String>) -> Self {
        Self::at(Self::INVALID_REQUEST, "Invalid Request", pointer, reason)
    }

    pub(super) fn invalid_params(pointer: &str, reason: impl Into<String>) -> Self {
        Self::at(Self::INVALID_PARAMS, "Invalid params", pointer, reason)
    }
}

impl TryFrom<Envelope> for RpcError {
    type Error = &'static str;

    fn try_from(mut envelope: Envelope) -> Result<Self, &'static str> {
        let code = envelope.take("code").and_then(|code| code.as_i64()).ok_or("an error has an integer code")?;
        let Some(Value::String(message)) = envelope.take("message") else { return Err("an error has a message") };
        Ok(Self { code, message, data: envelope.take("data") })
    }
}
