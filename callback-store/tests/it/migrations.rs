use callback_store::{Database, Migrations, StoreError};
use futures_util::future::join_all;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection, SqlSafeStr};

use crate::notes::{Notes, ids, migrations};

const FIRST: (i64, &str, &str) = (1, "first", "CREATE TABLE first (id INTEGER)");
const SECOND: (i64, &str, &str) = (2, "second", "CREATE TABLE second (id INTEGER)");

async fn open(
    notes: &Notes,
    table: &'static str,
    steps: &[(i64, &'static str, &'static str)],
) -> Result<(), StoreError> {
    let database = Database::open(notes.database.path(), Migrations::new(table, steps)).await?;
    database.close().await;
    Ok(())
}

async fn tables(notes: &Notes) -> Vec<String> {
    sqlx::query_scalar("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        .fetch_all(notes.database.reader())
        .await
        .unwrap()
}

#[track_caller]
fn check_refused(result: Result<(), StoreError>, expected: impl FnOnce(&MigrateError) -> bool) {
    let Err(StoreError::Migration { table, source }) = result else {
        panic!("{result:?}");
    };
    assert_eq!(table, "ours");
    assert!(expected(&source), "{source:?}");
}

#[tokio::test]
async fn a_users_migrations_live_beside_ours() {
    let notes = Notes::open().await;
    let users = || {
        let sql = "CREATE TABLE users (id INTEGER)".into_sql_str();
        Migrator::with_migrations(vec![Migration::new(9, "users".into(), MigrationType::Simple, sql, false)])
    };
    let mut stranger = notes.stranger().await;
    users().run(&mut stranger).await.unwrap();
    open(&notes, "ours", &[FIRST]).await.unwrap();
    users().run(&mut stranger).await.unwrap();
    stranger.close().await.unwrap();
    let expected = ["_sqlx_migrations", "first", "note", "note_migrations", "ours", "users"];
    assert_eq!(tables(&notes).await, expected);
}

#[tokio::test]
async fn what_is_missing_is_applied_once() {
    let notes = Notes::open().await;
    open(&notes, "ours", &[FIRST]).await.unwrap();
    open(&notes, "ours", &[SECOND, FIRST]).await.unwrap();
    open(&notes, "ours", &[FIRST, SECOND]).await.unwrap();
    assert_eq!(tables(&notes).await, ["first", "note", "note_migrations", "ours", "second"]);
}

#[tokio::test]
async fn all_steps_are_applied_or_none() {
    let notes = Notes::open().await;
    let wrong = (2, "wrong", "CREATE TABLE first (id INTEGER)");
    let result = open(&notes, "ours", &[FIRST, wrong]).await;
    check_refused(result, |error| matches!(error, MigrateError::ExecuteMigration(_, 2)));
    assert_eq!(tables(&notes).await, ["note", "note_migrations"]);
}

#[tokio::test]
async fn a_step_that_was_changed_is_refused() {
    let notes = Notes::open().await;
    open(&notes, "ours", &[FIRST]).await.unwrap();
    let changed = (1, "first", "CREATE TABLE first (id TEXT)");
    let result = open(&notes, "ours", &[changed]).await;
    check_refused(result, |error| matches!(error, MigrateError::VersionMismatch(1)));
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let notes = Notes::open().await;
    open(&notes, "ours", &[FIRST, SECOND]).await.unwrap();
    let result = open(&notes, "ours", &[FIRST]).await;
    check_refused(result, |error| matches!(error, MigrateError::VersionMissing(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_open_a_new_database_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.db");
    let opened = join_all((0..16).map(|_| tokio::spawn(Database::open(path.clone(), migrations())))).await;
    for database in opened {
        assert_eq!(ids(database.unwrap().unwrap().reader()).await, []);
    }
}
