//! What the parser and the policy know about a scheme.

/// The schemes that are read and judged alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Web,
    Session,
    Memory,
    Amqp,
    Kafka,
    Custom,
}

impl Family {
    pub(crate) fn of(scheme: &str) -> Self {
        match scheme {
            "http" | "https" | "ws" | "wss" => Self::Web,
            "session" => Self::Session,
            "memory" => Self::Memory,
            "amqp" | "amqps" => Self::Amqp,
            "kafka" | "kafka+ssl" | "kafka+sasl" | "kafka+sasl+ssl" => Self::Kafka,
            _ => Self::Custom,
        }
    }
}

/// The grammar of RFC 3986 §3.1.
pub(crate) fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

pub(crate) fn default_port(scheme: &str) -> Option<u16> {
    match (scheme, Family::of(scheme)) {
        ("http" | "ws", _) => Some(80),
        ("https" | "wss", _) => Some(443),
        ("amqp", _) => Some(5672),
        ("amqps", _) => Some(5671),
        (_, Family::Kafka) => Some(9092),
        _ => None,
    }
}

/// The crate of this workspace that serves the scheme.
pub(super) fn crate_of(scheme: &str) -> Option<&'static str> {
    match (scheme, Family::of(scheme)) {
        ("http" | "https", _) => Some("callback-http"),
        ("ws" | "wss" | "session", _) => Some("callback-ws"),
        (_, Family::Amqp) => Some("callback-amqp"),
        (_, Family::Kafka) => Some("callback-kafka"),
        (_, Family::Memory) => Some("callback-core"),
        _ => None,
    }
}
