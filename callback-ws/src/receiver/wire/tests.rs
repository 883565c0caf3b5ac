use super::*;
use proptest::prelude::*;

const V1: Subprotocol = Subprotocol::CallbackV1;
const EVENT: Subprotocol = Subprotocol::CloudEvents;

#[track_caller]
fn debug(subprotocol: Subprotocol, text: &str) -> String {
    let Read { id, incoming } = read(subprotocol, text).expect("a message");
    format!("{id} {incoming:?}")
}

#[test]
fn what_we_send_is_read_as_it_was() {
    for (subprotocol, golden) in [
        (V1, include_str!("../../../tests/golden/callback-v1.json")),
        (EVENT, include_str!("../../../tests/golden/cloudevents.json")),
    ] {
        let text = debug(subprotocol, golden);
        for part in [
            "msg_p5jXN8AQM9LWM0D4loKWxJek ",
            "callback.rpc.completed",
            "Bestellung für 😀",
            "application/json",
            "is_signed: true",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

#[test]
fn what_is_not_utf8_is_read_from_base64() {
    let golden = include_str!("../../../tests/golden/callback-v1-binary.json");
    assert!(debug(V1, golden).contains("application/octet-stream"));
}

/// Tests of the whole message, by its fields, are in `tests/it`: `Incoming` shows them to a receiver alone.
#[track_caller]
fn refused(members: &str, word: &str) {
    match read(V1, &format!(r#"{{"id":"a",{members}}}"#)) {
        Err(Malformed::Message(id, reason)) => {
            assert_eq!(id.as_str(), "a");
            assert!(reason.contains(word), "{reason}");
        }
        other => panic!("{members}: {other:?}"),
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_its_id_and_named() {
    refused(r#""type":"a.b""#, "body");
    refused(r#""type":"a.b","body":"","body_base64":"""#, "body");
    refused(r#""type":"a.b","body_base64":"?""#, "body_base64");
    refused(r#""body":"x""#, "missing");
    refused(r#""type":"a.b","body":{}"#, "type");
    refused(r#""type":"a b","body":"x""#, "type");
    refused(r#""type":"a.b","body":"x","specversion":"0.3""#, "specversion");
    refused(r#""type":"a.b","body":"x","time":"yesterday""#, "time");
    refused(r#""type":"a.b","body":"x","subject":"\u0007""#, "subject");
    refused(r#""type":"a.b","body":"x","source":"a b""#, "source");
    refused(r#""type":"a.b","body":"x","eventid":"a.b""#, "type");
    refused(r#""type":"a.b","body":"x","sequence":0"#, "sequence");
    refused(r#""type":"a.b","type":"a.b","body":"x""#, "missing");
    let headers: Vec<_> = (0..=HEADERS).map(|number| format!(r#""x-{number}":"1""#)).collect();
    refused(&format!(r#""type":"a.b","body":"x","headers":{{{}}}"#, headers.join(",")), "100 headers");
}

#[test]
fn what_is_no_message_at_all_is_an_unknown_frame() {
    for text in [
        "",
        "hello",
        "null",
        "[]",
        "{}",
        r#"{"ack":"a"}"#,
        r#"{"id":"a.b","type":"a.b","body":"x"}"#,
        r#"{"id":5,"type":"a.b","body":"x"}"#,
        r#"{"id":"a","type":"a.b","body":"x"} {}"#,
        r#"{"id":"a","id":"b","type":"a.b","body":"x"}"#,
        r#"{"id":"a","type":"a.b","body":"x""#,
    ] {
        assert!(matches!(read(V1, text), Err(Malformed::Frame(_))), "{text}");
    }
    assert!(matches!(read(V1, &"[".repeat(60_000)), Err(Malformed::Frame(_))));
}

#[test]
fn a_message_needs_an_id_a_type_and_a_body() {
    let text = debug(V1, r#"{"id":"a","type":"a.b","body":"x","more":{"a":[1]}}"#);
    assert!(text.contains("is_signed: false"), "{text}");
}

#[test]
fn headers_that_no_message_may_have_are_left_out() {
    let headers = r#"{"Authorization":"Bearer planted","webhook-id":"b","x-a":"1","ä":"1","x-b":"\n"}"#;
    let text = debug(V1, &format!(r#"{{"id":"a","type":"a.b","body":"x","headers":{headers}}}"#));
    assert!(!text.contains("planted"), "{text}");
}

#[test]
fn an_event_without_a_delivery_id_is_known_by_source_and_id() {
    let id = |id: &str, source: &str| {
        let text = format!(r#"{{"specversion":"1.0","id":"{id}","source":"{source}","type":"a.b"}}"#);
        read(EVENT, &text).expect("a message").id
    };
    assert_eq!(id("größer 1", "/a"), id("größer 1", "/a"));
    assert_ne!(id("1", "/a"), id("2", "/a"));
    assert_ne!(id("1", "/a"), id("1", "/b"));
}

#[track_caller]
fn data(content_type: &str, json: &str, expected: Option<&str>) {
    let raw = RawValue::from_string(json.to_owned()).expect("JSON");
    assert_eq!(of_data(&raw, content_type).ok().as_deref(), expected.map(str::as_bytes), "{content_type} {json}");
}

#[test]
fn data_is_what_its_content_type_makes_of_it() {
    data("application/json", r#"{"n": 2.50}"#, Some(r#"{"n": 2.50}"#));
    data("application/hal+json; charset=utf-8", r#""a""#, Some(r#""a""#));
    data("text/plain", r#""a\u00e4""#, Some("aä"));
    data("text/plain", r#"{"a":1}"#, None);
}

#[test]
fn an_event_that_is_none_is_an_unknown_frame() {
    let event = |more: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/a","type":"a.b"{more}}}"#);
    assert!(read(EVENT, &event("")).is_ok());
    for text in [
        String::new(),
        "[]".to_owned(),
        event("").replace("1.0", "0.3"),
        event("").replace("source", "sauce"),
        event(r#","data":1,"data_base64":"AA==""#),
        event(r#","data_base64":"?""#),
        event(r#","time":"yesterday""#),
        event(r#","webhookid":"a.b""#),
        event(r#","datacontenttype":"text/plain","data":1"#),
    ] {
        assert!(matches!(read(EVENT, &text), Err(Malformed::Frame(_))), "{text}");
    }
}

#[test]
fn every_body_within_the_limit_fits_into_a_frame() {
    let body = "\0".repeat(10_000);
    let frame = serde_json::json!({ "id": "a", "type": "a.b", "body": body }).to_string();
    assert!(frame.len() > 10_000 * ESCAPED && frame.len() <= frame_limit(10_000));
    assert_eq!(frame_limit(usize::MAX), usize::MAX);
}

proptest! {
    #[test]
    fn hostile_frames_never_panic(
        text in r#"(\{("(id|type|body|body_base64|time|data|headers|source|specversion)":("[a-z0-9.]{0,4}"|null|1|\{\}|\[\]),?){0,6}\}|.{0,40})"#,
    ) {
        let _ = (read(V1, &text), read(EVENT, &text));
    }
}
