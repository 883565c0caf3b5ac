use std::error::Error as _;

use callback_store::{SubmitError, WriteErrorKind};
use futures_util::future::poll_immediate;
use tokio::sync::oneshot;

use crate::group::stop;
use crate::notes::{Notes, Write, ids};

#[tokio::test]
async fn close_settles_what_is_queued() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(1000).await;
    let go_on = stop(&writer).await;
    let mut answers = Vec::new();
    for id in 0..600 {
        let (done, answer) = oneshot::channel();
        writer.submit(Write::Note(id), |result| done.send(result).unwrap()).unwrap();
        answers.push(answer);
    }
    let mut closing = Box::pin(writer.close());
    assert!(poll_immediate(&mut closing).await.is_none());
    go_on.send(()).expect("the writer waits");
    closing.await;
    for (id, answer) in (0..).zip(&mut answers) {
        assert_eq!(answer.try_recv().expect("done was called").unwrap(), id);
    }
    assert_eq!(notes.ids().await, (0..600).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_closed_writer_says_so() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let clone = writer.clone();
    writer.close().await;
    writer.close().await;
    clone.close().await;
    assert_eq!(clone.submit(Write::Note(1), drop), Err(SubmitError::Closed));
    assert_eq!(clone.submit_wait(Write::Note(1), drop).await, Err(SubmitError::Closed));
    let error = clone.write(Write::Note(1)).await.unwrap_err();
    assert_eq!(error.kind(), WriteErrorKind::NotStored);
    assert_eq!(error.source().expect("a cause").to_string(), "the writer is closed");
    clone.others_wrote().await.unwrap_err();
    assert_eq!(notes.ids().await, []);
}

#[tokio::test]
async fn close_goes_on_without_its_caller() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    assert!(poll_immediate(Box::pin(writer.close())).await.is_none());
    writer.close().await;
    assert_eq!(writer.submit(Write::Note(1), drop), Err(SubmitError::Closed));
}

#[tokio::test]
async fn what_is_queued_is_settled_when_the_writer_is_dropped() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let (done, answer) = oneshot::channel();
    writer.submit(Write::Note(1), |result| done.send(result).unwrap()).unwrap();
    drop(writer);
    assert_eq!(answer.await.expect("done is called").unwrap(), 1);
    assert_eq!(notes.ids().await, [1]);
}

#[tokio::test]
async fn close_folds_the_log_into_the_database() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    writer.write(Write::Note(1)).await.unwrap();
    let log = notes.directory.path().join("notes.db-wal");
    assert!(log.exists());
    writer.close().await;
    assert!(!log.exists());
}

#[tokio::test]
async fn readers_close_with_the_database_and_not_before() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    writer.write(Write::Note(1)).await.unwrap();
    writer.close().await;
    let reader = notes.database.reader();
    assert_eq!(ids(reader).await, [1]);
    notes.database.close().await;
    assert!(reader.acquire().await.is_err());
}
