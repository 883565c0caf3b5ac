//! The process is killed: what was answered as taken is handed over, and what was accepted is not, again.

use crate::wire::{Wire, soon};
use callback_receive::{Receiver, SqliteInbox, Verdict};
use std::{
    collections::HashSet,
    env,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

/// Names the inbox to the process that is killed.
const INBOX: &str = "CALLBACK_RECEIVE_TEST_INBOX";

async fn open(path: &Path) -> (Wire, Receiver) {
    let inbox = SqliteInbox::open(path).await.expect("it opens");
    Wire::open(Receiver::builder().inbox(inbox)).await
}

#[tokio::test]
async fn what_was_taken_is_handed_over_after_a_kill_and_what_was_accepted_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inbox.db");
    let (mut taken, mut accepting, mut accepted) = (HashSet::new(), HashSet::new(), HashSet::new());
    for life in 0..5_usize {
        let mut process = Command::new(env::current_exe().expect("this test"))
            .args(["crash::takes_and_accepts_until_killed", "--exact", "--ignored", "--nocapture"])
            .env(INBOX, &path)
            .env("CALLBACK_RECEIVE_TEST_LIFE", life.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let mut left = 40 + life * 13;
        // What it says after the kill was decided counts as well.
        for line in lines {
            match line.split_once(' ') {
                Some(("taken", id)) => drop(taken.insert(id.to_owned())),
                Some(("accepting", id)) => drop(accepting.insert(id.to_owned())),
                Some(("accepted", id)) => assert!(accepted.insert(id.to_owned()), "{id} was handed over again"),
                _ => continue,
            }
            left = left.saturating_sub(1);
            if left == 0 {
                process.kill().expect("it runs");
            }
        }
        process.wait().expect("it ended");
        assert_eq!(left, 0, "it ended by itself");
    }
    let (_wire, receiver) = open(&path).await;
    let mut callback = receiver.expect("orders").await.expect("a name");
    assert!(callback.is_resumed());
    // What was being accepted when the process was killed may be stored as accepted.
    let missing = |accepted: &HashSet<String>| taken.iter().any(|id| !accepted.contains(id) && !accepting.contains(id));
    while missing(&accepted) {
        let message = soon(callback.next()).await.expect("open").accept().await.expect("stored");
        assert!(accepted.insert(message.id().to_string()), "{} was handed over again", message.id());
    }
    assert!(accepting.difference(&accepted).count() <= 5, "one in each life at most");
}

/// Not a test: the process that the test above kills.
#[tokio::test]
#[ignore = "runs until it is killed"]
#[expect(clippy::print_stdout, reason = "what it is told is told")]
async fn takes_and_accepts_until_killed() {
    let (Ok(path), Ok(life)) = (env::var(INBOX), env::var("CALLBACK_RECEIVE_TEST_LIFE")) else { return };
    let (wire, receiver) = open(Path::new(&path)).await;
    let mut callback = receiver.expect("orders").await.expect("a name");
    let url = callback.url();
    let told = |line: String| {
        println!("\n{line}");
        std::io::stdout().flush().expect("written");
    };
    for number in 0.. {
        let id = format!("{life}-{number}");
        if wire.send(&url, &id).await == Verdict::Accepted {
            told(format!("taken {id}"));
        }
        // Every third is left for the next life.
        if number % 3 == 0 {
            let delivery = soon(callback.next()).await.expect("open");
            told(format!("accepting {}", delivery.message().id()));
            let message = delivery.accept().await.expect("stored");
            told(format!("accepted {}", message.id()));
        }
    }
}
