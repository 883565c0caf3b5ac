//! Ordering keys: one at a time, as they were stored.

use crate::support::{CustomSink, Given, Home, dsn, event, killed, lived, receipt, start};
use callback_core::{Schedule, SinkError};
use callback_dispatch::{DeadLetterQuery, Dispatcher, Interrupted, Lane, MemoryOutbox, Task, TokioClock, Work};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;

on_each_outbox!(
    messages_of_a_key_arrive_as_they_were_published,
    results_of_a_key_arrive_as_they_were_stored,
    one_that_is_dead_lets_the_next_go,
    where_the_operator_says_so_one_that_is_dead_stops_its_key_until_it_is_replayed,
    a_task_that_is_cancelled_lets_the_next_go,
);
over_lives_on_each_outbox!(the_order_outlives_a_crash);

const KEYS: u32 = 3;
const EACH: u32 = 40;

/// A sink that answers by `answer`, and what it was given.
fn sink(
    answer: impl Fn(&Given) -> Result<(), SinkError> + Send + Sync + 'static,
) -> (CustomSink, mpsc::UnboundedReceiver<Value>) {
    let (sender, given) = mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let answer = answer(&given);
        let _ = sender.send(given.message.json().expect("JSON"));
        async { answer.map(|()| receipt()) }
    });
    (sink, given)
}

async fn messages_of_a_key_arrive_as_they_were_published(home: Home) {
    let (sink, mut given) = sink(|_| Ok(()));
    let dispatcher = start(home.builder().await.sink(sink)).await;
    for number in 0..EACH {
        for key in 0..KEYS {
            let event = event("custom://a", json!([key, number])).ordering_key(key.to_string());
            dispatcher.publish(event).await.expect("published");
        }
    }
    let mut next = BTreeMap::from_iter((0..KEYS).map(|key| (key, 0)));
    for _ in 0..KEYS * EACH {
        let [key, number]: [u32; 2] =
            serde_json::from_value(given.recv().await.expect("a message")).expect("two numbers");
        let next = next.entry(key).or_default();
        assert_eq!(number, *next, "of key {key}");
        *next += 1;
    }
}

async fn results_of_a_key_arrive_as_they_were_stored(home: Home) {
    let (sink, mut given) = sink(|_| Ok(()));
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let worker = dispatcher.worker("one by one", Interrupted::RunAgain).concurrency(1);
    let (sender, mut ran) = mpsc::unbounded_channel();
    let worker = worker.run(move |task: Task| {
        let number: u32 = task.json().expect("a number");
        sender.send(number).expect("somebody listens");
        async move { Ok::<_, Value>(json!(number)) }
    });
    let worker = worker.expect("registered");
    for number in 0..EACH {
        let work = Work::new(json!(number)).callback(dsn("custom://a")).ordering_key("key");
        worker.accept(work).await.expect("accepted");
    }
    for _ in 0..EACH {
        let ran = ran.recv().await.expect("a run");
        assert_eq!(given.recv().await.expect("a result"), ran);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_holds_back_its_key_alone() {
    let (sink, mut given) = sink(|given| match given.attempt.number() {
        1..=3 if given.message.json::<Value>().expect("JSON") == json!(["a", 0]) => Err(SinkError::unavailable("no")),
        _ => Ok(()),
    });
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default());
    let dispatcher = start(builder).await;
    for number in 0..2 {
        for key in ["a", "b"] {
            let event = event("custom://a", json!([key, number])).ordering_key(key);
            dispatcher.publish(event).await.expect("published");
        }
    }
    let mut came = Vec::new();
    for _ in 0..7 {
        came.push(given.recv().await.expect("a message").to_string());
    }
    assert_eq!(came[..3].iter().collect::<BTreeSet<_>>().len(), 3, "{came:?}");
    assert!(came[..3].contains(&r#"["b",1]"#.to_owned()), "{came:?}");
    assert_eq!(came[3..], [r#"["a",0]"#, r#"["a",0]"#, r#"["a",0]"#, r#"["a",1]"#]);
}

#[tokio::test(start_paused = true)]
async fn what_was_held_back_for_long_is_retried_like_any_other() {
    let (sink, mut given) = sink(|given| {
        let number = given.message.json::<u32>().expect("JSON");
        if number == 0 || given.attempt.number() == 1 { Err(SinkError::unavailable("no")) } else { Ok(()) }
    });
    // The first is given up when all that was first due with it would be.
    let second = Duration::from_secs(1);
    let schedule = Schedule::new([second; 9]).expect("a schedule").jitter(0).give_up_after(9 * second);
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default()).schedule(schedule);
    let dispatcher = start(builder).await;
    publish_three(&dispatcher).await;
    let mut came = Vec::new();
    for _ in 0..14 {
        came.push(given.recv().await.expect("a message"));
    }
    assert_eq!(came[..10], vec![json!(0); 10]);
    assert_eq!(came[10..], [json!(1), json!(1), json!(2), json!(2)]);
}

async fn publish_three(dispatcher: &Dispatcher) {
    for number in 0..3 {
        let event = event("custom://a", json!(number)).ordering_key("key");
        dispatcher.publish(event).await.expect("published");
    }
}

async fn one_that_is_dead_lets_the_next_go(home: Home) {
    let refuses = |given: &Given| {
        if given.message.json::<u32>().ok() == Some(0) { Err(SinkError::refused("no")) } else { Ok(()) }
    };
    let (sink, mut given) = sink(refuses);
    let dispatcher = start(home.builder().await.sink(sink)).await;
    publish_three(&dispatcher).await;
    for number in 0..3 {
        assert_eq!(given.recv().await.expect("a message"), number);
    }
}

async fn where_the_operator_says_so_one_that_is_dead_stops_its_key_until_it_is_replayed(home: Home) {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let (sink, mut given) =
        sink(move |_| if is_well.load(Ordering::SeqCst) { Ok(()) } else { Err(SinkError::refused("no")) });
    let lane = Lane::default().stop_when_dead(true);
    let dispatcher = start(home.builder().await.sink(sink).lane(lane)).await;
    publish_three(&dispatcher).await;
    assert_eq!(given.recv().await.expect("a message"), 0);
    let letters = dispatcher.dead_letters();
    let letter = loop {
        if let Some(letter) = letters.list(&DeadLetterQuery::default()).await.expect("readable").items.pop() {
            break letter;
        }
        tokio::task::yield_now().await;
    };
    // Another key goes on meanwhile, and nothing of this one.
    well.store(true, Ordering::SeqCst);
    dispatcher.publish(event("custom://a", json!("other")).ordering_key("other")).await.expect("published");
    assert_eq!(given.recv().await.expect("a message"), "other");
    assert!(given.try_recv().is_err());
    assert!(letters.replay(letter.id).await.expect("stored"));
    for number in 0..3 {
        assert_eq!(given.recv().await.expect("a message"), number);
    }
}

async fn a_task_that_is_cancelled_lets_the_next_go(home: Home) {
    let (sink, mut given) =
        sink(
            |given| {
                if given.message.json::<u32>().ok() == Some(0) { Err(SinkError::unavailable("no")) } else { Ok(()) }
            },
        );
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(crate::support::echo).expect("registered");
    let mut ids = Vec::new();
    for number in 0..2 {
        let work = Work::new(json!(number)).callback(dsn("custom://a")).ordering_key("key");
        ids.push(worker.accept(work).await.expect("accepted").id());
        if number == 0 {
            assert_eq!(given.recv().await.expect("a message"), 0);
        }
    }
    dispatcher.cancel(ids[0]).await.expect("cancelled");
    assert_eq!(given.recv().await.expect("a message"), 1);
}

fn the_order_outlives_a_crash(home: &Home) {
    killed(async {
        let (sender, mut attempts) = mpsc::unbounded_channel();
        let hangs = CustomSink::new(move |_| {
            let _ = sender.send(());
            pending()
        });
        let dispatcher = start(home.builder().await.sink(hangs)).await;
        publish_three(&dispatcher).await;
        attempts.recv().await.expect("an attempt");
        ((), dispatcher)
    });
    lived(async {
        let (sink, mut given) = sink(|_| Ok(()));
        let schedule = Schedule::default();
        let _dispatcher = start(home.builder().await.sink(sink).schedule(schedule)).await;
        for number in 0..3 {
            assert_eq!(given.recv().await.expect("a message"), number);
        }
    });
}
