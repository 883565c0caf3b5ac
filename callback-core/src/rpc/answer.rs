//! What a method answers, judged before it is delivered.

use super::{
    RpcError, RpcId, VERSION,
    members::{Members, text},
};
use bytes::Bytes;
use serde_json::value::RawValue;

/// The body of a method's answer: a JSON-RPC response to the request that was made.
///
/// ```
/// use callback_core::RpcAnswer;
///
/// let answer = RpcAnswer::read(&7.into(), &r#"{"jsonrpc":"2.0", "id":7, "result":1.50}"#.into())?;
/// assert!(!answer.is_error());
/// assert_eq!(answer.into_body(), r#"{"jsonrpc":"2.0", "id":7, "result":1.50}"#);
/// assert!(RpcAnswer::read(&8.into(), &r#"{"jsonrpc":"2.0","id":7,"result":1.50}"#.into()).is_err());
/// # Ok::<_, callback_core::InvalidAnswer>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct RpcAnswer {
    is_error: bool,
    body: Bytes,
}

impl RpcAnswer {
    /// Judges the bytes that a method answered to the request of this id.
    ///
    /// They are kept as they are. Only where `jsonrpc` is missing it is put in front: what we deliver always has it.
    ///
    /// # Errors
    /// When they are no JSON, no single response, or the response to another id. The sender is then told -32603.
    pub fn read(id: &RpcId, body: &Bytes) -> Result<Self, InvalidAnswer> {
        let json = str::from_utf8(body).map_err(|_| InvalidAnswer::NoJson)?;
        let whole: &RawValue = serde_json::from_str(json).map_err(|_| InvalidAnswer::NoJson)?;
        let members = Members::read(whole).map_err(|_| InvalidAnswer::NoResponse)?;
        let version = members.value("jsonrpc");
        if members.duplicate().is_some() || version.is_some_and(|version| text(version).as_deref() != Some(VERSION)) {
            return Err(InvalidAnswer::NoResponse);
        }
        let is_error = match (members.value("result"), members.value("error")) {
            (Some(_), None) => false,
            (None, Some(error)) if serde_json::from_str::<RpcError>(error.get()).is_ok() => true,
            _ => return Err(InvalidAnswer::NoResponse),
        };
        let answered = members.value("id").ok_or(InvalidAnswer::NoResponse)?;
        if serde_json::from_str::<RpcId>(answered.get()).ok().as_ref() != Some(id) {
            return Err(InvalidAnswer::OtherId);
        }
        let body = match version {
            Some(_) => body.clone(),
            None => whole.get().replacen('{', r#"{"jsonrpc":"2.0","#, 1).into(),
        };
        Ok(Self { is_error, body })
    }

    /// Whether it carries an error.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        self.is_error
    }

    /// The bytes.
    #[must_use]
    pub fn into_body(self) -> Bytes {
        self.body
    }
}

/// Bodies are never printed: their length is.
impl std::fmt::Debug for RpcAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RpcAnswer").field("is_error", &self.is_error).field("bytes", &self.body.len()).finish()
    }
}

/// Why a method's answer cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAnswer {
    /// It is no JSON text.
    #[error("the method answered no JSON")]
    NoJson,
    /// It is JSON, but no single response object.
    #[error("the method answered no JSON-RPC response")]
    NoResponse,
    /// It is the response to another request.
    #[error("the method answered with another id")]
    OtherId,
}
