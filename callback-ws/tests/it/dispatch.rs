//! Faults as a dispatcher sees them whose outbox is a file: what was acknowledged is at the server once that has healed, or a
//! dead letter.

use crate::peer::{Peer, ack, close, member, sink};
use callback_core::{Dsn, ErrorKind, Phase, Schedule, conformance::Fault, conformance::Proxy};
use callback_dispatch::{DeadLetterQuery, Dispatcher, Event, Lane, SqliteOutbox};
use futures_util::{SinkExt, StreamExt};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::time::sleep;

/// How long a dispatcher waits between attempts, and for a breaker.
const STEP: Duration = Duration::from_millis(100);

/// How long what was acknowledged may take to arrive once the server is well.
const PATIENCE: Duration = Duration::from_secs(60);

type Ids = Arc<Mutex<HashSet<String>>>;

async fn dispatcher(retries: usize) -> (TempDir, Dispatcher) {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = SqliteOutbox::open(folder.path().join("outbox.db")).await.expect("an outbox");
    let dispatcher = Dispatcher::builder(outbox)
        .sink(sink())
        .schedule(Schedule::new(vec![STEP; retries]).expect("a schedule"))
        .lane(Lane::default().breaker(5, STEP))
        .deadline(Duration::from_secs(2))
        .start();
    (folder, dispatcher.await.expect("started"))
}

async fn publish(dispatcher: &Dispatcher, dsn: &Dsn, body: &str) -> String {
    let event = Event::to(dsn.clone(), "test.happened", body);
    dispatcher.publish(event).await.expect("acknowledged").to_string()
}

/// A server that acknowledges what it keeps, and closes as it is told by a body that is a number.
async fn keeping() -> (Peer, Ids) {
    let ids = Ids::default();
    let kept = Arc::clone(&ids);
    let peer = Peer::start(Some("callback.v1"), move |mut socket| {
        let kept = Arc::clone(&kept);
        async move {
            while let Some(Ok(frame)) = socket.next().await {
                if !frame.is_text() {
                    continue;
                }
                let answer = match member(&frame, "body").parse() {
                    Ok(code) => close(code),
                    Err(_) => {
                        kept.lock().unwrap_or_else(PoisonError::into_inner).insert(member(&frame, "id"));
                        ack(&frame)
                    }
                };
                let _ = socket.send(answer).await;
            }
        }
    });
    (peer.await, ids)
}

async fn all_are_there(acknowledged: &HashSet<String>, ids: &Ids) {
    let until = Instant::now() + PATIENCE;
    while !ids.lock().unwrap_or_else(PoisonError::into_inner).is_superset(acknowledged) {
        assert!(Instant::now() < until, "not all arrived");
        sleep(STEP / 4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_arrives_after_each_fault() {
    let (peer, ids) = keeping().await;
    let proxy = Proxy::start(peer.dsn.hosts()[0].to_string()).await.expect("a port");
    let dsn = format!("ws://{}/hook", proxy.address()).parse().expect("a Dsn");
    let (_folder, dispatcher) = dispatcher(500).await;
    let mut acknowledged = HashSet::new();
    for fault in [Fault::Disconnect, Fault::Stall, Fault::Disconnect, Fault::Outage] {
        for _ in 0..100 {
            acknowledged.insert(publish(&dispatcher, &dsn, "hello").await);
        }
        proxy.inject(fault).expect("a fault of the network");
        for _ in 0..100 {
            acknowledged.insert(publish(&dispatcher, &dsn, "hello").await);
        }
        sleep(STEP * 5).await;
        proxy.heal();
    }
    all_are_there(&acknowledged, &ids).await;
    let dead = dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("listed");
    assert!(dead.items.is_empty(), "{:?}", dead.items);
    dispatcher.close(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_message_is_a_dead_letter_and_all_others_arrive() {
    let (peer, ids) = keeping().await;
    let (_folder, dispatcher) = dispatcher(500).await;
    let (mut acknowledged, mut poison) = (HashSet::new(), HashSet::new());
    for number in 0..512 {
        match number % 200 {
            100 => drop(poison.insert(publish(&dispatcher, &peer.dsn, "1009").await)),
            _ => drop(acknowledged.insert(publish(&dispatcher, &peer.dsn, "hello").await)),
        }
    }
    all_are_there(&acknowledged, &ids).await;
    let until = Instant::now() + PATIENCE;
    let dead = loop {
        let dead = dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("listed").items;
        if dead.len() >= poison.len() {
            break dead;
        }
        assert!(Instant::now() < until, "{dead:?}");
        sleep(STEP).await;
    };
    assert_eq!(dead.iter().map(|letter| letter.id.to_string()).collect::<HashSet<_>>(), poison);
    for letter in dead {
        let last = letter.attempts.last().expect("an attempt");
        assert_eq!((last.kind, last.phase), (ErrorKind::TooLarge, Phase::Answer), "{}", last.reason);
    }
    dispatcher.close(PATIENCE).await;
}
