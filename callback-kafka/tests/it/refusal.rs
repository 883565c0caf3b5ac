//! What the broker does not take.

use crate::support::{Broker, attempt, cluster, dsn, message, new_topic, sink, to, until};
use callback_core::{ErrorKind, Phase, Sink};

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_unroutable_until_it_is_there() {
    let Some(broker) = Broker::shared() else { return };
    let (sink, topic, message) = (broker.sink(), new_topic(), message("a"));
    for number in [1, 2] {
        let error = sink.deliver(&to(&topic), &message, &attempt(number, &message)).await.expect_err("no such topic");
        assert_eq!(error.kind(), ErrorKind::Unroutable, "{}", error.chain());
    }
    broker.create_topic(&topic, 1, &[]).await;
    until(async || sink.deliver(&to(&topic), &message, &attempt(3, &message)).await.is_ok()).await;
    assert_eq!(broker.read(&topic).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_partition_is_unroutable() {
    let Some(broker) = Broker::shared() else { return };
    let (sink, topic, message) = (broker.sink(), broker.topic(1, &[]).await, message("a"));
    let dsn = dsn(&format!("kafka:///{topic}?partition=1"));
    let error = sink.deliver(&dsn, &message, &attempt(1, &message)).await.expect_err("there is one partition");
    assert_eq!(error.kind(), ErrorKind::Unroutable, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_topic_does_not_take_is_too_large() {
    let Some(broker) = Broker::shared() else { return };
    let (sink, topic) = (broker.sink(), broker.topic(1, &[("max.message.bytes", "100000")]).await);
    let (small, large) = (message("x".repeat(1_000)), message("x".repeat(150_000)));
    let error = sink.deliver(&to(&topic), &large, &attempt(1, &large)).await.expect_err("too large for the topic");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{}", error.chain());
    sink.deliver(&to(&topic), &small, &attempt(1, &small)).await.expect("small enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_the_producer_takes_is_too_large() {
    let Some(broker) = Broker::shared() else { return };
    let (sink, topic) = (broker.sink(), broker.topic(1, &[]).await);
    let large = message("x".repeat(17 << 20));
    let error = sink.deliver(&to(&topic), &large, &attempt(1, &large)).await.expect_err("too large for the producer");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_does_not_take_small_ones_along() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1, &[("max.message.bytes", "100000")]).await;
    // All of them are queued before the first batch is made.
    let sink = sink(broker.plain().setting("linger.ms", "500"));
    let deliveries = (0..40).map(|number| {
        let (sink, dsn) = (sink.clone(), to(&topic));
        let size = if number % 10 == 5 { 150_000 } else { 5_000 };
        async move {
            let message = message("x".repeat(size));
            (size, sink.deliver(&dsn, &message, &attempt(1, &message)).await.map_err(|error| error.kind()))
        }
    });
    for (size, delivered) in futures_util::future::join_all(deliveries).await {
        match size {
            5_000 => assert!(delivered.is_ok(), "{delivered:?}"),
            _ => assert_eq!(delivered, Err(ErrorKind::TooLarge)),
        }
    }
    assert_eq!(broker.read(&topic).await.len(), 36);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_listens_nothing_is_delivered() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let message = message("a");
    for (brokers, phase) in [(free.to_string(), Phase::Connect), ("nobody.invalid:9092".to_owned(), Phase::Resolve)] {
        let sink = sink(cluster(&brokers));
        let error = sink.deliver(&to("t"), &message, &attempt(1, &message)).await.expect_err("nobody is there");
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(phase)), "{}", error.chain());
    }
}
