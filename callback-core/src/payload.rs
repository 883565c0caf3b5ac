//! A body with its content type.

use crate::Problem;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{borrow::Cow, fmt};

/// A body and its content type. The bytes are signed and delivered as they are.
///
/// Whatever has a body takes `impl Into<Payload>`: a [`serde_json::Value`] (`application/json`), a text
/// (`text/plain; charset=utf-8`), bytes (`application/octet-stream`), or a [`Problem`]. For a type of one's own there is
/// [`Payload::json`].
///
/// ```
/// use callback_core::Payload;
/// use serde_json::json;
///
/// let payload = Payload::from(json!({ "orderId": "12345" }));
/// assert_eq!(payload.content_type(), "application/json");
/// assert_eq!(payload.body(), r#"{"orderId":"12345"}"#);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    content_type: Cow<'static, str>,
    body: Bytes,
}

impl Payload {
    /// A body of this media type (RFC 9110 §8.3).
    ///
    /// A character that no header can carry is left out of the content type.
    pub fn new(content_type: impl Into<String>, body: impl Into<Bytes>) -> Self {
        let mut content_type = content_type.into();
        if !content_type.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            content_type.retain(|c| matches!(c, ' '..='~'));
        }
        Self { content_type: content_type.into(), body: body.into() }
    }

    /// JSON of any value that serde can write.
    ///
    /// # Errors
    /// When the value has no JSON form: a map whose keys are no strings, or a `Serialize` that fails.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        Ok(Self::from_json_bytes(serde_json::to_vec(value)?))
    }

    pub(crate) fn from_json_bytes(body: impl Into<Bytes>) -> Self {
        Self { content_type: Cow::Borrowed("application/json"), body: body.into() }
    }

    /// The media type.
    #[must_use]
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The bytes.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// Reads the bytes as JSON, whatever the content type says.
    ///
    /// # Errors
    /// When they are no JSON of this shape.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

/// Bodies are never printed: type and length are.
impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload").field("content_type", &self.content_type).field("bytes", &self.body.len()).finish()
    }
}

impl From<Value> for Payload {
    fn from(value: Value) -> Self {
        Self::from_json_bytes(value.to_string())
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self { content_type: Cow::Borrowed("text/plain; charset=utf-8"), body: text.into() }
    }
}

impl From<Bytes> for Payload {
    fn from(body: Bytes) -> Self {
        Self { content_type: Cow::Borrowed("application/octet-stream"), body }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(body: Vec<u8>) -> Self {
        Bytes::from(body).into()
    }
}

impl From<Problem> for Payload {
    fn from(problem: Problem) -> Self {
        // Strings and a number have a JSON form.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        Self { content_type: Cow::Borrowed(Problem::CONTENT_TYPE), body: body.into() }
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_body() {
        assert!(!format!("{:?}", Payload::from("secret")).contains("secret"));
    }

    #[test]
    fn what_no_header_can_carry_is_left_out() {
        assert_eq!(Payload::new("text/plain\r\nx: y", "").content_type(), "text/plainx: y");
    }
}
