//! A record as a message: CloudEvents 1.0 in binary mode, Standard Webhooks. Pure.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use callback_core::{Message, MessageId, Payload};
use callback_receive::{HandleId, Incoming};
use rdkafka::message::Headers;
use sha2::{Digest as _, Sha256};
use std::{
    borrow::Cow,
    panic::{AssertUnwindSafe, catch_unwind},
    time::SystemTime,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The type of what says none.
const PLAIN: &str = "callback.received";

/// What a record takes in memory beside its bytes, about.
const OVERHEAD: usize = 512;

/// A record that can be offered.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) handle: HandleId,
    pub(super) incoming: Incoming,
    /// What it takes in memory, in bytes.
    pub(super) size: usize,
}

/// Why a record is passed without being offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    #[error("it has no value")]
    Tombstone,
    #[error("its key is no handle")]
    NoHandle,
    #[error("it is larger than the limit")]
    TooLarge,
    #[error("it is no message: {0}")]
    NoMessage(Cow<'static, str>),
}

impl Unread {
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Tombstone => "tombstone",
            Self::NoHandle => "no_handle",
            Self::TooLarge => "too_large",
            Self::NoMessage(_) => "no_message",
        }
    }
}

/// Reads a record; a value beyond the limit, in bytes, is not copied.
///
/// The delivery's id is `webhook-id`; without one, a digest of CloudEvents' source and id. What has neither is no message.
pub(super) fn offer(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: Option<&impl Headers>,
    limit: usize,
) -> Result<Offer, Unread> {
    let value = value.ok_or(Unread::Tombstone)?;
    let key = key.and_then(|key| str::from_utf8(key).ok()).ok_or(Unread::NoHandle)?;
    let handle = key.parse().map_err(|_| Unread::NoHandle)?;
    if value.len() > limit {
        return Err(Unread::TooLarge);
    }
    let all = || headers.into_iter().flat_map(|all| all.iter()).map(|one| (one.key, one.value)).collect();
    // rdkafka panics at a name that is no UTF-8, and anybody may write one.
    let headers: Vec<Header<'_>> = catch_unwind(AssertUnwindSafe(all))
        .map_err(|_| Unread::NoMessage("the name of a header is no UTF-8".into()))?;
    let size = headers.iter().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum::<usize>();
    let incoming = incoming(&Lines(headers), value).map_err(Unread::NoMessage)?;
    Ok(Offer { handle, incoming, size: OVERHEAD + key.len() + value.len() + size })
}

type Header<'a> = (&'a str, Option<&'a [u8]>);

type Malformed = Cow<'static, str>;

struct Lines<'a>(Vec<Header<'a>>);

impl<'a> Lines<'a> {
    /// The value of a header that is there once at most; a null is none.
    fn one(&self, name: &'static str) -> Result<Option<&'a str>, Malformed> {
        let mut values = self.0.iter().filter(|(known, _)| *known == name).filter_map(|(_, value)| *value);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(format!("{name} is there twice").into());
        }
        str::from_utf8(value).map(Some).map_err(|_| format!("{name} is no UTF-8").into())
    }

    fn required(&self, name: &'static str) -> Result<&'a str, Malformed> {
        self.one(name)?.ok_or_else(|| format!("{name} is missing").into())
    }
}

fn incoming(headers: &Lines<'_>, value: &[u8]) -> Result<Incoming, Malformed> {
    let incoming = Incoming::new(message(headers, value)?).stored();
    Ok(match (headers.one("webhook-timestamp")?, headers.one("webhook-signature")?) {
        (None, None) => incoming,
        (timestamp, signature) => incoming.signed(timestamp.unwrap_or_default(), signature.unwrap_or_default()),
    })
}

fn message(headers: &Lines<'_>, value: &[u8]) -> Result<Message, Malformed> {
    let content_type = headers.one("content-type")?.unwrap_or("application/octet-stream");
    let id = headers.one("webhook-id")?.map(delivery_id).transpose()?;
    let mut builder = match (headers.one("ce_specversion")?, id) {
        (None, None) => return Err("it has neither webhook-id nor ce_specversion".into()),
        (None, Some(id)) => Message::builder(PLAIN).id(id),
        (Some("1.0"), id) => {
            let (event_id, source) = (headers.required("ce_id")?, headers.required("ce_source")?);
            let id = match id {
                Some(id) => id,
                // CloudEvents 1.0.2 §3.1: source and id together name an event.
                None => digest(&format!("{source}\n{event_id}"))?,
            };
            let event = event_id.parse().or_else(|_| digest(event_id))?;
            let mut builder = Message::builder(headers.required("ce_type")?).id(id).event_id(event).source(source);
            if let Some(time) = headers.one("ce_time")? {
                builder = builder.time(parse_time(time)?);
            }
            if let Some(subject) = headers.one("ce_subject")? {
                builder = builder.subject(subject);
            }
            if let Some(correlation) = headers.one("ce_correlationid")? {
                builder = builder.correlation_id(correlation);
            }
            // CloudEvents extension *Sequence* 1.0.2: another type, or a number that is none of it, is left out.
            if headers.one("ce_sequencetype")? == Some("Integer")
                && let Some(number) = headers.one("ce_sequence")?.and_then(|number| number.parse().ok())
                && (1..=0x7fff_ffff).contains(&number)
            {
                builder = builder.sequence(number);
            }
            builder
        }
        (Some(_), _) => return Err("ce_specversion must be 1.0".into()),
    };
    for (name, value) in &headers.0 {
        if let Some(value) = value.and_then(|value| str::from_utf8(value).ok())
            && is_kept(name, value)
        {
            builder = builder.header(*name, value);
        }
    }
    let payload = Payload::new(content_type, Bytes::copy_from_slice(value));
    builder.payload(payload).build().map_err(|error| error.to_string().into())
}

/// Whether a header comes with the message: neither what the message has elsewhere, nor what no message may have.
fn is_kept(name: &str, value: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let is_elsewhere = matches!(&*lower, "content-type" | "callback-attempt" | "traceparent" | "tracestate")
        || lower.starts_with("ce_")
        || lower.starts_with("webhook-");
    !is_elsewhere && Message::builder(PLAIN).header(lower, value).build().is_ok()
}

fn delivery_id(text: &str) -> Result<MessageId, Malformed> {
    text.parse().map_err(|error| format!("webhook-id cannot be read: {error}").into())
}

/// An id that is made of a text.
fn digest(text: &str) -> Result<MessageId, Malformed> {
    let id = format!("ce_{}", BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(text)[..24]));
    id.parse().map_err(|_| "ce_id cannot be read".into())
}

fn parse_time(text: &str) -> Result<SystemTime, Malformed> {
    let time = OffsetDateTime::parse(text, &Rfc3339);
    time.map(SystemTime::from).map_err(|_| "ce_time is no time of RFC 3339".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rdkafka::message::{Header as Line, OwnedHeaders};

    const HANDLE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

    const EVENT: [(&str, &str); 4] =
        [("ce_specversion", "1.0"), ("ce_id", "e1"), ("ce_source", "/orders"), ("ce_type", "order.completed")];

    fn headers(lines: &[(&str, &[u8])]) -> OwnedHeaders {
        let line =
            |headers: OwnedHeaders, (key, value): &(&str, &[u8])| headers.insert(Line { key, value: Some(*value) });
        lines.iter().fold(OwnedHeaders::new(), line)
    }

    fn to_handle(headers: &impl Headers) -> Result<Offer, Unread> {
        offer(Some(HANDLE.as_bytes()), Some(b"body"), Some(headers), 4)
    }

    fn read(lines: &[(&str, &str)]) -> Result<Offer, Unread> {
        let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        to_handle(&headers(&lines))
    }

    fn debug(lines: &[(&str, &str)]) -> String {
        format!("{:?}", read(lines).expect("a message").incoming)
    }

    #[test]
    fn what_our_sink_writes_is_read_as_it_was() {
        let golden = include_str!("../../tests/golden/record-headers.txt");
        let lines: Vec<_> = golden.lines().filter_map(|line| line.split_once(": ")).collect();
        let text = debug(&lines);
        for part in [
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "callback.rpc.completed",
            "Bestellung für 😀",
            "is_signed: true",
            "is_stored: true",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_message_without_an_id_is_known_by_source_and_id_of_its_event() {
        let before_time = |text: String| text.split("time").next().map(str::to_owned);
        assert_eq!(before_time(debug(&EVENT)), before_time(debug(&EVENT)));
        let other = [EVENT[0], ("ce_id", "e2"), EVENT[2], EVENT[3]];
        assert_ne!(before_time(debug(&EVENT)), before_time(debug(&other)));
        // Standard Webhooks alone is enough.
        assert!(debug(&[("webhook-id", "msg_1")]).contains("msg_1"));
    }

    #[track_caller]
    fn refused(lines: &[(&str, &str)], word: &str) {
        let error = read(lines).expect_err("no message");
        assert_eq!(error.as_str(), "no_message");
        assert!(error.to_string().contains(word), "{error}");
    }

    #[test]
    fn what_is_no_message_is_named() {
        refused(&[], "neither webhook-id nor ce_specversion");
        refused(&[("content-type", "application/cloudevents+json")], "neither");
        refused(&EVENT[..2], "ce_source");
        refused(&[("ce_specversion", "0.3")], "ce_specversion");
        refused(&[&EVENT[..], &[("ce_time", "yesterday")]].concat(), "ce_time");
        refused(&[&EVENT[..], &[("ce_subject", "a\nb")]].concat(), "subject");
        refused(&[&EVENT[..], &[("ce_id", "e2")]].concat(), "ce_id is there twice");
        refused(&[("webhook-id", "a.b")], "webhook-id");
        assert!(matches!(to_handle(&headers(&[("webhook-id", b"\xff")])), Err(Unread::NoMessage(_))));
        assert!(matches!(
            offer(Some(HANDLE.as_bytes()), Some(b""), None::<&OwnedHeaders>, 4),
            Err(Unread::NoMessage(_))
        ));
    }

    #[test]
    fn a_sequence_comes_with_its_message_and_one_that_is_none_is_left_out() {
        let sequence = |number: &str, kind: &str| {
            let lines = [&EVENT[..], &[("ce_sequence", number), ("ce_sequencetype", kind)]].concat();
            let lines = lines.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
            message(&Lines(lines), b"body").expect("a message").sequence()
        };
        assert_eq!(sequence("7", "Integer"), Some(7));
        for (number, kind) in [("7", "Other"), ("0", "Integer"), ("first", "Integer"), ("2147483648", "Integer")] {
            assert_eq!(sequence(number, kind), None, "{number} {kind}");
        }
    }

    #[test]
    fn what_is_not_offered_says_why() {
        let id = headers(&[("webhook-id", b"msg_1")]);
        let check = |key: Option<&[u8]>, value: Option<&[u8]>, expected| {
            assert_eq!(offer(key, value, Some(&id), 4).map(drop), expected, "{key:?}");
        };
        let handle = Some(HANDLE.as_bytes());
        check(handle, Some(b"body"), Ok(()));
        check(handle, Some(b""), Ok(()));
        check(handle, None, Err(Unread::Tombstone));
        check(handle, Some(b"body!"), Err(Unread::TooLarge));
        check(None, Some(b"body"), Err(Unread::NoHandle));
        check(Some(b"order-42"), Some(b"body"), Err(Unread::NoHandle));
        check(Some(b"\xff\xfe"), Some(b"body"), Err(Unread::NoHandle));
    }

    /// Headers of which one has a name that rdkafka panics at.
    struct Poison;

    impl Headers for Poison {
        fn count(&self) -> usize {
            1
        }

        fn try_get(&self, _: usize) -> Option<Line<'_, &[u8]>> {
            panic!("it is no UTF-8")
        }
    }

    #[test]
    fn the_name_of_a_header_that_rdkafka_panics_at_is_survived() {
        assert!(matches!(to_handle(&Poison), Err(Unread::NoMessage(_))));
    }

    #[test]
    fn other_headers_come_with_the_message_if_it_may_have_them() {
        for (name, value, expected) in [
            ("x-request-id", "r-1", true),
            ("X-Request-Id", "r-1", true),
            ("authorization", "Basic eA==", false),
            ("cookie", "a=b", false),
            ("callback-attempt", "3", false),
            ("ce_other", "1", false),
            ("webhook-other", "1", false),
            ("a b", "1", false),
            ("x-name", "Zoë", false),
        ] {
            assert_eq!(is_kept(name, value), expected, "{name}: {value}");
            assert!(read(&[("webhook-id", "msg_1"), (name, value)]).is_ok(), "{name} makes no message unreadable");
        }
    }

    #[test]
    fn its_size_counts_everything() {
        let offer = read(&[("webhook-id", "msg_1")]).expect("a message");
        assert_eq!(offer.size, OVERHEAD + HANDLE.len() + 4 + "webhook-id".len() + "msg_1".len());
    }

    proptest! {
        #[test]
        fn hostile_records_never_panic(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            names in proptest::collection::vec("(ce_[a-z]{1,12}|webhook-(id|timestamp|signature)|\\PC{0,20})", 0..8),
            value in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut lines: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &value[..])).collect();
            lines.push(("ce_specversion", b"1.0"));
            let headers = headers(&lines);
            let _ = offer(key.as_deref(), Some(&value), Some(&headers), 30);
            let _ = offer(Some(HANDLE.as_bytes()), Some(&value), Some(&headers), 30);
        }
    }
}
