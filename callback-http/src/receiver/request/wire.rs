//! A request as a message: CloudEvents 1.0 in binary mode, Standard Webhooks, or neither.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use callback_core::{Message, MessageId, Payload};
use callback_receive::Incoming;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use std::{borrow::Cow, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The type of what says none.
const PLAIN: &str = "callback.received";

/// Why a request is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(Cow<'static, str>);

/// The message of a request, with its signature as it came.
///
/// The delivery's id is `webhook-id`; without one, a digest of CloudEvents' source and id; without those, a new one. What a
/// message cannot carry (credentials, and what HTTP itself sets) is left out.
pub(super) fn incoming(headers: &HeaderMap, body: Bytes) -> Result<Incoming, Malformed> {
    let known = Known::of(headers)?;
    let mut builder = match known.attribute(SPEC_VERSION)? {
        None => Message::builder(PLAIN).id(match known.text(WEBHOOK_ID)? {
            Some(id) => delivery_id(id)?,
            None => MessageId::new(),
        }),
        Some(version) if version == "1.0" => {
            let id = known.required(ID)?;
            let source = known.required(SOURCE)?;
            let delivery = match known.text(WEBHOOK_ID)? {
                Some(id) => delivery_id(id)?,
                // CloudEvents 1.0.2 §3.1: source and id together name an event.
                None => digest(&format!("{source}\n{id}"))?,
            };
            let mut builder = Message::builder(known.required(TYPE)?);
            if source != "/" {
                builder = builder.source(source);
            }
            if id != delivery.as_str() {
                builder = builder.event_id(id.parse().or_else(|_| digest(&id))?);
            }
            builder = builder.id(delivery);
            if let Some(time) = known.attribute(TIME)? {
                builder = builder.time(parse_time(&time)?);
            }
            if let Some(subject) = known.attribute(SUBJECT)? {
                builder = builder.subject(subject);
            }
            if let Some(correlation) = known.attribute(CORRELATION_ID)? {
                builder = builder.correlation_id(correlation);
            }
            builder
        }
        Some(_) => return Err(Malformed("ce-specversion must be 1.0".into())),
    };
    for (name, value) in headers {
        if is_kept(name.as_str())
            && let Ok(value) = value.to_str()
            && value.len() <= 8_192
            && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        {
            builder = builder.header(name.as_str(), value);
        }
    }
    let payload = match known.text(CONTENT_TYPE)? {
        None => Payload::from(body),
        Some(content_type) => Payload::new(content_type, body),
    };
    let message = builder.payload(payload).build();
    let incoming = Incoming::new(message.map_err(|error| Malformed(error.to_string().into()))?);
    Ok(match (known.text(WEBHOOK_TIMESTAMP)?, known.text(WEBHOOK_SIGNATURE)?) {
        (None, None) => incoming,
        (timestamp, signature) => incoming.signed(timestamp.unwrap_or_default(), signature.unwrap_or_default()),
    })
}

/// The headers that a message is made of; found in one pass, since looking a name up in a map costs as much as reading it.
#[derive(Default)]
struct Known<'a>([Option<&'a HeaderValue>; NAMES]);

/// A header by its place and its name.
struct Name(usize, &'static str);

const NAMES: usize = 11;
const CORRELATION_ID: Name = Name(0, "ce-correlationid");
const ID: Name = Name(1, "ce-id");
const SOURCE: Name = Name(2, "ce-source");
const SPEC_VERSION: Name = Name(3, "ce-specversion");
const SUBJECT: Name = Name(4, "ce-subject");
const TIME: Name = Name(5, "ce-time");
const TYPE: Name = Name(6, "ce-type");
const CONTENT_TYPE: Name = Name(7, "content-type");
const WEBHOOK_ID: Name = Name(8, "webhook-id");
const WEBHOOK_SIGNATURE: Name = Name(9, "webhook-signature");
const WEBHOOK_TIMESTAMP: Name = Name(10, "webhook-timestamp");

impl Name {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "ce-correlationid" => CORRELATION_ID,
            "ce-id" => ID,
            "ce-source" => SOURCE,
            "ce-specversion" => SPEC_VERSION,
            "ce-subject" => SUBJECT,
            "ce-time" => TIME,
            "ce-type" => TYPE,
            "content-type" => CONTENT_TYPE,
            "webhook-id" => WEBHOOK_ID,
            "webhook-signature" => WEBHOOK_SIGNATURE,
            "webhook-timestamp" => WEBHOOK_TIMESTAMP,
            _ => return None,
        })
    }
}

impl<'a> Known<'a> {
    /// Each is there once at most.
    fn of(headers: &'a HeaderMap) -> Result<Self, Malformed> {
        let mut known = Self::default();
        for (name, value) in headers {
            if let Some(Name(place, name)) = Name::of(name.as_str())
                && known.0[place].replace(value).is_some()
            {
                return Err(Malformed(format!("{name} is there twice").into()));
            }
        }
        Ok(known)
    }

    /// The value as it is.
    fn text(&self, Name(place, name): Name) -> Result<Option<&'a str>, Malformed> {
        let Some(value) = self.0[place] else { return Ok(None) };
        match value.to_str() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Malformed(format!("{name} must be visible ASCII").into())),
        }
    }

    /// The value of an attribute, decoded (HTTP Protocol Binding 1.0.2 §3.1.3.2).
    fn attribute(&self, name: Name) -> Result<Option<Cow<'a, str>>, Malformed> {
        let text = name.1;
        let Some(value) = self.text(name)? else { return Ok(None) };
        match decode(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Malformed(format!("{text} is not percent-encoded UTF-8").into())),
        }
    }

    fn required(&self, name: Name) -> Result<Cow<'a, str>, Malformed> {
        let text = name.1;
        self.attribute(name)?.ok_or_else(|| Malformed(format!("{text} is missing").into()))
    }
}

/// Whether the message has it as a header of its own: what it has elsewhere, what it cannot carry, and what is of the
/// connection is left out.
fn is_kept(name: &str) -> bool {
    let is_attribute = name.starts_with("ce-") || name.starts_with("ce_") || name.starts_with("webhook-");
    let is_left_out = matches!(
        name,
        "accept"
            | "accept-charset"
            | "accept-encoding"
            | "accept-language"
            | "authorization"
            | "callback-attempt"
            | "connection"
            | "content-encoding"
            | "content-length"
            | "content-type"
            | "cookie"
            | "date"
            | "expect"
            | "host"
            | "keep-alive"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "traceparent"
            | "tracestate"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "user-agent"
    );
    !is_attribute && !is_left_out && name.len() <= 255
}

/// Takes quotes and percent-encoding off; most values have neither.
fn decode(value: &str) -> Option<Cow<'_, str>> {
    if !value.bytes().any(|byte| matches!(byte, b'%' | b'"')) {
        return Some(value.into());
    }
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let value = quoted.unwrap_or(value);
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
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
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn delivery_id(text: &str) -> Result<MessageId, Malformed> {
    text.parse().map_err(|error| Malformed(format!("webhook-id cannot be read: {error}").into()))
}

/// An id that is made of a text.
fn digest(text: &str) -> Result<MessageId, Malformed> {
    let id = format!("ce_{}", BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(text)[..24]));
    id.parse().map_err(|_| Malformed("ce-id cannot be read".into()))
}

fn parse_time(text: &str) -> Result<SystemTime, Malformed> {
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.map(SystemTime::from).map_err(|_| Malformed("ce-time is no time of RFC 3339".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use proptest::prelude::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"))
        };
        lines.iter().map(line).collect()
    }

    fn debug(lines: &[(&str, &str)]) -> Result<String, Malformed> {
        incoming(&headers(lines), "body".into()).map(|incoming| format!("{incoming:?}"))
    }

    const EVENT: [(&str, &str); 4] =
        [("ce-specversion", "1.0"), ("ce-id", "e1"), ("ce-source", "/orders"), ("ce-type", "order.completed")];

    #[test]
    fn what_we_send_is_read_as_it_was() {
        let golden = include_str!("../../../tests/golden/request-headers.txt");
        let lines: Vec<_> = golden.lines().filter_map(|line| line.split_once(": ")).collect();
        let text = debug(&lines).expect("a message");
        for part in ["msg_p5jXN8AQM9LWM0D4loKWxJek", "callback.rpc.completed", "Bestellung für 😀", "is_signed: true"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_message_without_an_id_is_known_by_source_and_id_of_its_event() {
        let one = debug(&EVENT).expect("a message");
        assert_eq!(one.split("time").next(), debug(&EVENT).expect("a message").split("time").next());
        let other = [EVENT[0], ("ce-id", "e2"), EVENT[2], EVENT[3]];
        assert_ne!(one, debug(&other).expect("a message"));
        assert_ne!(debug(&[]).expect("plain"), debug(&[]).expect("plain"), "what has no id is new each time");
    }

    #[track_caller]
    fn refused(lines: &[(&str, &str)], word: &str) {
        let error = debug(lines).expect_err("no message").to_string();
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        refused(&EVENT[..2], "ce-source");
        refused(&[("ce-specversion", "0.3")], "ce-specversion");
        refused(&[&EVENT[..], &[("ce-time", "yesterday")]].concat(), "ce-time");
        refused(&[&EVENT[..], &[("ce-subject", "%C0%A0")]].concat(), "ce-subject");
        refused(&[&EVENT[..], &[("ce-subject", "%4")]].concat(), "ce-subject");
        refused(&[("webhook-id", "a.b")], "webhook-id");
        refused(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/"), ("ce-type", "a%20b")], "type");
        let mut twice = headers(&[("webhook-id", "a")]);
        twice.append("webhook-id", HeaderValue::from_static("b"));
        assert!(incoming(&twice, Bytes::new()).is_err());
    }

    #[test]
    fn attributes_are_decoded() {
        assert_eq!(decode("Euro%20%E2%82%AC%20%F0%9F%98%80").as_deref(), Some("Euro € 😀"));
        assert_eq!(decode(r#""a \"b\" c""#).as_deref(), Some(r#"a "b" c"#));
        assert_eq!(decode("%C0%A0"), None);
        assert_eq!(decode("100%"), None);
    }

    #[test]
    fn every_header_that_no_message_may_have_is_left_out() {
        for name in ["authorization", "callback-attempt", "cookie", "host", "traceparent", "user-agent"] {
            assert!(!is_kept(name) && debug(&[(name, "1")]).is_ok(), "{name}");
        }
        assert!(is_kept("x-github-event") && is_kept("stripe-signature") && !is_kept("ce-type"));
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(
            names in proptest::collection::vec("(ce-[a-z]{1,12}|webhook-(id|timestamp|signature)|[a-z-]{1,20})", 0..8),
            value in proptest::collection::vec(32_u8..=255, 0..40),
        ) {
            let mut map = HeaderMap::new();
            for name in names {
                if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(&value)) {
                    map.append(name, value);
                }
            }
            map.append("ce-specversion", HeaderValue::from_static("1.0"));
            let _ = incoming(&map, Bytes::new());
        }
    }
}
