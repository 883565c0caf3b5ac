//! A message as a record of Kafka: CloudEvents 1.0 in binary mode, signed by Standard Webhooks. Pure.

use crate::target::Target;
use callback_core::{Attempt, Message};
use rdkafka::message::{Header, OwnedHeaders};

/// What a record has beside key, value and headers, at most.
const OVERHEAD: usize = 70;

/// All headers of the record, and how many bytes they have. Values are UTF-8 as they are (Kafka Protocol Binding 1.0.2 §3.2.3).
pub(crate) fn headers(message: &Message, attempt: &Attempt) -> (OwnedHeaders, usize) {
    let (mut headers, mut size) = (Some(OwnedHeaders::new_with_capacity(24)), 0);
    let mut set = |key: &str, value: &str| {
        // Both lengths are varints.
        size += key.len() + value.len() + 4;
        headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
    };
    set("content-type", message.content_type());
    for (name, value) in attempt.headers(message) {
        set(name, &value);
    }
    for (name, value) in message.attributes() {
        if let Some(name) = ce_name(name) {
            set(name, &value);
        }
    }
    for (name, value) in message.headers() {
        set(name, value);
    }
    (headers.unwrap_or_default(), size)
}

/// The header of a CloudEvents attribute (Kafka Protocol Binding 1.0.2 §3.2.3.1).
fn ce_name(attribute: &str) -> Option<&'static str> {
    Some(match attribute {
        "specversion" => "ce_specversion",
        "id" => "ce_id",
        "type" => "ce_type",
        "source" => "ce_source",
        "time" => "ce_time",
        "subject" => "ce_subject",
        "correlationid" => "ce_correlationid",
        "sequence" => "ce_sequence",
        "sequencetype" => "ce_sequencetype",
        _ => return None,
    })
}

/// The key of the record: what the Dsn says, else the subject.
pub(crate) fn key<'a>(target: &'a Target, message: &'a Message) -> Option<&'a str> {
    target.key.as_deref().or_else(|| message.subject())
}

/// About how many bytes the record has; rather more than less.
pub(crate) fn record_size(key: Option<&str>, message: &Message, headers: usize) -> usize {
    OVERHEAD + key.map_or(0, str::len) + message.body().len() + headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::{Payload, Signer};
    use rdkafka::message::Headers;
    use serde_json::json;
    use std::time::{Duration, Instant, SystemTime};

    fn target(key: Option<&str>) -> Target {
        Target { cluster: 0, topic: "t".to_owned(), key: key.map(str::to_owned), partition: None }
    }

    fn lines(headers: &OwnedHeaders) -> Vec<String> {
        let text = |value: Option<&[u8]>| String::from_utf8(value.expect("a value").to_vec()).expect("UTF-8");
        headers.iter().map(|header| format!("{}: {}\n", header.key, text(header.value))).collect()
    }

    #[test]
    fn a_message_has_the_headers_of_the_golden_file() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_614_265_330_250);
        let message = Message::builder("callback.rpc.completed")
            .id("msg_p5jXN8AQM9LWM0D4loKWxJek".parse().expect("valid"))
            .event_id("event-1".parse().expect("valid"))
            .source("/orders")
            .subject("Bestellung für 😀")
            .correlation_id("ray 7")
            .time(time)
            .header("x-request-id", "r-1")
            .payload(Payload::new("application/json", &br#"{"test": 2432232314}"#[..]))
            .build()
            .expect("valid");
        let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("valid");
        let attempt = Attempt::new(3, time, Instant::now())
            .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .sign(&signer, &message);
        let (headers, size) = headers(&message, &attempt);
        let mut lines = lines(&headers);
        assert!(size > lines.concat().len());
        lines.sort_unstable();
        assert_eq!(lines.concat(), include_str!("../tests/golden/record-headers.txt"));
    }

    #[test]
    fn nothing_is_sent_that_is_not_set() {
        let message = Message::builder("a").payload(json!(1)).build().expect("valid");
        let (headers, _) = headers(&message, &Attempt::new(1, SystemTime::now(), Instant::now()));
        let lines = lines(&headers).concat();
        for name in ["webhook-signature", "traceparent", "ce_subject", "ce_correlationid"] {
            assert!(!lines.contains(name), "{name}");
        }
        assert_eq!(key(&target(None), &message), None);
    }

    #[test]
    fn the_key_is_the_dsns_or_the_subject() {
        let message = Message::builder("a").subject("task-1").build().expect("valid");
        assert_eq!(key(&target(None), &message), Some("task-1"));
        assert_eq!(key(&target(Some("mine")), &message), Some("mine"));
        assert_eq!(key(&target(Some("")), &message), Some(""));
    }
}
