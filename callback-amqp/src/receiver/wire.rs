//! A message of AMQP 0-9-1 as one of ours: CloudEvents 1.0 in binary mode, Standard Webhooks, or properties alone.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use callback_core::{Message, MessageBuilder, MessageId, Payload};
use callback_receive::Incoming;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use sha2::{Digest as _, Sha256};
use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The type of what says none.
const PLAIN: &str = "callback.received";

/// Why this is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(Cow<'static, str>);

/// The message, with its signature as it came.
///
/// A header counts before the property that says the same. The delivery's id is `webhook-id`, else `message_id`; without
/// them a digest of CloudEvents' source and id; without those, a new one. A property that a message cannot carry, and a
/// header that is none of the protocol, is left out. `handle` is no subject, though it may stand in `correlation_id`.
pub(super) fn incoming(properties: &BasicProperties, body: Bytes, handle: &str) -> Result<Incoming, Malformed> {
    let incoming = Incoming::new(message_of(properties, body, handle)?).stored();
    let headers = Headers(properties.headers().as_ref());
    let (timestamp, signature) = (headers.text("webhook-timestamp")?, headers.text("webhook-signature")?);
    Ok(match (timestamp, signature) {
        (None, None) => incoming,
        (timestamp, signature) => incoming.signed(timestamp.unwrap_or_default(), signature.unwrap_or_default()),
    })
}

fn message_of(properties: &BasicProperties, body: Bytes, handle: &str) -> Result<Message, Malformed> {
    let headers = Headers(properties.headers().as_ref());
    let property = |property: &Option<ShortString>| property.as_ref().map(|text| text.as_str().to_owned());
    let content_type = match property(properties.content_type()) {
        None => headers.text("content-type")?.map(Cow::into_owned),
        given => given,
    };
    let payload = Payload::new(content_type.unwrap_or_else(|| "application/octet-stream".to_owned()), body);
    let named = match headers.text("webhook-id")? {
        Some(id) => Some(id.parse().map_err(|error| malformed(format!("webhook-id cannot be read: {error}")))?),
        None => match property(properties.message_id()) {
            Some(id) => Some(id.parse().or_else(|_| digest(&id))?),
            None => None,
        },
    };
    let mut builder = match headers.attribute("ce-specversion")? {
        None => plain(named.unwrap_or_else(MessageId::new), properties),
        Some(version) if version == "1.0" => {
            let id = headers.required("ce-id")?;
            let source = headers.required("ce-source")?;
            let delivery = match named {
                Some(id) => id,
                // CloudEvents 1.0.2 §3.1: source and id together name an event.
                None => digest(&format!("{source}\n{id}"))?,
            };
            let event = id.parse().or_else(|_| digest(&id))?;
            let mut builder = Message::builder(headers.required("ce-type")?);
            builder = builder.id(delivery).event_id(event).source(source);
            if let Some(correlation) = headers.attribute("ce-correlationid")? {
                builder = builder.correlation_id(correlation);
            }
            // CloudEvents extension *Sequence* 1.0.2: another type, or a number that is none of it, is left out.
            if headers.attribute("ce-sequencetype")?.is_some_and(|kind| kind == "Integer")
                && let Some(number) = headers.attribute("ce-sequence")?.and_then(|number| number.parse().ok())
                && (1..=0x7fff_ffff).contains(&number)
            {
                builder = builder.sequence(number);
            }
            builder
        }
        Some(_) => return Err(malformed("ce-specversion must be 1.0")),
    };
    if let Some(time) = headers.attribute("ce-time")? {
        builder = builder.time(parse_time(&time)?);
    } else if let Some(time) = properties.timestamp().and_then(seconds) {
        builder = builder.time(time);
    }
    if let Some(subject) = headers.attribute("ce-subject")? {
        builder = builder.subject(subject);
    } else if let Some(subject) = property(properties.correlation_id()).filter(|subject| is_subject(subject, handle)) {
        builder = builder.subject(subject);
    }
    for (name, value) in headers.all() {
        if is_kept(name.as_str())
            && let Ok(Some(value)) = text(name.as_str(), value)
            && value.len() <= 8_192
            && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        {
            builder = builder.header(name.as_str(), value);
        }
    }
    builder.payload(payload).build().map_err(|error| malformed(error.to_string()))
}

/// A message that is no event of CloudEvents, by its properties.
fn plain(id: MessageId, properties: &BasicProperties) -> MessageBuilder {
    let graphic = |property: &Option<ShortString>| {
        let text = property.as_ref()?.as_str();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
    };
    let builder = Message::builder(graphic(properties.kind()).unwrap_or_else(|| PLAIN.to_owned())).id(id);
    match graphic(properties.app_id()) {
        Some(source) => builder.source(source),
        None => builder,
    }
}

/// The headers by name.
struct Headers<'a>(Option<&'a FieldTable>);

impl<'a> Headers<'a> {
    fn all(&self) -> impl Iterator<Item = (&'a ShortString, &'a AMQPValue)> {
        self.0.into_iter().flat_map(|table| table.inner())
    }

    fn text(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, Malformed> {
        match self.0.and_then(|table| table.inner().get(name)) {
            Some(value) => text(name, value),
            None => Ok(None),
        }
    }

    /// The value of an attribute, decoded (HTTP Protocol Binding 1.0.2 §3.1.3.2).
    fn attribute(&self, name: &'static str) -> Result<Option<Cow<'a, str>>, Malformed> {
        let Some(value) = self.text(name)? else { return Ok(None) };
        match decode(&value) {
            Some(decoded) => Ok(Some(decoded.into())),
            None => Err(malformed(format!("{name} is not percent-encoded UTF-8"))),
        }
    }

    fn required(&self, name: &'static str) -> Result<Cow<'a, str>, Malformed> {
        self.attribute(name)?.ok_or_else(|| malformed(format!("{name} is missing")))
    }
}

/// A value as text; clients write numbers as such.
fn text<'a>(name: &str, value: &'a AMQPValue) -> Result<Option<Cow<'a, str>>, Malformed> {
    let text = match value {
        AMQPValue::LongString(text) => str::from_utf8(text.as_bytes()).ok().map(Cow::Borrowed),
        AMQPValue::ShortString(text) => Some(text.as_str().into()),
        AMQPValue::ByteArray(bytes) => str::from_utf8(bytes.as_slice()).ok().map(Cow::Borrowed),
        AMQPValue::ShortShortInt(number) => Some(number.to_string().into()),
        AMQPValue::ShortShortUInt(number) => Some(number.to_string().into()),
        AMQPValue::ShortInt(number) => Some(number.to_string().into()),
        AMQPValue::ShortUInt(number) => Some(number.to_string().into()),
        AMQPValue::LongInt(number) => Some(number.to_string().into()),
        AMQPValue::LongUInt(number) => Some(number.to_string().into()),
        AMQPValue::LongLongInt(number) => Some(number.to_string().into()),
        AMQPValue::Timestamp(seconds) => Some(seconds.to_string().into()),
        AMQPValue::Void => return Ok(None),
        _ => None,
    };
    text.map(Some).ok_or_else(|| malformed(format!("the header {name} is no text")))
}

/// What a message has elsewhere, and what it cannot carry.
const LEFT_OUT: [&str; 18] = [
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

fn is_kept(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let name = name.to_ascii_lowercase();
    let is_attribute = name.starts_with("ce-") || name.starts_with("ce_") || name.starts_with("webhook-");
    !is_attribute && !name.is_empty() && name.bytes().all(token) && LEFT_OUT.binary_search(&&*name).is_err()
}

fn is_subject(text: &str, handle: &str) -> bool {
    text != handle && !text.is_empty() && !text.chars().any(char::is_control)
}

/// A value without quotes and percent-encoding; `None` where it is not UTF-8.
fn decode(value: &str) -> Option<String> {
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = quoted.unwrap_or(value).bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                decoded.push(u8::try_from(high << 4 | low).ok()?);
            }
            b'\\' if quoted.is_some() => decoded.push(bytes.next()?),
            byte => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).ok()
}

/// An id that is made of a text.
fn digest(text: &str) -> Result<MessageId, Malformed> {
    let id = format!("ce_{}", BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(text)[..24]));
    id.parse().map_err(|_| malformed("the id cannot be read"))
}

fn parse_time(text: &str) -> Result<SystemTime, Malformed> {
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.map(SystemTime::from).map_err(|_| malformed("ce-time is no time of RFC 3339"))
}

/// A time in seconds, where a message can have it.
fn seconds(seconds: u64) -> Option<SystemTime> {
    (seconds < 253_402_300_800).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

fn malformed(reason: impl Into<Cow<'static, str>>) -> Malformed {
    Malformed(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use callback_core::{Attempt, Signer};
    use proptest::prelude::*;

    const HANDLE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn table(lines: &[(&str, &str)]) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in lines {
            headers.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        BasicProperties::default().with_headers(headers)
    }

    fn debug(properties: &BasicProperties) -> Result<String, Malformed> {
        incoming(properties, "body".into(), HANDLE).map(|incoming| format!("{incoming:?}"))
    }

    const EVENT: [(&str, &str); 4] =
        [("ce-specversion", "1.0"), ("ce-id", "e1"), ("ce-source", "/orders"), ("ce-type", "order.completed")];

    #[test]
    fn what_we_send_is_read_as_it_was() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_614_265_330_250);
        let message = Message::builder("callback.rpc.completed")
            .id("msg_p5jXN8AQM9LWM0D4loKWxJek".parse().expect("valid"))
            .event_id("event-1".parse().expect("valid"))
            .source("/orders")
            .subject("Bestellung für 😀")
            .correlation_id("ray 7")
            .sequence(7)
            .time(time)
            .header("x-request-id", "r-1")
            .payload(Payload::new("application/json", &br#"{"test": 2432232314}"#[..]))
            .build()
            .expect("valid");
        let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("valid");
        let attempt = Attempt::new(3, time, std::time::Instant::now()).sign(&signer, &message);
        let address = Address::of(&"amqp:///?queue=q".parse().expect("a Dsn")).expect("an address");
        let properties = crate::wire::properties(&address, &message, &attempt, 100_000).expect("it fits");
        let read = incoming(&properties, message.body().clone(), HANDLE).expect("a message");
        let signed: Vec<_> = attempt.headers(&message).collect();
        let signature = &signed.iter().find(|(name, _)| *name == "webhook-signature").expect("signed").1;
        let expected = Incoming::new(message.clone()).signed("1614265330", signature.clone().into_owned()).stored();
        assert_eq!(format!("{read:?}"), format!("{expected:?}"));
        // Debug has but a part of it: so all of it once, by what is made of it again.
        let again = |message: &Message| crate::wire::properties(&address, message, &attempt, 100_000).expect("it fits");
        let Ok(copy) = message_of(&properties, message.body().clone(), HANDLE) else { panic!("no message") };
        assert_eq!((again(&copy), copy.body()), (properties, message.body()));
    }

    #[test]
    fn properties_say_what_no_header_says() {
        let properties = BasicProperties::default()
            .with_message_id("order-1".into())
            .with_type("order.completed".into())
            .with_app_id("shop".into())
            .with_correlation_id("12345".into())
            .with_content_type("text/plain".into())
            .with_timestamp(1_614_265_330);
        let message = message_of(&properties, "body".into(), HANDLE).expect("a message");
        assert_eq!(
            (message.id().as_str(), message.event_type(), message.source()),
            ("order-1", "order.completed", "shop")
        );
        assert_eq!((message.subject(), message.content_type()), (Some("12345"), "text/plain"));
        assert_eq!(message.time(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_614_265_330));
    }

    #[test]
    fn a_sequence_that_is_none_is_left_out() {
        for (number, kind) in [("7", "Other"), ("0", "Integer"), ("x", "Integer"), ("2147483648", "Integer")] {
            let properties = table(&[&EVENT[..], &[("ce-sequence", number), ("ce-sequencetype", kind)]].concat());
            let message = message_of(&properties, "".into(), HANDLE).expect("a message");
            assert_eq!(message.sequence(), None, "{number} {kind}");
        }
    }

    #[test]
    fn a_handle_is_no_subject() {
        let properties = BasicProperties::default().with_correlation_id(HANDLE.into());
        assert_eq!(message_of(&properties, "".into(), HANDLE).expect("a message").subject(), None);
    }

    #[test]
    fn what_says_nothing_is_a_message() {
        let message = message_of(&BasicProperties::default(), "body".into(), HANDLE).expect("a message");
        assert_eq!((message.event_type(), message.content_type()), (PLAIN, "application/octet-stream"));
        let other = message_of(&BasicProperties::default(), "body".into(), HANDLE).expect("a message");
        assert_ne!(message.id(), other.id(), "what has no id is new each time");
        // What a message cannot carry does not keep it out.
        let odd = BasicProperties::default()
            .with_message_id("urn:uuid:1 2".into())
            .with_type("a b".into())
            .with_app_id("ö".into())
            .with_correlation_id("a\nb".into())
            .with_timestamp(u64::MAX);
        let message = message_of(&odd, "".into(), HANDLE).expect("a message");
        assert_eq!((message.event_type(), message.source(), message.subject()), (PLAIN, "/", None));
        assert_eq!(
            message.id(),
            message_of(&odd, "".into(), HANDLE).expect("a message").id(),
            "its id is one all the same"
        );
    }

    #[test]
    fn a_message_without_an_id_is_known_by_source_and_id_of_its_event() {
        let id = |lines: &[(&str, &str)]| message_of(&table(lines), "".into(), HANDLE).expect("a message").id().clone();
        assert_eq!(id(&EVENT), id(&EVENT));
        assert_ne!(id(&EVENT), id(&[EVENT[0], ("ce-id", "e2"), EVENT[2], EVENT[3]]));
    }

    #[test]
    fn numbers_are_text_too() {
        let mut headers = FieldTable::default();
        headers.insert("webhook-timestamp".into(), AMQPValue::LongLongInt(1_614_265_330));
        headers.insert("x-count".into(), AMQPValue::LongInt(-7));
        headers.insert("x-flag".into(), AMQPValue::Boolean(true));
        headers.insert("x-death".into(), AMQPValue::FieldTable(FieldTable::default()));
        let properties = BasicProperties::default().with_headers(headers);
        let message = message_of(&properties, "".into(), HANDLE).expect("a message");
        assert_eq!(message.headers().collect::<Vec<_>>(), [("x-count", "-7")], "what is no text is left out");
        assert!(debug(&properties).expect("a message").contains("is_signed: true"));
    }

    #[track_caller]
    fn refused(properties: &BasicProperties, word: &str) {
        let error = debug(properties).expect_err("no message").to_string();
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        refused(&table(&EVENT[..2]), "ce-source");
        refused(&table(&[("ce-specversion", "0.3")]), "ce-specversion");
        refused(&table(&[&EVENT[..], &[("ce-time", "yesterday")]].concat()), "ce-time");
        refused(&table(&[&EVENT[..], &[("ce-subject", "%C0%A0")]].concat()), "ce-subject");
        refused(&table(&[&EVENT[..], &[("ce-subject", "%4")]].concat()), "ce-subject");
        refused(&table(&[("webhook-id", "a.b")]), "webhook-id");
        refused(&table(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/"), ("ce-type", "a%20b")]), "type");
        let mut headers = FieldTable::default();
        headers.insert("webhook-signature".into(), AMQPValue::Boolean(true));
        refused(&BasicProperties::default().with_headers(headers), "webhook-signature is no text");
    }

    #[test]
    fn every_header_that_no_message_may_have_is_left_out() {
        assert!(LEFT_OUT.is_sorted());
        for name in LEFT_OUT.into_iter().chain(["", "a b", "größe", "Authorization", "CE-other", "webhook-other"]) {
            let message = message_of(&table(&[(name, "1")]), "".into(), HANDLE).expect("a message");
            assert_eq!(message.headers().count(), 0, "{name}");
        }
        let long = "v".repeat(8_193);
        let message = message_of(&table(&[("x-long", &long), ("X-Kept", "1")]), "".into(), HANDLE).expect("a message");
        assert_eq!(message.headers().collect::<Vec<_>>(), [("x-kept", "1")]);
    }

    proptest! {
        #[test]
        fn hostile_properties_never_panic(
            names in proptest::collection::vec("(ce-[a-z]{1,12}|webhook-(id|timestamp|signature)|.{0,20})", 0..8),
            value in proptest::collection::vec(any::<u8>(), 0..40),
            text in ".{0,60}",
            seconds: u64,
        ) {
            let mut headers = FieldTable::default();
            for name in names {
                headers.insert(name.as_str().into(), AMQPValue::LongString(value.clone().into()));
            }
            let short = || ShortString::from(text.as_str());
            let plain = BasicProperties::default()
                .with_message_id(short()).with_type(short()).with_app_id(short()).with_correlation_id(short())
                .with_content_type(short()).with_timestamp(seconds);
            // Properties alone are always a message.
            prop_assert!(incoming(&plain, Bytes::new(), HANDLE).is_ok());
            let _ = incoming(&plain.with_headers(headers), Bytes::new(), HANDLE);
        }
    }
}
