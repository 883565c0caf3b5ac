//! The server is killed: who comes back to the next one gets all that was acknowledged.

use crate::browser::{Service, greet};
use callback_core::Schedule;
use callback_dispatch::SqliteOutbox;
use callback_ws::Hub;
use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader, Lines, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

/// Names the outbox to the process that is killed.
const OUTBOX: &str = "CALLBACK_WS_TEST_OUTBOX";

/// A server that does as it is told.
struct Server {
    process: Child,
    tell: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Server {
    fn start(outbox: &Path) -> Self {
        let mut process = Command::new(env::current_exe().expect("this test"))
            .args(["killed::serves_until_killed", "--exact", "--ignored", "--nocapture"])
            .env(OUTBOX, outbox)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let tell = process.stdin.take().expect("piped");
        let mut said = BufReader::new(process.stdout.take().expect("piped")).lines();
        let address = hear(&mut said, "at ").parse().expect("an address");
        Self { process, tell, said, address }
    }

    /// Has it send this; resolves when that is stored.
    fn publish(&mut self, dsn: &str, body: &str) {
        writeln!(self.tell, "{dsn} {body}").expect("told");
        assert_eq!(hear(&mut self.said, "stored "), body);
    }

    fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ended");
    }
}

/// What comes after this in a line that begins with it.
fn hear(said: &mut Lines<BufReader<ChildStdout>>, word: &str) -> String {
    let mut lines = said.map(|line| line.expect("a line"));
    lines.find_map(|line| line.strip_prefix(word).map(ToOwned::to_owned)).expect("it says so")
}

#[tokio::test]
async fn a_session_and_what_waits_for_it_outlive_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = folder.path().join("outbox.db");
    let (mut stored, mut arrived) = (BTreeSet::new(), BTreeSet::new());
    let mut secret: Option<String> = None;
    let mut dsn = String::new();
    for life in 0..4 {
        let mut server = Server::start(&outbox);
        if !dsn.is_empty() {
            // Nobody is there yet.
            server.publish(&dsn, &format!("{life}-early"));
            stored.insert(format!("{life}-early"));
        }
        let mut client = greet(server.address, secret.as_deref()).await.expect("a session");
        assert_eq!(client.welcome["resumed"], secret.is_some());
        if secret.is_some() {
            assert_eq!(client.dsn.expose(), dsn);
        }
        client.dsn.expose().clone_into(&mut dsn);
        secret = Some(client.secret.clone());
        for number in 0..20 {
            let body = format!("{life}-{number}");
            server.publish(&dsn, &body);
            stored.insert(body);
        }
        // Some are acknowledged, some have only been read, the rest is on its way.
        for _ in 0..7 {
            arrived.insert(client.next().await);
        }
        client.peek().await;
        server.kill();
    }
    let server = Server::start(&outbox);
    let mut client = greet(server.address, secret.as_deref()).await.expect("a session");
    while arrived.len() < stored.len() {
        let body = client.next().await;
        assert!(stored.contains(&body), "{body}");
        arrived.insert(body);
    }
    server.kill();
}

/// Not a test: the process that the test above kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs until it is killed"]
#[expect(clippy::print_stdout, reason = "what it is told is told")]
async fn serves_until_killed() {
    let Ok(path) = env::var(OUTBOX) else { return };
    let outbox = SqliteOutbox::open(path).await.expect("an outbox");
    let schedule = Schedule::new(vec![Duration::from_millis(100); 50]).expect("a schedule");
    let service = Service::with(Hub::builder(), outbox, |dispatcher| dispatcher.schedule(schedule)).await;
    let tell = |line: String| {
        println!("\n{line}");
        std::io::stdout().flush().expect("written");
    };
    tell(format!("at {}", service.address));
    let (lines, mut told) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = told.recv().await {
        let (dsn, body) = line.split_once(' ').expect("two words");
        service.publish(&dsn.parse().expect("a Dsn"), body).await;
        tell(format!("stored {body}"));
    }
}
