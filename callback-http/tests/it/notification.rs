//! A notification that names a callback: run as a notification, counted, and said in the log.

use crate::{
    limits::request,
    shop::{Methods, Opening, Shop},
};
use callback_core::MemorySink;
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox};
use callback_http::server::{RpcHandler, RpcLayer};
use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tower::{Layer, ServiceExt};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span,
};

#[derive(Default)]
struct Counters(Mutex<HashMap<String, Arc<AtomicU64>>>);

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = self.0.lock().expect("no panic");
        Counter::from_arc(Arc::clone(counters.entry(key.name().to_owned()).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

impl Counters {
    fn count(&self, name: &str) -> u64 {
        self.0.lock().expect("no panic").get(name).map_or(0, |counter| counter.load(Ordering::SeqCst))
    }
}

/// The lines of a log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0.push_str(&format!(" {field}={value:?}"));
            }
        }
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().expect("no panic").push(line.0);
    }
}

#[tokio::test]
async fn a_notification_with_a_callback_runs_as_a_plain_notification() {
    let outbox = MemoryOutbox::new();
    let shop = Opening::on(outbox.clone()).open().await;
    for body in [
        r#"{"jsonrpc":"2.0","method":"echo","params":{"a":1,"$rpc.callback":"%CALLBACK%"}}"#,
        r#"{"jsonrpc":"2.0","method":"page","params":{"a":1,"$rpc":{"callback":"%CALLBACK%"}}}"#,
    ] {
        let reply = shop.post(body).await;
        assert_eq!((reply.status, reply.body.len()), (StatusCode::NO_CONTENT, 0));
    }
    let seen = shop.methods.seen();
    assert_eq!(seen[0].text(), r#"{"jsonrpc":"2.0","method":"echo","params":{"a":1}}"#);
    assert_eq!(seen[1].text(), r#"{"jsonrpc":"2.0","method":"page","params":{"a":1}}"#);
    assert!(seen.iter().all(|seen| seen.task.is_none()), "{seen:?}");
    // Nothing of it is stored: a second life finds its own call and no other.
    shop.dispatcher.close(crate::receiver::PATIENCE).await;
    assert!(shop.receiver.is_empty());
    let empty = Opening::on(outbox.clone()).open().await;
    empty.nothing_came_of_it(outbox).await;
}

#[tokio::test]
async fn a_plain_notification_is_the_services_own_business() {
    let shop = Shop::open().await;
    let body = r#"{"jsonrpc":"2.0","method":"page","params":{"a":1}}"#;
    let reply = shop.post(body).await;
    assert_eq!((reply.status, &*reply.body), (StatusCode::OK, &b"<h1>It works!</h1>"[..]));
    assert_eq!(shop.methods.only().text(), body);
}

#[tokio::test]
async fn a_notification_with_a_callback_is_counted_and_logged() {
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(MemorySink::new()).start().await.expect("started");
    let methods = Methods::default().router();
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain);
    let worker = worker.run(RpcHandler::new(methods.clone())).expect("registered");
    let service = RpcLayer::new(worker).layer(methods);

    let (counters, log) = (Counters::default(), Log::default());
    let _counting = metrics::set_default_local_recorder(&counters);
    // With a single subscriber alive, an event that another test's thread meets first is disabled for every thread.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _logging = tracing::subscriber::set_default(log.clone());
    for body in [
        r#"{"method":"echo","params":{"$rpc.callback":"memory://planted","a":"planted"}}"#,
        r#"[{"method":"echo","params":{"$rpc.callback":"memory://planted"}},{"method":"echo"}]"#,
    ] {
        let response = service.clone().oneshot(request(body)).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
    }
    assert_eq!(counters.count("callback_rpc_notifications_with_callback_total"), 2);
    let lines = log.0.lock().expect("no panic").join("\n");
    assert_eq!(lines.matches("WARN message=a notification named a callback").count(), 2, "{lines}");
    assert!(lines.contains("method=\"echo\"") && !lines.contains("planted"), "{lines}");
}
