//! Handles that live as long as their `Callback`: the sender is told the verdict of the code that waits.

use crate::wire::{Wire, handle, message, soon};
use callback_core::{Problem, RpcResponse};
use callback_receive::{Incoming, Listener as _, MemoryInbox, ReceiveError, Receiver, Standing, Verdict};
use futures_util::StreamExt;
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn a_handle_is_a_stream_of_many() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    for id in ["a", "b", "c"] {
        let told = wire.sending(&callback.url(), id);
        let delivery = soon(StreamExt::next(&mut callback)).await.expect("open");
        assert!(delivery.sender_waits());
        let message = delivery.accept().await.expect("direct");
        assert_eq!(message.id().as_str(), id);
        assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    }
}

#[tokio::test]
async fn the_sender_is_told_the_verdict() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn();

    let told = wire.sending(&callback.url(), "a");
    soon(callback.next()).await.expect("open").refuse("too late").await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Refused(Problem::new("too late")));

    let told = wire.sending(&callback.url(), "a");
    let wait = Duration::from_secs(7);
    soon(callback.next()).await.expect("a refused id is not remembered").retry_later(wait).await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::RetryLater(Some(wait)));

    let told = wire.sending(&callback.url(), "a");
    drop(soon(callback.next()).await.expect("what is retried comes again"));
    assert_eq!(told.await.expect("no panic"), Verdict::RetryLater(None));

    let told = wire.sending(&callback.url(), "a");
    soon(callback.next()).await.expect("what was dropped comes again").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    assert_eq!(wire.send(&callback.url(), "a").await, Verdict::Duplicate);
}

#[tokio::test]
async fn nobody_is_told_that_an_unknown_or_ended_handle_took_it() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let (other, elsewhere) = Wire::open(Receiver::builder()).await;
    let callback = receiver.spawn();
    let url = callback.url();
    let intake = wire.intake().await;
    assert_eq!(intake.standing(&handle(&url)), Standing::Open);
    assert_eq!(other.send(&url, "a").await, Verdict::Unknown);
    assert_eq!(other.intake().await.standing(&handle(&url)), Standing::Unknown);
    drop(callback);
    assert_eq!(wire.send(&url, "a").await, Verdict::Ended);
    assert_eq!(intake.standing(&handle(&url)), Standing::Ended);
    assert_eq!(receiver.open_handles(), 0);
    drop(elsewhere);
}

#[tokio::test]
async fn what_was_accepted_is_known_after_the_end() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let url = callback.url();
    let told = wire.sending(&url, "a");
    soon(callback.next()).await.expect("open").accept().await.expect("direct");
    drop(callback);
    assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    assert_eq!(wire.send(&url, "a").await, Verdict::Duplicate, "its sender may not have heard the first answer");
}

#[tokio::test(start_paused = true)]
async fn what_is_in_hand_when_the_handle_ends_is_told_its_verdict_when_it_comes_again() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let url = callback.url();
    let told = wire.sending(&url, "a");
    let delivery = callback.next().await.expect("open");
    drop(callback);
    assert_eq!(told.await.expect("no panic"), Verdict::RetryLater(None), "there is no verdict yet");
    let told = wire.sending(&url, "a");
    tokio::task::yield_now().await;
    assert_eq!(wire.send(&url, "b").await, Verdict::Ended);
    assert_eq!(wire.intake().await.standing(&handle(&url)), Standing::Ended);
    delivery.accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    assert_eq!(receiver.open_handles(), 0);
}

#[tokio::test]
async fn what_waits_when_the_handle_ends_is_told_so() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let callback = receiver.spawn();
    let told = wire.sending(&callback.url(), "a");
    tokio::task::yield_now().await;
    callback.finish().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Ended);
}

#[tokio::test(start_paused = true)]
async fn no_verdict_in_time_is_come_again_and_a_late_one_counts() {
    let (wire, receiver) = Wire::open(Receiver::builder().answer_within(Duration::from_secs(3))).await;
    let mut callback = receiver.spawn();
    let told = wire.sending(&callback.url(), "a");
    let delivery = callback.next().await.expect("open");
    assert_eq!(told.await.expect("no panic"), Verdict::RetryLater(None));
    assert!(!delivery.sender_waits());
    delivery.accept().await.expect("late");
    assert_eq!(wire.send(&callback.url(), "a").await, Verdict::Duplicate);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_took_in_time_is_handed_over_all_the_same() {
    let (wire, receiver) = Wire::open(Receiver::builder().answer_within(Duration::from_secs(3))).await;
    let mut callback = receiver.spawn();
    assert_eq!(wire.send(&callback.url(), "a").await, Verdict::RetryLater(None));
    let told = wire.sending(&callback.url(), "a");
    tokio::task::yield_now().await;
    callback.next().await.expect("it is here").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Accepted, "the second try joined the first");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_come_again() {
    let (wire, receiver) = Wire::open(Receiver::builder().queue(2)).await;
    let mut callback = receiver.spawn();
    let told = [wire.sending(&callback.url(), "a"), wire.sending(&callback.url(), "b")];
    let first = callback.next().await.expect("open");
    let second = callback.next().await.expect("open");
    assert_eq!(wire.send(&callback.url(), "c").await, Verdict::RetryLater(None));
    first.accept().await.expect("direct");
    second.accept().await.expect("direct");
    for told in told {
        assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_too_large() {
    let (wire, receiver) = Wire::open(Receiver::builder().body_limit(10)).await;
    let callback = receiver.spawn();
    let large = message("a").payload(vec![0; 11]).build().expect("valid");
    assert_eq!(wire.offer(&callback.url(), Incoming::new(large)).await, Verdict::TooLarge);
    assert_eq!(wire.intake().await.body_limit(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_handle_expires() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn().expires_in(Duration::from_secs(60));
    let url = callback.url();
    assert!(callback.next().await.is_none());
    assert_eq!(wire.send(&url, "a").await, Verdict::Ended);
}

#[tokio::test(start_paused = true)]
async fn ids_are_known_for_their_time_and_evictions_are_counted() {
    let (wire, receiver) = Wire::open(Receiver::builder().remember(Duration::from_secs(3600), 2)).await;
    let mut callback = receiver.spawn();
    for id in ["a", "b", "c"] {
        let told = wire.sending(&callback.url(), id);
        callback.next().await.expect("open").accept().await.expect("direct");
        told.await.expect("no panic");
    }
    assert_eq!(receiver.evicted_ids(), 1);
    assert_eq!(wire.send(&callback.url(), "c").await, Verdict::Duplicate);
    tokio::time::advance(Duration::from_secs(3600)).await;
    let told = wire.sending(&callback.url(), "c");
    callback.next().await.expect("it is not known any more").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    assert_eq!(receiver.evicted_ids(), 1, "what is old is not evicted");
}

#[tokio::test]
async fn next_that_is_dropped_has_taken_nothing() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    assert!(futures_util::future::poll_immediate(callback.next()).await.is_none());
    let told = wire.sending(&callback.url(), "a");
    soon(callback.next()).await.expect("open").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
}

#[tokio::test]
async fn a_delivery_reads_json_and_rpc() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let response = serde_json::to_value(RpcResponse::success(1, json!({ "orderId": "42" }))).expect("JSON");
    let message = message("a").payload(response).build().expect("valid");
    let (sender, url) = (wire.clone(), callback.url());
    let told = tokio::spawn(async move { sender.offer(&url, Incoming::new(message)).await });
    let delivery = soon(callback.next()).await.expect("open");
    assert_eq!(delivery.json::<serde_json::Value>().expect("JSON")["id"], 1);
    let result = delivery.rpc::<serde_json::Value>().expect("a response").expect("a result");
    assert_eq!(result["orderId"], "42");
    delivery.accept().await.expect("direct");
    told.await.expect("no panic");
}

#[tokio::test]
async fn what_has_a_name_needs_an_inbox() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    assert!(matches!(receiver.expect("order-42").await, Err(ReceiveError::NoInbox)));
    assert!(matches!(receiver.resume_all().await, Err(ReceiveError::NoInbox)));
    assert!(matches!(receiver.dead_letters().list(0, 10).await, Err(ReceiveError::NoInbox)));
    drop(wire);
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_what_is_in_hand_and_ends_all_handles() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let url = callback.url();
    let told = wire.sending(&url, "a");
    let delivery = callback.next().await.expect("open");
    let closing = receiver.clone();
    let closing = tokio::spawn(async move { closing.close(Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    assert_eq!(wire.send(&url, "b").await, Verdict::RetryLater(None));
    delivery.accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    closing.await.expect("no panic").expect("nothing is in hand");
    assert!(callback.next().await.is_none());
    assert!(receiver.spawn().next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn close_says_what_had_no_answer() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let told = wire.sending(&callback.url(), "a");
    let delivery = callback.next().await.expect("open");
    let closed = receiver.close(Duration::from_secs(1)).await;
    assert!(matches!(closed, Err(ReceiveError::Unanswered(1))), "{closed:?}");
    assert_eq!(told.await.expect("no panic"), Verdict::RetryLater(None));
    drop(delivery);
}

#[tokio::test]
async fn an_intake_keeps_no_receiver_alive() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let callback = receiver.spawn();
    let (url, intake) = (callback.url(), wire.intake().await);
    drop(receiver);
    assert_eq!(intake.standing(&handle(&url)), Standing::Open, "a callback keeps it");
    drop(callback);
    assert_eq!(wire.send(&url, "a").await, Verdict::RetryLater(None));
    assert_eq!(intake.standing(&handle(&url)), Standing::Open, "nobody is told that it is unknown");
    assert_eq!(intake.body_limit(), 1 << 20, "nobody is told that his body is too large");
}

#[tokio::test]
async fn a_listener_that_ends_by_itself_leaves_nobody_waiting() {
    let (wire, receiver) = Wire::open(Receiver::builder().inbox(MemoryInbox::new())).await;
    let (mut spawned, mut named) = (receiver.spawn(), receiver.expect("a").await.expect("a name"));
    let url = spawned.url();
    // The receiver has not asked for it.
    wire.close().await;
    assert!(soon(spawned.next()).await.is_none() && soon(named.next()).await.is_none());
    assert_eq!(wire.send(&url, "a").await, Verdict::RetryLater(None), "nobody is told that it has ended for good");
    assert!(soon(receiver.spawn().next()).await.is_none());
    assert!(matches!(receiver.expect("b").await, Err(ReceiveError::Closed)));
}
