//! What arrives, and what is said of it.

use crate::broker::{PATIENCE, attempt, deliver, message, shared, to_queue, unique};
use callback_core::{Attempt, ErrorKind, Evidence, Message, Phase, Signer, Sink};
use futures_util::{StreamExt, future::join_all, stream};
use lapin::{
    options::BasicConsumeOptions,
    types::{AMQPValue, FieldTable},
};
use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime},
};

#[tokio::test]
async fn a_message_arrives_with_body_properties_and_headers() {
    let Some(broker) = shared() else { return };
    let side = broker.side("").await;
    let queue = side.queue().await;
    let message = Message::builder("order.completed").subject("12345").payload("a body").build().expect("valid");
    let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key");
    let attempt = Attempt::new(2, SystemTime::now(), Instant::now() + PATIENCE).sign(&signer, &message);
    let sink = broker.sink();
    let receipt = sink.deliver(&to_queue(&queue), &message, &attempt).await.expect("delivered");
    assert_eq!(receipt.evidence(), &Evidence::Confirmed);
    let arrived = side.next(&queue).await.expect("a message");
    assert_eq!(arrived.data, b"a body");
    assert_eq!(arrived.properties.delivery_mode(), &Some(2));
    assert_eq!(arrived.properties.message_id().as_ref().map(|id| id.as_str()), Some(message.id().as_str()));
    assert_eq!(arrived.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("12345"));
    let header = |name: &str| match arrived.properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(value) => Some(value.to_string()),
        _ => None,
    };
    assert_eq!(header("webhook-signature").as_deref(), attempt.signature());
    assert_eq!(header("callback-attempt").as_deref(), Some("2"));
    assert_eq!(header("ce-type").as_deref(), Some("order.completed"));
    sink.close().await.expect("nothing is left");
}

#[tokio::test]
async fn an_empty_body_and_a_large_one_arrive_byte_for_byte() {
    let Some(broker) = shared() else { return };
    let side = broker.side("").await;
    let (queue, sink) = (side.queue().await, broker.sink());
    for length in [0, 1, 200_000, 1 << 20] {
        let body: Vec<u8> = (0..length).map(|index: u32| index.to_le_bytes()[0] ^ 0xa5).collect();
        let message = Message::builder("a").payload(bytes::Bytes::from(body.clone())).build().expect("valid");
        sink.deliver(&to_queue(&queue), &message, &attempt(PATIENCE)).await.expect("delivered");
        assert!(side.next(&queue).await.expect("a message").data == body, "{length} bytes");
    }
}

/// A third of the messages has no queue, and all are pipelined over the same channels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_100_000_messages_none_is_misjudged() {
    const MESSAGES: usize = 100_000;
    let Some(broker) = shared() else { return };
    let side = broker.side("").await;
    let (queue, sink) = (side.queue().await, broker.sink());
    let (to_it, to_nobody) = (to_queue(&queue), to_queue(&unique("nobody")));
    let results = stream::iter(0..MESSAGES).map(|number| {
        let (sink, message) = (sink.clone(), message());
        let dsn = if number % 3 == 1 { to_nobody.clone() } else { to_it.clone() };
        async move {
            let result = sink.deliver(&dsn, &message, &attempt(2 * PATIENCE)).await;
            (number, message.id().clone(), result)
        }
    });
    let (mut delivered, mut returned) = (HashSet::new(), 0);
    let mut results = results.buffer_unordered(1_000);
    while let Some((number, id, result)) = results.next().await {
        match result {
            Ok(_) => {
                assert_ne!(number % 3, 1, "{number} is said to be delivered");
                delivered.insert(id.to_string());
            }
            Err(error) => {
                assert_eq!((error.kind(), number % 3), (ErrorKind::Unroutable, 1), "{number}: {}", error.chain());
                returned += 1;
            }
        }
    }
    assert_eq!((delivered.len(), returned), (MESSAGES - MESSAGES / 3, MESSAGES / 3));

    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consumer = side.channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
    let mut consumer = consumer.await.expect("a consumer");
    while !delivered.is_empty() {
        let arrived = consumer.next().await.expect("a message").expect("a connection");
        let id = arrived.properties.message_id().as_ref().expect("an id").to_string();
        assert!(delivered.remove(&id), "{id} arrived twice, or was never delivered");
    }
}

#[tokio::test]
async fn one_message_to_many_queues_at_once_is_judged_for_each() {
    let Some(broker) = shared() else { return };
    let side = broker.side("").await;
    let (sink, message) = (broker.sink(), message());
    let mut queues = Vec::new();
    for _ in 0..20 {
        queues.extend([side.queue().await, unique("nobody")]);
    }
    let results = join_all(queues.iter().map(|queue| {
        let (sink, message, dsn) = (sink.clone(), message.clone(), to_queue(queue));
        async move { sink.deliver(&dsn, &message, &attempt(PATIENCE)).await.map_err(|error| error.kind()) }
    }))
    .await;
    for (index, (queue, result)) in queues.iter().zip(results).enumerate() {
        if index % 2 == 0 {
            assert!(result.is_ok(), "{index}: {result:?}");
            assert!(side.next(queue).await.is_some(), "{index} has no message");
        } else {
            assert_eq!(result.err(), Some(ErrorKind::Unroutable), "{index}");
        }
    }
}

#[tokio::test]
async fn a_dropped_delivery_leaves_the_sink_usable() {
    let Some(broker) = shared() else { return };
    let side = broker.side("").await;
    let (queue, sink) = (side.queue().await, broker.sink());
    let dsn = to_queue(&queue);
    // More than are in flight at once: each must give its place back.
    for round in 0..10_u64 {
        let many = join_all((0..600).map(|_| async { deliver(&sink, &dsn).await.map(drop) }));
        let _ = tokio::time::timeout(Duration::from_micros(300 * round), many).await;
    }
    deliver(&sink, &dsn).await.expect("delivered");
    sink.close().await.expect("nothing is left unconfirmed");
    let error = deliver(&sink, &dsn).await.expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    sink.close().await.expect("as often as one likes");
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_one() {
    let Some(broker) = shared() else { return };
    let side = broker.side("").await;
    let (queue, sink) = (side.queue().await, broker.sink());
    let error = sink.deliver(&to_queue(&queue), &message(), &attempt(Duration::ZERO)).await.expect_err("too late");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::TimedOut, Some(Phase::Connect)));
}
