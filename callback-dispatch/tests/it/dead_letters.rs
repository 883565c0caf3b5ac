//! What was given up: listed, read, and sent again.

use crate::support::{CustomSink, Home, accept, echo, ended, event, receipt, start};
use callback_core::{ErrorKind, MemorySink, Phase, SinkError, TaskId};
use callback_dispatch::{DeadLetterQuery, DeadLetters, Dispatcher, Interrupted, TaskState};
use futures_util::future::join_all;
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::task::yield_now;

on_each_outbox!(
    a_dead_letter_tells_what_happened,
    dead_letters_are_listed_in_pages_oldest_first,
    dead_letters_are_filtered_by_destination_and_kind,
    dead_letters_are_filtered_by_time,
    all_of_a_destination_are_replayed_whatever_the_limit,
    what_is_given_up_again_is_not_replayed_twice,
    a_replay_as_new_has_an_id_that_no_receiver_knows,
    what_is_purged_is_gone,
    a_replay_keeps_the_id_and_is_delivered,
    a_replay_that_fails_is_a_dead_letter_again,
    what_is_not_dead_cannot_be_replayed,
);

/// A dispatcher whose sink refuses by a kind that the host names.
async fn refusing(home: &Home) -> Dispatcher {
    let sink = CustomSink::new(|given| {
        let error = match given.dsn.authority() {
            "gone" => SinkError::gone("moved away").with_status(410),
            _ => SinkError::refused("no").with_status(400).with_phase(Phase::Answer),
        };
        async { Err(error) }
    });
    start(home.builder().await.sink(sink)).await
}

/// Sends there, and waits until it is dead.
async fn die(dispatcher: &Dispatcher, to: &str) -> TaskId {
    let id = dispatcher.publish(event(to, json!("body"))).await.expect("published");
    let id = id.as_str().parse().expect("a task's id");
    while dispatcher.dead_letters().get(id).await.expect("readable").is_none() {
        yield_now().await;
    }
    id
}

async fn ids(letters: &DeadLetters, query: DeadLetterQuery) -> Vec<TaskId> {
    letters.list(&query).await.expect("readable").items.iter().map(|letter| letter.id).collect()
}

async fn a_dead_letter_tells_what_happened(home: Home) {
    let dispatcher = refusing(&home).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "body", "custom://a").await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
    let letter = dispatcher.dead_letters().get(id).await.expect("readable").expect("it is dead");
    assert_eq!((letter.id, letter.dsn.expose(), &letter.message.body()[..]), (id, "custom://a", &b"\"body\""[..]));
    assert_eq!(letter.message.id().to_string(), id.to_string());
    let [attempt] = &letter.attempts[..] else { panic!("{letter:?}") };
    assert_eq!((attempt.number, attempt.kind), (1, ErrorKind::Refused));
    assert_eq!((attempt.phase, attempt.status), (Phase::Answer, Some(400)));
    assert_eq!(attempt.reason, "refused (status 400): no");
    assert!(attempt.time <= letter.since);
}

async fn dead_letters_are_listed_in_pages_oldest_first(home: Home) {
    let dispatcher = refusing(&home).await;
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.push(die(&dispatcher, "custom://a").await);
    }
    let letters = dispatcher.dead_letters();
    let (mut query, mut found, mut pages) = (DeadLetterQuery::default().limit(2), Vec::new(), 0);
    loop {
        let page = letters.list(&query).await.expect("readable");
        pages += 1;
        found.extend(page.items.iter().map(|letter| letter.id));
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!((found, pages), (expected, 3));
}

async fn dead_letters_are_filtered_by_destination_and_kind(home: Home) {
    let dispatcher = refusing(&home).await;
    let (a, gone, b) = (
        die(&dispatcher, "custom://a").await,
        die(&dispatcher, "custom://gone").await,
        die(&dispatcher, "custom://b").await,
    );
    let letters = dispatcher.dead_letters();
    let query = DeadLetterQuery::default;
    let to = |host: &str| query().destination(host.parse().expect("a destination"));
    assert_eq!(ids(&letters, query()).await, [a, gone, b]);
    assert_eq!(ids(&letters, to("custom://b")).await, [b]);
    assert_eq!(ids(&letters, to("custom://c")).await, []);
    assert_eq!(ids(&letters, query().kind(ErrorKind::Gone)).await, [gone]);
    assert_eq!(ids(&letters, query().kind(ErrorKind::Refused)).await, [a, b]);
    assert_eq!(ids(&letters, to("custom://a").kind(ErrorKind::Gone)).await, []);
}

async fn a_replay_keeps_the_id_and_is_delivered(home: Home) {
    let sink = MemorySink::new();
    sink.fail("results", SinkError::refused("not yet"));
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "body", "memory://results").await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
    assert!(dispatcher.dead_letters().replay(id).await.expect("writable"));
    let delivered = sink.next("results").await;
    assert_eq!((delivered.message.id().to_string(), delivered.attempt.number()), (id.to_string(), 1));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    assert!(dispatcher.dead_letters().get(id).await.expect("readable").is_none());
    assert!(ids(&dispatcher.dead_letters(), DeadLetterQuery::default()).await.is_empty());
}

async fn a_replay_that_fails_is_a_dead_letter_again(home: Home) {
    let failed_before = AtomicBool::new(false);
    let sink = CustomSink::new(move |_| {
        let before = failed_before.swap(true, Ordering::SeqCst);
        async move { Err(if before { SinkError::gone("moved away") } else { SinkError::refused("no") }) }
    });
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let id = die(&dispatcher, "custom://a").await;
    assert!(dispatcher.dead_letters().replay(id).await.expect("writable"));
    // The former end stays in the history.
    let letter = loop {
        match dispatcher.dead_letters().get(id).await.expect("readable") {
            Some(letter) if letter.attempts.len() == 2 => break letter,
            _ => yield_now().await,
        }
    };
    let kinds: Vec<_> = letter.attempts.iter().map(|attempt| (attempt.number, attempt.kind)).collect();
    assert_eq!(kinds, [(1, ErrorKind::Refused), (1, ErrorKind::Gone)]);
    let query = DeadLetterQuery::default().kind(ErrorKind::Gone);
    assert_eq!(ids(&dispatcher.dead_letters(), query).await, [id]);
}

async fn what_is_not_dead_cannot_be_replayed(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "body", "memory://results").await;
    ended(&dispatcher, id).await;
    let letters = dispatcher.dead_letters();
    assert!(!letters.replay(id).await.expect("writable"));
    assert!(!letters.replay(TaskId::new()).await.expect("writable"));
    assert_eq!(sink.take("results").len(), 1);
}

async fn dead_letters_are_filtered_by_time(home: Home) {
    let dispatcher = refusing(&home).await;
    let mut ids_in_order = Vec::new();
    for _ in 0..3 {
        ids_in_order.push(die(&dispatcher, "custom://a").await);
    }
    let letters = dispatcher.dead_letters();
    let second = letters.get(ids_in_order[1]).await.expect("readable").expect("it is dead").since;
    let query = DeadLetterQuery::default;
    assert_eq!(ids(&letters, query().since(second)).await, ids_in_order[1..]);
    assert_eq!(ids(&letters, query().until(second)).await, ids_in_order[..1]);
    assert_eq!(ids(&letters, query().since(second).until(second)).await, []);
}

async fn all_of_a_destination_are_replayed_whatever_the_limit(home: Home) {
    // More than a transaction takes.
    const MANY: usize = 501;
    let healed = Arc::new(AtomicBool::new(false));
    let sink = CustomSink::new({
        let healed = Arc::clone(&healed);
        move |_| {
            let healed = healed.load(Ordering::SeqCst);
            async move { if healed { Ok(receipt()) } else { Err(SinkError::refused("no")) } }
        }
    });
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let other = die(&dispatcher, "custom://b").await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let tasks = join_all((0..MANY).map(|number| accept(&worker, number, "custom://a"))).await;
    for id in &tasks {
        assert_eq!(ended(&dispatcher, *id).await.state(), TaskState::Dead);
    }
    healed.store(true, Ordering::SeqCst);
    let letters = dispatcher.dead_letters();
    let query = DeadLetterQuery::default().destination("custom://a".parse().expect("a destination")).limit(1);
    assert_eq!(letters.replay_all(&query).await.expect("writable"), MANY as u64);
    for id in tasks {
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    }
    assert_eq!(ids(&letters, DeadLetterQuery::default()).await, [other]);
    assert_eq!(letters.replay_all(&query).await.expect("writable"), 0);
}

async fn what_is_given_up_again_is_not_replayed_twice(home: Home) {
    let dispatcher = refusing(&home).await;
    for _ in 0..3 {
        die(&dispatcher, "custom://a").await;
    }
    assert_eq!(dispatcher.dead_letters().replay_all(&DeadLetterQuery::default()).await.expect("writable"), 3);
}

async fn a_replay_as_new_has_an_id_that_no_receiver_knows(home: Home) {
    let sink = MemorySink::new();
    sink.fail("results", SinkError::refused("not yet"));
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "body", "memory://results").await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
    let new = dispatcher.dead_letters().replay_as_new(id).await.expect("writable").expect("it was dead");
    let message = sink.next("results").await.message;
    assert_eq!((message.id(), message.event_id().to_string()), (&new, id.to_string()));
    assert_ne!(new.to_string(), id.to_string());
    assert_eq!((message.subject(), &message.body()[..]), (Some(&*id.to_string()), &b"\"body\""[..]));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    assert_eq!(dispatcher.dead_letters().replay_as_new(id).await.expect("readable"), None);
}

async fn what_is_purged_is_gone(home: Home) {
    let dispatcher = refusing(&home).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let id = accept(&worker, "body", "custom://a").await;
    ended(&dispatcher, id).await;
    let gone = die(&dispatcher, "custom://gone").await;
    let letters = dispatcher.dead_letters();
    assert_eq!(letters.purge(&DeadLetterQuery::default().kind(ErrorKind::Refused)).await.expect("writable"), 1);
    assert!(dispatcher.task(id).await.expect("readable").is_none());
    assert!(!letters.replay(id).await.expect("writable"));
    assert_eq!(ids(&letters, DeadLetterQuery::default()).await, [gone]);
    assert_eq!(letters.purge(&DeadLetterQuery::default()).await.expect("writable"), 1);
}
