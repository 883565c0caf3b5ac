//! A text frame as a message: `callback.v1`, or CloudEvents 1.0 in structured mode.

use crate::wire::Subprotocol;
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use callback_core::{Message, MessageBuilder, MessageId, Payload};
use callback_receive::Incoming;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use std::{borrow::Cow, collections::BTreeMap, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// How many bytes of JSON a byte of a body may take: `\u0000`.
const ESCAPED: usize = 6;

/// How many bytes of a frame are for what is not the body.
const ATTRIBUTES: usize = 256 << 10;

/// How many headers of its own a message may have.
const HEADERS: usize = 100;

/// The largest frame that may hold a body of so many bytes.
pub(super) fn frame_limit(body_limit: usize) -> usize {
    body_limit.saturating_mul(ESCAPED).saturating_add(ATTRIBUTES)
}

/// A message that came in, and the id to answer it by.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) id: MessageId,
    pub(super) incoming: Incoming,
}

/// Why a frame is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It has an id, by which it is refused.
    Message(MessageId, Reason),
    /// It is no frame of the subprotocol: the connection ends.
    Frame(Reason),
}

/// What is wrong, in words that repeat nothing of what was sent.
pub(super) type Reason = Cow<'static, str>;

/// The message of a frame, with its signature as it came.
pub(super) fn read(subprotocol: Subprotocol, text: &str) -> Result<Read, Malformed> {
    match subprotocol {
        Subprotocol::CallbackV1 => own(text),
        _ => structured(text).map_err(Malformed::Frame),
    }
}

/// Whole seconds, as a number or a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u64),
    Text(String),
}

impl Number {
    fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

#[derive(Deserialize)]
struct Named {
    id: MessageId,
}

/// A frame of `callback.v1`; what it has beside that is ignored.
#[derive(Deserialize)]
struct Own {
    id: MessageId,
    specversion: Option<String>,
    eventid: Option<MessageId>,
    timestamp: Option<Number>,
    signature: Option<String>,
    #[serde(rename = "type")]
    event_type: String,
    source: Option<String>,
    time: Option<String>,
    subject: Option<String>,
    datacontenttype: Option<String>,
    correlationid: Option<String>,
    sequence: Option<u32>,
    headers: Option<BTreeMap<String, String>>,
    body: Option<String>,
    body_base64: Option<String>,
}

fn own(text: &str) -> Result<Read, Malformed> {
    match serde_json::from_str::<Own>(text) {
        Ok(own) => {
            let id = own.id.clone();
            own.into_incoming()
                .map(|incoming| Read { id: id.clone(), incoming })
                .map_err(|why| Malformed::Message(id, why))
        }
        Err(_) => Err(match serde_json::from_str(text) {
            Ok(Named { id }) => Malformed::Message(id, "a member is missing, or of another type".into()),
            Err(_) => Malformed::Frame("this is no message of callback.v1".into()),
        }),
    }
}

impl Own {
    fn into_incoming(self) -> Result<Incoming, Reason> {
        if self.specversion.is_some_and(|version| version != "1.0") {
            return Err("specversion must be 1.0".into());
        }
        let body = match (self.body, self.body_base64) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(text)) => decode("body_base64", &text)?,
            _ => return Err("there must be one of body and body_base64".into()),
        };
        let id = self.id;
        let mut builder = Message::builder(self.event_type).id(id.clone());
        if let Some(id) = self.eventid {
            builder = builder.event_id(id);
        }
        let headers = self.headers.unwrap_or_default();
        if headers.len() > HEADERS {
            return Err("there must be 100 headers at most".into());
        }
        for (name, value) in headers {
            // What a message cannot carry is left out.
            if Message::builder("a").id(id.clone()).header(&*name, &*value).build().is_ok() {
                builder = builder.header(name, value);
            }
        }
        let attributes = Attributes {
            source: self.source,
            time: self.time,
            subject: self.subject,
            correlation: self.correlationid,
            sequence: self.sequence,
        };
        let content_type = self.datacontenttype.unwrap_or_else(|| "application/octet-stream".to_owned());
        let message = attributes.build(builder.payload(Payload::new(&content_type, body)))?;
        Ok(signed(message, self.timestamp, self.signature))
    }
}

/// CloudEvents 1.0.2, JSON Event Format 1.0.2 §3, with the extensions that carry what a webhook has in its headers.
#[derive(Deserialize)]
struct Event {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    event_type: String,
    time: Option<String>,
    subject: Option<String>,
    datacontenttype: Option<String>,
    correlationid: Option<String>,
    sequence: Option<Number>,
    webhookid: Option<MessageId>,
    webhooktimestamp: Option<Number>,
    webhooksignature: Option<String>,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

fn structured(text: &str) -> Result<Read, Reason> {
    let event: Event = serde_json::from_str(text).map_err(|_| "this is no event of CloudEvents in JSON")?;
    if event.specversion != "1.0" {
        return Err("specversion must be 1.0".into());
    }
    let id = match event.webhookid {
        Some(id) => id,
        // CloudEvents 1.0.2 §3.1: source and id together name an event.
        None => digest(&format!("{}\n{}", event.source, event.id))?,
    };
    let event_id = event.id.parse().or_else(|_| digest(&event.id))?;
    let content_type = event.datacontenttype.unwrap_or_else(|| "application/json".to_owned());
    let body = match (event.data, event.data_base64) {
        (Some(data), None) => of_data(&data, &content_type)?,
        (None, Some(text)) => decode("data_base64", &text)?,
        (None, None) => Bytes::new(),
        (Some(_), Some(_)) => return Err("there must be one of data and data_base64 at most".into()),
    };
    let attributes = Attributes {
        source: Some(event.source),
        time: event.time,
        subject: event.subject,
        correlation: event.correlationid,
        sequence: event.sequence.and_then(|number| number.into_text().parse().ok()),
    };
    let builder = Message::builder(event.event_type).id(id.clone()).event_id(event_id);
    let message = attributes.build(builder.payload(Payload::new(&content_type, body)))?;
    Ok(Read { id, incoming: signed(message, event.webhooktimestamp, event.webhooksignature) })
}

/// JSON data is the value as it was written; of another type, a text is the data (JSON Event Format 1.0.2 §3.1.1).
fn of_data(data: &RawValue, content_type: &str) -> Result<Bytes, Reason> {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media == "application/json" || media == "text/json" || media.ends_with("+json") {
        return Ok(Bytes::copy_from_slice(data.get().as_bytes()));
    }
    let text: String = serde_json::from_str(data.get()).map_err(|_| "data must be a text, for its content type")?;
    Ok(text.into())
}

/// What both have, by the names that they share.
struct Attributes {
    source: Option<String>,
    time: Option<String>,
    subject: Option<String>,
    correlation: Option<String>,
    sequence: Option<u32>,
}

impl Attributes {
    fn build(self, mut builder: MessageBuilder) -> Result<Message, Reason> {
        if let Some(source) = self.source {
            builder = builder.source(source);
        }
        if let Some(time) = self.time {
            let time = OffsetDateTime::parse(&time, &Rfc3339).map_err(|_| "time is no time of RFC 3339")?;
            builder = builder.time(SystemTime::from(time));
        }
        if let Some(subject) = self.subject {
            builder = builder.subject(subject);
        }
        if let Some(correlation) = self.correlation {
            builder = builder.correlation_id(correlation);
        }
        if let Some(sequence) = self.sequence {
            builder = builder.sequence(sequence);
        }
        builder.build().map_err(|error| error.to_string().into())
    }
}

fn signed(message: Message, timestamp: Option<Number>, signature: Option<String>) -> Incoming {
    let incoming = Incoming::new(message);
    match (timestamp, signature) {
        (_, None) => incoming,
        (timestamp, Some(signature)) => {
            incoming.signed(timestamp.map(Number::into_text).unwrap_or_default(), signature)
        }
    }
}

fn decode(name: &str, text: &str) -> Result<Bytes, Reason> {
    BASE64_STANDARD.decode(text).map(Bytes::from).map_err(|_| format!("{name} is no base64").into())
}

/// An id that is made of a text.
fn digest(text: &str) -> Result<MessageId, Reason> {
    let id = format!("ce_{}", BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(text)[..24]));
    id.parse().map_err(|_| "the id cannot be read".into())
}

#[cfg(test)]
mod tests;
