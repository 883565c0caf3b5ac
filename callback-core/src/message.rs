//! What is delivered.

use crate::{MessageId, Payload, RpcOutcome, RpcResponse};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::{borrow::Cow, fmt, sync::Arc, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// What is delivered: the same on every transport, and in every attempt. Cheap to clone.
///
/// Its attributes are those of CloudEvents 1.0 in binary mode, so any CloudEvents SDK reads it; the body is the data,
/// untouched.
///
/// ```
/// use callback_core::Message;
/// use serde_json::json;
///
/// let message = Message::builder("order.completed")
///     .source("/orders")
///     .subject("12345")
///     .payload(json!({ "status": "completed" }))
///     .build()?;
/// assert_eq!(message.event_type(), "order.completed");
/// assert_eq!(message.content_type(), "application/json");
/// # Ok::<_, callback_core::MessageError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Message(Arc<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    /// Made by `build` where none is set.
    id: Option<MessageId>,
    event_id: Option<MessageId>,
    event_type: String,
    source: Cow<'static, str>,
    subject: Option<String>,
    correlation_id: Option<String>,
    sequence: Option<u32>,
    time: SystemTime,
    headers: Vec<(String, String)>,
    payload: Payload,
}

impl Message {
    /// Begins a message of this type: 1 to 255 printable ASCII characters, `order.completed` for example.
    pub fn builder(event_type: impl Into<String>) -> MessageBuilder {
        MessageBuilder(Inner {
            id: None,
            event_id: None,
            event_type: event_type.into(),
            source: Cow::Borrowed("/"),
            subject: None,
            correlation_id: None,
            sequence: None,
            time: SystemTime::now(),
            headers: Vec::new(),
            payload: Payload::from(Bytes::new()),
        })
    }

    /// Begins a message that differs from this one in what is set next.
    pub fn to_builder(&self) -> MessageBuilder {
        MessageBuilder(Inner::clone(&self.0))
    }

    /// The delivery's id: stable over retries; receivers deduplicate by it.
    ///
    /// # Panics
    /// Never: a message that was built has one.
    #[must_use]
    pub fn id(&self) -> &MessageId {
        self.0.id.as_ref().expect("a message that was built has an id")
    }

    /// The event's id; of a result, the delivery's.
    #[must_use]
    pub fn event_id(&self) -> &MessageId {
        self.0.event_id.as_ref().unwrap_or_else(|| self.id())
    }

    /// What happened: CloudEvents `type`.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.0.event_type
    }

    /// Who says so: CloudEvents `source`, a URI-reference. Default `/`.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// What it is about: the task or subscription.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }

    /// The client's own correlation id (`$rpc.rayId`): CloudEvents extension `correlationid`.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        self.0.correlation_id.as_deref()
    }

    /// Its number among the messages that are sent in order with it, from 1: CloudEvents extension `sequence`.
    #[must_use]
    pub fn sequence(&self) -> Option<u32> {
        self.0.sequence
    }

    /// When it happened, in whole microseconds.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        self.0.time
    }

    /// The body with its content type.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.0.payload
    }

    /// The body's media type.
    #[must_use]
    pub fn content_type(&self) -> &str {
        self.0.payload.content_type()
    }

    /// The body: what is signed and sent.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        self.0.payload.body()
    }

    /// The value of an additional header, its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All additional headers.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The CloudEvents context attributes by their own names (CloudEvents 1.0.2 §3), without `datacontenttype`.
    ///
    /// A transport puts its prefix before each: `ce_` for Kafka. HTTP and AMQP have [`ce_headers`](Self::ce_headers).
    pub fn attributes(&self) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        self.prefixed_attributes().map(|(name, value)| (&name[PREFIX.len()..], value))
    }

    /// The attributes as headers of CloudEvents over HTTP (HTTP Protocol Binding 1.0.2 §3.1.3): `ce-id`, and so on.
    ///
    /// In a value, all but visible ASCII is percent-encoded, and so are space, `"` and `%` (§3.1.3.2).
    pub fn ce_headers(&self) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        self.prefixed_attributes().map(|(name, value)| match encode(&value) {
            Some(encoded) => (name, Cow::Owned(encoded)),
            None => (name, value),
        })
    }

    fn prefixed_attributes(&self) -> impl Iterator<Item = (&'static str, Cow<'_, str>)> {
        let time = OffsetDateTime::from(self.0.time).format(&Rfc3339).unwrap_or_default();
        [
            ("ce-specversion", Some(Cow::Borrowed("1.0"))),
            ("ce-id", Some(Cow::Borrowed(self.event_id().as_str()))),
            ("ce-type", Some(Cow::Borrowed(self.event_type()))),
            ("ce-source", Some(Cow::Borrowed(self.source()))),
            ("ce-time", Some(Cow::Owned(time))),
            ("ce-subject", self.subject().map(Cow::Borrowed)),
            ("ce-correlationid", self.correlation_id().map(Cow::Borrowed)),
            ("ce-sequence", self.sequence().map(|number| Cow::Owned(number.to_string()))),
            ("ce-sequencetype", self.sequence().map(|_| Cow::Borrowed("Integer"))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// The same message under another delivery id, which no receiver knows; the event's id stays.
    #[must_use]
    pub fn with_id(&self, id: MessageId) -> Self {
        let mut inner = Inner::clone(&self.0);
        inner.event_id = Some(self.event_id().clone());
        inner.id = Some(id);
        Self(Arc::new(inner))
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    /// When it is no JSON of this shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        self.0.payload.parse()
    }

    /// Reads the body as a JSON-RPC response: its result, or its error.
    ///
    /// # Errors
    /// When it is no JSON-RPC response, or the result is not of this shape.
    pub fn rpc<T: DeserializeOwned>(&self) -> Result<RpcOutcome<T>, serde_json::Error> {
        match self.json::<RpcResponse>()?.outcome {
            Ok(result) => serde_json::from_value(result).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }
}

/// Neither body nor header values are printed.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.0.id)
            .field("event_type", &self.0.event_type)
            .field("subject", &self.0.subject)
            .field("payload", &self.0.payload)
            .finish_non_exhaustive()
    }
}

/// Builds a [`Message`].
#[derive(Clone)]
#[must_use]
pub struct MessageBuilder(Inner);

impl MessageBuilder {
    /// Sets the delivery's id. Default: an id that nobody else has.
    pub fn id(mut self, id: MessageId) -> Self {
        self.0.id = Some(id);
        self
    }

    /// Sets the event's id. Default: the delivery's.
    pub fn event_id(mut self, id: MessageId) -> Self {
        self.0.event_id = Some(id);
        self
    }

    /// Sets when it happened, cut to whole microseconds. Default: when the builder was made.
    pub fn time(mut self, time: SystemTime) -> Self {
        self.0.time = time;
        self
    }

    /// Sets who says so: a URI-reference of 1 to 255 printable ASCII characters. Default `/`.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.0.source = Cow::Owned(source.into());
        self
    }

    /// Sets what it is about: 1 to 255 bytes without control characters.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.0.subject = Some(subject.into());
        self
    }

    /// Sets the client's correlation id: 1 to 128 printable ASCII characters.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.0.correlation_id = Some(id.into());
        self
    }

    /// Sets its number among the messages that are sent in order with it: 1 to 2,147,483,647.
    ///
    /// Sent with `sequencetype: Integer` (CloudEvents extension *Sequence*, 1.0.2): after the last number comes 1 again.
    pub fn sequence(mut self, number: u32) -> Self {
        self.0.sequence = Some(number);
        self
    }

    /// Adds a header; the name is put into lower case. What the protocol or HTTP itself sets is refused by `build`.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let mut name = name.into();
        name.make_ascii_lowercase();
        self.0.headers.push((name, value.into()));
        self
    }

    /// Sets the body. Default: empty, `application/octet-stream`.
    pub fn payload(mut self, payload: impl Into<Payload>) -> Self {
        self.0.payload = payload.into();
        self
    }

    /// Checks everything and makes the message.
    ///
    /// # Errors
    /// Names the part that no transport could carry.
    pub fn build(mut self) -> Result<Message, MessageError> {
        let inner = &mut self.0;
        let graphic = |text: &str, limit: usize| {
            (1..=limit).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !graphic(&inner.event_type, 255) {
            return Err(MessageError("the type must have 1 to 255 printable ASCII characters".into()));
        }
        if !graphic(&inner.source, 255) {
            return Err(MessageError("the source must have 1 to 255 printable ASCII characters".into()));
        }
        if let Some(subject) = &inner.subject
            && (!(1..=255).contains(&subject.len()) || subject.chars().any(char::is_control))
        {
            return Err(MessageError("the subject must have 1 to 255 bytes and no control character".into()));
        }
        if let Some(id) = &inner.correlation_id
            && !((1..=128).contains(&id.len()) && id.bytes().all(|byte| matches!(byte, b' '..=b'~')))
        {
            return Err(MessageError("the correlation id must have 1 to 128 printable ASCII characters".into()));
        }
        if inner.sequence.is_some_and(|number| !(1..=0x7fff_ffff).contains(&number)) {
            return Err(MessageError("the sequence must be a number from 1 to 2,147,483,647".into()));
        }
        for (name, value) in &inner.headers {
            check_header(name, value)?;
        }
        inner.time = whole_microseconds(inner.time)?;
        inner.id.get_or_insert_with(MessageId::new);
        Ok(Message(Arc::new(self.0)))
    }
}

impl fmt::Debug for MessageBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageBuilder").field("event_type", &self.0.event_type).finish_non_exhaustive()
    }
}

/// What the protocol, HTTP itself, or a transport sets; and credentials, which travel in a Dsn.
const RESERVED: [&str; 18] = [
    "authorization",
    "callback-attempt",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

fn check_header(name: &str, value: &str) -> Result<(), MessageError> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > 255 || !name.bytes().all(token) {
        return Err(MessageError("a header's name must be a token of RFC 9110 §5.6.2".into()));
    }
    if RESERVED.binary_search(&name).is_ok() || name.starts_with("webhook-") || is_attribute(name) {
        return Err(MessageError(format!("the header {name} cannot be set").into()));
    }
    if value.len() > 8_192 || !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        let reason = format!("the header {name} must have at most 8,192 printable ASCII characters");
        return Err(MessageError(reason.into()));
    }
    Ok(())
}

/// Whether CloudEvents has the name: `ce-` on HTTP and AMQP, `ce_` on Kafka.
fn is_attribute(name: &str) -> bool {
    name.starts_with("ce-") || name.starts_with("ce_")
}

/// What stands before the name of an attribute in a header of HTTP.
const PREFIX: &str = "ce-";

/// A value as a header of CloudEvents over HTTP; `None` where it is one already.
fn encode(value: &str) -> Option<String> {
    let plain = |byte: u8| matches!(byte, 0x21..=0x7e) && byte != b'"' && byte != b'%';
    if value.bytes().all(plain) {
        return None;
    }
    let mut encoded = String::with_capacity(value.len() * 3);
    for byte in value.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    Some(encoded)
}

fn whole_microseconds(time: SystemTime) -> Result<SystemTime, MessageError> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok();
    let cut = since.filter(|since| since.as_secs() < 253_402_300_800).map(|since| {
        SystemTime::UNIX_EPOCH + since - std::time::Duration::from_nanos(u64::from(since.subsec_nanos() % 1_000))
    });
    cut.ok_or_else(|| MessageError("the time must be within the years 1970 to 9999".into()))
}

/// A message that no transport could carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MessageError(Cow<'static, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn plain() -> MessageBuilder {
        Message::builder("a.b")
    }

    #[track_caller]
    fn refused(builder: MessageBuilder, word: &str) {
        let error = builder.build().expect_err("no transport could carry this").to_string();
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn what_no_transport_could_carry_is_refused() {
        refused(Message::builder(""), "type");
        refused(Message::builder("a b"), "type");
        refused(plain().source("ä"), "source");
        refused(plain().subject("a\nb"), "subject");
        refused(plain().correlation_id("x".repeat(129)), "correlation");
        refused(plain().sequence(0), "sequence");
        refused(plain().sequence(1 << 31), "sequence");
        refused(plain().header("x\r\ny", "1"), "token");
        refused(plain().header("x", "1\r\ny: 2"), "header x");
        refused(plain().time(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "time");
        refused(plain().time(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40)), "time");
    }

    #[test]
    fn what_the_protocol_sets_cannot_be_set() {
        for name in RESERVED.into_iter().chain(["Webhook-Id", "ce-type", "CE-ID", "ce_id"]) {
            refused(plain().header(name, "1"), "cannot be set");
        }
    }

    #[test]
    fn the_time_is_cut_to_microseconds() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(5, 1_999);
        let message = plain().time(time).build().expect("valid");
        assert_eq!(message.time(), SystemTime::UNIX_EPOCH + Duration::new(5, 1_000));
    }

    #[test]
    fn attributes_have_their_cloudevents_names() {
        let message = plain()
            .id("d1".parse().expect("valid"))
            .event_id("e1".parse().expect("valid"))
            .time(SystemTime::UNIX_EPOCH)
            .subject("s")
            .correlation_id("ray 1")
            .sequence(7)
            .build()
            .expect("valid");
        let attributes: Vec<String> = message.attributes().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = [
            "specversion=1.0",
            "id=e1",
            "type=a.b",
            "source=/",
            "time=1970-01-01T00:00:00Z",
            "subject=s",
            "correlationid=ray 1",
            "sequence=7",
            "sequencetype=Integer",
        ];
        assert_eq!(attributes, expected);
    }

    #[test]
    fn ce_headers_are_encoded_as_the_http_binding_says() {
        let message = plain().subject("Euro € 😀").correlation_id("100% \"a\"").build().expect("valid");
        let headers: Vec<_> = message.ce_headers().collect();
        assert_eq!(headers[0], ("ce-specversion", Cow::Borrowed("1.0")));
        assert_eq!(headers[5], ("ce-subject", Cow::Borrowed("Euro%20%E2%82%AC%20%F0%9F%98%80")));
        assert_eq!(headers[6], ("ce-correlationid", Cow::Borrowed("100%25%20%22a%22")));
        let names: Vec<String> = message.attributes().map(|(name, _)| format!("ce-{name}")).collect();
        assert!(headers.iter().map(|(name, _)| name).eq(&names), "{headers:?}");
    }

    #[test]
    fn debug_hides_body_and_headers() {
        let message = plain().payload("planted-body").header("x-key", "planted-value").build().expect("valid");
        let text = format!("{message:?} {:?}", message.to_builder());
        assert!(!text.contains("planted"), "{text}");
    }
}
