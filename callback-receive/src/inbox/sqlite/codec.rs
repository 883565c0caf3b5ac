//! What the columns hold.

use crate::HandleId;
use bytes::Bytes;
use callback_core::{Message, MessageId, Payload};
use serde::{Deserialize, Serialize};
use sqlx::{Error, Row, sqlite::SqliteRow};
use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

/// A message without its body.
#[derive(Serialize, Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Cow<'a, str>>,
    r#type: Cow<'a, str>,
    source: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<Cow<'a, str>>,
    /// In microseconds since 1970.
    time: u64,
    content: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// The text of the column `head`.
pub(super) fn head(message: &Message) -> Result<String, Error> {
    let since = message.time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let head = Head {
        id: message.id().as_str().into(),
        event: (message.event_id() != message.id()).then(|| message.event_id().as_str().into()),
        r#type: message.event_type().into(),
        source: message.source().into(),
        subject: message.subject().map(Into::into),
        correlation: message.correlation_id().map(Into::into),
        time: u64::try_from(since.as_micros()).unwrap_or(u64::MAX),
        content: message.content_type().into(),
        headers: message.headers().map(|(name, value)| (name.into(), value.into())).collect(),
    };
    serde_json::to_string(&head).map_err(|error| Error::Encode(error.into()))
}

/// The message of the columns `head` and `body`.
pub(super) fn message(row: &SqliteRow) -> Result<Message, Error> {
    let (text, body): (String, Vec<u8>) = (row.try_get("head")?, row.try_get("body")?);
    decode(&text, body.into()).map_err(Error::Decode)
}

fn decode(text: &str, body: Bytes) -> Result<Message, callback_core::BoxError> {
    let head: Head<'_> = serde_json::from_str(text)?;
    let mut builder = Message::builder(head.r#type)
        .id(head.id.parse()?)
        .source(head.source)
        .time(SystemTime::UNIX_EPOCH + Duration::from_micros(head.time))
        .payload(Payload::new(head.content, body));
    if let Some(event) = head.event {
        builder = builder.event_id(event.parse::<MessageId>()?);
    }
    if let Some(subject) = head.subject {
        builder = builder.subject(subject);
    }
    if let Some(correlation) = head.correlation {
        builder = builder.correlation_id(correlation);
    }
    for (name, value) in head.headers {
        builder = builder.header(name, value);
    }
    Ok(builder.build()?)
}

pub(super) fn handle(bytes: &[u8]) -> Result<HandleId, Error> {
    HandleId::from_bytes(bytes).ok_or_else(|| Error::Decode("a handle has another length".into()))
}

pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(
            event_type in "[!-~]{1,20}",
            subject in proptest::option::of("[^\\p{Cc}]{1,40}"),
            correlation in proptest::option::of("[ -~]{1,40}"),
            header in proptest::option::of("[ -~]{0,40}"),
            micros in 0_u64..4_000_000_000_000_000,
            body: Vec<u8>,
        ) {
            let mut builder = Message::builder(event_type)
                .time(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
                .payload(Payload::new("text/plain", body));
            if let Some(subject) = subject {
                builder = builder.subject(subject).event_id("event-1".parse().expect("valid"));
            }
            if let Some(correlation) = correlation {
                builder = builder.correlation_id(correlation);
            }
            if let Some(header) = header {
                builder = builder.header("x-test", header);
            }
            let message = builder.build().expect("valid");
            let text = head(&message).expect("encodes");
            prop_assert_eq!(decode(&text, message.body().clone()).expect("decodes"), message);
        }
    }
}
