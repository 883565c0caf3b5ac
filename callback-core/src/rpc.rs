//! JSON-RPC 2.0: requests, responses, and what a client asks for under `$rpc`.

mod answer;
mod error;
mod incoming;
mod members;
mod options;
#[cfg(test)]
mod tests;

pub use answer::{InvalidAnswer, RpcAnswer};
pub use error::{RpcError, RpcOutcome};
pub use incoming::{Call, Incoming, Rejected, join_batch};
pub use options::{RpcOptions, Target};

use members::Envelope;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct as _};
use serde_json::{Number, Value};
use std::fmt;

const VERSION: &str = "2.0";

/// Names a request, so that its response can be told from others.
///
/// ```
/// use callback_core::RpcId;
///
/// let id: RpcId = serde_json::from_str(r#""example_order""#).unwrap();
/// assert_eq!(id, RpcId::from("example_order"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged, expecting = "a JSON-RPC id is a string, a number or null")]
#[expect(clippy::exhaustive_enums, reason = "JSON-RPC 2.0 §4 knows these three")]
pub enum RpcId {
    /// `null`: what an error carries whose request could not be read.
    #[default]
    Null,
    /// A number, compared as written: `1` and `1.0` differ.
    Number(Number),
    /// A string.
    Text(String),
}

impl RpcId {
    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::Null),
            Value::Number(number) => Some(Self::Number(number)),
            Value::String(text) => Some(Self::Text(text)),
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

impl From<i64> for RpcId {
    fn from(number: i64) -> Self {
        Self::Number(number.into())
    }
}

impl From<String> for RpcId {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for RpcId {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Display for RpcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A request, as a client writes it and a method reads it.
///
/// Written with `"jsonrpc": "2.0"` always. Read without one as well; another version, a member given twice, and `params`
/// that are neither object nor array are errors. `"params": null` is read as none.
///
/// ```
/// use callback_core::RpcRequest;
/// use serde_json::json;
///
/// let request = RpcRequest::new("example_order", "OrderService.processOrder", json!({ "orderId": "12345" }));
/// assert_eq!(
///     serde_json::to_string(&request).unwrap(),
///     r#"{"jsonrpc":"2.0","id":"example_order","method":"OrderService.processOrder","params":{"orderId":"12345"}}"#,
/// );
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Envelope")]
pub struct RpcRequest {
    /// The id; `None` makes it a notification, which nobody answers. An explicit `null` is `Some(RpcId::Null)`.
    pub id: Option<RpcId>,
    /// The method's name.
    pub method: String,
    /// An object or an array.
    pub params: Option<Value>,
}

impl RpcRequest {
    /// A request that wants a response.
    pub fn new(id: impl Into<RpcId>, method: impl Into<String>, params: impl Into<Value>) -> Self {
        Self { id: Some(id.into()), method: method.into(), params: Some(params.into()) }
    }

    /// Whether it has no id, so that nobody may answer it (JSON-RPC 2.0 §4.1).
    #[must_use]
    pub const fn is_notification(&self) -> bool {
        self.id.is_none()
    }
}

/// Parameters are not printed: a Dsn in them may hold a password.
impl fmt::Debug for RpcRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, method, params: _ } = self;
        f.debug_struct("RpcRequest").field("id", id).field("method", method).finish_non_exhaustive()
    }
}

impl Serialize for RpcRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let length = 2 + usize::from(self.id.is_some()) + usize::from(self.params.is_some());
        let mut request = serializer.serialize_struct("RpcRequest", length)?;
        request.serialize_field("jsonrpc", VERSION)?;
        if let Some(id) = &self.id {
            request.serialize_field("id", id)?;
        }
        request.serialize_field("method", &self.method)?;
        if let Some(params) = &self.params {
            request.serialize_field("params", params)?;
        }
        request.end()
    }
}

impl TryFrom<Envelope> for RpcRequest {
    type Error = &'static str;

    fn try_from(mut envelope: Envelope) -> Result<Self, &'static str> {
        envelope.check_version()?;
        let id = envelope.take("id").map(|id| RpcId::from_value(id).ok_or("an id is a string, a number or null"));
        let Some(Value::String(method)) = envelope.take("method") else { return Err("a request has a method") };
        let params = match envelope.take("params") {
            None | Some(Value::Null) => None,
            Some(params @ (Value::Object(_) | Value::Array(_))) => Some(params),
            Some(_) => return Err("params are an object or an array"),
        };
        Ok(Self { id: id.transpose()?, method, params })
    }
}

/// A response: the id of its request, and a result or an error.
///
/// Written with `"jsonrpc": "2.0"` always. Read without one as well; it must have an id, and exactly one of `result`
/// (which may be `null`) and `error`.
///
/// ```
/// use callback_core::{RpcError, RpcResponse};
/// use serde_json::json;
///
/// let response = RpcResponse::success("example_order", json!({ "status": "completed" }));
/// let text = r#"{"jsonrpc":"2.0","id":"example_order","result":{"status":"completed"}}"#;
/// assert_eq!(serde_json::to_string(&response).unwrap(), text);
/// assert_eq!(serde_json::from_str::<RpcResponse>(text).unwrap(), response);
///
/// let response = RpcResponse::failure("example_order", RpcError::new(RpcError::METHOD_NOT_FOUND, "Method not found"));
/// assert!(response.outcome.is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Envelope")]
pub struct RpcResponse {
    /// The id of the request; `null` where it could not be read.
    pub id: RpcId,
    /// What became of it.
    pub outcome: RpcOutcome<Value>,
}

impl RpcResponse {
    /// The request succeeded.
    pub fn success(id: impl Into<RpcId>, result: impl Into<Value>) -> Self {
        Self { id: id.into(), outcome: Ok(result.into()) }
    }

    /// The request failed.
    pub fn failure(id: impl Into<RpcId>, error: RpcError) -> Self {
        Self { id: id.into(), outcome: Err(error) }
    }
}

/// A result is not printed.
impl fmt::Debug for RpcResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.outcome.as_ref().map(|_| "…");
        f.debug_struct("RpcResponse").field("id", &self.id).field("outcome", &outcome).finish()
    }
}

impl Serialize for RpcResponse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut response = serializer.serialize_struct("RpcResponse", 3)?;
        response.serialize_field("jsonrpc", VERSION)?;
        response.serialize_field("id", &self.id)?;
        match &self.outcome {
            Ok(result) => response.serialize_field("result", result)?,
            Err(error) => response.serialize_field("error", error)?,
        }
        response.end()
    }
}

impl TryFrom<Envelope> for RpcResponse {
    type Error = &'static str;

    fn try_from(mut envelope: Envelope) -> Result<Self, &'static str> {
        envelope.check_version()?;
        let id = envelope.take("id").ok_or("a response has an id")?;
        let id = RpcId::from_value(id).ok_or("an id is a string, a number or null")?;
        match (envelope.take("result"), envelope.take("error")) {
            (Some(result), None) => Ok(Self::success(id, result)),
            (None, Some(Value::Object(error))) => Ok(Self::failure(id, Envelope::from(error).try_into()?)),
            (None, Some(_)) => Err("an error is an object"),
            _ => Err("a response has a result or an error, and not both"),
        }
    }
}
