//! Each shape is that of its golden file.

use super::*;
use callback_core::{ErrorKind, Evidence, Payload};
use serde_json::json;
use std::time::{Duration, SystemTime};

fn message(payload: impl Into<Payload>) -> Message {
    let message = Message::builder("CONTAINER_CREATED").id("delivery-1".parse().expect("valid"));
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_614_265_330);
    let message = message.event_id("event-1".parse().expect("valid")).source("/containers").time(time);
    let message = message.subject("0193b2a4-0000-7000-8000-000000000000").sequence(7).header("x-request-id", "r-1");
    message.payload(payload).build().expect("valid")
}

fn recipient() -> Recipient {
    Recipient {
        id: "0193b2a4-0000-7000-8000-000000000000".to_owned(),
        href: "https://api.example.com/subscriptions/0193b2a4-0000-7000-8000-000000000000".to_owned(),
        service: Some("CONTAINER".to_owned()),
        meta: json!({ "mine": [1] }),
        secret: Some("open sesame".into()),
    }
}

/// The content type, additional headers, and body, as a golden file has them.
fn text(message: &Message) -> String {
    let headers: String = message.headers().map(|(name, value)| format!("{name}: {value}\n")).collect();
    let body: Value = message.json().expect("JSON");
    format!("content-type: {}\n{headers}\n{body:#}\n", message.content_type())
}

#[track_caller]
fn check(profile: &dyn Profile, golden: &str) {
    let message = message(json!({ "containerId": "c-1", "weight": 7 }));
    let shaped = profile.shape(message.clone(), &recipient()).expect("it has a shape");
    assert_eq!(text(&shaped), golden, "{profile:?}");
    assert_eq!((shaped.id(), shaped.event_id()), (message.id(), message.event_id()));
    let attributes = |message: &Message| message.attributes().map(|(_, value)| value.into_owned()).collect::<Vec<_>>();
    assert_eq!(attributes(&shaped), attributes(&message));
}

#[test]
fn each_shape_is_that_of_its_golden_file() {
    check(&Bare, include_str!("../../tests/golden/profile-bare.txt"));
    check(&Hal, include_str!("../../tests/golden/profile-hal.txt"));
    check(&Os1::new("X-COREOS-HMAC-SIGNATURE"), include_str!("../../tests/golden/profile-os1.txt"));
    check(&CloudEvents, include_str!("../../tests/golden/profile-cloudevents.txt"));
}

#[test]
fn the_notification_is_that_of_the_adidas_guidelines() {
    // Theirs has the data as an object without a name, which is no JSON: here it is called `data`.
    let recipient = Recipient { id: "4746".into(), href: "/items/tasks/4746".into(), ..recipient() };
    let shaped = Hal.shape(message(json!({ "items": 3 })), &recipient).expect("it has a shape");
    let body: Value = shaped.json().expect("JSON");
    let expected =
        json!({ "_links": { "self": { "href": "/items/tasks/4746" } }, "UUID": "4746", "data": { "items": 3 } });
    assert_eq!(body, expected);
    assert_eq!(shaped.content_type(), "application/hal+json");
}

#[test]
fn what_an_os1_callback_has_not_is_left_out() {
    let recipient = Recipient { service: None, meta: Value::Null, secret: None, ..recipient() };
    let shaped = Os1::new("x-hmac").shape(message(json!(1)), &recipient).expect("it has a shape");
    assert_eq!(shaped.json::<Value>().expect("JSON"), json!({ "event": "CONTAINER_CREATED", "data": 1 }));
    assert_eq!(shaped.header("x-hmac"), None);
}

#[test]
fn the_os1_header_signs_the_body_as_it_is_sent() {
    let shaped = Os1::new("x-hmac").shape(message(json!(1)), &recipient()).expect("it has a shape");
    assert_eq!(shaped.header("x-hmac"), Some(&*Secret::from("open sesame").hex_hmac(shaped.body())));
}

#[test]
fn a_header_that_no_message_can_carry_makes_no_os1_callback() {
    assert!(Os1::new("webhook-id").shape(message(json!(1)), &recipient()).is_err());
}

#[test]
fn a_body_becomes_data_as_in_cloudevents() {
    let data = |payload: Payload| {
        let mut members = Members::default();
        members.insert_data(&message(payload));
        serde_json::from_slice::<Value>(&members.into_body()).expect("JSON")
    };
    assert_eq!(data(json!(null).into()), json!({ "data": null }));
    assert_eq!(data(Payload::new("application/hal+json; charset=utf-8", "[1]")), json!({ "data": [1] }));
    assert_eq!(data(Payload::new("Application/JSON", "[1]")), json!({ "data": [1] }));
    assert_eq!(data("text".into()), json!({ "data": "text" }));
    assert_eq!(data(vec![0, 255].into()), json!({ "data_base64": "AP8=" }));
    // What is no JSON, whatever it says.
    assert_eq!(data(Payload::new("application/json", "{")), json!({ "data_base64": "ew==" }));
    assert_eq!(data(Payload::new("text/plain", vec![255])), json!({ "data_base64": "/w==" }));
}

/// A number of many digits is another one after it was read as a `Value`, and not all of JSON can be read as one.
#[test]
fn json_is_data_as_it_is_spelled() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for json in ["31.245270191439438", "12345678901234567890123", "1e999", "1.10", r#"{"b":1,"a":"\ud83d"}"#, &deep] {
        let message = message(Payload::new("application/json", json.to_owned()));
        for profile in [&Hal as &dyn Profile, &Os1::new("x-hmac"), &CloudEvents] {
            let shaped = profile.shape(message.clone(), &recipient()).expect("it has a shape");
            let body = str::from_utf8(shaped.body()).expect("a text");
            assert!(
                body.contains(&format!(r#""data":{json},"#)) || body.ends_with(&format!(r#""data":{json}}}"#)),
                "{body}"
            );
        }
    }
}

#[track_caller]
fn judged(profile: &dyn Profile, outcome: Result<u16, (ErrorKind, u16)>, expected: Result<u16, (ErrorKind, u16)>) {
    let outcome = outcome.map(|status| Receipt::new(Evidence::Status(status)));
    let outcome = outcome.map_err(|(kind, status)| SinkError::new(kind, "it says so").with_status(status));
    let judged = profile.judge(outcome).map(|receipt| receipt.status().expect("a status"));
    let judged = judged.map_err(|error| (error.kind(), error.status().expect("a status")));
    assert_eq!(judged, expected, "{profile:?}");
}

#[test]
fn only_200_and_202_accept_an_os1_callback() {
    let os1 = Os1::new("x-hmac");
    for status in [200, 202] {
        judged(&os1, Ok(status), Ok(status));
    }
    for status in [201, 204, 299] {
        judged(&os1, Ok(status), Err((ErrorKind::Refused, status)));
    }
    judged(&os1, Err((ErrorKind::Unavailable, 500)), Err((ErrorKind::Unavailable, 500)));
    let confirmed = os1.judge(Ok(Receipt::new(Evidence::Confirmed)));
    assert!(confirmed.is_ok(), "a broker has no status");
}

#[test]
fn a_403_refuses_a_notification_for_good() {
    judged(&Hal, Err((ErrorKind::Unauthorized, 403)), Err((ErrorKind::Refused, 403)));
    judged(&Hal, Err((ErrorKind::Unauthorized, 401)), Err((ErrorKind::Unauthorized, 401)));
    judged(&Hal, Ok(204), Ok(204));
}

#[test]
fn the_others_say_what_the_sink_says() {
    for profile in [&Bare as &dyn Profile, &CloudEvents] {
        judged(profile, Ok(201), Ok(201));
        judged(profile, Err((ErrorKind::Unauthorized, 403)), Err((ErrorKind::Unauthorized, 403)));
    }
}

#[test]
fn neither_meta_nor_secret_are_printed() {
    let text = format!("{:?}", Recipient { meta: json!("planted"), secret: Some("planted".into()), ..recipient() });
    assert!(!text.contains("planted"), "{text}");
}
