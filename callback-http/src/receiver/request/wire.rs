//! A request as a message: CloudEvents 1.0 in binary or structured mode, Standard Webhooks, or neither.

mod structured;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use callback_core::{Message, MessageBuilder, MessageId, Payload};
use callback_receive::Incoming;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use std::{borrow::Cow, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The type of what says none.
const PLAIN: &str = "callback.received";

/// Why a request is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// Something in it cannot be read.
    #[error("{0}")]
    Content(Cow<'static, str>),
    /// CloudEvents in another format than JSON, or many at once.
    #[error("events of CloudEvents are read one at a time: by their headers, or as application/cloudevents+json")]
    Format,
}

/// The message of a request, with its signature as it came.
///
/// The delivery's id is `webhook-id`; without one, a digest of CloudEvents' source and id; without those, a new one. What a
/// message cannot carry (credentials, and what HTTP itself sets) is left out.
pub(super) fn incoming(headers: &HeaderMap, body: Bytes) -> Result<Incoming, Malformed> {
    let Read { message, signed, content } = read(headers, body)?;
    let incoming = Incoming::new(message);
    let incoming = match signed {
        None => incoming,
        Some((timestamp, signature)) => incoming.signed(timestamp, signature),
    };
    Ok(match content {
        None => incoming,
        Some(content) => incoming.signed_content(content),
    })
}

/// A request that was read.
struct Read {
    message: Message,
    /// Timestamp and signature.
    signed: Option<(String, String)>,
    /// What is signed, where that is not the message's body.
    content: Option<Bytes>,
}

fn read(headers: &HeaderMap, body: Bytes) -> Result<Read, Malformed> {
    let known = Known::of(headers)?;
    let content_type = known.text(CONTENT_TYPE)?;
    let named = known.text(WEBHOOK_ID)?.map(delivery_id).transpose()?;
    let signed = match (known.text(WEBHOOK_TIMESTAMP)?, known.text(WEBHOOK_SIGNATURE)?) {
        (None, None) => None,
        (timestamp, signature) => {
            Some((timestamp.unwrap_or_default().to_owned(), signature.unwrap_or_default().to_owned()))
        }
    };
    if let Some(Mode::Structured) = content_type.map(Mode::of).transpose()? {
        let event = structured::read(&body)?;
        let builder = with_headers(event.attributes.build(named)?, headers);
        let message = build(builder.payload(event.payload))?;
        // A webhook is signed as it is sent, envelope included.
        return Ok(match signed {
            Some(_) => Read { message, signed, content: Some(body) },
            None => Read { message, signed: event.signed, content: None },
        });
    }
    let builder = match known.attribute(SPEC_VERSION)? {
        None => Message::builder(PLAIN).id(named.unwrap_or_else(MessageId::new)),
        Some(version) if version == "1.0" => {
            let attributes = Attributes {
                delivery: None,
                id: known.required(ID)?,
                source: known.required(SOURCE)?,
                event_type: known.required(TYPE)?,
                time: known.attribute(TIME)?,
                subject: known.attribute(SUBJECT)?,
                correlation: known.attribute(CORRELATION_ID)?,
                sequence: known.attribute(SEQUENCE)?,
                sequence_type: known.attribute(SEQUENCE_TYPE)?,
            };
            attributes.build(named)?
        }
        Some(_) => return Err(Malformed::Content("ce-specversion must be 1.0".into())),
    };
    let payload = match content_type {
        None => Payload::from(body),
        Some(content_type) => Payload::new(content_type, body),
    };
    Ok(Read { message: build(with_headers(builder, headers).payload(payload))?, signed, content: None })
}

fn build(builder: MessageBuilder) -> Result<Message, Malformed> {
    builder.build().map_err(|error| Malformed::Content(error.to_string().into()))
}

/// How an event is sent, if it is one (HTTP Protocol Binding 1.0.2 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Binary,
    Structured,
}

impl Mode {
    fn of(content_type: &str) -> Result<Self, Malformed> {
        const EVENT: &str = "application/cloudevents";
        let media = content_type.split(';').next().unwrap_or_default().trim();
        match media.split_at_checked(EVENT.len()) {
            Some((event, format)) if event.eq_ignore_ascii_case(EVENT) => {
                if format.eq_ignore_ascii_case("+json") {
                    Ok(Self::Structured)
                } else {
                    Err(Malformed::Format)
                }
            }
            _ => Ok(Self::Binary),
        }
    }
}

/// The attributes of an event.
struct Attributes<'a> {
    delivery: Option<MessageId>,
    id: Cow<'a, str>,
    source: Cow<'a, str>,
    event_type: Cow<'a, str>,
    time: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    correlation: Option<Cow<'a, str>>,
    sequence: Option<Cow<'a, str>>,
    sequence_type: Option<Cow<'a, str>>,
}

impl Attributes<'_> {
    /// The message of this event; `named` is the delivery's id in the headers, which counts first.
    fn build(self, named: Option<MessageId>) -> Result<MessageBuilder, Malformed> {
        let Self { delivery, id, source, event_type, time, subject, correlation, sequence, sequence_type } = self;
        let delivery = match named.or(delivery) {
            Some(id) => id,
            // CloudEvents 1.0.2 §3.1: source and id together name an event.
            None => digest(&format!("{source}\n{id}"))?,
        };
        let mut builder = Message::builder(event_type);
        if source != "/" {
            builder = builder.source(source);
        }
        if id != delivery.as_str() {
            builder = builder.event_id(id.parse().or_else(|_| digest(&id))?);
        }
        builder = builder.id(delivery);
        if let Some(time) = time {
            builder = builder.time(parse_time(&time)?);
        }
        if let Some(subject) = subject {
            builder = builder.subject(subject);
        }
        if let Some(correlation) = correlation {
            builder = builder.correlation_id(correlation);
        }
        // CloudEvents extension *Sequence* 1.0.2: another type, or a number that is none of it, is left out.
        if sequence_type.is_some_and(|kind| kind == "Integer")
            && let Some(number) = sequence.and_then(|number| number.parse().ok())
            && (1..=0x7fff_ffff).contains(&number)
        {
            builder = builder.sequence(number);
        }
        Ok(builder)
    }
}

/// Adds the headers that are the sender's own.
fn with_headers(mut builder: MessageBuilder, headers: &HeaderMap) -> MessageBuilder {
    for (name, value) in headers {
        if is_kept(name.as_str())
            && let Ok(value) = value.to_str()
            && value.len() <= 8_192
            && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        {
            builder = builder.header(name.as_str(), value);
        }
    }
    builder
}

/// The headers that a message is made of; found in one pass, since looking a name up in a map costs as much as reading it.
#[derive(Default)]
struct Known<'a>([Option<&'a HeaderValue>; NAMES]);

/// A header by its place and its name.
struct Name(usize, &'static str);

const NAMES: usize = 13;
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
const SEQUENCE: Name = Name(11, "ce-sequence");
const SEQUENCE_TYPE: Name = Name(12, "ce-sequencetype");

impl Name {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "ce-correlationid" => CORRELATION_ID,
            "ce-id" => ID,
            "ce-sequence" => SEQUENCE,
            "ce-sequencetype" => SEQUENCE_TYPE,
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
                return Err(Malformed::Content(format!("{name} is there twice").into()));
            }
        }
        Ok(known)
    }

    /// The value as it is.
    fn text(&self, Name(place, name): Name) -> Result<Option<&'a str>, Malformed> {
        let Some(value) = self.0[place] else { return Ok(None) };
        match value.to_str() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Malformed::Content(format!("{name} must be visible ASCII").into())),
        }
    }

    /// The value of an attribute, decoded (HTTP Protocol Binding 1.0.2 §3.1.3.2).
    fn attribute(&self, name: Name) -> Result<Option<Cow<'a, str>>, Malformed> {
        let text = name.1;
        let Some(value) = self.text(name)? else { return Ok(None) };
        match decode(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Malformed::Content(format!("{text} is not percent-encoded UTF-8").into())),
        }
    }

    fn required(&self, name: Name) -> Result<Cow<'a, str>, Malformed> {
        let text = name.1;
        self.attribute(name)?.ok_or_else(|| Malformed::Content(format!("{text} is missing").into()))
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
    text.parse().map_err(|error| Malformed::Content(format!("webhook-id cannot be read: {error}").into()))
}

/// An id that is made of a text.
fn digest(text: &str) -> Result<MessageId, Malformed> {
    let id = format!("ce_{}", BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(text)[..24]));
    id.parse().map_err(|_| Malformed::Content("ce-id cannot be read".into()))
}

fn parse_time(text: &str) -> Result<SystemTime, Malformed> {
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.map(SystemTime::from).map_err(|_| Malformed::Content("ce-time is no time of RFC 3339".into()))
}

#[cfg(test)]
mod tests;
