//! What is not accepted: nothing of it is stored, nothing is run.

use crate::support::{CustomSink, Gate, Home, dsn, echo, ended, event, receipt, start};
use callback_core::{DsnErrorKind, MemorySink};
use callback_dispatch::{AcceptError, Event, Interrupted, StartError, Work, WorkerError};
use serde_json::json;

on_each_outbox!(
    an_unknown_scheme_lists_those_that_are_served,
    what_the_sink_refuses_is_refused,
    a_body_beyond_the_limit_is_refused,
    what_no_message_could_carry_is_refused,
    after_close_nothing_is_accepted,
    an_extension_is_kept_unless_it_is_nested_too_deeply,
);

/// Offers what must be refused to a worker and as an event; the errors, once it is sure that nothing came of it.
async fn offer(home: Home, limit: usize, work: Work, event: Event) -> (AcceptError, AcceptError) {
    let (gate, mut watch) = Gate::new();
    let sink = CustomSink::new(|_| async { Ok(receipt()) });
    let builder = home.builder().await.sink(sink).sink(MemorySink::new()).body_limit(limit);
    let dispatcher = start(builder).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    let refused = worker.accept(work).await.expect_err("the work is refused");
    let refused = (refused, dispatcher.publish(event).await.expect_err("the event is refused"));
    home.assert_empty().await;
    worker.accept(Work::new(json!(7))).await.expect("the service is alive");
    assert_eq!(watch.came().await, 7);
    watch.assert_nobody();
    refused
}

#[track_caller]
fn check_dsn(error: &AcceptError, kind: DsnErrorKind, words: &[&str]) {
    let AcceptError::Dsn(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind(), kind);
    for word in words {
        assert!(error.to_string().contains(word), "{error}");
    }
}

async fn an_unknown_scheme_lists_those_that_are_served(home: Home) {
    let work = Work::new("x").callback(dsn("https://example.com/"));
    let (work, event) = offer(home, 100, work, event("https://example.com/", json!(1))).await;
    for error in [work, event] {
        check_dsn(&error, DsnErrorKind::UnknownScheme, &["`https`", "`custom`, `memory`", "callback-http"]);
    }
}

async fn what_the_sink_refuses_is_refused(home: Home) {
    let work = Work::new("x").callback(dsn("custom://refused"));
    let (work, event) = offer(home, 100, work, event("custom://refused", json!(1))).await;
    for error in [work, event] {
        check_dsn(&error, DsnErrorKind::Forbidden, &["nobody may send there"]);
    }
}

async fn a_body_beyond_the_limit_is_refused(home: Home) {
    let large = "x".repeat(101);
    let work = Work::new(&*large).callback(dsn("custom://a"));
    let (work, event) = offer(home, 100, work, Event::to(dsn("custom://a"), "test", &*large)).await;
    for error in [work, event] {
        assert!(matches!(error, AcceptError::TooLarge { limit: 100 }), "{error:?}");
    }
}

async fn what_no_message_could_carry_is_refused(home: Home) {
    let work = Work::new("x").callback(dsn("custom://a")).pass_on("x-a", "1\r\nx-b: 2");
    let (work, event) = offer(home, 100, work, Event::to(dsn("custom://a"), "no type", "x")).await;
    for error in [work, event] {
        assert!(matches!(error, AcceptError::Message(_)), "{error:?}");
    }
}

async fn after_close_nothing_is_accepted(home: Home) {
    let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
    let (gate, mut watch) = Gate::new();
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    dispatcher.close(std::time::Duration::ZERO).await;
    assert!(matches!(worker.accept(Work::new("x")).await, Err(AcceptError::Closed)));
    assert!(matches!(dispatcher.publish(event("memory://a", json!(1))).await, Err(AcceptError::Closed)));
    let registered = dispatcher.worker("other", Interrupted::RunAgain).run(gate.handler());
    assert!(matches!(registered, Err(WorkerError::Closed)));
    home.assert_empty().await;
    watch.assert_nobody();
}

async fn an_extension_is_kept_unless_it_is_nested_too_deeply(home: Home) {
    let dispatcher = start(home.builder().await).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let nested = |depth| {
        (0..depth).fold(json!(1), |inner, level| if level % 2 == 0 { json!([inner]) } else { json!({ "a": inner }) })
    };
    let work = |depth| Work::new(json!(1)).extension("deep", nested(depth));
    let id = worker.accept(work(100)).await.expect("accepted").id();
    assert_eq!(ended(&dispatcher, id).await.extension("deep"), Some(&nested(100)));
    let refused = worker.accept(work(101)).await;
    assert!(matches!(refused, Err(AcceptError::Extension)), "{refused:?}");
}

#[tokio::test]
async fn an_outbox_in_memory_has_one_dispatcher_at_a_time() {
    let home = Home::memory();
    let first = start(home.builder().await).await;
    assert!(matches!(home.builder().await.start().await, Err(StartError::Locked(_))));
    first.close(std::time::Duration::ZERO).await;
    start(home.builder().await).await;
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let dispatcher = start(Home::memory().builder().await).await;
    let (gate, _watch) = Gate::new();
    let _worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    let again = dispatcher.worker("gate", Interrupted::Report).run(gate.handler());
    assert!(matches!(again, Err(WorkerError::NameTaken(name)) if name == "gate"));
}

#[tokio::test]
async fn a_dispatcher_that_could_not_work_does_not_start() {
    let home = Home::memory();
    let twice = home.builder().await.sink(MemorySink::new()).sink(MemorySink::new()).start().await;
    assert!(matches!(twice, Err(StartError::SchemeTaken(scheme)) if scheme == "memory"));
    let source = home.builder().await.source("not a source").start().await;
    assert!(matches!(source, Err(StartError::Source(_))));
}

#[tokio::test]
async fn a_dsn_is_judged_as_accepting_it_would() {
    let sink = CustomSink::new(|_| async { Ok(receipt()) });
    let dispatcher = start(Home::memory().builder().await.sink(sink)).await;
    let (gate, _watch) = Gate::new();
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    for (text, expected) in [
        ("custom://a", None),
        ("custom://refused", Some(DsnErrorKind::Forbidden)),
        ("wss://example.com/", Some(DsnErrorKind::UnknownScheme)),
    ] {
        assert_eq!(dispatcher.check(&dsn(text)).err().map(|error| error.kind()), expected, "{text}");
        assert_eq!(worker.check(&dsn(text)).err().map(|error| error.kind()), expected, "{text}");
    }
}
