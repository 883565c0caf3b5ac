//! A second life of the process: it gets no request, and the callbacks arrive.

use crate::{
    limits::{json_of, request},
    receiver::{PATIENCE, Received, Receiver},
    shop::{Marked, Methods, Run, Seen, Tenant},
};
use axum::{Extension, Router};
use callback_core::{Policy, RpcError, Rule};
use callback_dispatch::{Dispatcher, Interrupted, SqliteOutbox};
use callback_http::{
    HttpSink,
    server::{Body, RpcHandler, RpcLayer, RpcLayerBuilder},
};
use http::{HeaderName, HeaderValue, Request, Response};
use serde_json::{Value, json};
use std::path::Path;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};
use tower::{Layer, ServiceExt};

/// How an application is put together.
#[derive(Clone, Copy)]
enum Shape {
    /// A router lays the layer over each of its routes.
    ThreeRoutes,
    /// The layered service is made anew for each request, and driven by `oneshot`.
    MadePerRequest,
}

impl Shape {
    fn inner(self, methods: &Methods) -> Router {
        match self {
            Self::ThreeRoutes => Router::new()
                .route("/health", methods.endpoint())
                .route("/rpc", methods.endpoint())
                .route("/rpc/v2", methods.endpoint()),
            Self::MadePerRequest => methods.router(),
        }
    }

    async fn call(self, layer: RpcLayer, methods: &Methods, mut request: Request<Body>) -> Response<Body> {
        match self {
            Self::ThreeRoutes => {
                let app = self.inner(methods).layer(layer).layer(Extension(Marked));
                let app = app.layer(Extension(Tenant("acme".to_owned())));
                let answer = app.oneshot(request).await.expect("infallible");
                answer.map(Body::new)
            }
            Self::MadePerRequest => {
                request.extensions_mut().insert(Marked);
                request.extensions_mut().insert(Tenant("acme".to_owned()));
                layer.layer(self.inner(methods)).oneshot(request).await.expect("infallible")
            }
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// One life up to the registered worker; nobody has asked for anything.
async fn begin(
    file: &Path,
    shape: Shape,
    methods: &Methods,
    set: fn(RpcLayerBuilder) -> RpcLayerBuilder,
) -> (Dispatcher, RpcLayer) {
    let sink = HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build().expect("a sink");
    let outbox = SqliteOutbox::open(file).await.expect("opened");
    let dispatcher = Dispatcher::builder(outbox).sink(sink).start().await.expect("started");
    let handler = RpcHandler::new(shape.inner(methods)).extension::<Tenant>("tenant");
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain).run(handler).expect("registered");
    let layer =
        RpcLayer::builder(worker).keep_header(HeaderName::from_static("x-tenant")).keep_extension::<Tenant>("tenant");
    let layer = set(layer).build().expect("no topic");
    (dispatcher, layer)
}

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn accepted(receiver: &Receiver) -> Request<Body> {
    let body = json!({
        "id": "order 7",
        "method": "blocked",
        "params": { "a": 1, "$rpc": { "callback": receiver.url("/hook"), "timeout": 60, "rayId": "ray", "ignoreCache": true } },
    });
    let mut request = request(&body.to_string());
    for (name, value) in [
        ("x-tenant", "acme"),
        ("authorization", "Bearer planted"),
        ("cookie", "session=planted"),
        ("x-request-id", "request-1"),
        ("x-correlation-id", "correlation-1"),
        ("traceparent", TRACE),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    request
}

/// What both lives saw, and the callback of the second.
struct Lives {
    task: String,
    first: Seen,
    second: Vec<Seen>,
    callback: Received,
}

/// The first life ends while the method runs; the second gets no request.
fn two_lives(shape: Shape, set: fn(RpcLayerBuilder) -> RpcLayerBuilder) -> Lives {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("outbox.sqlite");
    let outside = runtime();
    let mut receiver = outside.block_on(Receiver::start());

    let (life, methods) = (runtime(), Methods::default());
    let (task, dispatcher) = life.block_on(async {
        let (dispatcher, layer) = begin(&file, shape, &methods, set).await;
        let answer = json_of(shape.call(layer, &methods, accepted(&receiver)).await).await;
        let task = answer["result"]["callback"]["id"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let begun = timeout(PATIENCE, methods.begun.acquire()).await;
        begun.expect("the method is begun in time").expect("open").forget();
        (task.to_owned(), dispatcher)
    });
    // As in a crash, nothing is given back: the dispatcher outlives whatever could do so.
    life.shutdown_timeout(PATIENCE);
    drop(dispatcher);
    assert!(receiver.is_empty());
    let first = methods.only();

    let (life, methods) = (runtime(), Methods::default());
    methods.gate.add_permits(1);
    let living = life.block_on(begin(&file, shape, &methods, set));
    let callback = outside.block_on(receiver.next());
    life.block_on(living.0.close(PATIENCE));
    life.shutdown_timeout(PATIENCE);
    assert!(receiver.is_empty());
    Lives { task, first, second: methods.seen(), callback }
}

fn as_the_first_run(shape: Shape) {
    let Lives { task, first, second, callback } = two_lives(shape, |layer| layer);
    assert_eq!(second.len(), 1);
    let (first, second) = (&first, &second[0]);
    let visible = |seen: &Seen| {
        let options = seen.options.clone().expect("options are an extension");
        (seen.uri.clone(), seen.headers.clone(), seen.body.clone(), seen.tenant.clone(), seen.marked.clone(), options)
    };
    assert_eq!(visible(first), visible(second), "the second run sees what the first saw");

    assert_eq!(second.text(), r#"{"id":"order 7","method":"blocked","params":{"a":1}}"#);
    assert_eq!(second.uri, "/rpc?v=1");
    assert_eq!(second.headers["x-tenant"], "acme");
    assert_eq!((second.headers.get("authorization"), second.headers.get("cookie")), (None, None));
    assert_eq!((&second.tenant, &second.marked), (&Some(Tenant("acme".to_owned())), &None));
    let options = second.options.as_ref().expect("options are an extension");
    assert_eq!((options.ignore_cache, options.ray_id.as_deref()), (true, Some("ray")));
    assert_eq!(options.timeout.map(|limit| limit.as_secs()), Some(60));
    let run = |runs| Some(Run { id: task.clone(), runs, owner: None });
    assert_eq!((&first.task, &second.task), (&run(1), &run(2)));

    assert_eq!(callback.json(), json!({ "jsonrpc": "2.0", "id": "order 7", "result": "open" }));
    assert!(!format!("{callback:?}").contains("planted"), "{callback:?}");
    for (name, value) in [
        ("webhook-id", &*task),
        ("ce-subject", &*task),
        ("ce-type", "callback.rpc.completed"),
        ("ce-correlationid", "ray"),
        ("x-request-id", "request-1"),
        ("x-correlation-id", "correlation-1"),
        ("traceparent", TRACE),
    ] {
        assert_eq!(callback.header(name), Some(value), "{name}");
    }
    assert_eq!((callback.header("authorization"), callback.header("cookie")), (None, None));
}

#[test]
fn a_router_of_three_routes_recovers() {
    as_the_first_run(Shape::ThreeRoutes);
}

#[test]
fn a_service_made_for_each_request_recovers() {
    as_the_first_run(Shape::MadePerRequest);
}

#[test]
fn a_method_that_must_not_run_twice_is_reported() {
    let lives = two_lives(Shape::ThreeRoutes, |layer| layer.interrupted("blocked", Interrupted::Report));
    assert!(lives.second.is_empty(), "it is not run again");
    let answer = lives.callback.json();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!("order 7")));
    assert_eq!(answer["error"]["code"], RpcError::INTERRUPTED);
    assert_eq!(answer.get("result"), None::<&Value>);
    assert_eq!(lives.callback.header("ce-type"), Some("callback.rpc.failed"));
    assert_eq!(lives.callback.header("webhook-id"), Some(&*lives.task));
}
