//! The end of a sink.

use crate::support::{Broker, attempt, message, sink, to};
use callback_core::{ErrorKind, Sink};
use tokio::task::{JoinSet, yield_now};

#[tokio::test(flavor = "multi_thread")]
async fn close_settles_what_is_in_flight() {
    let Some(broker) = Broker::shared() else { return };
    // All of them are still queued when the sink is closed.
    let (sink, topic) = (sink(broker.plain().setting("linger.ms", "1000")), broker.topic(1, &[]).await);
    let mut deliveries = JoinSet::new();
    for number in 0..100 {
        let (sink, dsn) = (sink.clone(), to(&topic));
        deliveries.spawn(async move {
            let message = message(number.to_string());
            sink.deliver(&dsn, &message, &attempt(1, &message)).await.map(drop).map_err(|error| error.kind())
        });
    }
    yield_now().await;
    sink.close().await.expect("all are settled");
    let mut delivered = 0;
    while let Some(result) = deliveries.join_next().await {
        match result.expect("no panic") {
            Ok(()) => delivered += 1,
            // It came when the sink was closed already.
            Err(kind) => assert_eq!(kind, ErrorKind::Unavailable),
        }
    }
    let records = if delivered == 0 { 0 } else { broker.read(&topic).await.len() };
    assert_eq!(records, delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_close_nothing_is_taken() {
    let Some(broker) = Broker::shared() else { return };
    let (sink, topic, message) = (broker.sink(), broker.topic(1, &[]).await, message("a"));
    sink.deliver(&to(&topic), &message, &attempt(1, &message)).await.expect("delivered");
    let (first, second) = tokio::join!(sink.close(), sink.close());
    first.and(second).expect("closed");
    sink.close().await.expect("closed already");
    let error = sink.deliver(&to(&topic), &message, &attempt(2, &message)).await.expect_err("the sink is closed");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(broker.read(&topic).await.len(), 1);
}

#[test]
fn a_sink_is_made_and_dropped_without_a_runtime() {
    let sink = sink(crate::support::cluster("127.0.0.1:1"));
    drop(sink);
}
