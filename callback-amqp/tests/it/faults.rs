//! What brokers, networks and operators do to a sink at work.

use crate::broker::{Broker, PATIENCE, attempt, deliver, deliver_until, message, own, sink, to_queue};
use callback_amqp::{AmqpCluster, AmqpSink};
use callback_core::{Dsn, ErrorKind, Phase, Sink};
use futures_util::{StreamExt, future::join_all, stream};
use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Delivers so many messages at once, each until it is confirmed; how many tries failed, by these kinds alone.
/// A try that failed says so once: a delivery ends with one answer, or does not end, and the test neither.
async fn load(
    sink: &AmqpSink,
    dsn: &Dsn,
    messages: usize,
    done: &AtomicUsize,
    kinds: &[ErrorKind],
) -> (HashSet<String>, usize) {
    let failed = AtomicUsize::new(0);
    let delivered = stream::iter(0..messages).map(|_| async {
        let message = message();
        let deadline = Instant::now() + 2 * PATIENCE;
        while let Err(error) = sink.deliver(dsn, &message, &attempt(PATIENCE)).await {
            assert!(kinds.contains(&error.kind()), "{}", error.chain());
            assert!(Instant::now() < deadline, "it never succeeds: {}", error.chain());
            failed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        done.fetch_add(1, Ordering::Relaxed);
        message.id().to_string()
    });
    let delivered = delivered.buffer_unordered(500).collect().await;
    (delivered, failed.into_inner())
}

async fn until(done: &AtomicUsize, count: usize) {
    while done.load(Ordering::Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Everything that was said to be delivered is in the queue, and nothing is there more often than it was tried.
async fn all_arrived(broker: &Broker, queue: &str, delivered: &HashSet<String>, failed: usize) {
    let arrived = broker.ids(queue).await;
    let lost: Vec<_> = delivered.iter().filter(|id| !arrived.contains_key(*id)).collect();
    assert!(lost.is_empty(), "{} messages are lost", lost.len());
    let doubled: usize = arrived.values().map(|times| times - 1).sum();
    assert!(doubled <= failed, "{doubled} doubled, and only {failed} tries failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_under_load_loses_nothing() {
    let Some(broker) = own().await else { return };
    let queue = broker.side("").await.queue().await;
    broker.write_down().await;
    let (sink, dsn, done) = (broker.sink(), to_queue(&queue), AtomicUsize::new(0));
    let kill = async {
        until(&done, 3_000).await;
        broker.kill().await;
        broker.restart().await;
    };
    // A broker that comes up again may return messages for as long as it does not know a durable queue again.
    let kinds = [ErrorKind::Unavailable, ErrorKind::Unroutable];
    let ((delivered, failed), ()) = tokio::join!(load(&sink, &dsn, 10_000, &done, &kinds), kill);
    assert!(failed > 0, "nothing was underway");
    all_arrived(&broker, &queue, &delivered, failed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_operator_closes_loses_nothing() {
    let Some(broker) = own().await else { return };
    let queue = broker.side("").await.queue().await;
    let (sink, dsn, done) = (broker.sink(), to_queue(&queue), AtomicUsize::new(0));
    let close = async {
        for count in [1_000, 4_000, 7_000] {
            until(&done, count).await;
            broker.control(&["close_all_connections", "test"]).await;
        }
    };
    let ((delivered, failed), ()) = tokio::join!(load(&sink, &dsn, 30_000, &done, &[ErrorKind::Unavailable]), close);
    assert!(failed > 0, "nothing was underway");
    all_arrived(&broker, &queue, &delivered, failed).await;
}

#[tokio::test]
async fn a_queue_that_is_deleted_meanwhile_is_unroutable() {
    let Some(broker) = own().await else { return };
    let side = broker.side("").await;
    let (queue, sink) = (side.queue().await, broker.sink());
    let dsn = to_queue(&queue);
    deliver(&sink, &dsn).await.expect("delivered");
    side.delete(&queue).await;
    for result in join_all((0..200).map(|_| deliver(&sink, &dsn))).await {
        assert_eq!(result.expect_err("nobody is there").kind(), ErrorKind::Unroutable);
    }
}

#[tokio::test]
async fn a_broker_that_is_short_of_disk_throttles_and_heals() {
    let Some(broker) = own().await else { return };
    let queue = broker.side("").await.queue().await;
    let (sink, dsn) = (broker.sink(), to_queue(&queue));
    deliver(&sink, &dsn).await.expect("delivered");
    broker.control(&["set_disk_free_limit", "1000000GB"]).await;
    // The broker says so to who publishes, and keeps what came before.
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        match sink.deliver(&dsn, &message(), &attempt(Duration::from_secs(2))).await {
            Err(error) if error.kind() == ErrorKind::Throttled => break error,
            result => assert!(Instant::now() < deadline, "never throttled: {result:?}"),
        }
    };
    assert_eq!(error.phase(), Some(Phase::Write));
    for result in join_all((0..100).map(|_| deliver(&sink, &dsn))).await {
        assert_eq!(result.expect_err("blocked").kind(), ErrorKind::Throttled);
    }
    broker.control(&["set_disk_free_limit", "50MB"]).await;
    let kinds = deliver_until(&sink, &dsn).await;
    assert!(kinds.iter().all(|kind| *kind == ErrorKind::Throttled), "{kinds:?}");
    sink.close().await.expect("nothing is left");
}

#[tokio::test]
async fn a_broker_that_is_paused_ends_no_later_than_the_deadline() {
    let Some(broker) = own().await else { return };
    let queue = broker.side("").await.queue().await;
    let (sink, dsn) = (broker.sink(), to_queue(&queue));
    deliver(&sink, &dsn).await.expect("delivered");
    broker.signal("-STOP").await;
    let second = Duration::from_secs(1);
    let deliveries = join_all((0..300).map(|_| async { sink.deliver(&dsn, &message(), &attempt(second)).await }));
    // The same cluster by another sink, which is not connected yet.
    let stranger = broker.sink();
    let unconnected = async { stranger.deliver(&dsn, &message(), &attempt(second)).await };
    let (results, unconnected) = tokio::join!(deliveries, unconnected);
    broker.signal("-CONT").await;
    for result in results {
        let error = result.expect_err("nobody answers");
        assert_eq!((error.kind(), error.phase()), (ErrorKind::TimedOut, Some(Phase::Answer)));
    }
    let error = unconnected.expect_err("nobody answers");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::TimedOut, Some(Phase::Connect)));
    // What nobody waits for is confirmed all the same.
    deliver_until(&sink, &dsn).await;
    sink.close().await.expect("nothing is left");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let url = format!("amqp://a:b@127.0.0.1:{port}/").parse().expect("a Dsn");
    let sink = sink(AmqpCluster::new(url).queue("*"));
    for _ in 0..3 {
        let error = deliver(&sink, &to_queue("q")).await.expect_err("nobody is there");
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Connect)));
    }
}
