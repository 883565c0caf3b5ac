//! A message as an HTTP request: CloudEvents 1.0 in binary mode, signed by Standard Webhooks.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use callback_core::{Attempt, Dsn, Message};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::num::NonZeroU32;

const REQUEST_ORIGIN: HeaderName = HeaderName::from_static("webhook-request-origin");

/// All headers of the request but those that HTTP itself sets.
pub(crate) fn headers(dsn: &Dsn, message: &Message, attempt: &Attempt, origin: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(24);
    let mut set = |name: HeaderName, value: &str| {
        // A message is built of what a header can carry.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, message.content_type());
    for (name, value) in attempt.headers(message) {
        set(HeaderName::from_static(name), &value);
    }
    for (name, value) in message.ce_headers() {
        set(HeaderName::from_static(name), &value);
    }
    for (name, value) in message.headers() {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            set(name, value);
        }
    }
    if message.body().is_empty() {
        // RFC 9110 §8.6 asks for it, hyper leaves it out, and some servers answer 411 then.
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
    }
    if let Some(origin) = origin {
        headers.insert(REQUEST_ORIGIN, origin.clone());
    }
    authorize(&mut headers, dsn);
    headers
}

/// All headers of a handshake (CloudEvents HTTP webhooks 1.0.2 §4.1) but those that HTTP itself sets.
pub(crate) fn handshake(dsn: &Dsn, origin: &HeaderValue, per_minute: Option<NonZeroU32>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(REQUEST_ORIGIN, origin.clone());
    if let Some(requests) = per_minute {
        headers.insert("webhook-request-rate", HeaderValue::from(requests.get()));
    }
    authorize(&mut headers, dsn);
    headers
}

fn authorize(headers: &mut HeaderMap, dsn: &Dsn) {
    if let Some(user) = dsn.username() {
        let password = dsn.password().unwrap_or_default();
        let mut value =
            HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
                .expect("base64 is visible ASCII");
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::{Duration, Instant, SystemTime};

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
            .payload(callback_core::Payload::new("application/json", &br#"{"test": 2432232314}"#[..]))
            .build()
            .expect("valid");
        let signer: callback_core::Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("valid");
        let attempt = Attempt::new(3, time, Instant::now())
            .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .sign(&signer, &message);
        let dsn = "https://me:pa%20ss@example.com/hook?a=b".parse().expect("valid");
        let mut lines: Vec<String> = headers(&dsn, &message, &attempt, None)
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("visible")))
            .collect();
        lines.sort_unstable();
        assert_eq!(lines.concat(), include_str!("../tests/golden/request-headers.txt"));
        assert!(headers(&dsn, &message, &attempt, None)[header::AUTHORIZATION].is_sensitive());
    }

    #[test]
    fn a_handshake_has_the_headers_of_the_golden_file() {
        let dsn = "https://me:pa%20ss@example.com/hook?a=b".parse().expect("valid");
        let origin = HeaderValue::from_static("events.example.com");
        let headers = handshake(&dsn, &origin, NonZeroU32::new(120));
        let lines = headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("visible")));
        let mut lines: Vec<String> = lines.collect();
        lines.sort_unstable();
        assert_eq!(lines.concat(), include_str!("../tests/golden/handshake-headers.txt"));
        assert!(headers[header::AUTHORIZATION].is_sensitive());
        let plain = handshake(&"https://example.com/".parse().expect("valid"), &origin, None);
        assert_eq!(plain.len(), 1, "{plain:?}");
    }

    #[test]
    fn nothing_is_sent_that_is_not_set() {
        let message = Message::builder("a").payload(json!(1)).build().expect("valid");
        let attempt = Attempt::new(1, SystemTime::now(), Instant::now());
        let headers = headers(&"https://example.com/".parse().expect("valid"), &message, &attempt, None);
        for name in [
            "webhook-signature",
            "webhook-request-origin",
            "traceparent",
            "ce-subject",
            "ce-correlationid",
            "authorization",
        ] {
            assert!(!headers.contains_key(name), "{name}");
        }
    }
}
