//! Callbacks out of a topic: from our sink, and from whoever else writes to it.

use crate::support::{Broker, PATIENCE, SECRET, admin_options, attempt, cluster, dsn, message, new_topic, sink, until};
use callback_core::{Attempt, Dsn, Message, Payload, Signer, Sink};
use callback_kafka::{KafkaReceiver, KafkaReceiverError};
use callback_receive::{Callback, Delivery, Receiver, ReceiverBuilder, SqliteInbox};
use futures_util::future::{join_all, poll_immediate};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{NewPartitions, NewTopic, TopicReplication},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, FutureProducer, FutureRecord, Producer},
};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use std::{
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};
use tempfile::TempDir;
use tokio::{
    task::{block_in_place, spawn_blocking},
    time::timeout,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An inbox in a file.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("inbox.db")
    }

    async fn builder(&self) -> ReceiverBuilder {
        Receiver::builder().inbox(SqliteInbox::open(self.path()).await.expect("it opens"))
    }

    async fn pool(&self) -> SqlitePool {
        let options = SqliteConnectOptions::new().filename(self.path()).busy_timeout(PATIENCE);
        SqlitePool::connect_with(options).await.expect("it opens")
    }

    /// How far each partition was passed, in their order.
    async fn positions(&self) -> Vec<i64> {
        let pool = self.pool().await;
        let sql = "SELECT offset FROM callback_inbox_position ORDER BY log";
        let positions = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("read");
        pool.close().await;
        positions
    }
}

async fn open(broker: &Broker, topic: &str, builder: ReceiverBuilder) -> Receiver {
    let kafka = KafkaReceiver::open(broker.plain(), topic).await.expect("the topic is there");
    builder.open(kafka).await.expect("it opens")
}

async fn next(handle: &mut Callback) -> Delivery {
    timeout(PATIENCE, handle.next()).await.expect("it comes").expect("the handle is open")
}

async fn close(receiver: Receiver) {
    receiver.close(PATIENCE).await.expect("nothing is in hand");
}

async fn send(broker: &Broker, to: &Dsn, message: &Message) {
    broker.sink().deliver(to, message, &attempt(1, message)).await.expect("delivered");
}

/// Takes the next one, which has this body.
async fn takes(handle: &mut Callback, body: &str) {
    let message = next(handle).await.accept().await.expect("accepted");
    assert_eq!(message.body(), body.as_bytes());
}

async fn nothing_came(handle: &mut Callback) {
    assert!(poll_immediate(handle.next()).await.is_none());
}

/// The key of a handle.
fn key(handle: &Callback) -> String {
    handle.url().split_once("?key=").expect("a Dsn of Kafka").1.to_owned()
}

/// Writes a record as no sink of ours does.
async fn write(broker: &Broker, topic: &str, key: Option<&str>, value: Option<&str>, lines: &[(&str, &str)]) {
    let producer: FutureProducer = broker.config().create().expect("a producer");
    let add = |headers: OwnedHeaders, (key, value): &(&str, &str)| headers.insert(Header { key, value: Some(*value) });
    let mut record = FutureRecord::<str, str>::to(topic).headers(lines.iter().fold(OwnedHeaders::new(), add));
    (record.key, record.payload) = (key, value);
    producer.send(record, PATIENCE).await.expect("written");
    block_in_place(|| drop(producer));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_reaches_the_handle_that_its_dsn_names() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(3, &[]).await;
    let receiver = open(&broker, &topic, Receiver::builder().verifier(SECRET.parse().expect("a key"))).await;
    let (mut handle, mut other) = (receiver.spawn(), receiver.spawn());
    assert_eq!(handle.url(), format!("kafka:///{topic}?key={}", key(&handle)));
    let body = br#"{"status":"completed"}"#;
    let sent = Message::builder("order.completed")
        .source("/orders")
        .subject("Bestellung für 😀")
        .correlation_id("ray 7")
        .time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_614_265_330_250))
        .header("x-request-id", "r-1")
        .payload(Payload::new("application/json", &body[..]))
        .build()
        .expect("valid");
    send(&broker, &other.dsn(), &message("for the other")).await;
    send(&broker, &handle.dsn(), &sent).await;
    let received = next(&mut handle).await.accept().await.expect("accepted");
    assert_eq!(format!("{received:?}"), format!("{sent:?}"));
    assert_eq!((received.body(), received.time()), (sent.body(), sent.time()));
    takes(&mut other, "for the other").await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_not_handed_over_and_old_age_is_not_judged() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1, &[]).await;
    let receiver = open(&broker, &topic, Receiver::builder().verifier(SECRET.parse().expect("a key"))).await;
    let (mut handle, sink, old) = (receiver.spawn(), broker.sink(), message("old"));
    for number in 1..4 {
        let signer: Signer = SECRET.parse().expect("a key");
        let attempt = Attempt::new(number, SystemTime::now() - DAY * number, Instant::now() + PATIENCE);
        let attempt = attempt.sign(&signer, &old);
        sink.deliver(&handle.dsn(), &old, &attempt).await.expect("delivered");
    }
    takes(&mut handle, "old").await;
    sink.deliver(&handle.dsn(), &old, &attempt(4, &old)).await.expect("delivered");
    send(&broker, &handle.dsn(), &message("new")).await;
    takes(&mut handle, "new").await;
    nothing_came(&mut handle).await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_for_us_or_cannot_be_read_passes() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, disk) = (broker.topic(1, &[]).await, Disk::new());
    let builder = disk.builder().await.body_limit(100).verifier(SECRET.parse().expect("a key"));
    let receiver = open(&broker, &topic, builder).await;
    let (mut handle, ended) = (receiver.spawn(), receiver.spawn());
    let (key, gone) = (key(&handle), ended.dsn());
    drop(ended);
    send(&broker, &gone, &message("nobody waits")).await;
    send(&broker, &handle.dsn(), &message("x".repeat(101))).await;
    let forged = [("webhook-id", "forged"), ("webhook-timestamp", "1"), ("webhook-signature", "v1,AAAA")];
    write(&broker, &topic, Some(&key), Some("forged"), &forged).await;
    write(&broker, &topic, Some(&key), Some("unsigned"), &[("webhook-id", "unsigned")]).await;
    write(&broker, &topic, Some(&key), Some("without headers"), &[]).await;
    write(&broker, &topic, Some(&key), None, &[("webhook-id", "tombstone")]).await;
    write(&broker, &topic, Some("order-42"), Some("another's"), &[("webhook-id", "another")]).await;
    write(&broker, &topic, None, Some("nobody's"), &[("webhook-id", "nobody")]).await;
    send(&broker, &handle.dsn(), &message("genuine")).await;
    takes(&mut handle, "genuine").await;
    nothing_came(&mut handle).await;
    until(async || disk.positions().await == [8]).await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spawned_handle_is_offered_what_it_wants_later_and_not_what_it_refused() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, disk) = (broker.topic(1, &[]).await, Disk::new());
    let receiver = open(&broker, &topic, disk.builder().await).await;
    let mut handle = receiver.spawn();
    for body in ["refused", "later", "dropped"] {
        send(&broker, &handle.dsn(), &message(body)).await;
    }
    next(&mut handle).await.refuse("not wanted").await.expect("direct");
    next(&mut handle).await.retry_later(Duration::from_millis(200)).await.expect("direct");
    drop(next(&mut handle).await);
    // The log stays before what has no verdict.
    until(async || disk.positions().await == [0]).await;
    takes(&mut handle, "later").await;
    takes(&mut handle, "dropped").await;
    until(async || disk.positions().await == [2]).await;
    nothing_came(&mut handle).await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_handle_has_what_came_while_the_process_was_away() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, disk) = (broker.topic(1, &[]).await, Disk::new());
    for body in ["before", "the receiver"] {
        let before = dsn(&format!("kafka:///{topic}?key={}", "A".repeat(32)));
        send(&broker, &before, &message(body)).await;
    }
    let receiver = open(&broker, &topic, disk.builder().await).await;
    assert_eq!(disk.positions().await, [1], "where the log begins is stored before the receiver opens");
    let mut handle = receiver.expect("results").await.expect("a name");
    let url = handle.dsn();
    let repeated = message("accepted");
    send(&broker, &url, &repeated).await;
    for body in ["refused", "later"] {
        send(&broker, &url, &message(body)).await;
    }
    takes(&mut handle, "accepted").await;
    next(&mut handle).await.refuse("not wanted").await.expect("stored");
    next(&mut handle).await.retry_later(Duration::from_millis(1)).await.expect("stored");
    let letters = receiver.dead_letters().list(0, 10).await.expect("listed");
    assert_eq!(letters.len(), 1);
    drop(handle);
    close(receiver).await;
    assert_eq!(disk.positions().await, [4], "stored with the messages");

    send(&broker, &url, &repeated).await;
    send(&broker, &url, &message("away")).await;
    let receiver = open(&broker, &topic, disk.builder().await).await;
    let mut handle = receiver.expect("results").await.expect("a name");
    assert!(handle.is_resumed());
    assert_eq!(handle.url(), url.expose());
    takes(&mut handle, "later").await;
    takes(&mut handle, "away").await;
    nothing_came(&mut handle).await;
    until(async || disk.positions().await == [6]).await;
    // Dropped without being closed, as in a process that ends.
    drop((handle, receiver));
    send(&broker, &url, &message("away again")).await;
    let receiver = open(&broker, &topic, disk.builder().await).await;
    takes(&mut receiver.expect("results").await.expect("a name"), "away again").await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_inbox_a_receiver_begins_at_the_end_and_unknown_keys_take_no_room() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1, &[]).await;
    let receiver = open(&broker, &topic, Receiver::builder()).await;
    let former = receiver.spawn();
    send(&broker, &former.dsn(), &message("to the former receiver")).await;
    close(receiver).await;
    // One record at a time: one that was kept would keep the others out.
    let kafka = KafkaReceiver::builder().in_flight(1, 1).open(broker.plain(), &topic).await.expect("it is there");
    let receiver = Receiver::builder().open(kafka).await.expect("it opens");
    let mut handle = receiver.spawn();
    send(&broker, &former.dsn(), &message("to nobody")).await;
    for body in ["first", "second"] {
        send(&broker, &handle.dsn(), &message(body)).await;
    }
    takes(&mut handle, "first").await;
    takes(&mut handle, "second").await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_read_again_until_it_is_expected_or_has_no_room() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, disk, other) = (broker.topic(1, &[]).await, Disk::new(), Disk::new());
    let receiver = open(&broker, &topic, disk.builder().await).await;
    let mut handle = receiver.expect("results").await.expect("a name");
    let unknown = |first: &str| dsn(&format!("kafka:///{topic}?key={first}{}", "A".repeat(31)));
    send(&broker, &unknown("A"), &message("expected later")).await;
    send(&broker, &unknown("B"), &message("never expected")).await;
    send(&broker, &handle.dsn(), &message("known")).await;
    takes(&mut handle, "known").await;
    close(receiver).await;
    assert_eq!(disk.positions().await, [-1], "kept, and read again after a restart");

    // Another receiver's expectations are brought into this inbox.
    let pool = disk.pool().await;
    let sql = "INSERT INTO callback_expectation (handle, name, own_key) VALUES (zeroblob(24), 'moved', 0)";
    sqlx::query(sql).execute(&pool).await.expect("stored");
    pool.close().await;
    let receiver = open(&broker, &topic, disk.builder().await).await;
    let mut moved = receiver.expect("moved").await.expect("a name");
    assert!(moved.is_resumed());
    takes(&mut moved, "expected later").await;
    until(async || disk.positions().await == [0]).await;
    nothing_came(&mut receiver.expect("results").await.expect("a name")).await;
    close(receiver).await;

    // There is no room for any: they pass.
    let kafka = KafkaReceiver::builder().keep_unknown(DAY, 0).open(broker.plain(), &topic).await.expect("there");
    let receiver = disk.builder().await.open(kafka).await.expect("it opens");
    until(async || disk.positions().await == [2]).await;
    close(receiver).await;

    // Or no time.
    let kafka = KafkaReceiver::builder().keep_unknown(Duration::ZERO, 1 << 20).open(broker.plain(), &topic).await;
    let receiver = other.builder().await.open(kafka.expect("there")).await.expect("it opens");
    send(&broker, &unknown("C"), &message("never expected")).await;
    until(async || other.positions().await == [3]).await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_grows_is_read_whole() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, disk) = (broker.topic(1, &[]).await, Disk::new());
    let grow = async |partitions| {
        let admin = broker.admin();
        let grown = admin.create_partitions([&NewPartitions::new(&topic, partitions)], &admin_options()).await;
        assert_eq!(grown.expect("an answer"), [Ok(topic.clone())]);
        block_in_place(|| drop(admin));
    };
    let send_to = async |handle: &Dsn, partition: usize, body: &str| {
        // A producer takes some time to know the partition.
        let (sink, message) = (broker.sink(), message(body));
        let to = dsn(&format!("{}&partition={partition}", handle.expose()));
        until(async || sink.deliver(&to, &message, &attempt(1, &message)).await.is_ok()).await;
    };
    let kafka = KafkaReceiver::builder().discover_every(Duration::from_millis(100));
    let receiver = disk.builder().await.open(kafka.open(broker.plain(), &topic).await.expect("it is there"));
    let receiver = receiver.await.expect("it opens");
    let mut handle = receiver.expect("results").await.expect("a name");
    let to = handle.dsn();
    send_to(&to, 0, "in the first").await;
    takes(&mut handle, "in the first").await;
    grow(3).await;
    send_to(&to, 2, "in the third").await;
    takes(&mut handle, "in the third").await;
    drop(handle);
    close(receiver).await;
    // It grows while nobody reads it.
    grow(4).await;
    send_to(&to, 3, "in the fourth").await;
    let receiver = open(&broker, &topic, disk.builder().await).await;
    takes(&mut receiver.expect("results").await.expect("a name"), "in the fourth").await;
    close(receiver).await;
    assert_eq!(disk.positions().await, [0, -1, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_records_are_gone_reading_goes_on_behind_them() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, disk) = (broker.topic(1, &[]).await, Disk::new());
    let receiver = open(&broker, &topic, disk.builder().await).await;
    let mut handle = receiver.expect("results").await.expect("a name");
    let to = handle.dsn();
    send(&broker, &to, &message("first")).await;
    takes(&mut handle, "first").await;
    drop(handle);
    close(receiver).await;
    for body in ["gone", "left"] {
        send(&broker, &to, &message(body)).await;
    }
    let (admin, mut before) = (broker.admin(), TopicPartitionList::new());
    before.add_partition_offset(&topic, 0, Offset::Offset(2)).expect("a place");
    admin.delete_records(&before, &admin_options()).await.expect("deleted");
    block_in_place(|| drop(admin));
    let receiver = open(&broker, &topic, disk.builder().await).await;
    takes(&mut receiver.expect("results").await.expect("a name"), "left").await;
    until(async || disk.positions().await == [2]).await;
    close(receiver).await;
}

/// Deletes a topic, and makes it again.
async fn make_again(broker: &Broker, topic: &str) {
    let admin = broker.admin();
    let deleted = admin.delete_topics(&[topic], &admin_options()).await.expect("an answer");
    assert_eq!(deleted, [Ok(topic.to_owned())]);
    // A name is free once all of the broker knows it.
    until(async || {
        let again = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
        admin.create_topics([&again], &admin_options()).await.expect("an answer") == [Ok(topic.to_owned())]
    })
    .await;
    block_in_place(|| drop(admin));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_again_is_read_from_its_beginning() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, disk) = (broker.topic(1, &[]).await, Disk::new());
    let kafka = KafkaReceiver::builder().discover_every(Duration::from_millis(100));
    let kafka = kafka.open(broker.plain(), &topic).await.expect("it is there");
    let receiver = disk.builder().await.open(kafka).await.expect("it opens");
    let mut handle = receiver.expect("results").await.expect("a name");
    let to = handle.dsn();
    let sends = async |body: &str| {
        // A producer takes some time to know the topic again.
        let (sink, message) = (broker.sink(), message(body));
        until(async || sink.deliver(&to, &message, &attempt(1, &message)).await.is_ok()).await;
    };
    for body in ["first", "second", "third"] {
        sends(body).await;
        takes(&mut handle, body).await;
    }
    make_again(&broker, &topic).await;
    sends("while it is read").await;
    takes(&mut handle, "while it is read").await;
    drop(handle);
    close(receiver).await;
    make_again(&broker, &topic).await;
    sends("while nobody reads it").await;
    let receiver = open(&broker, &topic, disk.builder().await).await;
    takes(&mut receiver.expect("results").await.expect("a name"), "while nobody reads it").await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_key_come_in_their_order_within_the_bounds() {
    let Some(broker) = Broker::shared() else { return };
    let (topic, disk) = (broker.topic(2, &[]).await, Disk::new());
    let kafka = KafkaReceiver::builder().in_flight(5, 10_000).open(broker.plain(), &topic).await.expect("there");
    let receiver = disk.builder().await.queue(2).open(kafka).await.expect("it opens");
    let (mut named, mut spawned) = (receiver.expect("results").await.expect("a name"), receiver.spawn());
    let producer: FutureProducer = broker.config().create().expect("a producer");
    for handle in [&named, &spawned] {
        let key = key(handle);
        let writes = (0..500).map(|number| {
            let id = format!("m-{number}");
            let headers = OwnedHeaders::new().insert(Header { key: "webhook-id", value: Some(&id) });
            let body = number.to_string();
            let record = FutureRecord::<str, str>::to(&topic).key(&key).headers(headers).payload(&body);
            producer.send_result(record).expect("queued")
        });
        assert!(join_all(writes.collect::<Vec<_>>()).await.iter().all(|written| matches!(written, Ok(Ok(_)))));
    }
    block_in_place(|| drop(producer));
    for number in 0..500 {
        takes(&mut named, &number.to_string()).await;
    }
    // What found no room in the queue is offered again: all of it comes, in some order.
    let mut bodies = Vec::new();
    for _ in 0..500 {
        let message = next(&mut spawned).await.accept().await.expect("direct");
        bodies.push(String::from_utf8_lossy(message.body()).parse::<u32>().expect("a number"));
    }
    bodies.sort_unstable();
    assert_eq!(bodies, (0..500).collect::<Vec<_>>());
    nothing_came(&mut spawned).await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_transactions_only_what_is_committed_comes() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1, &[]).await;
    let receiver = open(&broker, &topic, Receiver::builder()).await;
    let mut handle = receiver.spawn();
    let (mut config, key) = (broker.config(), key(&handle));
    config.set("transactional.id", &topic);
    let written = spawn_blocking(move || {
        let producer: BaseProducer = config.create().expect("a producer");
        producer.init_transactions(PATIENCE).expect("begun");
        for body in ["aborted", "committed"] {
            producer.begin_transaction().expect("begun");
            let headers = OwnedHeaders::new().insert(Header { key: "webhook-id", value: Some(body) });
            let record = BaseRecord::to(&topic).key(&key).payload(body).headers(headers);
            producer.send(record).expect("queued");
            producer.flush(PATIENCE).expect("written");
            match body {
                "aborted" => producer.abort_transaction(PATIENCE),
                _ => producer.commit_transaction(PATIENCE),
            }
            .expect("ended");
        }
    });
    written.await.expect("no panic");
    takes(&mut handle, "committed").await;
    nothing_came(&mut handle).await;
    close(receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_by_name_with_tls_and_a_password_is_read() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(1, &[]).await;
    let secure = cluster(broker.listener("_SASL_TLS")).ssl().root_certificates(broker.file("server.pem"));
    let secure = secure.scram_sha_512("alice", "alice-secret");
    let kafka = KafkaReceiver::builder().cluster_name("orders").open(secure.clone(), &topic).await.expect("it opens");
    assert!(!format!("{kafka:?}").contains("alice-secret"));
    let receiver = Receiver::builder().open(kafka).await.expect("it opens");
    let mut handle = receiver.spawn();
    assert!(handle.url().starts_with(&format!("kafka://orders/{topic}?key=")));
    let sink = callback_kafka::KafkaSink::builder().cluster("orders", secure).build().expect("a sink");
    let message = message("a");
    sink.deliver(&handle.dsn(), &message, &attempt(1, &message)).await.expect("delivered");
    takes(&mut handle, "a").await;
    close(receiver).await;
}

#[track_caller]
fn fails(opened: Result<KafkaReceiver, KafkaReceiverError>, expected: &str) {
    let error = opened.expect_err("it cannot be read");
    assert!(error.to_string().contains(expected), "{error}");
    assert!(!format!("{error:?}").contains("planted"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_says_why_it_cannot_be_opened() {
    let builder = || KafkaReceiver::builder().open_within(Duration::from_secs(2));
    fails(builder().open(cluster("127.0.0.1:1"), "a").await, "the cluster cannot be reached: ");
    fails(builder().open(cluster("127.0.0.1:1"), "a b").await, "the topic `a b` cannot be read: ");
    fails(builder().open(cluster("not a host"), "a").await, "the cluster cannot be used");
    fails(builder().cluster_name("A.b").open(cluster("127.0.0.1:1"), "a").await, "the cluster cannot be used");
    let Some(broker) = Broker::shared() else { return };
    let (topic, missing) = (broker.topic(1, &[]).await, new_topic());
    let expected = format!("the topic `{missing}` cannot be read: is not there");
    fails(builder().open(broker.plain(), &missing).await, &expected);
    let sasl = || cluster(broker.listener("_SASL"));
    let expected = format!("the topic `{topic}` cannot be read: may not be read");
    fails(builder().open(sasl().sasl_plain("mallory", "mallory-secret"), &topic).await, &expected);
    let wrong = sasl().sasl_plain("alice", "planted-wrong");
    fails(builder().open(wrong, &topic).await, "the cluster cannot be reached: ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_closes_at_once_while_its_broker_hangs_and_reads_on_after_it_was_killed() {
    let Some(broker) = Broker::own() else { return };
    let (topic, disk) = (broker.topic(2, &[]).await, Disk::new());
    let receiver = open(&broker, &topic, disk.builder().await).await;
    let mut handle = receiver.expect("results").await.expect("a name");
    let (sink, to) = (sink(broker.plain()), handle.dsn());
    let mut number = 0;
    for _ in 0..3 {
        for _ in 0..50 {
            number += 1;
            let message = message(number.to_string());
            until(async || sink.deliver(&to, &message, &attempt(1, &message)).await.is_ok()).await;
            takes(&mut handle, &number.to_string()).await;
        }
        broker.signal("KILL");
    }
    let last = message("last");
    until(async || sink.deliver(&to, &last, &attempt(1, &last)).await.is_ok()).await;
    takes(&mut handle, "last").await;
    drop(handle);
    broker.signal("STOP");
    close(receiver).await;
    broker.signal("CONT");
    let receiver = open(&broker, &topic, disk.builder().await).await;
    nothing_came(&mut receiver.expect("results").await.expect("a name")).await;
    close(receiver).await;
}
