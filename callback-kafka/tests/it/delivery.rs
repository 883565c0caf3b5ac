//! What arrives, and how.

use crate::support::{Broker, attempt, dsn, message, sink, to};
use callback_core::{Evidence, Message, Payload, Sink, Verifier};
use std::{collections::HashSet, time::SystemTime};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_with_its_key_headers_and_body() {
    let Some(broker) = Broker::shared() else { return };
    let (sink, topic) = (broker.sink(), broker.topic(1, &[]).await);
    let body = br#"{"status":"completed"}"#;
    let message = Message::builder("order.completed")
        .source("/orders")
        .subject("Bestellung für 😀")
        .correlation_id("ray 7")
        .header("x-request-id", "r-1")
        .payload(Payload::new("application/json", &body[..]))
        .build()
        .expect("valid");
    let attempt = attempt(2, &message);
    let receipt = sink.deliver(&to(&topic), &message, &attempt).await.expect("delivered");
    assert_eq!(receipt.evidence(), &Evidence::Offset { partition: 0, offset: 0 });

    let records = broker.read(&topic).await;
    let [record] = &*records else { panic!("{records:?}") };
    assert_eq!((record.key.as_deref(), &*record.body), (Some("Bestellung für 😀"), &body[..]));
    let header = |name: &str| record.headers.get(name).map(String::as_str).unwrap_or_default();
    for (name, value) in [
        ("content-type", "application/json"),
        ("ce_type", "order.completed"),
        ("ce_subject", "Bestellung für 😀"),
        ("ce_correlationid", "ray 7"),
        ("callback-attempt", "2"),
        ("webhook-id", message.id().as_str()),
        ("x-request-id", "r-1"),
    ] {
        assert_eq!(header(name), value, "{name}");
    }
    let verifier: Verifier = crate::support::SECRET.parse().expect("valid");
    let (id, seconds, signature) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
    verifier.verify_headers(id, seconds, signature, &record.body, SystemTime::now()).expect("it is ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_and_partition_are_those_of_the_dsn() {
    let Some(broker) = Broker::shared() else { return };
    let (sink, topic) = (broker.sink(), broker.topic(3, &[]).await);
    let message = message("a");
    let dsn = dsn(&format!("kafka:///{topic}?key=order%2F1&partition=2"));
    let receipt = sink.deliver(&dsn, &message, &attempt(1, &message)).await.expect("delivered");
    assert_eq!(receipt.evidence(), &Evidence::Offset { partition: 2, offset: 0 });
    assert_eq!(broker.read(&topic).await[0].key.as_deref(), Some("order/1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_without_subject_has_no_key() {
    let Some(broker) = Broker::shared() else { return };
    let (sink, topic) = (broker.sink(), broker.topic(1, &[]).await);
    let message = Message::builder("a").build().expect("valid");
    sink.deliver(&to(&topic), &message, &attempt(1, &message)).await.expect("delivered");
    let records = broker.read(&topic).await;
    assert_eq!((&records[0].key, &*records[0].body), (&None, &b""[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_reached_by_name_and_by_its_hosts() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1, &[]).await;
    let builder = callback_kafka::KafkaSink::builder().cluster("orders", broker.plain());
    let (sink, message) = (builder.build().expect("valid"), message("a"));
    for authority in ["orders", broker.listener("")] {
        let dsn = dsn(&format!("kafka://{authority}/{topic}"));
        sink.deliver(&dsn, &message, &attempt(1, &message)).await.expect("delivered");
    }
    assert_eq!(broker.read(&topic).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_at_once_arrive_once_each() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(4, &[]).await;
    // Fewer may be in flight than come.
    let sink = sink(broker.plain().in_flight(50));
    let mut deliveries = JoinSet::new();
    for number in 0..2_000 {
        let (sink, dsn) = (sink.clone(), dsn(&format!("kafka:///{topic}?key={}", number % 7)));
        deliveries.spawn(async move {
            let message = message(number.to_string());
            sink.deliver(&dsn, &message, &attempt(1, &message)).await.map(drop)
        });
    }
    while let Some(delivered) = deliveries.join_next().await {
        delivered.expect("no panic").expect("delivered");
    }
    let records = broker.read(&topic).await;
    let bodies: HashSet<_> = records.iter().map(|record| record.body.clone()).collect();
    assert_eq!((records.len(), bodies.len()), (2_000, 2_000));
}
