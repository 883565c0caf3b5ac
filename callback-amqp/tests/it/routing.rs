//! Queues and exchanges that are there, are not, come and go.

use crate::broker::{PATIENCE, attempt, deliver, message, shared, sink, to_queue, unique};
use callback_core::{Dsn, ErrorKind, Message, Payload, Phase, Sink, SinkError};
use futures_util::future::join_all;

fn to_exchange(exchange: &str, key: &str) -> Dsn {
    format!("amqp:///?exchange={exchange}&routing_key={key}").parse().expect("a Dsn")
}

#[track_caller]
fn unroutable(result: Result<impl Sized, SinkError>) -> SinkError {
    let error = result.err().expect("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Unroutable, "{}", error.chain());
    error
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_unroutable() {
    let Some(broker) = shared() else { return };
    let error = unroutable(deliver(&broker.sink(), &to_queue(&unique("nobody"))).await);
    assert_eq!(error.phase(), Some(Phase::Answer));
}

#[tokio::test]
async fn an_exchange_routes_by_key() {
    let Some(broker) = shared() else { return };
    let (side, sink, exchange) = (broker.side("").await, broker.sink(), unique("exchange"));
    let queue = side.queue().await;
    side.exchange(&exchange).await;
    side.bind(&queue, &exchange, "orders.#").await;
    deliver(&sink, &to_exchange(&exchange, "orders.done")).await.expect("delivered");
    assert_eq!(side.next(&queue).await.expect("a message").routing_key.as_str(), "orders.done");
    unroutable(deliver(&sink, &to_exchange(&exchange, "others")).await);
}

#[tokio::test]
async fn an_exchange_that_is_not_there_is_unroutable_until_it_is() {
    let Some(broker) = shared() else { return };
    let (side, sink, exchange) = (broker.side("").await, broker.sink(), unique("exchange"));
    let queue = side.queue().await;
    let dsn = to_exchange(&exchange, "k");
    for result in join_all((0..50).map(|_| deliver(&sink, &dsn))).await {
        assert_eq!(unroutable(result).phase(), Some(Phase::Connect));
    }
    side.exchange(&exchange).await;
    side.bind(&queue, &exchange, "#").await;
    deliver(&sink, &dsn).await.expect("delivered");
}

#[tokio::test]
async fn an_exchange_that_goes_hurts_no_other() {
    let Some(broker) = shared() else { return };
    let (side, sink, exchange) = (broker.side("").await, broker.sink(), unique("exchange"));
    let queue = side.queue().await;
    side.exchange(&exchange).await;
    side.bind(&queue, &exchange, "#").await;
    let (gone, there) = (to_exchange(&exchange, "k"), to_queue(&queue));
    deliver(&sink, &gone).await.expect("delivered");
    side.channel.exchange_delete(exchange.as_str().into(), Default::default()).await.expect("deleted");
    let to_gone = join_all((0..100).map(|_| deliver(&sink, &gone)));
    let to_there = join_all((0..100).map(|_| deliver(&sink, &there)));
    let (to_gone, to_there) = futures_util::future::join(to_gone, to_there).await;
    for result in to_gone {
        unroutable(result);
    }
    for result in to_there {
        result.expect("delivered");
    }
}

/// The socket is full when the broker closes the channel: what is written afterwards must not be written there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_goes_under_load_hurts_no_other() {
    let Some(broker) = shared() else { return };
    let (side, sink, exchange) = (broker.side("").await, broker.sink(), unique("exchange"));
    let queue = side.queue().await;
    side.exchange(&exchange).await;
    side.bind(&queue, &exchange, "#").await;
    let (gone, there) = (to_exchange(&exchange, "k"), to_queue(&queue));
    for dsn in [&gone, &there] {
        deliver(&sink, dsn).await.expect("delivered");
    }
    side.channel.exchange_delete(exchange.as_str().into(), Default::default()).await.expect("deleted");
    let payload = Payload::new("a/b", vec![b'a'; 300_000]);
    let send = async |dsn| {
        let message = Message::builder("a").payload(payload.clone()).build().expect("a message");
        sink.deliver(dsn, &message, &attempt(PATIENCE)).await
    };
    let to_there = join_all((0..200).map(|_| send(&there)));
    let to_gone = join_all((0..200).map(|_| send(&gone)));
    let (to_there, to_gone) = futures_util::future::join(to_there, to_gone).await;
    for result in to_there {
        result.expect("delivered");
    }
    for result in to_gone {
        unroutable(result);
    }
}

#[tokio::test]
async fn nothing_is_declared_unless_the_operator_says_so() {
    let Some(broker) = shared() else { return };
    let (side, queue) = (broker.side("").await, unique("declared"));
    let dsn = to_queue(&queue);
    unroutable(deliver(&broker.sink(), &dsn).await);

    let sink = sink(broker.cluster().declare_queues());
    for result in join_all((0..20).map(|_| deliver(&sink, &dsn))).await {
        result.expect("delivered");
    }
    assert_eq!(side.ids(&queue).await.len(), 20);

    // It is durable: declared otherwise, this fails.
    side.channel
        .queue_declare(
            queue.as_str().into(),
            lapin::options::QueueDeclareOptions { durable: true, ..Default::default() },
            Default::default(),
        )
        .await
        .expect("durable");

    side.delete(&queue).await;
    unroutable(deliver(&sink, &dsn).await);
    deliver(&sink, &dsn).await.expect("declared again");
}

#[tokio::test]
async fn a_queue_with_other_properties_is_as_good() {
    let Some(broker) = shared() else { return };
    let (side, queue) = (broker.side("").await, unique("transient"));
    side.channel.queue_declare(queue.as_str().into(), Default::default(), Default::default()).await.expect("a queue");
    deliver(&sink(broker.cluster().declare_queues()), &to_queue(&queue)).await.expect("delivered");
}

#[tokio::test]
async fn a_vhost_may_have_a_slash_in_its_name() {
    let Some(broker) = shared() else { return };
    let vhost = unique("a/b");
    broker.control(&["add_vhost", &vhost]).await;
    broker.control(&["set_permissions", "--vhost", &vhost, "guest", ".*", ".*", ".*"]).await;
    let path = vhost.replace('/', "%2F");
    let side = broker.side(&path).await;
    let queue = side.queue().await;
    let dsn: Dsn = format!("amqp:///{path}?queue={queue}").parse().expect("a Dsn");
    let sink = broker.sink();
    deliver(&sink, &dsn).await.expect("delivered");
    assert!(side.next(&queue).await.is_some());
    unroutable(deliver(&sink, &to_queue(&queue)).await);
}

#[tokio::test]
async fn a_vhost_that_is_not_there_lets_nobody_in() {
    let Some(broker) = shared() else { return };
    let dsn: Dsn = format!("amqp:///{}?queue=q", unique("nowhere")).parse().expect("a Dsn");
    let error = deliver(&broker.sink(), &dsn).await.expect_err("not there");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unauthorized, Some(Phase::Connect)));
}

#[tokio::test]
async fn an_expired_message_was_delivered() {
    let Some(broker) = shared() else { return };
    let (side, sink) = (broker.side("").await, broker.sink());
    let queue = side.queue().await;
    let dsn: Dsn = format!("amqp:///?queue={queue}&expiration=0&priority=3").parse().expect("a Dsn");
    sink.deliver(&dsn, &message(), &attempt(PATIENCE)).await.expect("delivered");
    assert!(side.next(&queue).await.is_none());
}
