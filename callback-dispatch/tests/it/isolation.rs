//! Bounds: between handlers, between destinations, and of memory.

use crate::support::{CustomSink, Gate, Home, accept, dsn, echo, event, receipt, start, task};
use callback_core::MemorySink;
use callback_dispatch::{Interrupted, Lane, TaskState, Work};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    time::Duration,
};

on_each_outbox!(
    no_more_tasks_run_at_once_than_the_worker_says,
    a_task_that_waits_for_a_run_has_not_begun,
    no_more_attempts_are_made_at_once_than_the_lane_says,
    a_lane_may_have_bounds_of_its_own,
    callers_do_not_wait_for_each_other,
    a_destination_that_hangs_leaves_the_others_unharmed,
    a_worker_that_hangs_leaves_the_others_unharmed,
    more_than_fits_into_memory_is_delivered_once_each,
    more_than_fits_into_memory_recovers,
    what_is_large_is_taken_as_memory_allows,
);

/// Lets `count` through one by one, and returns how many were there at once.
async fn most_at_once(gate: &Gate, watch: &mut crate::support::Watch, count: usize, expected: usize) {
    for _ in 0..expected {
        watch.came().await;
    }
    for _ in expected..count {
        gate.open(1);
        watch.came().await;
    }
    gate.open(expected);
    for _ in 0..count {
        watch.left().await;
    }
    assert_eq!(gate.most(), expected);
}

async fn no_more_tasks_run_at_once_than_the_worker_says(home: Home) {
    let (gate, mut watch) = Gate::new();
    let dispatcher = start(home.builder().await).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).concurrency(2);
    let worker = worker.run(gate.handler()).expect("registered");
    for number in 0..20 {
        worker.accept(Work::new(json!(number))).await.expect("accepted");
    }
    most_at_once(&gate, &mut watch, 20, 2).await;
}

async fn a_task_that_waits_for_a_run_has_not_begun(home: Home) {
    let (gate, mut watch) = Gate::new();
    let dispatcher = start(home.builder().await).await;
    let worker = dispatcher.worker("gate", Interrupted::RunAgain).concurrency(1);
    let worker = worker.run(gate.handler()).expect("registered");
    let mut ids = Vec::new();
    for number in 0..2 {
        ids.push(worker.accept(Work::new(json!(number))).await.expect("accepted").id());
    }
    watch.came().await;
    for (id, state) in [(ids[0], TaskState::Running), (ids[1], TaskState::Accepted)] {
        assert_eq!(task(&dispatcher, id).await.state(), state);
    }
    gate.open(1);
    watch.came().await;
    assert_eq!(task(&dispatcher, ids[1]).await.state(), TaskState::Running);
}

async fn no_more_attempts_are_made_at_once_than_the_lane_says(home: Home) {
    let (gate, mut watch) = Gate::new();
    let lane = Lane::default().in_flight(3);
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&gate)).lane(lane)).await;
    // Two that are answered: from then on as many go at once as may.
    gate.open(2);
    for number in 0..2 {
        dispatcher.publish(event("custom://a", json!(number))).await.expect("published");
        watch.came().await;
        watch.left().await;
    }
    for number in 0..30 {
        dispatcher.publish(event("custom://a", json!(number))).await.expect("published");
    }
    most_at_once(&gate, &mut watch, 30, 3).await;
}

async fn a_lane_may_have_bounds_of_its_own(home: Home) {
    let (gate, mut watch) = Gate::new();
    let builder = home.builder().await.sink(CustomSink::behind(&gate));
    let builder = builder.lane_for("custom://slow".parse().expect("a destination"), Lane::default().in_flight(1));
    let dispatcher = start(builder).await;
    let publish = async || {
        dispatcher.publish(event("custom://slow/path", json!("slow"))).await.expect("published");
        dispatcher.publish(event("custom://fast", json!("fast"))).await.expect("published");
    };
    // Once both are known to answer, one may have two at once, the other one.
    publish().await;
    for _ in 0..2 {
        watch.came().await;
    }
    gate.open(2);
    for _ in 0..2 {
        watch.left().await;
    }
    for _ in 0..3 {
        publish().await;
    }
    let mut came = BTreeMap::new();
    for _ in 0..3 {
        *came.entry(watch.came().await.to_string()).or_insert(0) += 1;
    }
    assert_eq!(came, BTreeMap::from([("\"fast\"".to_owned(), 2), ("\"slow\"".to_owned(), 1)]));
    watch.assert_nobody();
}

async fn callers_do_not_wait_for_each_other(home: Home) {
    let (gate, mut watch) = Gate::new();
    let builder = home.builder().await.sink(CustomSink::behind(&gate)).lane(Lane::default().in_flight(1));
    let dispatcher = start(builder).await;
    for _ in 0..10 {
        dispatcher.publish(event("custom://a", json!("one")).owner("one")).await.expect("published");
    }
    assert_eq!(watch.came().await, "one");
    dispatcher.publish(event("custom://a", json!("two")).owner("two")).await.expect("published");
    assert_eq!(watch.came().await, "two");
}

async fn a_destination_that_hangs_leaves_the_others_unharmed(home: Home) {
    let sink = MemorySink::new();
    let hung = CustomSink::new(|_| pending());
    let builder = home.builder().await.sink(hung).sink(sink.clone()).lane(Lane::default().in_flight(2));
    let dispatcher = start(builder).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered");
    for number in 0..30 {
        accept(&worker, number, "custom://hung").await;
        accept(&worker, number, "memory://well").await;
    }
    let mut arrived = BTreeSet::new();
    for _ in 0..30 {
        arrived.insert(sink.next("well").await.message.json::<u32>().expect("a number"));
    }
    assert_eq!(arrived, (0..30).collect());
    dispatcher.close(Duration::ZERO).await;
}

async fn a_worker_that_hangs_leaves_the_others_unharmed(home: Home) {
    let dispatcher = start(home.builder().await).await;
    let hung = |_| pending::<Result<Value, Value>>();
    let hung = dispatcher.worker("hung", Interrupted::RunAgain).concurrency(1).run(hung).expect("registered");
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).concurrency(1).run(echo).expect("registered");
    let mut ids = Vec::new();
    for number in 0..30 {
        hung.accept(Work::new(json!(number))).await.expect("accepted");
        ids.push(worker.accept(Work::new(json!(number))).await.expect("accepted").id());
    }
    for id in ids {
        crate::support::ended(&dispatcher, id).await;
    }
}

const MANY: usize = 300;

/// Room for about two rows.
const LITTLE: usize = 2 << 10;

async fn more_than_fits_into_memory_is_delivered_once_each(home: Home) {
    let sink = MemorySink::new();
    let builder = home.builder().await.sink(sink.clone()).memory_limit(LITTLE).lane(Lane::default().in_flight(2));
    let dispatcher = start(builder).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).concurrency(2).run(echo).expect("registered");
    let ids = join_all((0..MANY).map(|number| accept(&worker, number, "memory://results"))).await;
    check_once_each(&sink, ids.iter().map(ToString::to_string)).await;
    dispatcher.close(Duration::from_secs(30)).await;
    assert!(sink.take("results").is_empty(), "something was delivered twice");
}

async fn more_than_fits_into_memory_recovers(home: Home) {
    let (gate, _watch) = Gate::new();
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&gate)).sink(MemorySink::new())).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(gate.handler()).expect("registered");
    let ids = join_all((0..MANY).map(|number| accept(&worker, number, "memory://results"))).await;
    drop(worker);
    dispatcher.close(Duration::ZERO).await;

    let sink = MemorySink::new();
    let builder = home.builder().await.sink(sink.clone()).memory_limit(LITTLE).lane(Lane::default().in_flight(2));
    let dispatcher = start(builder).await;
    let _worker = dispatcher.worker("echo", Interrupted::RunAgain).concurrency(2).run(echo).expect("registered");
    check_once_each(&sink, ids.iter().map(ToString::to_string)).await;
    dispatcher.close(Duration::from_secs(30)).await;
    assert!(sink.take("results").is_empty(), "something was delivered twice");
}

async fn what_is_large_is_taken_as_memory_allows(home: Home) {
    const LARGE: usize = 50_000;
    let (gate, _watch) = Gate::new();
    let dispatcher = start(home.builder().await.sink(CustomSink::behind(&gate))).await;
    let body = |number: usize| json!(format!("{number:LARGE$}"));
    for number in 0..30 {
        dispatcher.publish(event("custom://a", body(number))).await.expect("published");
    }
    dispatcher.close(Duration::ZERO).await;

    let (gate, mut attempts) = Gate::new();
    let builder = home.builder().await.sink(CustomSink::behind(&gate)).memory_limit(3 * LARGE);
    let dispatcher = start(builder).await;
    let mut arrived = BTreeSet::new();
    for _ in 0..30 {
        let came = attempts.came().await;
        assert!(arrived.insert(came.to_string()), "{} came twice", arrived.len());
        let in_memory = dispatcher.health().await.memory_bytes;
        assert!(in_memory < 5 * LARGE, "{in_memory} bytes are in memory");
        gate.open(1);
    }
    dispatcher.close(Duration::from_secs(30)).await;
}

async fn check_once_each(sink: &MemorySink, expected: impl Iterator<Item = String>) {
    let expected: BTreeSet<String> = expected.collect();
    let mut arrived = BTreeSet::new();
    while arrived.len() < expected.len() {
        let message = sink.next("results").await.message;
        assert!(arrived.insert(message.id().to_string()), "{message:?} was delivered twice");
    }
    assert_eq!(arrived, expected);
}

#[tokio::test]
async fn no_bound_is_zero() {
    let home = Home::memory();
    let sink = CustomSink::new(|_| async { Ok(receipt()) });
    let builder = home.builder().await.sink(sink).lane(Lane::default().in_flight(0)).memory_limit(0);
    let dispatcher = start(builder).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).concurrency(0).run(echo).expect("registered");
    let work = Work::new(json!(1)).callback(dsn("custom://a"));
    let id = worker.accept(work).await.expect("accepted").id();
    crate::support::in_time(crate::support::ended(&dispatcher, id)).await;
}
