//! What an operator is told, and what follows when a Dsn is gone.

use crate::support::{CustomSink, Gate, Home, accept, dsn, echo, ended, event, receipt, start};
use callback_core::{ErrorKind, Phase, Schedule, SinkError};
use callback_dispatch::{DeadLetterQuery, Dispatcher, DispatcherBuilder, Interrupted, Lane, Notice, TaskState};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::yield_now};

on_each_outbox!(
    what_is_given_up_is_told,
    a_hook_that_panics_harms_nobody,
    other_messages_to_a_dsn_that_is_gone_are_dead_unattempted,
    a_dsn_that_several_attempts_find_gone_is_told_once,
    a_breaker_that_opens_and_closes_is_told,
);

/// A builder that tells its notices.
async fn told(home: &Home) -> (DispatcherBuilder, mpsc::UnboundedReceiver<Notice>) {
    let (sender, notices) = mpsc::unbounded_channel();
    let builder = home.builder().await;
    (builder.on_notice(move |notice| drop(sender.send(notice.clone()))), notices)
}

async fn what_is_given_up_is_told(home: Home) {
    let (builder, mut notices) = told(&home).await;
    let sink = CustomSink::new(|_| async { Err(SinkError::refused("no")) });
    let dispatcher = start(builder.sink(sink)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let task = accept(&worker, 1, "custom://a/path?key=planted").await;
    let Some(Notice::Dead { id, destination, kind, attempts, .. }) = notices.recv().await else { panic!("it is dead") };
    assert_eq!((id, destination.as_str(), kind, attempts), (task, "custom://a", ErrorKind::Refused, 1));
    // Whoever is told finds it.
    assert!(dispatcher.dead_letters().get(id).await.expect("readable").is_some());
    assert!(notices.try_recv().is_err());
}

async fn a_breaker_that_opens_and_closes_is_told(home: Home) {
    let (builder, mut notices) = told(&home).await;
    let sink = CustomSink::new(|given| async move {
        let down = || SinkError::unavailable("no way there").with_phase(Phase::Connect);
        if given.attempt.number() == 1 { Err(down()) } else { Ok(receipt()) }
    });
    let schedule = Schedule::new([Duration::from_millis(1)]).expect("a schedule");
    let lane = Lane::default().breaker(1, Duration::from_millis(5));
    let dispatcher = start(builder.sink(sink).schedule(schedule).lane(lane)).await;
    dispatcher.publish(event("custom://a", json!(1)).owner("owner")).await.expect("published");
    let Some(Notice::BreakerOpened { destination, owner, pause, .. }) = notices.recv().await else { panic!("open") };
    assert_eq!((destination.as_str(), owner.as_deref()), ("custom://a", Some("owner")));
    assert_eq!(pause, Duration::from_millis(5));
    let Some(Notice::BreakerClosed { destination, owner, .. }) = notices.recv().await else { panic!("closed") };
    assert_eq!((destination.as_str(), owner.as_deref()), ("custom://a", Some("owner")));
}

async fn a_hook_that_panics_harms_nobody(home: Home) {
    let (builder, mut notices) = told(&home).await;
    let sink = CustomSink::new(|_| async { Err(SinkError::refused("no")) });
    let dispatcher = start(builder.on_notice(|_| panic!("it was told to")).sink(sink)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    for number in 0..3 {
        let id = accept(&worker, number, "custom://a").await;
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
        notices.recv().await.expect("told");
    }
}

async fn dead(dispatcher: &Dispatcher, kind: ErrorKind, count: usize) {
    let query = DeadLetterQuery::default().kind(kind);
    while dispatcher.dead_letters().list(&query).await.expect("readable").items.len() != count {
        yield_now().await;
    }
}

async fn other_messages_to_a_dsn_that_is_gone_are_dead_unattempted(home: Home) {
    const MANY: usize = 20;
    let (gate, mut watch) = Gate::new();
    let (attempts, is_back) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let sink = {
        let (attempts, is_back, gate) = (Arc::clone(&attempts), Arc::clone(&is_back), gate.clone());
        CustomSink::new(move |given| {
            let (attempts, is_back, gate) = (Arc::clone(&attempts), Arc::clone(&is_back), gate.clone());
            async move {
                if given.dsn.expose() != "custom://a/gone" || is_back.load(Ordering::SeqCst) {
                    return Ok(receipt());
                }
                attempts.fetch_add(1, Ordering::SeqCst);
                gate.pass(json!("attempt")).await;
                Err(SinkError::gone("moved away").with_status(410))
            }
        })
    };
    let (builder, mut notices) = told(&home).await;
    // Some wait in memory, and some in the store.
    let dispatcher = start(builder.sink(sink).lane(Lane::default().in_flight(1))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    let mut tasks = Vec::new();
    tasks.push(accept(&worker, 0, "custom://a/gone").await);
    watch.came().await;
    for number in 0..MANY {
        tasks.push(accept(&worker, number, "custom://a/gone").await);
        dispatcher.publish(event("custom://a/gone", json!(number))).await.expect("published");
    }
    // Of the same destination, and another Dsn.
    let other = accept(&worker, 0, "custom://a/here").await;
    gate.open(100);
    for id in &tasks {
        assert_eq!(ended(&dispatcher, *id).await.state(), TaskState::Dead);
    }
    assert_eq!(ended(&dispatcher, other).await.state(), TaskState::Delivered);
    dead(&dispatcher, ErrorKind::Gone, 1 + 2 * MANY).await;
    assert_eq!(attempts.load(Ordering::SeqCst), 1);
    assert!(matches!(notices.recv().await, Some(Notice::Dead { kind: ErrorKind::Gone, .. })));
    let Some(Notice::Gone { dsn: gone, .. }) = notices.recv().await else { panic!("it is gone") };
    assert_eq!(gone, dsn("custom://a/gone"));
    assert!(notices.try_recv().is_err(), "nothing else is told");
    let letter = dispatcher.dead_letters().get(tasks[1]).await.expect("readable").expect("dead");
    assert!(letter.attempts.is_empty());

    is_back.store(true, Ordering::SeqCst);
    assert_eq!(
        dispatcher.dead_letters().replay_all(&DeadLetterQuery::default()).await.expect("writable"),
        1 + 2 * MANY as u64
    );
    for id in tasks {
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    }
}

async fn a_dsn_that_several_attempts_find_gone_is_told_once(home: Home) {
    let (gate, mut watch) = Gate::new();
    let at_the_gate = gate.clone();
    let sink = CustomSink::new(move |given| {
        let gate = at_the_gate.clone();
        async move {
            if given.dsn.path() == "/here" {
                return Ok(receipt());
            }
            gate.pass(json!("attempt")).await;
            Err(SinkError::gone("moved away"))
        }
    });
    let (builder, mut notices) = told(&home).await;
    let dispatcher = start(builder.sink(sink)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    // A destination that is known to answer gets several attempts at once.
    for number in 0..5 {
        let id = accept(&worker, number, "custom://a/here").await;
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    }
    for number in 0..5 {
        dispatcher.publish(event("custom://a/gone", json!(number))).await.expect("published");
        watch.came().await;
    }
    gate.open(5);
    let (mut dead, mut gone) = (0, 0);
    while dead < 5 {
        match notices.recv().await.expect("told") {
            Notice::Dead { .. } => dead += 1,
            Notice::Gone { .. } => gone += 1,
            other => panic!("{other:?}"),
        }
    }
    dispatcher.close(Duration::from_secs(30)).await;
    gone += std::iter::from_fn(|| notices.try_recv().ok()).count();
    assert_eq!(gone, 1);
}
