//! What nobody may read in a log, an error or a debug print.

use crate::support::{Home, dsn, ended, start, task};
use callback_core::{MemorySink, SinkError, async_trait};
use callback_dispatch::{
    Dispatcher, Event, Failure, Handler, Interrupted, NewSubscription, Os1, Outcome, SubscriptionChange, Task, Work,
};
use serde_json::json;
use std::{
    fmt::Debug,
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tracing_subscriber::fmt::MakeWriter;

/// In all that is secret, and in nothing else.
const PLANTED: &str = "planted-secret";

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Log {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("not poisoned")
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

#[track_caller]
fn check(what: &dyn Debug) {
    for text in [format!("{what:?}"), format!("{what:#?}")] {
        assert!(!text.contains(PLANTED), "{text}");
    }
}

/// Fails in every way that is logged.
struct Failing;

#[async_trait]
impl Handler for Failing {
    async fn run(&self, task: Task) -> Outcome {
        check(&task);
        let event = Event::to(secret_dsn(), "test.published", PLANTED).owner("owner").subject("subject");
        check(&event);
        task.publish(event).expect("published");
        match task.operation() {
            "large" => Outcome::completed(PLANTED.repeat(1_000)),
            "malformed" => Outcome::completed(PLANTED).with_event_type("no type"),
            "hang" => std::future::pending().await,
            _ => Outcome::failed(json!({ "secret": PLANTED })),
        }
    }

    fn failure(&self, _: &Task, failure: &Failure) -> Outcome {
        check(failure);
        Outcome::failed(format!("{PLANTED} {failure}"))
    }
}

fn secret_dsn() -> callback_core::Dsn {
    // MemorySink knows neither users nor parameters; this one goes to a sink that does.
    dsn(&format!("custom://user:{PLANTED}@results/path?token={PLANTED}"))
}

fn work(operation: &str) -> Work {
    Work::new(json!({ "secret": PLANTED }))
        .callback(secret_dsn())
        .operation(operation)
        .header("x-secret", PLANTED)
        .extension("secret", PLANTED)
        .pass_on("x-request-id", PLANTED)
        .meta(PLANTED)
        .secret(PLANTED)
        .profile("os1")
        .time_limit(Duration::from_millis(20))
}

async fn live(home: Home) {
    let sink = crate::support::CustomSink::new(|given| {
        check(&given);
        async move {
            match given.attempt.number() {
                1 => Err(SinkError::unavailable("down")),
                _ => Err(SinkError::refused("no")),
            }
        }
    });
    let schedule = callback_core::Schedule::new([Duration::from_millis(1)]).expect("valid");
    let signer: callback_core::Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key");
    let builder = home.builder().await.sink(sink).sink(MemorySink::new()).schedule(schedule).body_limit(4_000);
    let builder = builder.signer(signer).profile(Os1::new("x-hmac"));
    check(&builder);
    let dispatcher: Dispatcher = start(builder).await;
    let worker = dispatcher.worker("failing", Interrupted::Report).run(Failing).expect("registered");
    let mut ids = Vec::new();
    for operation in ["fail", "large", "malformed", "hang"] {
        let work = work(operation);
        check(&work);
        let acknowledgment = worker.accept(work).await.expect("accepted");
        check(&acknowledgment);
        ids.push(acknowledgment.id());
    }
    for id in ids {
        let task = ended(&dispatcher, id).await;
        check(&task);
        check(&task.outcome());
        let letter = dispatcher.dead_letters().get(id).await.expect("readable").expect("it is dead");
        check(&letter);
        assert!(letter.message.body().windows(PLANTED.len()).any(|part| part == PLANTED.as_bytes()));
    }
    for refused in [
        work("x").callback(dsn(&format!("https://user:{PLANTED}@example.com/?token={PLANTED}"))),
        work("x").callback(dsn(&format!("custom://user:{PLANTED}@refused?token={PLANTED}"))),
        work("x").callback(dsn(&format!("memory://user:{PLANTED}@results?token={PLANTED}"))),
        work("x").pass_on("x-other", format!("{PLANTED}\n")),
        work("x").correlation_id(format!("{PLANTED}\n")),
        Work::new(PLANTED.repeat(1_000)),
    ] {
        let error = worker.accept(refused).await.expect_err("refused");
        check(&error);
        assert!(!error.to_string().contains(PLANTED), "{error}");
    }
    let subscription = || {
        NewSubscription::new(secret_dsn()).meta(json!({ "secret": PLANTED })).secret(PLANTED).profile("os1").event("x")
    };
    check(&subscription());
    let subscribed = dispatcher.subscriptions().create(subscription()).await.expect("created");
    check(&subscribed);
    check(&SubscriptionChange::new().secret(PLANTED, Duration::ZERO).meta(PLANTED));
    check(&dispatcher.subscriptions());
    let error = dispatcher.subscriptions().create(subscription().profile("bare")).await.expect_err("it is no key");
    check(&error);
    assert!(!error.to_string().contains(PLANTED), "{error}");
    let event = Event::new("x", PLANTED);
    check(&event);
    dispatcher.publish(event).await.expect("published");
    // Deferred, cancelled, completed, and closed over what is in flight.
    let id = worker.accept(work("hang").time_limit(Duration::from_secs(60))).await.expect("accepted").id();
    check(&task(&dispatcher, id).await);
    dispatcher.cancel(id).await.expect("cancelled");
    worker.accept(work("hang").time_limit(Duration::from_secs(60))).await.expect("accepted");
    check(&dispatcher);
    check(&worker);
    check(&dispatcher.dead_letters());
    dispatcher.close(Duration::ZERO).await;
}

/// Runs on one thread, so that all of the engine's tasks log here.
#[expect(clippy::future_not_send, reason = "what is recorded is recorded by one thread")]
async fn logged(home: Home) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_max_level(tracing::Level::TRACE).finish();
    // With a single subscriber alive, an event that another test's thread meets first is disabled for every thread.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let guard = tracing::subscriber::set_default(subscriber);
    let figures = crate::metrics::Figures::default();
    let _recording = metrics::set_default_local_recorder(&figures);
    crate::support::in_time(live(home)).await;
    drop(guard);
    let text = log.text();
    for logged in ["an attempt failed", "a message was given up", "a run failed", "an outcome cannot be sent"] {
        assert!(text.contains(logged), "{logged}: {text}");
    }
    assert!(!text.contains(PLANTED), "{text}");
    assert!(text.contains("callback{id="), "there is no span in {text}");
    let names = figures.names();
    assert!(names.contains("callback_dead_total") && !names.contains(PLANTED), "{names}");
}

#[tokio::test]
async fn no_secret_is_printed_or_logged_over_memory() {
    logged(Home::memory()).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn no_secret_is_printed_or_logged_over_sqlite() {
    logged(Home::sqlite()).await;
}
