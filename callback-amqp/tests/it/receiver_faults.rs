//! What brokers and operators do to a receiver at work.

use crate::{
    broker::{PATIENCE, attempt, own},
    receiver::{Post, accept, close, message, soon},
};
use callback_amqp::{AmqpCluster, AmqpReceiver};
use callback_core::{Dsn, Sink};
use callback_receive::Receiver;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Sends until the broker has it.
async fn send_until(post: &Post<'_>, dsn: &Dsn, id: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = post.sink.deliver(dsn, &message(id), &attempt(PATIENCE)).await {
        assert!(Instant::now() < deadline, "it never succeeds: {}", error.chain());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_neither_loses_nor_repeats() {
    let Some(broker) = own().await else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder().answer_within(PATIENCE)).await;
    let mut callback = receiver.spawn();
    broker.write_down().await;
    let dsn = callback.dsn();
    for id in ["accepted", "in-hand", "waiting"] {
        send_until(&post, &dsn, id).await;
    }
    assert_eq!(accept(&mut callback).await, "accepted");
    let in_hand = soon(callback.next()).await.expect("open");
    broker.kill().await;
    broker.restart().await;
    // The broker is not there to be told, and gives it again: it is known.
    in_hand.accept().await.expect("direct");
    send_until(&post, &dsn, "after").await;
    let mut came = vec![accept(&mut callback).await, accept(&mut callback).await];
    came.sort();
    assert_eq!(came, ["after", "waiting"]);
    close(&receiver).await;
    assert!(broker.ids(&post.queue).await.is_empty(), "all was acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_again_after_a_lost_connection_joins_the_open_verdict() {
    let Some(broker) = own().await else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder().answer_within(PATIENCE)).await;
    let mut callback = receiver.spawn();
    let dsn = callback.dsn();
    send_until(&post, &dsn, "in-hand").await;
    let in_hand = soon(callback.next()).await.expect("open");
    for round in 0..3 {
        broker.control(&["close_all_connections", "test"]).await;
        let id = format!("round-{round}");
        send_until(&post, &dsn, &id).await;
        assert_eq!(accept(&mut callback).await, id, "what is in hand is not handed over again");
    }
    in_hand.accept().await.expect("direct");
    send_until(&post, &dsn, "last").await;
    assert_eq!(accept(&mut callback).await, "last");
    close(&receiver).await;
    assert!(broker.ids(&post.queue).await.is_empty(), "all was acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_goes_on_after_a_lost_connection() {
    let Some(broker) = own().await else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let dsn = callback.dsn();
    send_until(&post, &dsn, "later").await;
    let later = soon(callback.next()).await.expect("open");
    later.retry_later(Duration::from_secs(3600)).await.expect("told");
    for round in 0..2 {
        broker.control(&["close_all_connections", "test"]).await;
        let id = format!("round-{round}");
        // The broker gives again what comes before it.
        send_until(&post, &dsn, &id).await;
        assert_eq!(accept(&mut callback).await, id);
    }
    close(&receiver).await;
    assert_eq!(broker.ids(&post.queue).await.into_keys().collect::<Vec<_>>(), ["later"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_deleted_is_declared_again() {
    let Some(broker) = own().await else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    send_until(&post, &callback.dsn(), "first").await;
    assert_eq!(accept(&mut callback).await, "first");
    post.side.delete(&post.queue).await;
    send_until(&post, &callback.dsn(), "second").await;
    assert_eq!(accept(&mut callback).await, "second");
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_closes_while_the_broker_is_away() {
    let Some(broker) = own().await else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    broker.write_down().await;
    send_until(&post, &callback.dsn(), "in-hand").await;
    let in_hand = soon(callback.next()).await.expect("open");
    broker.kill().await;
    in_hand.accept().await.expect("direct");
    close(&receiver).await;
    broker.restart().await;
    let left = broker.ids(&post.queue).await;
    assert_eq!(left.into_keys().collect::<Vec<_>>(), ["in-hand"], "the broker was never told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_declare_nothing_listens_to_what_is_there() {
    let Some(broker) = own().await else { return };
    let post = Post::new(&broker).await;
    broker.control(&["add_user", "listener", "secret"]).await;
    broker.control(&["set_permissions", "listener", "^$", ".*", ".*"]).await;
    let url = broker.url.replace("guest:guest", "listener:secret");
    let listener = || AmqpCluster::new(url.parse().expect("a Dsn"));
    let nothing = AmqpReceiver::builder(listener()).exchange(&*post.exchange).queue(&*post.queue).connect().await;
    nothing.expect_err("nothing is there");
    // By one who may.
    post.builder().connect().await.expect("declared");
    let amqp = AmqpReceiver::builder(listener()).exchange(&*post.exchange).queue(&*post.queue).connect().await;
    let receiver = Receiver::builder().open(amqp.expect("connected")).await.expect("it opens");
    let mut callback = receiver.spawn();
    post.send(&callback.dsn(), "first").await;
    assert_eq!(accept(&mut callback).await, "first");
    close(&receiver).await;
    broker.control(&["delete_user", "listener"]).await;
}
