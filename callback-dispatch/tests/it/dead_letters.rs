//! What was given up: listed, read, and sent again.

use crate::support::{CustomSink, Home, accept, echo, ended, event, start};
use callback_core::{ErrorKind, MemorySink, Phase, SinkError, TaskId};
use callback_dispatch::{DeadLetterQuery, DeadLetters, Dispatcher, Interrupted, TaskState};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::yield_now;

on_each_outbox!(
    a_dead_letter_tells_what_happened,
    dead_letters_are_listed_in_pages_oldest_first,
    dead_letters_are_filtered_by_destination_and_kind,
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
    assert_eq!((attempt.phase, attempt.status), (Some(Phase::Answer), Some(400)));
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
