//! What requests are made of.

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
    let golden = include_str!("../../../../tests/golden/request-headers.txt");
    let lines: Vec<_> = golden.lines().filter_map(|line| line.split_once(": ")).collect();
    let text = debug(&lines).expect("a message");
    for part in ["msg_p5jXN8AQM9LWM0D4loKWxJek", "callback.rpc.completed", "Bestellung für 😀", "is_signed: true"] {
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

fn structured(lines: &[(&str, &str)], event: &str) -> Result<Read, Malformed> {
    let lines = [lines, &[("content-type", "application/cloudevents+json; charset=utf-8")]].concat();
    read(&headers(&lines), event.to_owned().into())
}

#[test]
fn an_event_in_structured_mode_is_the_same_as_in_binary_mode() {
    let event = r#"{"specversion":"1.0","id":"e1","source":"/orders","type":"order.completed","subject":"größer",
        "time":"2026-01-02T03:04:05Z","correlationid":"r","sequence":"7","sequencetype":"Integer","other":{},
        "data":{"a": 1}}"#;
    let binary = [
        &EVENT[..],
        &[
            ("ce-subject", "gr%C3%B6%C3%9Fer"),
            ("ce-time", "2026-01-02T03:04:05Z"),
            ("ce-correlationid", "r"),
            ("ce-sequence", "7"),
            ("ce-sequencetype", "Integer"),
            ("content-type", "application/json"),
        ],
    ];
    let binary = read(&headers(&binary.concat()), r#"{"a": 1}"#.into()).expect("a message").message;
    let message = structured(&[], event).expect("a message").message;
    assert_eq!(message, binary);
    assert_eq!((message.sequence(), message.subject()), (Some(7), Some("größer")));
}

#[test]
fn an_event_in_structured_mode_has_the_id_and_signature_of_its_headers_or_its_own() {
    let event = r#"{"specversion":"1.0","id":"e1","source":"/","type":"t","webhookid":"b","webhooktimestamp":1,
        "webhooksignature":"v1,own","datacontenttype":"text/plain","data":"x"}"#;
    let own = structured(&[], event).expect("a message");
    assert_eq!((own.message.id().as_str(), &own.message.body()[..]), ("b", &b"x"[..]));
    assert_eq!((own.signed, own.content), (Some(("1".to_owned(), "v1,own".to_owned())), None));
    let lines = [("webhook-id", "a"), ("webhook-timestamp", "2"), ("webhook-signature", "v1,x")];
    let headers = structured(&lines, event).expect("a message");
    assert_eq!(headers.message.id().as_str(), "a");
    assert_eq!(headers.signed, Some(("2".to_owned(), "v1,x".to_owned())));
    assert_eq!(headers.content.as_deref(), Some(event.as_bytes()), "all of it is signed");
}

#[test]
fn events_in_another_format_or_many_at_once_are_told_apart() {
    for media in ["application/cloudevents+avro", "application/cloudevents-batch+json", "Application/CloudEvents"] {
        assert_eq!(debug(&[("content-type", media)]), Err(Malformed::Format), "{media}");
    }
    assert!(debug(&[("content-type", "application/cloud")]).is_ok());
}

#[track_caller]
fn no_event(event: &str, word: &str) {
    let error = structured(&[], event).err().expect("no event").to_string();
    assert!(error.contains(word), "{error}");
}

#[test]
fn an_event_in_structured_mode_that_cannot_be_read_says_why() {
    let event = |rest: &str| format!(r#"{{"specversion":"1.0","id":"e1","source":"/","type":"t"{rest}}}"#);
    no_event("{", "no event");
    no_event(&"[".repeat(1_000), "no event");
    no_event(r#"{"specversion":"1.0","id":"e1","type":"t"}"#, "no event");
    no_event(r#"{"specversion":"0.3","id":"e1","source":"/","type":"t"}"#, "specversion");
    no_event(&event(r#","data":1,"data_base64":"AA==""#), "one of");
    no_event(&event(r#","data_base64":"%""#), "base64");
    no_event(&event(r#","datacontenttype":"text/plain","data":{}"#), "data must be a text");
    no_event(&event(r#","time":"yesterday""#), "time");
    no_event(&event(r#","webhookid":"a.b""#), "webhook-id");
}

#[test]
fn a_sequence_is_read_and_one_that_is_none_left_out() {
    let sequence = |number: &str, kind: &str| {
        let lines = [&EVENT[..], &[("ce-sequence", number), ("ce-sequencetype", kind)]].concat();
        read(&headers(&lines), Bytes::new()).expect("a message").message.sequence()
    };
    assert_eq!(sequence("7", "Integer"), Some(7));
    for (number, kind) in [("7", "Other"), ("0", "Integer"), ("x", "Integer"), ("2147483648", "Integer")] {
        assert_eq!(sequence(number, kind), None, "{number} {kind}");
    }
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

    #[test]
    fn hostile_events_never_panic(rest in "[\\[\\]{}\",:a-z0-9_ ]{0,60}") {
        let _ = structured(&[], &format!(r#"{{"specversion":"1.0","id":"e","source":"/","type":"t","data{rest}}}"#));
        let _ = structured(&[], &rest);
    }
}
