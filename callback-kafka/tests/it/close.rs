//! The end of a sink.

use crate::support::{Broker, attempt, message, sink, to};
use callback_core::{ErrorKind, Sink};
use futures_util::future::{join, join_all};

#[tokio::test(flavor = "multi_thread")]
async fn close_settles_what_is_in_flight() {
    let Some(broker) = Broker::shared() else { return };
    // All of them are still queued when the sink is closed.
    let (sink, topic) = (sink(broker.plain().setting("linger.ms", "1000")), broker.topic(1, &[]).await);
    let messages: Vec<_> = (0..100).map(|number| message(number.to_string())).collect();
    let attempts: Vec<_> = messages.iter().map(|message| attempt(1, message)).collect();
    let dsn = to(&topic);
    let deliveries = messages.iter().zip(&attempts).map(|(message, attempt)| sink.deliver(&dsn, message, attempt));
    // Each delivery is polled before the sink is closed.
    let (delivered, closed) = join(join_all(deliveries), sink.close()).await;
    closed.expect("all are settled");
    assert!(delivered.iter().all(Result::is_ok), "{delivered:?}");
    assert_eq!(broker.read(&topic).await.len(), 100);
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
