//! What happens when the connection's thread or the runtime goes away.

use std::error::Error as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use callback_store::WriteErrorKind::Unknown;
use tracing::Subscriber;
use tracing::span::Id;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::group::stop;
use crate::notes::{Notes, Write};

/// Panics on the thread of a SQLite connection, which enters the span of whoever sends it a command.
struct Killer {
    armed: Arc<AtomicBool>,
}

impl<S: Subscriber> Layer<S> for Killer {
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        let thread = std::thread::current();
        let on_connection = thread.name().is_some_and(|name| name.starts_with("sqlx-sqlite"));
        if on_connection && self.armed.swap(false, Ordering::SeqCst) {
            panic!("on purpose");
        }
    }
}

#[test]
fn a_connection_lost_in_commit_is_unknown_and_the_writer_opens_another() {
    let armed = Arc::new(AtomicBool::new(false));
    let killer = Killer { armed: Arc::clone(&armed) };
    // With a single subscriber alive, a span that another test's thread meets first is disabled for every thread.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(killer));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let notes = Notes::open().await;
        let (writer, _) = notes.writer(10).await;
        let error = writer.write(Write::KillConnection(Arc::clone(&armed))).await.unwrap_err();
        assert!(!armed.load(Ordering::SeqCst), "the connection is dead");
        assert_eq!(error.kind(), Unknown);
        assert!(error.source().is_some());

        writer.write(Write::Note(1)).await.unwrap();
        assert_eq!(notes.ids().await, [1]);
        assert_eq!(writer.write(Write::Sql("PRAGMA synchronous")).await.unwrap(), 2);
        assert!(writer.others_wrote().await.unwrap(), "nobody can tell");
        assert!(!writer.others_wrote().await.unwrap());
    });
}

#[test]
fn every_write_is_answered_when_the_runtime_ends() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (sender, answers) = mpsc::channel();
    let (notes, go_on) = runtime.block_on(async {
        let notes = Notes::open().await;
        let (writer, _) = notes.writer(10).await;
        let (hold, entered, go_on) = Write::hold();
        let done = sender.clone();
        writer.submit(hold, move |result| done.send(result).unwrap()).unwrap();
        entered.await.unwrap();
        writer.submit(Write::Note(1), move |result| sender.send(result).unwrap()).unwrap();
        (notes, go_on)
    });
    drop(runtime);
    go_on.send(()).unwrap();
    let kinds: Vec<_> = answers.iter().map(|result| result.unwrap_err().kind()).collect();
    assert_eq!(kinds, [Unknown, Unknown]);
    drop(notes);
}

#[test]
fn a_writer_whose_runtime_has_ended_is_closed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (writer, notes) = runtime.block_on(async {
        let notes = Notes::open().await;
        let (writer, _) = notes.writer(10).await;
        stop(&writer).await.send(()).unwrap();
        (writer, notes)
    });
    drop(runtime);
    // The writer's thread sees it when it gets its turn; until then there is room, or none.
    while writer.submit(Write::Note(1), drop) != Err(callback_store::SubmitError::Closed) {
        std::thread::yield_now();
    }
    drop(notes);
}
