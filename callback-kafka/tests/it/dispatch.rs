//! Faults and bad input as a dispatcher sees them whose outbox is a file: what was acknowledged is in the topic once the broker
//! has healed, or a dead letter.

use crate::support::{Broker, cluster, new_topic, to, until};
use callback_core::{Dsn, ErrorKind, Phase, Schedule, Sink};
use callback_dispatch::{DeadLetter, DeadLetterQuery, Dispatcher, Event, Lane, SqliteOutbox};
use callback_kafka::KafkaSink;
use std::{collections::HashSet, time::Duration};
use tempfile::TempDir;
use tokio::time::sleep;

/// How long a dispatcher waits between attempts, and for a breaker.
const STEP: Duration = Duration::from_millis(200);

/// Longer than an attempt may take here.
const PAUSE: Duration = Duration::from_secs(5);

async fn dispatcher(sink: impl Sink, retries: usize) -> (TempDir, Dispatcher) {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = SqliteOutbox::open(folder.path().join("outbox.db")).await.expect("an outbox");
    let dispatcher = Dispatcher::builder(outbox)
        .sink(sink)
        .schedule(Schedule::new(vec![STEP; retries]).expect("a schedule"))
        .lane(Lane::default().breaker(5, STEP))
        .deadline(Duration::from_secs(4))
        .start();
    (folder, dispatcher.await.expect("started"))
}

async fn publish(dispatcher: &Dispatcher, dsn: &Dsn, body: &str) -> String {
    let event = Event::to(dsn.clone(), "test.happened", body);
    dispatcher.publish(event).await.expect("acknowledged").to_string()
}

async fn dead(dispatcher: &Dispatcher) -> Vec<DeadLetter> {
    dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("listed").items
}

/// Publishes to the topic while the fault lasts, and sees to it that all of it arrives.
async fn all_arrives(broker: &Broker, topic: &str, fault: impl Future<Output = ()>) {
    let (_folder, dispatcher) = dispatcher(broker.sink(), 500).await;
    let mut missing = HashSet::new();
    tokio::pin!(fault);
    loop {
        missing.insert(publish(&dispatcher, &to(topic), "a body").await);
        tokio::select! {
            biased;
            () = &mut fault => break,
            () = sleep(Duration::from_millis(1)) => {}
        }
    }
    until(async || {
        for record in broker.read(topic).await {
            missing.remove(&record.headers["webhook-id"]);
        }
        missing.is_empty()
    })
    .await;
    assert!(dead(&dispatcher).await.is_empty());
    dispatcher.close(PAUSE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_arrives_after_each_fault() {
    let Some(broker) = Broker::own() else { return };
    let topic = broker.topic(2, &[]).await;
    all_arrives(&broker, &topic, async {
        sleep(STEP).await;
        broker.signal("KILL");
        sleep(PAUSE).await;
    })
    .await;
    all_arrives(&broker, &topic, async {
        sleep(STEP).await;
        broker.signal("STOP");
        sleep(PAUSE).await;
        broker.signal("CONT");
    })
    .await;
    let late = new_topic();
    all_arrives(&broker, &late, async {
        sleep(PAUSE).await;
        broker.create_topic(&late, 1, &[]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_that_was_acknowledged_is_a_dead_letter_with_its_kind_and_phase() {
    let Some(broker) = Broker::shared() else { return };
    let wrong = cluster(broker.listener("_SASL")).sasl_plain("alice", "wrong");
    let sink = KafkaSink::builder().default_cluster(broker.plain()).cluster("wrong", wrong).build().expect("a sink");
    let (_folder, dispatcher) = dispatcher(sink, 2).await;
    let small = broker.topic(1, &[("max.message.bytes", "2000")]).await;
    let bad = [
        (to(&new_topic()), ErrorKind::Unroutable, Phase::Answer),
        (to(&small), ErrorKind::TooLarge, Phase::Answer),
        (format!("kafka://wrong/{small}").parse().expect("a Dsn"), ErrorKind::Unauthorized, Phase::Connect),
    ];
    for (dsn, kind, phase) in bad {
        let id = publish(&dispatcher, &dsn, &"a".repeat(100_000)).await;
        until(async || dead(&dispatcher).await.iter().any(|letter| letter.id.to_string() == id)).await;
        let letters = dead(&dispatcher).await;
        let letter = letters.iter().find(|letter| letter.id.to_string() == id).expect("it is there");
        let last = letter.attempts.last().expect("an attempt");
        assert_eq!((letter.kind, last.kind, last.phase), (kind, kind, phase), "{dsn}: {}", last.reason);
    }
    dispatcher.close(PAUSE).await;
}
