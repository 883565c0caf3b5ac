use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use callback_store::{Database, StoreError};

use crate::notes::{Notes, migrations};

/// Names the database to the process that holds its lock.
const DATABASE: &str = "CALLBACK_STORE_TEST_DATABASE";

#[tokio::test]
async fn a_second_lock_is_refused_until_the_first_is_dropped() {
    let notes = Notes::open().await;
    let first = notes.database.lock().unwrap();
    assert!(first.path().ends_with("notes.db.lock"));
    let error = notes.database.lock().unwrap_err();
    let StoreError::Locked { path } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(path, first.path());
    assert!(error.to_string().contains("notes.db.lock"), "{error}");
    drop(first);
    notes.database.lock().unwrap();
}

#[tokio::test]
async fn a_role_has_a_lock_of_its_own() {
    let notes = Notes::open().await;
    let _engine = notes.database.lock().unwrap();
    let first = notes.database.lock_as("inbox").unwrap();
    assert!(first.path().ends_with("notes.db.inbox.lock"));
    let error = notes.database.lock_as("inbox").unwrap_err();
    assert!(matches!(&error, StoreError::Locked { path } if path == first.path()), "{error:?}");
    drop(first);
    notes.database.lock_as("inbox").unwrap();
}

#[tokio::test]
async fn a_lock_file_that_was_left_is_no_lock() {
    let notes = Notes::open().await;
    std::fs::write(notes.directory.path().join("notes.db.lock"), "4711").unwrap();
    notes.database.lock().unwrap();
}

#[tokio::test]
async fn a_killed_process_frees_its_lock() {
    let notes = Notes::open().await;
    let mut holder = Command::new(env::current_exe().unwrap())
        .args(["lock::holds_the_lock_until_killed", "--exact", "--ignored", "--nocapture"])
        .env(DATABASE, notes.database.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(holder.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap().ends_with("held")));
    assert!(matches!(notes.database.lock(), Err(StoreError::Locked { .. })));
    holder.kill().unwrap();
    holder.wait().unwrap();
    notes.database.lock().unwrap();
}

#[tokio::test]
#[ignore = "the other process of `a_killed_process_frees_its_lock`"]
async fn holds_the_lock_until_killed() {
    let Some(path) = env::var_os(DATABASE) else {
        return;
    };
    let database = Database::open(path, migrations()).await.unwrap();
    let _lock = database.lock().unwrap();
    writeln!(io::stdout(), "held").unwrap();
    // Ends without the parent, too, should it not come to the kill.
    let _ = io::stdin().read_line(&mut String::new());
}
