//! From our dispatcher to our receiver, over real sockets, while either is killed.

use crate::sender::{KEY, PATIENCE};
use callback_core::{Policy, Rule, Schedule};
use callback_dispatch::{Dispatcher, Event, Lane, SqliteOutbox};
use callback_receive::{ReceiveError, Receiver, SqliteInbox};
use callback_ws::{WsReceiver, WsSink};
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use std::{
    env,
    io::{BufRead, BufReader, Lines, Write as _},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};
use tokio::time::timeout;

const FOLDER: &str = "CALLBACK_WS_TEST_FOLDER";
const ADDRESS: &str = "CALLBACK_WS_TEST_ADDRESS";
const URL: &str = "CALLBACK_WS_TEST_URL";

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
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("UTF-8").to_owned();
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let address = address.to_string();
    let receive = || Process::start("receives_until_killed", &[(FOLDER, &path), (ADDRESS, &address)]);
    let mut receiver = receive();
    let url = receiver.next("url ");
    let send = || Process::start("sends_until_killed", &[(FOLDER, &path), (URL, &url)]);
    let mut dispatcher = send();
    let mut acknowledged = 0;
    for round in 0..6 {
        for _ in 0..15 + round {
            dispatcher.next("published");
            acknowledged += 1;
        }
        if round % 2 == 0 {
            receiver.next("counted");
            receiver.kill();
            receiver = receive();
        } else {
            dispatcher.kill();
            dispatcher = send();
        }
    }
    dispatcher.kill();
    // The last one sends what is there, and publishes nothing.
    let _dispatcher =
        Process::start("sends_until_killed", &[(FOLDER, &path), (URL, &url), ("CALLBACK_WS_TEST_REST", "1")]);

    let outbox = pool(&folder.path().join("outbox.db")).await;
    let inbox = pool(&folder.path().join("inbox.db")).await;
    let settled = async {
        loop {
            let waiting = count(&outbox, "SELECT count(*) FROM callback_outbox WHERE stage < 10").await;
            let here = count(&inbox, "SELECT count(*) FROM callback_inbox WHERE state = 0").await;
            if waiting + here == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(4 * PATIENCE, settled).await.expect("everything arrives");
    let results = count(&outbox, "SELECT count(*) FROM callback_outbox").await;
    let delivered = count(&outbox, "SELECT count(*) FROM callback_outbox WHERE stage = 11").await;
    let counter = count(&inbox, "SELECT results FROM counter").await;
    let again = count(&inbox, "SELECT again FROM counter").await;
    assert!(results >= acknowledged, "{results} of {acknowledged}");
    assert_eq!((delivered, counter), (results, results));
    assert_eq!(again, 0, "handed over after their acceptance was stored");
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
#[tokio::test]
#[ignore = "the receiver of `each_result_counts_once_through_kills_of_either_side`"]
async fn receives_until_killed() {
    let (Ok(folder), Ok(address)) = (env::var(FOLDER), env::var(ADDRESS)) else { return };
    let inbox = SqliteInbox::open(Path::new(&folder).join("inbox.db")).await.expect("it opens");
    let pool = pool(inbox.path()).await;
    for statement in [
        "CREATE TABLE IF NOT EXISTS counter (results INTEGER, again INTEGER)",
        "INSERT INTO counter SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM counter)",
        "CREATE TABLE IF NOT EXISTS accepted (id TEXT PRIMARY KEY)",
    ] {
        sqlx::query(statement).execute(&pool).await.expect("a table");
    }
    let ws = WsReceiver::bind(&address, &format!("ws://{address}")).await.expect("the port is free");
    let builder = Receiver::builder().inbox(inbox).verifier(KEY.parse().expect("a key"));
    let receiver = builder.open(ws).await.expect("it opens");
    let mut results = receiver.expect("results").await.expect("a name");
    say(&format!("url {}", results.url()));
    while let Some(delivery) = results.next().await {
        let id = delivery.message().id().to_string();
        let again = "UPDATE counter SET again = again + 1 WHERE EXISTS (SELECT 1 FROM accepted WHERE id = ?)";
        sqlx::query(again).bind(&id).execute(&pool).await.expect("looked");
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
        sqlx::query("UPDATE counter SET results = results + 1").execute(&mut *transaction).await.expect("counted");
        let accepted = "INSERT OR IGNORE INTO accepted VALUES (?)";
        sqlx::query(accepted).bind(&id).execute(&mut *transaction).await.expect("kept");
        match delivery.accept_in(&mut transaction).await {
            Ok(_) => transaction.commit().await.expect("committed"),
            Err(ReceiveError::AlreadyAccepted) => transaction.rollback().await.expect("rolled back"),
            Err(error) => panic!("{error:?}"),
        }
        say("counted");
    }
}

/// Not a test: the sender, in a process that is killed.
#[tokio::test]
#[ignore = "the sender of `each_result_counts_once_through_kills_of_either_side`"]
async fn sends_until_killed() {
    let (Ok(folder), Ok(url)) = (env::var(FOLDER), env::var(URL)) else { return };
    let outbox = SqliteOutbox::open(Path::new(&folder).join("outbox.db")).await.expect("it opens");
    let sink = WsSink::builder().policy(Policy::default().allow(Rule::loopback())).build().expect("certificates");
    let soon = Schedule::new(vec![Duration::from_millis(100); 500]).expect("a schedule");
    let signer: callback_core::Signer = KEY.parse().expect("a key");
    // A receiver that is away for a moment is tried again at once.
    let lane = Lane::default().breaker(1_000, Duration::from_millis(100));
    let builder = Dispatcher::builder(outbox).sink(sink).signer(signer).schedule(soon).lane(lane);
    let dispatcher = builder.start().await.expect("started");
    if env::var("CALLBACK_WS_TEST_REST").is_ok() {
        std::future::pending::<()>().await;
    }
    for number in 0_u64.. {
        let event = Event::to(url.parse().expect("a Dsn"), "order.completed", json!({ "number": number }));
        dispatcher.publish(event).await.expect("published");
        say("published");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
