//! Named handles over both inboxes: stored first, handed over until they are accepted.

use crate::wire::{PATIENCE, Wire, message, soon};
#[cfg(feature = "sqlite")]
use callback_receive::SqliteInbox;
use callback_receive::{Callback, MemoryInbox, ReceiveError, Receiver, Verdict};
use std::time::{Duration, SystemTime};

/// Runs a test over each inbox.
macro_rules! over_each_inbox {
    ($($test:ident)*) => {
        mod memory {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                super::$test(Wire::open(Receiver::builder().inbox(MemoryInbox::new()).backlog(200)).await).await;
            })*
        }
        #[cfg(feature = "sqlite")]
        mod sqlite {
            use super::*;
            $(#[tokio::test]
            async fn $test() {
                let folder = tempfile::tempdir().expect("a folder");
                let inbox = SqliteInbox::open(folder.path().join("inbox.db")).await.expect("it opens");
                super::$test(Wire::open(Receiver::builder().inbox(inbox).backlog(200)).await).await;
            })*
        }
    };
}

over_each_inbox! {
    a_sender_is_answered_once_it_is_stored
    what_comes_early_or_in_between_waits
    what_is_refused_is_a_dead_letter_and_can_be_replayed
    what_is_dropped_comes_again
    what_is_retried_later_comes_later
    a_name_is_held_once
    finish_ends_the_handle
    it_expires
    the_end_of_a_handle_leaves_the_next_of_its_name_alone
    who_is_refused_a_name_does_not_change_its_key
    a_purged_dead_letter_is_known
    a_backlog_has_an_end
    more_than_a_page_comes_in_order
    known_ids_are_not_handed_over_again
    resume_all_gives_what_nobody_holds
    names_are_checked
    close_ends_named_handles
}

async fn next_id(callback: &mut Callback) -> String {
    let message = soon(callback.next()).await.expect("open").accept().await.expect("stored");
    message.id().to_string()
}

async fn a_sender_is_answered_once_it_is_stored((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    assert_eq!(callback.name(), Some("order-42"));
    assert!(!callback.is_resumed());
    assert_eq!(wire.send(&callback.url(), "a").await, Verdict::Accepted);
    let delivery = soon(callback.next()).await.expect("open");
    assert!(!delivery.sender_waits());
    let sent = message("a").build().expect("valid");
    let message = delivery.accept().await.expect("stored");
    assert_eq!((message.event_type(), message.body()), (sent.event_type(), sent.body()));
}

async fn what_comes_early_or_in_between_waits((wire, receiver): (Wire, Receiver)) {
    let callback = receiver.expect("order-42").await.expect("a name");
    let url = callback.url();
    assert_eq!(wire.send(&url, "early").await, Verdict::Accepted);
    drop(callback);
    assert_eq!(wire.send(&url, "between").await, Verdict::Accepted);
    let mut callback = receiver.expect("order-42").await.expect("nobody holds it");
    assert!(callback.is_resumed());
    assert_eq!(callback.url(), url);
    assert_eq!([next_id(&mut callback).await, next_id(&mut callback).await], ["early", "between"]);
}

async fn what_is_refused_is_a_dead_letter_and_can_be_replayed((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    wire.send(&callback.url(), "a").await;
    soon(callback.next()).await.expect("open").refuse("too late").await.expect("stored");
    let dead = receiver.dead_letters().list(0, 10).await.expect("readable");
    let [letter] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((letter.name.as_str(), letter.message.id().as_str()), ("order-42", "a"));
    assert_eq!(letter.reason, r#"{"title":"too late"}"#);
    assert!(receiver.dead_letters().list(letter.number, 10).await.expect("readable").is_empty());

    assert!(receiver.dead_letters().replay(letter.number).await.expect("stored"));
    assert_eq!(next_id(&mut callback).await, "a");
    assert!(!receiver.dead_letters().replay(letter.number).await.expect("stored"));

    wire.send(&callback.url(), "b").await;
    soon(callback.next()).await.expect("open").refuse("no").await.expect("stored");
    let purged = receiver.dead_letters().purge(SystemTime::now() + Duration::from_secs(1)).await.expect("stored");
    assert_eq!(purged, 1);
}

async fn what_is_dropped_comes_again((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    wire.send(&callback.url(), "a").await;
    for _ in 0..3 {
        drop(soon(callback.next()).await.expect("open"));
    }
    assert_eq!(next_id(&mut callback).await, "a");
}

async fn what_is_retried_later_comes_later((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    wire.send(&callback.url(), "a").await;
    let (begun, wait) = (SystemTime::now(), Duration::from_secs(1));
    soon(callback.next()).await.expect("open").retry_later(wait).await.expect("stored");
    wire.send(&callback.url(), "b").await;
    assert_eq!(next_id(&mut callback).await, "b");
    // Who holds it next waits as long.
    drop(callback);
    let mut callback = receiver.expect("order-42").await.expect("nobody holds it");
    assert_eq!(next_id(&mut callback).await, "a");
    assert!(begun.elapsed().expect("the clock goes on") >= wait);
}

async fn a_name_is_held_once((wire, receiver): (Wire, Receiver)) {
    let callback = receiver.expect("order-42").await.expect("a name");
    assert!(matches!(receiver.expect("order-42").await, Err(ReceiveError::NameTaken(name)) if name == "order-42"));
    drop(callback);
    let both = tokio::join!(receiver.expect("new").into_future(), receiver.expect("new").into_future());
    assert!(matches!(both, (Ok(_), Err(ReceiveError::NameTaken(_))) | (Err(ReceiveError::NameTaken(_)), Ok(_))));
    drop(wire);
}

async fn finish_ends_the_handle((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    let url = callback.url();
    wire.send(&url, "a").await;
    wire.send(&url, "b").await;
    assert_eq!(next_id(&mut callback).await, "a");
    callback.finish().await.expect("stored");
    assert_eq!(wire.send(&url, "c").await, Verdict::Ended);
    assert_eq!(wire.send(&url, "a").await, Verdict::Duplicate, "it was accepted, its sender may not have heard");
    let dead = receiver.dead_letters().list(0, 10).await.expect("readable");
    let [letter] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((letter.message.id().as_str(), letter.reason.as_str()), ("b", "finished"));
    assert!(!receiver.dead_letters().replay(letter.number).await.expect("stored"), "its handle has ended");
    let again = receiver.expect("order-42").await.expect("the name is free");
    assert!(!again.is_resumed());
    assert_ne!(again.url(), url);
}

async fn it_expires((wire, receiver): (Wire, Receiver)) {
    let time = Duration::from_millis(200);
    let mut callback = receiver.expect("order-42").expires_in(time).await.expect("a name");
    let url = callback.url();
    assert!(soon(callback.next()).await.is_none());
    assert_eq!(wire.send(&url, "a").await, Verdict::Ended);

    let mut callback = receiver.expect("order-43").await.expect("a name");
    wire.send(&callback.url(), "b").await;
    let delivery = soon(callback.next()).await.expect("open");
    let mut callback = callback.expires_in(time);
    assert!(soon(callback.next()).await.is_none());
    delivery.accept().await.expect("what is in hand may be accepted");
    assert!(receiver.dead_letters().list(0, 10).await.expect("readable").is_empty());
}

async fn a_backlog_has_an_end((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    for number in 0..200 {
        assert_eq!(wire.send(&callback.url(), &number.to_string()).await, Verdict::Accepted);
    }
    assert_eq!(wire.send(&callback.url(), "more").await, Verdict::RetryLater(None));
    assert_eq!(next_id(&mut callback).await, "0");
    assert_eq!(wire.send(&callback.url(), "more").await, Verdict::Accepted);
}

async fn more_than_a_page_comes_in_order((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    for number in 0..150 {
        assert_eq!(wire.send(&callback.url(), &number.to_string()).await, Verdict::Accepted);
    }
    for number in 0..150 {
        assert_eq!(next_id(&mut callback).await, number.to_string());
    }
}

async fn known_ids_are_not_handed_over_again((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    assert_eq!(wire.send(&callback.url(), "a").await, Verdict::Accepted);
    assert_eq!(wire.send(&callback.url(), "a").await, Verdict::Duplicate, "it is known since it was stored");
    assert_eq!(next_id(&mut callback).await, "a");
    assert_eq!(wire.send(&callback.url(), "a").await, Verdict::Duplicate);
    wire.send(&callback.url(), "b").await;
    assert_eq!(next_id(&mut callback).await, "b");
    let other = receiver.expect("order-43").await.expect("a name");
    assert_eq!(wire.send(&other.url(), "a").await, Verdict::Accepted, "ids are known to their handle");
}

async fn resume_all_gives_what_nobody_holds((wire, receiver): (Wire, Receiver)) {
    let held = receiver.expect("b").await.expect("a name");
    for name in ["c", "a"] {
        let callback = receiver.expect(name).await.expect("a name");
        wire.send(&callback.url(), "early").await;
    }
    let mut all = receiver.resume_all().await.expect("there is an inbox");
    assert_eq!(all.iter().map(Callback::name).collect::<Vec<_>>(), [Some("a"), Some("c")]);
    assert!(all.iter().all(Callback::is_resumed));
    for callback in &mut all {
        assert_eq!(next_id(callback).await, "early");
    }
    assert!(receiver.resume_all().await.expect("there is an inbox").is_empty());
    drop(held);
}

async fn names_are_checked((wire, receiver): (Wire, Receiver)) {
    for name in ["", "a\n", &"x".repeat(256)] {
        assert!(matches!(receiver.expect(name).await, Err(ReceiveError::Name)), "{name:?}");
    }
    drop(receiver.expect("Bestellung 😀").await.expect("a name"));
    drop(wire);
}

async fn close_ends_named_handles((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    wire.send(&callback.url(), "a").await;
    let delivery = soon(callback.next()).await.expect("open");
    let closing = receiver.clone();
    let closing = tokio::spawn(async move { closing.close(PATIENCE).await });
    tokio::task::yield_now().await;
    delivery.accept().await.expect("there is time");
    closing.await.expect("no panic").expect("nothing is in hand");
    assert!(callback.next().await.is_none());
    assert!(matches!(receiver.expect("order-43").await, Err(ReceiveError::Closed)));
    assert!(matches!(receiver.resume_all().await, Err(ReceiveError::Closed)));
}

async fn the_end_of_a_handle_leaves_the_next_of_its_name_alone((_wire, receiver): (Wire, Receiver)) {
    let mut old = receiver.expect("order-42").expires_in(Duration::from_millis(50)).await.expect("a name");
    assert!(soon(old.next()).await.is_none());
    let new = receiver.expect("order-42").await.expect("the name is free");
    old.finish().await.expect("it has ended already");
    let twin = receiver.expect("order-42").await;
    assert!(matches!(&twin, Err(ReceiveError::NameTaken(name)) if name == "order-42"), "{twin:?}");
    drop(new);
    assert_eq!(receiver.resume_all().await.expect("there is an inbox").len(), 1);
}

async fn who_is_refused_a_name_does_not_change_its_key((wire, receiver): (Wire, Receiver)) {
    let held = receiver.expect("order-42").await.expect("a name");
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key");
    let refused = receiver.expect("order-42").verifier(key).await;
    assert!(matches!(refused, Err(ReceiveError::NameTaken(_))), "{refused:?}");
    assert_eq!(wire.send(&held.url(), "a").await, Verdict::Accepted);
}

async fn a_purged_dead_letter_is_known((wire, receiver): (Wire, Receiver)) {
    let mut callback = receiver.expect("order-42").await.expect("a name");
    wire.send(&callback.url(), "a").await;
    soon(callback.next()).await.expect("open").refuse("no").await.expect("stored");
    let until = SystemTime::now() + Duration::from_secs(1);
    assert_eq!(receiver.dead_letters().purge(until).await.expect("stored"), 1);
    assert!(receiver.dead_letters().list(0, 10).await.expect("readable").is_empty());
    assert_eq!(receiver.dead_letters().purge(until).await.expect("stored"), 0);
    assert_eq!(wire.send(&callback.url(), "a").await, Verdict::Duplicate);
}
