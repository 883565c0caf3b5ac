use std::path::Path;

use callback_store::{Database, OpenOptions, StoreError};
use sqlx::Connection;

use crate::notes::{Notes, Write, migrations};

#[cfg(unix)]
#[track_caller]
fn check_mode(path: &Path, expected: u32) {
    use std::os::unix::fs::PermissionsExt;
    let mode = path.metadata().expect("the file exists").permissions().mode();
    assert_eq!(mode & 0o777, expected, "{}", path.display());
}

#[cfg(unix)]
#[tokio::test]
async fn every_file_is_its_owners_alone() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    writer.write(Write::Note(1)).await.unwrap();
    let _lock = notes.database.lock().unwrap();
    for name in ["notes.db", "notes.db-wal", "notes.db-shm", "notes.db.lock"] {
        check_mode(&notes.directory.path().join(name), 0o600);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_was_there_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.db");
    std::fs::File::create(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    Database::open(&path, migrations()).await.unwrap();
    check_mode(&path, 0o640);
}

#[cfg(unix)]
#[tokio::test]
async fn every_way_to_the_file_leads_to_one_lock() {
    let notes = Notes::open().await;
    let link = notes.directory.path().join("link.db");
    std::os::unix::fs::symlink(notes.database.path(), &link).unwrap();
    let linked = Database::open(&link, migrations()).await.unwrap();
    assert_eq!(linked.path(), notes.database.path());
    let _lock = notes.database.lock().unwrap();
    assert!(matches!(linked.lock(), Err(StoreError::Locked { .. })));
}

#[tokio::test]
async fn commits_are_synchronous() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    assert_eq!(writer.write(Write::Sql("PRAGMA synchronous")).await.unwrap(), 2);
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(notes.database.reader()).await.unwrap();
    assert_eq!(mode, "wal");
}

#[tokio::test]
async fn the_busy_timeout_is_five_seconds_unless_set() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.db");
    let timeout = async |database: &Database| -> i64 {
        let pragma = sqlx::query_scalar("PRAGMA busy_timeout");
        pragma.fetch_one(database.reader()).await.unwrap()
    };
    let database = Database::open(&path, migrations()).await.unwrap();
    assert_eq!(timeout(&database).await, 5000);
    let options = OpenOptions::new().busy_timeout(std::time::Duration::MAX);
    let database = options.open(&path, migrations()).await.unwrap();
    assert_eq!(timeout(&database).await, 24 * 24 * 60 * 60 * 1000);
}

#[tokio::test]
async fn readers_only_read_and_are_four_at_most() {
    let notes = Notes::open().await;
    let reader = notes.database.reader();
    assert_eq!(reader.size(), 0, "none is opened before it is used");
    let insert = sqlx::query("INSERT INTO note (id) VALUES (1)");
    let error = insert.execute(reader).await.unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(reader.acquire().await.unwrap());
    }
    assert!(reader.try_acquire().is_none());
    assert_eq!(reader.size(), 4);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.db");
    std::fs::write(&path, "a letter, not a database; long enough to be looked at").unwrap();
    let error = Database::open(&path, migrations()).await.unwrap_err();
    assert!(matches!(error, StoreError::Database { .. }), "{error:?}");
}

#[tokio::test]
async fn a_path_that_cannot_be_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing").join("notes.db");
    let error = Database::open(&path, migrations()).await.unwrap_err();
    assert!(matches!(error, StoreError::File { .. }));
    assert_eq!(error.to_string(), format!("cannot use the file {}", path.display()));
}

#[tokio::test]
async fn a_database_that_another_opens_too_is_shared() {
    let notes = Notes::open().await;
    let _lock = notes.database.lock().unwrap();
    let (writer, _) = notes.writer(10).await;
    let beside = Database::open(notes.database.path(), migrations()).await.unwrap();
    writer.write(Write::Note(1)).await.unwrap();
    let mut stranger = notes.stranger().await;
    sqlx::query("INSERT INTO note (id) VALUES (2)").execute(&mut stranger).await.unwrap();
    stranger.close().await.unwrap();
    assert_eq!(crate::notes::ids(beside.reader()).await, [1, 2]);
}
