use std::fs;

use callback_store::Writer;

use crate::notes::{Insert, Notes, Write};

/// Each of these writes makes the log longer by two pages at least.
const WRITES: i64 = 3_000;

async fn write_one_by_one(writer: &Writer<Insert>) {
    for id in 0..WRITES {
        writer.write(Write::Note(id)).await.expect("stored");
    }
}

#[tokio::test]
async fn the_log_is_copied_long_before_sqlite_does_so_in_a_commit() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    write_one_by_one(&writer).await;
    let log = notes.directory.path().join("notes.db-wal");
    let length = fs::metadata(log).expect("there is a log").len();
    assert!(length < 12 << 20, "{length} bytes; SQLite itself would let it grow to 16 MiB");
    writer.close().await;
    assert_eq!(notes.ids().await, (0..WRITES).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_that_cannot_be_copied_keeps_nobody_from_writing() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    // Whoever reads keeps what he sees in the log.
    let mut reader = notes.database.reader().begin().await.expect("a transaction");
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM note").fetch_one(&mut *reader).await.expect("readable");
    write_one_by_one(&writer).await;
    writer.close().await;
    let still_seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM note").fetch_one(&mut *reader).await.expect("readable");
    assert_eq!((seen, still_seen), (0, 0));
    drop(reader);
    assert_eq!(notes.ids().await.len() as i64, WRITES);
}
