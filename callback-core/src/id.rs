//! Identifiers of tasks and messages.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr, sync::Arc};
use uuid::Uuid;

/// Names one accepted task: a UUID version 7 (RFC 9562 §5.7).
///
/// Ids made in one process rise. They are no capability: whoever knows one has no right to what it names.
///
/// ```
/// use callback_core::TaskId;
///
/// let id = TaskId::new();
/// assert_eq!(id.to_string().parse::<TaskId>(), Ok(id));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(Uuid);

impl TaskId {
    /// Makes an id from the system's clock and random source.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default value that differs each time surprises")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The sixteen bytes, as a store keeps them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id of these sixteen bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

impl FromStr for TaskId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        // Only the form that `Display` writes: one id has one spelling.
        match Uuid::try_parse(text) {
            Ok(id) if text.len() == 36 => Ok(Self(id)),
            _ => Err(InvalidId::new("a task id is a hyphenated UUID")),
        }
    }
}

/// Names one delivery: stable over its retries, so that receivers deduplicate by it.
///
/// 1 to 64 characters of `A-Z a-z 0-9 _ -`: what every transport carries unchanged, and what the signed content of
/// Standard Webhooks allows (no `.`).
///
/// ```
/// use callback_core::MessageId;
///
/// assert!("msg_2b7".parse::<MessageId>().is_ok());
/// assert!("a.b".parse::<MessageId>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Arc<str>);

impl MessageId {
    /// Makes an id that nobody else has: a UUID version 7.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default value that differs each time surprises")]
    pub fn new() -> Self {
        TaskId::new().into()
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<TaskId> for MessageId {
    fn from(id: TaskId) -> Self {
        let mut text = Uuid::encode_buffer();
        Self(Arc::from(&*id.0.as_hyphenated().encode_lower(&mut text)))
    }
}

impl FromStr for MessageId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidId::new("a message id has 1 to 64 characters of A-Z a-z 0-9 _ -"))
        }
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

/// A text that is no id of the kind asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{expected}")]
pub struct InvalidId {
    expected: &'static str,
}

impl InvalidId {
    const fn new(expected: &'static str) -> Self {
        Self { expected }
    }
}

macro_rules! serde_as_text {
    ($($id:ty)*) => { $(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )* };
}

serde_as_text!(TaskId MessageId);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, valid: bool) {
        assert_eq!(text.parse::<MessageId>().is_ok(), valid, "{text:?}");
    }

    #[test]
    fn a_message_id_is_what_every_transport_carries() {
        check("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", true);
        check(&"a".repeat(64), true);
        check(&"a".repeat(65), false);
        check("", false);
        check("a.b", false);
        check("a b", false);
        check("ä", false);
        check("a\n", false);
    }

    #[test]
    fn a_task_id_has_one_spelling() {
        let id = TaskId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.0.as_simple().to_string().parse::<TaskId>().is_err());
        assert!(format!("{{{id}}}").parse::<TaskId>().is_err());
        assert_eq!(MessageId::from(id).as_str(), id.to_string());
    }

    #[test]
    fn ids_rise() {
        let ids: Vec<TaskId> = (0..100).map(|_| TaskId::new()).collect();
        assert!(ids.is_sorted());
    }
}
