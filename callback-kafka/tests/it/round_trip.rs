//! From our dispatcher through a topic to our receiver, while either is killed.

use crate::support::{Broker, PATIENCE, SECRET, cluster, sink, until};
use callback_core::{Dsn, Schedule, Signer};
use callback_dispatch::{Dispatcher, Event, Lane, SqliteOutbox};
use callback_kafka::KafkaReceiver;
use callback_receive::{Callback, ReceiveError, Receiver, SqliteInbox};
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use std::{
    collections::HashSet,
    env, fs,
    io::{BufRead, BufReader, Lines, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};
use tokio::time::timeout;

const FOLDER: &str = "CALLBACK_KAFKA_TEST_FOLDER";
const TOPIC: &str = "CALLBACK_KAFKA_TEST_TOPIC";
const URLS: &str = "CALLBACK_KAFKA_TEST_URLS";
const REST: &str = "CALLBACK_KAFKA_TEST_REST";

/// A process of this very program; killed when dropped.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(test: &str, variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args([&format!("round_trip::{test}"), "--exact", "--ignored", "--nocapture"])
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    /// What follows the word in the next line that begins with it.
    fn next(&mut self, word: &str) -> String {
        let line = self.lines.by_ref().map_while(Result::ok).find_map(|line| Some(line.strip_prefix(word)?.to_owned()));
        line.expect("it goes on")
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_result_counts_once_through_kills_of_either_side() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.topic(3, &[]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8").to_owned();
    let receive = || Process::start("receives_until_killed", &[(FOLDER, &path), (TOPIC, &topic)]);
    let mut receiver = receive();
    let urls = receiver.next("urls ");
    let send = || Process::start("sends_until_killed", &[(FOLDER, &path), (URLS, &urls)]);
    let mut dispatcher = send();
    let mut acknowledged = 0;
    for round in 0..8 {
        for _ in 0..25 + round {
            dispatcher.next("published");
            acknowledged += 1;
        }
        if round % 2 == 0 {
            receiver.next("counted");
            receiver.next("accepted");
            receiver.kill();
            receiver = receive();
        } else {
            dispatcher.kill();
            dispatcher = send();
        }
    }
    dispatcher.kill();
    // The last one sends what is there, and publishes nothing.
    let _dispatcher = Process::start("sends_until_killed", &[(FOLDER, &path), (URLS, &urls), (REST, "1")]);

    let outbox = pool(&folder.path().join("outbox.db")).await;
    let inbox = pool(&folder.path().join("inbox.db")).await;
    let delivered = until(async || count(&outbox, "SELECT count(*) FROM callback_outbox WHERE stage < 10").await == 0);
    timeout(4 * PATIENCE, delivered).await.expect("everything is delivered");
    // Every record was read, and has its verdict.
    let mut ends = [-1; 3];
    let records = broker.read(&topic).await;
    for record in &records {
        ends[usize::try_from(record.partition).expect("a partition")] = record.offset;
    }
    let read = until(async || {
        let sql = "SELECT offset FROM callback_inbox_position ORDER BY log";
        let passed: Vec<i64> = sqlx::query_scalar(sql).fetch_all(&inbox).await.expect("read");
        passed == ends && count(&inbox, "SELECT count(*) FROM callback_inbox WHERE state = 0").await == 0
    });
    timeout(4 * PATIENCE, read).await.expect("everything arrives");
    drop(receiver);

    let results = count(&outbox, "SELECT count(*) FROM callback_outbox").await;
    let stages = count(&outbox, "SELECT count(*) FROM callback_outbox WHERE stage = 11").await;
    assert!(results >= acknowledged, "{results} of {acknowledged}");
    let counter = count(&inbox, "SELECT results FROM counter").await;
    let journal = fs::read_to_string(journal(folder.path())).expect("a journal");
    let (mut accepted, mut handed) = (HashSet::new(), 0);
    for line in journal.lines() {
        match line.split_once(' ') {
            Some(("handed", id)) => {
                assert!(!accepted.contains(id), "{id} was handed over again after its acceptance was stored");
                handed += 1;
            }
            Some(("accepted", id)) => assert!(accepted.insert(id), "{id}"),
            _ => panic!("{line}"),
        }
    }
    let accepted_ones =
        count(&inbox, "SELECT count(*) FROM callback_inbox WHERE name = 'accepted' AND state = 1").await;
    let taken = counter + accepted_ones;
    crate::support::say(&format!(
        "{results} results, {acknowledged} acknowledged for sure, {} records, {counter} counted, {accepted_ones} accepted, {handed} handed over",
        records.len()
    ));
    assert_eq!((stages, taken), (results, results));
    // A kill may come between the storing of an acceptance and its line.
    let is_near = (accepted_ones - 8..=accepted_ones).contains(&i64::try_from(accepted.len()).expect("few"));
    assert!(is_near && handed >= accepted.len(), "{} of {accepted_ones}, {handed}", accepted.len());
}

fn journal(folder: &Path) -> PathBuf {
    folder.join("journal")
}

async fn pool(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(10));
    SqlitePool::connect_with(options).await.expect("it opens")
}

async fn count(pool: &SqlitePool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("counted")
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn say(line: &str) {
    println!("\n{line}");
    std::io::stdout().flush().expect("written");
}

/// Not a test: the waiting code, in a process that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the receiver of `each_result_counts_once_through_kills_of_either_side`"]
async fn receives_until_killed() {
    let (Ok(folder), Ok(topic)) = (env::var(FOLDER), env::var(TOPIC)) else { return };
    let broker = Broker::shared().expect("the test has one");
    let inbox = SqliteInbox::open(Path::new(&folder).join("inbox.db")).await.expect("it opens");
    let pool = pool(inbox.path()).await;
    sqlx::query("CREATE TABLE IF NOT EXISTS counter (results INTEGER)").execute(&pool).await.expect("a table");
    let first = "INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter)";
    sqlx::query(first).execute(&pool).await.expect("a line");
    let kafka = KafkaReceiver::open(broker.plain(), &topic).await.expect("the topic is there");
    let builder = Receiver::builder().inbox(inbox).verifier(SECRET.parse().expect("a key"));
    let receiver = builder.open(kafka).await.expect("it opens");
    let counted = receiver.expect("counted").await.expect("a name");
    let accepted = receiver.expect("accepted").await.expect("a name");
    say(&format!("urls {} {}", counted.url(), accepted.url()));
    tokio::join!(counts(counted, pool), accepts(accepted, Path::new(&folder)));
}

/// Takes results in a transaction that counts them.
async fn counts(mut results: Callback, pool: SqlitePool) {
    while let Some(delivery) = results.next().await {
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
        sqlx::query("UPDATE counter SET results = results + 1").execute(&mut *transaction).await.expect("counted");
        match delivery.accept_in(&mut transaction).await {
            Ok(_) => transaction.commit().await.expect("committed"),
            Err(ReceiveError::AlreadyAccepted) => transaction.rollback().await.expect("rolled back"),
            Err(error) => panic!("{error:?}"),
        }
        say("counted");
    }
}

/// Takes results, and writes down what it was handed over, and that its acceptance is stored.
async fn accepts(mut results: Callback, folder: &Path) {
    let mut journal = fs::OpenOptions::new().create(true).append(true).open(journal(folder)).expect("a file");
    while let Some(delivery) = results.next().await {
        let id = delivery.message().id().to_string();
        journal.write_all(format!("handed {id}\n").as_bytes()).expect("written");
        delivery.accept().await.expect("stored");
        journal.write_all(format!("accepted {id}\n").as_bytes()).expect("written");
        say("accepted");
    }
}

/// Not a test: the sender, in a process that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the sender of `each_result_counts_once_through_kills_of_either_side`"]
async fn sends_until_killed() {
    let (Ok(folder), Ok(urls)) = (env::var(FOLDER), env::var(URLS)) else { return };
    let broker = Broker::shared().expect("the test has one");
    let outbox = SqliteOutbox::open(Path::new(&folder).join("outbox.db")).await.expect("it opens");
    let signer: Signer = SECRET.parse().expect("a key");
    let builder = Dispatcher::builder(outbox).sink(sink(cluster(broker.listener("")))).signer(signer);
    let soon = Schedule::new(vec![Duration::from_millis(100); 500]).expect("a schedule");
    let lane = Lane::default().breaker(1_000, Duration::from_millis(100));
    let dispatcher = builder.schedule(soon).lane(lane).start().await.expect("started");
    if env::var(REST).is_ok() {
        std::future::pending::<()>().await;
    }
    let dsns: Vec<Dsn> = urls.split(' ').map(|url| url.parse().expect("a Dsn")).collect();
    for (number, dsn) in dsns.iter().cycle().enumerate() {
        let event = Event::to(dsn.clone(), "order.completed", json!({ "number": number }));
        dispatcher.publish(event).await.expect("published");
        say("published");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
