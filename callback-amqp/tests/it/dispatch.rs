//! Faults and bad input as a dispatcher sees them whose outbox is a file: what was acknowledged is at the broker once that
//! has healed, or a dead letter.

use crate::broker::{Broker, PATIENCE, own, to_queue, unique};
use callback_amqp::{AmqpCluster, AmqpSink};
use callback_core::{Dsn, ErrorKind, Payload, Phase, Schedule, Sink};
use callback_dispatch::{DeadLetter, DeadLetterQuery, Dispatcher, Event, Lane, SqliteOutbox};
use lapin::{options::QueueDeclareOptions, types::FieldTable};
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};
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
        .deadline(Duration::from_secs(2))
        .start();
    (folder, dispatcher.await.expect("started"))
}

async fn publish(dispatcher: &Dispatcher, dsn: &Dsn, body: impl Into<Payload>) -> String {
    let event = Event::to(dsn.clone(), "test.happened", body);
    dispatcher.publish(event).await.expect("acknowledged").to_string()
}

async fn dead(dispatcher: &Dispatcher) -> Vec<DeadLetter> {
    dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("listed").items
}

/// What became of a message that cannot be delivered.
async fn dead_letter(dispatcher: &Dispatcher, id: &str) -> DeadLetter {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(letter) = dead(dispatcher).await.into_iter().find(|letter| letter.id.to_string() == id) {
            return letter;
        }
        assert!(Instant::now() < until, "{id} is nowhere");
        sleep(STEP).await;
    }
}

/// Waits until all of these are in the queue, or were.
async fn arrived(broker: &Broker, queue: &str, acknowledged: &HashSet<String>) {
    let until = Instant::now() + PATIENCE;
    let mut missing = acknowledged.clone();
    while !missing.is_empty() {
        assert!(Instant::now() < until, "{} of {} are missing", missing.len(), acknowledged.len());
        for id in broker.ids(queue).await.into_keys() {
            missing.remove(&id);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Publishes to the queue while the fault lasts, and sees to it that all of it arrives.
async fn all_arrives(broker: &Broker, queue: &str, fault: impl Future<Output = ()>) {
    let (_folder, dispatcher) = dispatcher(broker.sink(), 500).await;
    let (dsn, mut acknowledged) = (to_queue(queue), HashSet::new());
    tokio::pin!(fault);
    loop {
        acknowledged.insert(publish(&dispatcher, &dsn, "a body").await);
        tokio::select! {
            biased;
            () = &mut fault => break,
            () = sleep(Duration::from_millis(1)) => {}
        }
    }
    arrived(broker, queue, &acknowledged).await;
    let dead = dead(&dispatcher).await;
    assert!(dead.is_empty(), "{dead:?}");
    dispatcher.close(PAUSE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_arrives_after_each_fault() {
    let Some(broker) = own().await else { return };
    let queue = broker.side("").await.queue().await;
    broker.write_down().await;
    all_arrives(&broker, &queue, async {
        sleep(STEP).await;
        broker.kill().await;
        broker.restart().await;
    })
    .await;
    all_arrives(&broker, &queue, async {
        for _ in 0..3 {
            sleep(STEP).await;
            broker.control(&["close_all_connections", "test"]).await;
        }
    })
    .await;
    all_arrives(&broker, &queue, async {
        sleep(STEP).await;
        broker.control(&["set_disk_free_limit", "1000000GB"]).await;
        sleep(PAUSE).await;
        broker.control(&["set_disk_free_limit", "50MB"]).await;
    })
    .await;
    all_arrives(&broker, &queue, async {
        sleep(STEP).await;
        broker.signal("-STOP").await;
        sleep(PAUSE).await;
        broker.signal("-CONT").await;
    })
    .await;
    let side = broker.side("").await;
    side.delete(&queue).await;
    all_arrives(&broker, &queue, async {
        sleep(PAUSE).await;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        side.channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await.expect("a queue");
    })
    .await;
}

#[tokio::test]
async fn bad_input_that_was_acknowledged_is_a_dead_letter_with_its_kind_and_phase() {
    let Some(broker) = crate::broker::shared() else { return };
    let wrong = broker.url.replace("guest:guest", "guest:wrong").parse().expect("a Dsn");
    let sink = AmqpSink::builder()
        .default_cluster(broker.cluster())
        .cluster("wrong", AmqpCluster::new(wrong).queue("*"))
        .build()
        .expect("a sink");
    let (_folder, dispatcher) = dispatcher(sink, 2).await;
    let nowhere = unique("nowhere");
    let bad = [
        (format!("amqp:///?queue={nowhere}"), ErrorKind::Unroutable, Phase::Answer),
        (format!("amqp:///?exchange={nowhere}&routing_key=a"), ErrorKind::Unroutable, Phase::Connect),
        (format!("amqp:///{nowhere}?queue=q"), ErrorKind::Unauthorized, Phase::Connect),
        ("amqp://wrong/?queue=q".to_owned(), ErrorKind::Unauthorized, Phase::Connect),
    ];
    for (dsn, kind, phase) in bad {
        let id = publish(&dispatcher, &dsn.parse().expect("a Dsn"), "a body").await;
        let letter = dead_letter(&dispatcher, &id).await;
        let last = letter.attempts.last().expect("an attempt");
        assert_eq!((letter.kind, last.kind, last.phase), (kind, kind, phase), "{dsn}: {}", last.reason);
        assert_eq!(letter.attempts.len(), 3, "{dsn}");
    }
    dispatcher.close(PAUSE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_larger_than_the_broker_takes_is_a_dead_letter_and_the_others_arrive() {
    let Some(broker) = own().await else { return };
    broker.control(&["eval", "application:set_env(rabbit, max_message_size, 10000)."]).await;
    let queue = broker.side("").await.queue().await;
    let (_folder, dispatcher) = dispatcher(broker.sink(), 500).await;
    let (dsn, mut acknowledged, mut large) = (to_queue(&queue), HashSet::new(), Vec::new());
    for number in 0..300 {
        acknowledged.insert(publish(&dispatcher, &dsn, "a body").await);
        if number % 100 == 50 {
            large.push(publish(&dispatcher, &dsn, vec![0; 20_000]).await);
        }
    }
    for id in &large {
        let letter = dead_letter(&dispatcher, id).await;
        let last = letter.attempts.last().expect("an attempt");
        let found = (letter.kind, last.kind, last.phase);
        assert_eq!(found, (ErrorKind::TooLarge, ErrorKind::TooLarge, Phase::Answer), "{}", last.reason);
    }
    arrived(&broker, &queue, &acknowledged).await;
    assert_eq!(dead(&dispatcher).await.len(), large.len());
    dispatcher.close(PAUSE).await;
    broker.control(&["eval", "application:set_env(rabbit, max_message_size, 134217728)."]).await;
}
