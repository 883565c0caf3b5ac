//! From our dispatcher through a broker to our receiver, while either is killed.

use crate::broker::{PATIENCE, shared, unique};
use callback_amqp::{AmqpCluster, AmqpReceiver, AmqpSink};
use callback_core::{Schedule, Signer};
use callback_dispatch::{Dispatcher, Event, Lane, SqliteOutbox};
use callback_receive::{Callback, ReceiveError, Receiver, SqliteInbox};
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use std::{
    collections::HashSet,
    env,
    fs::OpenOptions,
    io::{BufRead, BufReader, Lines, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};
use tokio::time::{sleep, timeout};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const FOLDER: &str = "CALLBACK_AMQP_TEST_FOLDER";
const QUEUE: &str = "CALLBACK_AMQP_TEST_QUEUE";
const COUNTED: &str = "CALLBACK_AMQP_TEST_COUNTED";
const ACCEPTED: &str = "CALLBACK_AMQP_TEST_ACCEPTED";

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

    /// `kill -9`.
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

/// Lines that outlive the process that wrote them.
struct Record(PathBuf);

impl Record {
    fn of(folder: &Path, name: &str) -> Self {
        Self(folder.join(name))
    }

    fn add(&self, line: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.0).expect("a file");
        file.write_all(format!("{line}\n").as_bytes()).expect("written");
    }

    fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(&self.0).expect("written").lines().map(str::to_owned).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_result_counts_once_through_kills_of_either_side() {
    let Some(broker) = shared() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (path, queue) = (folder.path().to_str().expect("UTF-8").to_owned(), unique("round-trip"));
    let receive = || Process::start("receives_until_killed", &[(FOLDER, &path), (QUEUE, &queue)]);
    let mut receiver = receive();
    let (counted, accepted) = (receiver.next("counted at "), receiver.next("accepted at "));
    let variables = [(FOLDER, &*path), (COUNTED, &*counted), (ACCEPTED, &*accepted)];
    let send = || Process::start("sends_until_killed", &variables);
    let mut dispatcher = send();
    for round in 0..8 {
        for _ in 0..30 + round {
            dispatcher.next("published");
        }
        if round % 2 == 0 {
            for _ in 0..3 + round {
                receiver.next("took");
            }
            receiver.kill();
            receiver = receive();
        } else {
            dispatcher.kill();
            dispatcher = send();
        }
    }
    dispatcher.kill();
    // The last one sends what is there, and publishes nothing.
    let rest = [variables[0], variables[1], variables[2], ("CALLBACK_AMQP_TEST_REST", "1")];
    let _dispatcher = Process::start("sends_until_killed", &rest);

    let outbox = pool(&folder.path().join("outbox.db")).await;
    let inbox = pool(&folder.path().join("inbox.db")).await;
    let [to_count, to_accept] = [&counted, &accepted].map(|dsn| (outbox.clone(), dsn.clone()));
    let sent = async |(pool, dsn): &(SqlitePool, String)| {
        let all = "SELECT count(*) FROM callback_outbox WHERE dsn = ?";
        sqlx::query_scalar::<_, i64>(all).bind(dsn).fetch_one(pool).await.expect("counted")
    };
    let handed = Record::of(folder.path(), "handed");
    let settled = async {
        loop {
            let waiting = count(&outbox, "SELECT count(*) FROM callback_outbox WHERE stage < 10").await;
            let here = count(&inbox, "SELECT count(*) FROM callback_inbox WHERE state = 0").await;
            let came = count(&inbox, "SELECT count(*) FROM callback_inbox").await;
            if waiting + here == 0 && came >= sent(&to_count).await + sent(&to_accept).await {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(4 * PATIENCE, settled).await.expect("everything arrives");
    receiver.kill();

    let results = sent(&to_count).await;
    assert_eq!(count(&inbox, "SELECT results FROM counter").await, results, "each counts once");
    let distinct: HashSet<_> = handed.lines().into_iter().collect();
    assert_eq!(distinct.len(), usize::try_from(sent(&to_accept).await).expect("a count"), "each was handed over");
    let accepted = Record::of(folder.path(), "accepted").lines();
    let once: HashSet<_> = accepted.iter().collect();
    assert_eq!(once.len(), accepted.len(), "what was stored as accepted was not handed over again");
    let acknowledged = i64::try_from(Record::of(folder.path(), "published").lines().len()).expect("a count");
    let all = results + sent(&to_accept).await;
    assert!(acknowledged >= 264 && all >= acknowledged, "{all} of {acknowledged}");
    let delivered = count(&outbox, "SELECT count(*) FROM callback_outbox WHERE stage = 11").await;
    assert_eq!(delivered, all);
    broker.side("").await.delete(&queue).await;
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

fn cluster() -> AmqpCluster {
    let url = env::var("CALLBACK_TEST_AMQP").expect("the test has it");
    AmqpCluster::new(url.parse().expect("a Dsn")).exchange("*")
}

/// Not a test: the waiting code, in a process that is killed.
#[tokio::test]
#[ignore = "the receiver of `each_result_counts_once_through_kills_of_either_side`"]
async fn receives_until_killed() {
    let (Ok(folder), Ok(queue)) = (env::var(FOLDER), env::var(QUEUE)) else { return };
    let folder = Path::new(&folder);
    let inbox = SqliteInbox::open(folder.join("inbox.db")).await.expect("it opens");
    let pool = pool(inbox.path()).await;
    sqlx::query("CREATE TABLE IF NOT EXISTS counter (results INTEGER)").execute(&pool).await.expect("a table");
    let first = "INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter)";
    sqlx::query(first).execute(&pool).await.expect("a line");
    let amqp = AmqpReceiver::connect(cluster(), &queue).await.expect("connected");
    let builder = Receiver::builder().inbox(inbox).verifier(SECRET.parse().expect("a key"));
    let receiver = builder.open(amqp).await.expect("it opens");
    let counted = receiver.expect("counted").await.expect("a name");
    let accepted = receiver.expect("accepted").await.expect("a name");
    say(&format!("counted at {}", counted.url()));
    say(&format!("accepted at {}", accepted.url()));
    tokio::join!(counts(counted, pool), accepts(accepted, folder));
}

/// Each in one transaction with its effect.
async fn counts(mut results: Callback, pool: SqlitePool) {
    while let Some(delivery) = results.next().await {
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
        sqlx::query("UPDATE counter SET results = results + 1").execute(&mut *transaction).await.expect("counted");
        match delivery.accept_in(&mut transaction).await {
            Ok(_) => transaction.commit().await.expect("committed"),
            Err(ReceiveError::AlreadyAccepted) => transaction.rollback().await.expect("rolled back"),
            Err(error) => panic!("{error:?}"),
        }
        say("took one");
    }
}

async fn accepts(mut results: Callback, folder: &Path) {
    let (handed, accepted) = (Record::of(folder, "handed"), Record::of(folder, "accepted"));
    while let Some(delivery) = results.next().await {
        handed.add(delivery.message().id().as_str());
        let message = delivery.accept().await.expect("stored");
        accepted.add(message.id().as_str());
        say("took one");
    }
}

/// Not a test: the sender, in a process that is killed.
#[tokio::test]
#[ignore = "the sender of `each_result_counts_once_through_kills_of_either_side`"]
async fn sends_until_killed() {
    let (Ok(folder), Ok(counted), Ok(accepted)) = (env::var(FOLDER), env::var(COUNTED), env::var(ACCEPTED)) else {
        return;
    };
    let folder = Path::new(&folder);
    let published = Record::of(folder, "published");
    let outbox = SqliteOutbox::open(folder.join("outbox.db")).await.expect("it opens");
    let sink = AmqpSink::builder().default_cluster(cluster()).build().expect("a sink");
    let soon = Schedule::new(vec![Duration::from_millis(100); 500]).expect("a schedule");
    let signer: Signer = SECRET.parse().expect("a key");
    // A broker that is away for a moment is tried again at once.
    let lane = Lane::default().breaker(1_000, Duration::from_millis(100));
    let builder = Dispatcher::builder(outbox).sink(sink).signer(signer).schedule(soon).lane(lane);
    let dispatcher = builder.start().await.expect("started");
    if env::var("CALLBACK_AMQP_TEST_REST").is_ok() {
        std::future::pending::<()>().await;
    }
    for number in 0_u64.. {
        let dsn = if number.is_multiple_of(2) { &counted } else { &accepted };
        let event = Event::to(dsn.parse().expect("a Dsn"), "order.completed", json!({ "number": number }));
        let id = dispatcher.publish(event).await.expect("published");
        published.add(&id.to_string());
        say("published");
        sleep(Duration::from_millis(2)).await;
    }
}
