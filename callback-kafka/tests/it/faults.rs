//! A broker that fails. Each test has a broker of its own.

use crate::support::{Broker, attempt, attempt_within, cluster, message, say, sink, to, until};
use callback_core::{ErrorKind, Sink};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_under_load_loses_nothing_that_was_delivered() {
    let Some(broker) = Broker::own() else { return };
    let topic = broker.topic(2, &[]).await;
    let sink = sink(cluster(broker.listener("")));
    let delivered = Arc::new(AtomicUsize::new(0));
    let mut senders = JoinSet::new();
    for sender in 0..20 {
        let (sink, dsn, delivered) = (sink.clone(), to(&topic), Arc::clone(&delivered));
        senders.spawn(async move {
            for number in 0..200 {
                // Each sender has one message on its way, and sends it until it is delivered: an ordering key.
                let message = message(format!("{sender} {number}"));
                let message = message.to_builder().subject(format!("sender-{sender}")).build().expect("valid");
                for number in 1.. {
                    let attempt = attempt_within(Duration::from_secs(2), number, &message);
                    match sink.deliver(&dsn, &message, &attempt).await {
                        Ok(_) => break,
                        Err(error) => assert!(error.is_temporary(), "{}", error.chain()),
                    }
                }
                delivered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for kills in 1..=2 {
        until(async || delivered.load(Ordering::Relaxed) > kills * 1_000).await;
        broker.signal("KILL");
    }
    while let Some(sender) = senders.join_next().await {
        sender.expect("no panic");
    }
    sink.close().await.expect("closed");
    let mut last: HashMap<String, usize> = HashMap::new();
    let (mut new, mut repeated) = (0, 0);
    for record in broker.read(&topic).await {
        let body = String::from_utf8(record.body).expect("UTF-8");
        let (sender, number) = body.split_once(' ').expect("two numbers");
        let number: usize = number.parse().expect("a number");
        match last.insert(sender.to_owned(), number) {
            // What was given up after the broker had it comes twice, and at once.
            Some(before) if before == number => repeated += 1,
            before => {
                assert_eq!(number, before.map_or(0, |before| before + 1), "sender {sender}: a record is missing");
                new += 1;
            }
        }
    }
    say(&format!("{new} messages, {repeated} of them twice"));
    assert_eq!(new, 4_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_longer_than_the_deadline_gets_the_message_once() {
    let Some(broker) = Broker::own() else { return };
    let topic = broker.topic(1, &[]).await;
    // librdkafka is more patient than the first attempt.
    let sink = sink(cluster(broker.listener("")).delivery_timeout(Duration::from_secs(30)));
    let (first, hung) = (message("first"), message("hung"));
    sink.deliver(&to(&topic), &first, &attempt(1, &first)).await.expect("delivered");
    broker.signal("STOP");
    for number in [1, 2] {
        let soon = attempt_within(Duration::from_secs(1), number, &hung);
        let error = sink.deliver(&to(&topic), &hung, &soon).await.expect_err("the broker hangs");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{}", error.chain());
    }
    broker.signal("CONT");
    sink.deliver(&to(&topic), &hung, &attempt(3, &hung)).await.expect("delivered");
    let bodies: Vec<_> = broker.read(&topic).await.into_iter().map(|record| record.body).collect();
    assert_eq!(bodies, ["first", "hung"].map(|body| body.as_bytes().to_vec()));
}
