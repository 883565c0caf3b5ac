use std::error::Error as _;
use std::time::Duration;

use callback_store::WriteErrorKind::{NotStored, Unknown};
use callback_store::{OpenOptions, WriteError, WriteErrorKind, Writer};
use futures_util::future::{join_all, poll_immediate};
use sqlx::Connection;

use crate::group::stop;
use crate::notes::{Insert, Notes, Write};

/// Writes all in one batch.
async fn together(
    writer: &Writer<Insert>,
    writes: impl IntoIterator<Item = Write>,
) -> Vec<Result<i64, WriteErrorKind>> {
    let go_on = stop(writer).await;
    let mut waiting: Vec<_> = writes.into_iter().map(|write| Box::pin(writer.write(write))).collect();
    for write in &mut waiting {
        assert!(poll_immediate(write).await.is_none());
    }
    go_on.send(()).expect("the writer waits");
    let results = join_all(waiting).await;
    results.into_iter().map(|result| result.map_err(|error| error.kind())).collect()
}

fn is_full(error: &WriteError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<sqlx::Error>());
    source.is_some_and(|error| error.to_string().contains("full"))
}

#[tokio::test]
async fn one_bad_write_fails_alone() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let results = together(&writer, [1, 2, 2, 3, 4].map(Write::Note)).await;
    assert_eq!(results, [Ok(1), Ok(2), Err(NotStored), Ok(3), Ok(4)]);
    assert_eq!(notes.ids().await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn every_write_of_a_bad_batch_may_fail() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let results = together(&writer, [1, 1, 1].map(Write::Note)).await;
    assert_eq!(results, [Ok(1), Err(NotStored), Err(NotStored)]);
    let wrong = ["SELECT no_such_column FROM note", "INSERT INTO note VALUES (2, NULL)"];
    let results = together(&writer, wrong.map(Write::Sql)).await;
    assert_eq!(results, [Err(NotStored), Err(NotStored)]);
    assert_eq!(notes.ids().await, [1]);
}

#[tokio::test]
async fn a_full_disk_stores_nothing_and_the_writer_goes_on_when_healed() {
    let notes = Notes::open().await;
    let (writer, applied) = notes.writer(10).await;
    let pages = writer.write(Write::Sql("PRAGMA max_page_count = 1")).await.unwrap();
    assert!(pages > 1, "SQLite keeps the pages that there are");

    let fill = "INSERT INTO note (id, text) VALUES (9, hex(zeroblob(100000)))";
    let calls = applied.calls();
    let results = together(&writer, [Write::Note(1), Write::Sql(fill), Write::Note(2)]).await;
    assert_eq!(results, [Err(NotStored); 3]);
    assert_eq!(applied.calls(), calls + 2, "the batch is not tried again");
    let error = writer.write(Write::Sql(fill)).await.unwrap_err();
    assert_eq!(error.kind(), NotStored);
    assert!(is_full(&error), "{error:?}");
    assert_eq!(notes.ids().await, []);

    writer.write(Write::Sql("PRAGMA max_page_count = 1000000")).await.unwrap();
    writer.write(Write::Sql(fill)).await.unwrap();
    assert_eq!(notes.ids().await, [9]);
}

#[tokio::test]
async fn a_locked_database_stores_nothing_and_the_writer_goes_on_when_freed() {
    let impatient = OpenOptions::new().busy_timeout(Duration::ZERO);
    let notes = Notes::open_with(impatient).await;
    let (writer, applied) = notes.writer(10).await;
    let mut stranger = notes.stranger().await;
    let transaction = stranger.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = writer.write(Write::Note(1)).await.unwrap_err();
    assert_eq!(error.kind(), NotStored);
    assert_eq!(applied.calls(), 0, "the lock is taken before anything is applied");
    transaction.rollback().await.unwrap();
    writer.write(Write::Note(2)).await.unwrap();
    assert_eq!(notes.ids().await, [2]);
}

#[tokio::test]
async fn a_panic_fails_its_batch_alone() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let results = together(&writer, [Write::Note(1), Write::Panic, Write::Note(2)]).await;
    assert_eq!(results, [Err(NotStored); 3]);
    writer.write(Write::Note(3)).await.unwrap();
    assert_eq!(notes.ids().await, [3]);
}

#[tokio::test]
async fn a_panic_in_done_reaches_nobody_else() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let go_on = stop(&writer).await;
    writer.submit(Write::Note(1), |_| panic!("on purpose")).unwrap();
    let mut waiting = Box::pin(writer.write(Write::Note(2)));
    assert!(poll_immediate(&mut waiting).await.is_none());
    go_on.send(()).expect("the writer waits");
    assert_eq!(waiting.await.unwrap(), 2);
    assert_eq!(writer.write(Write::Note(3)).await.unwrap(), 3);
}

#[tokio::test]
async fn a_wrong_number_of_answers_stores_nothing() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let results = together(&writer, [Write::Note(1), Write::Unanswered]).await;
    assert_eq!(results, [Err(NotStored); 2]);
    assert_eq!(notes.ids().await, []);
}

#[tokio::test]
async fn a_commit_that_sqlite_rolls_back_stores_nothing() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    writer.write(Write::RefuseCommit).await.unwrap_err();
    let error = writer.write(Write::Note(1)).await.unwrap_err();
    assert_eq!(error.kind(), NotStored);
    assert_eq!(notes.ids().await, []);
}

#[tokio::test]
async fn a_transaction_that_ended_before_its_commit_is_unknown() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let results = together(&writer, [Write::Note(1), Write::Sql("COMMIT")]).await;
    assert_eq!(results, [Err(Unknown); 2]);
    writer.write(Write::Note(2)).await.unwrap();
    assert_eq!(notes.ids().await, [1, 2]);
}

#[tokio::test]
async fn an_error_says_its_own_level_only() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    writer.write(Write::Note(1)).await.unwrap();
    let error = writer.write(Write::Note(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "the write is not stored");
    let source = error.source().expect("SQLite's error is kept");
    assert!(source.to_string().contains("UNIQUE"), "{source}");
}
