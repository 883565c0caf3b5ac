//! A message as a WebSocket frame, and what a peer of `callback.v1` answers.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use callback_core::{Attempt, Message};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, SystemTime},
};
use tokio_tungstenite::tungstenite::{Message as Frame, Utf8Bytes};

/// What frames look like, and what counts as evidence: the subprotocol that the peer picked, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subprotocol {
    /// `callback.v1`: JSON with all attributes; the peer acknowledges.
    CallbackV1,
    /// `cloudevents.json`: CloudEvents 1.0 in structured mode; a pong is the evidence.
    CloudEvents,
    /// None: a frame is a body and nothing else; a pong is the evidence.
    Bare,
}

impl Subprotocol {
    /// What is offered in `Sec-WebSocket-Protocol`, in the order of preference.
    pub(crate) const OFFERED: &str = "callback.v1, cloudevents.json";

    /// The one that the peer names; `None` where it was not offered.
    pub(crate) fn picked(name: Option<&str>) -> Option<Self> {
        match name {
            None => Some(Self::Bare),
            Some("callback.v1") => Some(Self::CallbackV1),
            Some("cloudevents.json") => Some(Self::CloudEvents),
            Some(_) => None,
        }
    }

    /// Whether the peer itself acknowledges.
    pub(crate) fn acknowledges(self) -> bool {
        self == Self::CallbackV1
    }

    /// The frame of one attempt.
    pub(crate) fn frame(self, message: &Message, attempt: &Attempt) -> Frame {
        match self {
            Self::CallbackV1 => Frame::Text(json(&Own::of(message, attempt)).into()),
            Self::CloudEvents => Frame::Text(json(&structured(message, attempt)).into()),
            Self::Bare => bare(message.body().clone()),
        }
    }
}

fn json(value: &impl Serialize) -> String {
    // Texts, numbers and maps of them have a JSON form.
    serde_json::to_string(value).unwrap_or_default()
}

fn bare(body: Bytes) -> Frame {
    match Utf8Bytes::try_from(body.clone()) {
        Ok(text) => Frame::Text(text),
        Err(_) => Frame::Binary(body),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A frame of `callback.v1`.
#[derive(Serialize)]
struct Own<'a> {
    id: &'a str,
    specversion: &'a str,
    eventid: &'a str,
    timestamp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<&'a str>,
    #[serde(rename = "type")]
    event_type: &'a str,
    source: &'a str,
    time: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    datacontenttype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlationid: Option<&'a str>,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl<'a> Own<'a> {
    fn of(message: &'a Message, attempt: &'a Attempt) -> Self {
        let body = std::str::from_utf8(message.body()).ok();
        let time = message.attributes().find_map(|(name, value)| (name == "time").then_some(value));
        Self {
            id: message.id().as_str(),
            specversion: "1.0",
            eventid: message.event_id().as_str(),
            timestamp: seconds(attempt.time()),
            signature: attempt.signature(),
            event_type: message.event_type(),
            source: message.source(),
            time: time.unwrap_or_default(),
            subject: message.subject(),
            datacontenttype: message.content_type(),
            correlationid: message.correlation_id(),
            attempt: attempt.number(),
            traceparent: attempt.traceparent(),
            headers: message.headers().collect(),
            body,
            body_base64: body.is_none().then(|| BASE64_STANDARD.encode(message.body())),
        }
    }
}

/// CloudEvents 1.0.2, JSON Event Format 1.0.2 §3.1: all texts, since extensions have no other type that is sure.
fn structured<'a>(message: &'a Message, attempt: &'a Attempt) -> BTreeMap<Cow<'a, str>, Cow<'a, str>> {
    let mut members = BTreeMap::new();
    // A header of the message gives way to what the protocol sets.
    for (name, value) in message.headers() {
        members.insert(Cow::Owned(extension(name)), Cow::Borrowed(value));
    }
    members.extend(attempt.headers(message).map(|(name, value)| (Cow::Owned(extension(name)), value)));
    members.extend(message.attributes().map(|(name, value)| (Cow::Borrowed(name), value)));
    members.insert("datacontenttype".into(), message.content_type().into());
    members.insert("data_base64".into(), BASE64_STANDARD.encode(message.body()).into());
    members.retain(|name, _| !name.is_empty() && name != "data");
    members
}

/// The name of an attribute has lower-case letters and digits only (CloudEvents 1.0.2 §3).
fn extension(header: &str) -> String {
    header.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// What a peer of `callback.v1` says of a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer<'a> {
    pub(crate) id: Cow<'a, str>,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Acknowledged,
    /// Try again, after this time where one is given.
    Later(Option<Duration>),
    Refused,
    Gone,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    ack: Option<Cow<'a, str>>,
    #[serde(borrow)]
    nack: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(rename = "retryAfter")]
    retry_after: Option<Value>,
}

/// Reads `{"ack":id}` or `{"nack":id,"kind":"later"|"refused"|"gone","retryAfter":seconds}`; `None` for anything else.
///
/// Unknown members are ignored, and so is a time to wait that is no number of 0 and more.
pub(crate) fn answer(text: &str) -> Option<Answer<'_>> {
    match serde_json::from_str(text).ok()? {
        Raw { ack: Some(id), nack: None, .. } => Some(Answer { id, verdict: Verdict::Acknowledged }),
        Raw { ack: None, nack: Some(id), kind: Some(kind), retry_after } => {
            let wait = retry_after.and_then(|wait| wait.as_f64());
            let verdict = match &*kind {
                "later" => Verdict::Later(wait.and_then(|wait| Duration::try_from_secs_f64(wait).ok())),
                "refused" => Verdict::Refused,
                "gone" => Verdict::Gone,
                _ => return None,
            };
            Some(Answer { id, verdict })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::{MessageBuilder, Payload, Signer};
    use std::time::Instant;

    fn message() -> MessageBuilder {
        Message::builder("callback.rpc.completed")
            .id("msg_p5jXN8AQM9LWM0D4loKWxJek".parse().expect("valid"))
            .event_id("event-1".parse().expect("valid"))
            .source("/orders")
            .subject("Bestellung für 😀")
            .correlation_id("ray 7")
            .time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_614_265_330_250))
            .header("x-request-id", "r-1")
            .payload(Payload::new("application/json", &br#"{"test": 2432232314}"#[..]))
    }

    fn attempt(message: &Message) -> Attempt {
        let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("valid");
        Attempt::new(3, SystemTime::UNIX_EPOCH + Duration::from_secs(1_614_265_330), Instant::now())
            .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .sign(&signer, message)
    }

    #[track_caller]
    fn check(subprotocol: Subprotocol, builder: MessageBuilder, golden: &str) {
        let message = builder.build().expect("valid");
        let frame = subprotocol.frame(&message, &attempt(&message)).into_text().expect("a text").to_string();
        assert_eq!(frame + "\n", golden);
    }

    #[test]
    fn a_message_is_the_frame_of_the_golden_file() {
        check(Subprotocol::CallbackV1, message(), include_str!("../tests/golden/callback-v1.json"));
        let binary = message().payload(vec![0, 159, 146, 150]);
        check(Subprotocol::CallbackV1, binary, include_str!("../tests/golden/callback-v1-binary.json"));
        check(Subprotocol::CloudEvents, message(), include_str!("../tests/golden/cloudevents.json"));
    }

    #[test]
    fn without_a_subprotocol_a_frame_is_the_body() {
        let frame = |body: &[u8]| {
            let message = message().payload(body.to_vec()).build().expect("valid");
            Subprotocol::Bare.frame(&message, &attempt(&message))
        };
        assert_eq!(frame("ä".as_bytes()), Frame::text("ä"));
        assert_eq!(frame(&[]), Frame::text(""));
        assert_eq!(frame(&[0xff, 0]), Frame::binary(&[0xff, 0][..]));
    }

    #[test]
    fn what_is_not_set_is_not_sent() {
        let message = Message::builder("a").build().expect("valid");
        let attempt = Attempt::new(1, SystemTime::now(), Instant::now());
        for subprotocol in [Subprotocol::CallbackV1, Subprotocol::CloudEvents] {
            let frame = subprotocol.frame(&message, &attempt).into_text().expect("a text");
            let frame: serde_json::Map<String, Value> = serde_json::from_str(&frame).expect("an object");
            for name in ["signature", "webhooksignature", "traceparent", "subject", "correlationid", "headers"] {
                assert!(!frame.contains_key(name), "{name}");
            }
        }
    }

    #[test]
    fn a_header_does_not_replace_what_the_protocol_sets() {
        let message = message().header("t-y-p-e", "x").header("da-ta", "x").header("...", "x").build().expect("valid");
        let frame = Subprotocol::CloudEvents.frame(&message, &attempt(&message)).into_text().expect("a text");
        let frame: BTreeMap<String, String> = serde_json::from_str(&frame).expect("texts");
        assert_eq!(frame["type"], "callback.rpc.completed");
        assert!(!frame.contains_key("data") && !frame.contains_key(""));
    }

    #[track_caller]
    fn answers(text: &str, expected: Option<(&str, Verdict)>) {
        let expected = expected.map(|(id, verdict)| Answer { id: id.into(), verdict });
        assert_eq!(answer(text), expected, "{text}");
    }

    #[test]
    fn an_answer_is_an_acknowledgment_or_its_contrary() {
        use Verdict::{Acknowledged, Gone, Later, Refused};
        answers(r#"{"ack":"a"}"#, Some(("a", Acknowledged)));
        answers(r#"{"ack":"\u0061","more":[1,{}]}"#, Some(("a", Acknowledged)));
        answers(r#"{"nack":"a","kind":"refused","reason":"no"}"#, Some(("a", Refused)));
        answers(r#"{"nack":"a","kind":"gone"}"#, Some(("a", Gone)));
        answers(r#"{"nack":"a","kind":"later"}"#, Some(("a", Later(None))));
        answers(r#"{"nack":"a","kind":"later","retryAfter":7}"#, Some(("a", Later(Some(Duration::from_secs(7))))));
        answers(
            r#"{"nack":"a","kind":"later","retryAfter":0.5}"#,
            Some(("a", Later(Some(Duration::from_millis(500))))),
        );
        for wait in ["-1", "1e300", "\"7\"", "null", "[]"] {
            answers(&format!(r#"{{"nack":"a","kind":"later","retryAfter":{wait}}}"#), Some(("a", Later(None))));
        }
    }

    #[test]
    fn what_is_no_answer_is_none() {
        for text in [
            "",
            "hello",
            "null",
            "[]",
            "{}",
            r#"{"ack":1}"#,
            r#"{"ack":"a","nack":"a","kind":"gone"}"#,
            r#"{"ack":"a","ack":"b"}"#,
            r#"{"nack":"a"}"#,
            r#"{"nack":"a","kind":"never"}"#,
            r#"{"ack":"a"} {"ack":"b"}"#,
        ] {
            answers(text, None);
        }
        answers(&"[".repeat(60_000), None);
    }
}
