use std::sync::{Arc, Mutex};

use callback_store::{SubmitError, Writer};
use futures_util::future::{join_all, poll_immediate};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::notes::{Insert, Notes, Write, ids};

/// Stops the writer in a batch of its own; what is queued then waits until the sender lets it go.
pub(crate) async fn stop(writer: &Writer<Insert>) -> oneshot::Sender<()> {
    let (hold, entered, go_on) = Write::hold();
    writer.submit(hold, drop).expect("the queue has room");
    entered.await.expect("the writer is stopped");
    go_on
}

#[tokio::test]
async fn writes_that_wait_share_a_transaction() {
    let notes = Notes::open().await;
    let (writer, applied) = notes.writer(1000).await;
    let go_on = stop(&writer).await;
    let mut writes: Vec<_> = (0..100).map(|id| Box::pin(writer.write(Write::Note(id)))).collect();
    for write in &mut writes {
        assert!(poll_immediate(write).await.is_none());
    }
    go_on.send(()).expect("the writer waits");
    let answers: Vec<_> = join_all(writes).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, (0..100).collect::<Vec<_>>());
    assert_eq!(applied.calls(), 2);
    assert_eq!(notes.ids().await, answers);
}

#[tokio::test]
async fn a_transaction_holds_512_writes_at_most() {
    let notes = Notes::open().await;
    let (writer, applied) = notes.writer(1000).await;
    let go_on = stop(&writer).await;
    for id in 0..513 {
        writer.submit(Write::Note(id), drop).expect("the queue has room");
    }
    go_on.send(()).expect("the writer waits");
    writer.close().await;
    assert_eq!(applied.calls(), 3);
    assert_eq!(notes.ids().await, (0..513).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_comes_after_the_commit() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let reader = notes.database.reader().clone();
    let (sender, seen) = oneshot::channel();
    let done = move |result: Result<i64, _>| {
        let ids = tokio::task::block_in_place(|| Handle::current().block_on(ids(&reader)));
        sender.send((result.unwrap(), ids)).expect("the test waits");
    };
    writer.submit(Write::Note(7), done).expect("the queue has room");
    assert_eq!(seen.await.expect("done is called"), (7, vec![7]));
}

#[tokio::test]
async fn a_dropped_caller_changes_nothing() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    assert!(poll_immediate(Box::pin(writer.write(Write::Note(1)))).await.is_none());
    writer.write(Write::Note(2)).await.unwrap();
    assert_eq!(notes.ids().await, [1, 2]);
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(1).await;
    let go_on = stop(&writer).await;
    writer.submit(Write::Note(1), drop).unwrap();
    let called = Arc::new(Mutex::new(false));
    let calls = Arc::clone(&called);
    let refused = writer.submit(Write::Note(2), move |_| *calls.lock().unwrap() = true);
    assert_eq!(refused, Err(SubmitError::Full));
    go_on.send(()).expect("the writer waits");
    writer.close().await;
    assert!(!*called.lock().unwrap());
    assert_eq!(notes.ids().await, [1]);
}

#[tokio::test]
async fn who_waits_for_room_is_queued_unless_dropped() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(1).await;
    let go_on = stop(&writer).await;
    writer.submit(Write::Note(1), drop).unwrap();

    let (gone, answered) = oneshot::channel();
    let mut dropped = Box::pin(writer.submit_wait(Write::Note(2), |result| gone.send(result).unwrap()));
    assert!(poll_immediate(&mut dropped).await.is_none());
    drop(dropped);
    assert!(answered.await.is_err(), "done is dropped, not called");

    let (done, answered) = oneshot::channel();
    let mut waiting = Box::pin(writer.submit_wait(Write::Note(3), |result| done.send(result).unwrap()));
    assert!(poll_immediate(&mut waiting).await.is_none());
    let mut writing = Box::pin(writer.write(Write::Note(4)));
    assert!(poll_immediate(&mut writing).await.is_none());
    drop(writing);

    go_on.send(()).expect("the writer waits");
    waiting.await.unwrap();
    assert_eq!(answered.await.expect("done is called").unwrap(), 3);
    assert_eq!(notes.ids().await, [1, 3]);
}

#[tokio::test]
async fn clones_share_the_writer() {
    let notes = Notes::open().await;
    let (writer, _) = notes.writer(10).await;
    let clone = writer.clone();
    drop(writer);
    clone.write(Write::Note(1)).await.unwrap();
    assert_eq!(notes.ids().await, [1]);
}
