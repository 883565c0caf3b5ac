//! A message as properties and headers of AMQP 0-9-1: CloudEvents 1.0 in binary mode, signed by Standard Webhooks.

use crate::address::{Address, NAME_LIMIT};
use callback_core::{Attempt, Message, SinkError};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use std::{borrow::Cow, time::SystemTime};

/// RabbitMQ stores a message of this mode before it confirms it.
const PERSISTENT: u8 = 2;

/// The properties of a message that goes to this address.
///
/// # Errors
/// When the content type is longer than a short string, or all headers together exceed `limit` bytes: they go in one
/// frame, and a larger one ends the connection.
pub(crate) fn properties(
    address: &Address,
    message: &Message,
    attempt: &Attempt,
    limit: usize,
) -> Result<BasicProperties, SinkError> {
    let short = |text: &str| {
        ShortString::try_new(text)
            .map_err(|_| SinkError::refused(format!("a content type has at most {NAME_LIMIT} bytes in AMQP 0-9-1")))
    };
    let mut headers = FieldTable::default();
    // What the properties themselves come to, at the most.
    let mut size = 8 * (NAME_LIMIT + 1);
    let mut set = |name: ShortString, value: Cow<'_, str>| {
        size += name.as_str().len() + value.len() + 6;
        headers.insert(name, AMQPValue::LongString(value.into_owned().into()));
    };
    for (name, value) in attempt.headers(message) {
        set(name.into(), value);
    }
    for (name, value) in message.ce_headers() {
        set(name.into(), value);
    }
    for (name, value) in message.headers() {
        // No name in a message exceeds the 255 bytes of a short string.
        if let Ok(name) = ShortString::try_new(name) {
            set(name, value.into());
        }
    }
    if size > limit {
        return Err(SinkError::too_large("the headers do not fit into a frame of the broker"));
    }
    let seconds = message.time().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut properties = BasicProperties::default()
        .with_message_id(short(message.id().as_str())?)
        .with_type(short(message.event_type())?)
        .with_app_id(short(message.source())?)
        .with_content_type(short(message.content_type())?)
        .with_timestamp(seconds)
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    if let Some(subject) = message.subject() {
        properties = properties.with_correlation_id(short(subject)?);
    }
    if let Some(expiration) = address.expiration {
        properties = properties.with_expiration(expiration.to_string().into());
    }
    if let Some(priority) = address.priority {
        properties = properties.with_priority(priority);
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::{ErrorKind, Payload, Signer};
    use std::time::{Duration, Instant};

    fn address(dsn: &str) -> Address {
        Address::of(&dsn.parse().expect("a Dsn")).expect("an address")
    }

    fn attempt() -> Attempt {
        Attempt::new(1, SystemTime::UNIX_EPOCH, Instant::now())
    }

    fn refused(message: &Message) -> ErrorKind {
        properties(&address("amqp:///?queue=q"), message, &attempt(), 100_000).expect_err("refused").kind()
    }

    #[test]
    fn a_message_has_the_properties_of_the_golden_file() {
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
        let address = address("amqp:///?queue=q&expiration=60000&priority=4");
        let properties = properties(&address, &message, &attempt, 100_000).expect("it fits");
        let mut lines = vec![
            format!("app_id: {}", properties.app_id().as_ref().expect("set")),
            format!("content_type: {}", properties.content_type().as_ref().expect("set")),
            format!("correlation_id: {}", properties.correlation_id().as_ref().expect("set")),
            format!("delivery_mode: {}", properties.delivery_mode().expect("set")),
            format!("expiration: {}", properties.expiration().as_ref().expect("set")),
            format!("message_id: {}", properties.message_id().as_ref().expect("set")),
            format!("priority: {}", properties.priority().expect("set")),
            format!("timestamp: {}", properties.timestamp().expect("set")),
            format!("type: {}", properties.kind().as_ref().expect("set")),
        ];
        for (name, value) in properties.headers().as_ref().expect("set").inner() {
            let AMQPValue::LongString(value) = value else { panic!("{name} is no long string") };
            lines.push(format!("header {name}: {value}"));
        }
        assert_eq!(lines.join("\n") + "\n", include_str!("../tests/golden/properties.txt"));
    }

    #[test]
    fn nothing_is_sent_that_is_not_set() {
        let message = Message::builder("a").build().expect("valid");
        let properties = properties(&address("amqp:///?queue=q"), &message, &attempt(), 100_000).expect("it fits");
        assert!(properties.correlation_id().is_none());
        assert!(properties.expiration().is_none() && properties.priority().is_none());
        let headers = properties.headers().as_ref().expect("set");
        for name in ["webhook-signature", "traceparent", "ce-subject", "ce-correlationid"] {
            assert!(!headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn what_would_end_the_connection_is_refused_before() {
        let long = Payload::new("a/".to_owned() + &"b".repeat(254), "");
        assert_eq!(refused(&Message::builder("a").payload(long).build().expect("valid")), ErrorKind::Refused);
        let mut message = Message::builder("a");
        for number in 0..13 {
            message = message.header(format!("x-{number}"), "v".repeat(8_000));
        }
        assert_eq!(refused(&message.build().expect("valid")), ErrorKind::TooLarge);
    }
}
