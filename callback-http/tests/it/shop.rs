//! The online store of seed 1 behind the layer, over sockets: its methods, its dispatcher, its receiver.

use crate::receiver::{PATIENCE, Received, Receiver};
use axum::{
    Router,
    body::to_bytes,
    extract::Request,
    response::IntoResponse,
    routing::{MethodRouter, any},
};
use bytes::Bytes;
use callback_core::{Policy, RpcOptions, Rule};
use callback_dispatch::{Dispatcher, DispatcherBuilder, Interrupted, MemoryOutbox, Outbox, Task, WorkerBuilder};
use callback_http::{
    HttpSink,
    server::{RpcHandler, RpcLayer, RpcLayerBuilder},
};
use http::{HeaderMap, StatusCode, Uri, header};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tower::Layer;

/// The request of seed 1, byte for byte; `%CALLBACK%` stands for its DSN.
pub(crate) const SEED_REQUEST: &str = r#"{
"id": "example_order",
"method": "OrderService.processOrder",
"params": {
"orderId": "12345",
"$rpc.callback": "%CALLBACK%"
}
}"#;

/// What an outer middleware puts into a request, and the operator does not keep.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Marked;

/// What an outer middleware puts into a request, and the operator keeps.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Tenant(pub(crate) String);

/// One request, as the methods saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) options: Option<RpcOptions>,
    pub(crate) task: Option<Run>,
    pub(crate) marked: Option<Marked>,
    pub(crate) tenant: Option<Tenant>,
}

/// What of its task a method saw. A kept [`Task`] would keep the whole engine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) runs: u32,
    pub(crate) owner: Option<String>,
}

impl From<&Task> for Run {
    fn from(task: &Task) -> Self {
        Self { id: task.id().to_string(), runs: task.runs(), owner: task.owner().map(str::to_owned) }
    }
}

impl Seen {
    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("a text")
    }
}

/// The methods, and what they saw. Clones share it.
#[derive(Clone)]
pub(crate) struct Methods {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// What the method `blocked` waits for, once it has added to `begun`.
    pub(crate) gate: Arc<Semaphore>,
    pub(crate) begun: Arc<Semaphore>,
}

impl Default for Methods {
    fn default() -> Self {
        Self { seen: Arc::default(), gate: Arc::new(Semaphore::new(0)), begun: Arc::new(Semaphore::new(0)) }
    }
}

impl Methods {
    pub(crate) fn router(&self) -> Router {
        Router::new().fallback(self.endpoint())
    }

    pub(crate) fn endpoint(&self) -> MethodRouter {
        let methods = self.clone();
        any(move |request: Request| async move { methods.serve(request).await })
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[track_caller]
    pub(crate) fn only(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }

    async fn serve(self, request: Request) -> axum::response::Response {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, usize::MAX).await.expect("a body");
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(Seen {
            uri: parts.uri,
            headers: parts.headers,
            body: body.clone(),
            options: parts.extensions.get().cloned(),
            task: parts.extensions.get::<Task>().map(Run::from),
            marked: parts.extensions.get().cloned(),
            tenant: parts.extensions.get().cloned(),
        });
        match serde_json::from_slice(&body) {
            Ok(Value::Array(calls)) => {
                if calls.iter().any(|call| call["method"] == "never") {
                    std::future::pending::<()>().await;
                }
                let mut answers = Vec::new();
                for call in calls.iter().filter(|call| call.get("id").is_some()) {
                    answers.push(json!({ "jsonrpc": "2.0", "id": call["id"], "result": call["params"] }));
                }
                if answers.is_empty() {
                    StatusCode::NO_CONTENT.into_response()
                } else {
                    axum::Json(answers).into_response()
                }
            }
            Ok(call) => self.call(&call).await,
            Err(_) => "no JSON".into_response(),
        }
    }

    async fn call(&self, call: &Value) -> axum::response::Response {
        let answer = |member: &str, value: Value| {
            axum::Json(json!({ "jsonrpc": "2.0", "id": call["id"], member: value })).into_response()
        };
        match call["method"].as_str().unwrap_or_default() {
            "OrderService.processOrder" => answer("result", result_of_the_seed()),
            "OrderService.failOrder" => answer("error", json!({ "code": 7, "message": "out of stock" })),
            "echo" => answer("result", call["params"].clone()),
            "blocked" => {
                self.begun.add_permits(1);
                self.gate.acquire().await.expect("open").forget();
                answer("result", json!("open"))
            }
            "never" => std::future::pending().await,
            "panics" => panic!("a method panics, as it is told to"),
            "page" => axum::response::Html("<h1>It works!</h1>").into_response(),
            "broken page" => (StatusCode::INTERNAL_SERVER_ERROR, axum::response::Html("<h1>500</h1>")).into_response(),
            "empty" => StatusCode::OK.into_response(),
            "spelled" => format!("{{ \"result\" : 1.50, \"jsonrpc\":\"2.0\",\"id\":{} }}", call["id"]).into_response(),
            "no version" => format!("{{ \"result\" : 1.50,\"id\":{} }}", call["id"]).into_response(),
            "another id" => axum::Json(json!({ "jsonrpc": "2.0", "id": "another", "result": 1 })).into_response(),
            "large" => answer("result", "x".repeat(100_000).into()),
            "huge" => answer("result", "x".repeat(17 << 20).into()),
            "error under 500" => {
                (StatusCode::INTERNAL_SERVER_ERROR, answer("error", json!({ "code": 1, "message": "no" })))
                    .into_response()
            }
            method => answer("error", json!({ "code": -32601, "message": method })),
        }
    }
}

pub(crate) fn result_of_the_seed() -> Value {
    json!({
        "orderId": "12345",
        "status": "completed",
        "totalAmount": 99.99,
        "message": "Your order has been processed successfully.",
    })
}

/// An HTTP server that ends with its value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("served") });
        Self { address, _serving: serving }
    }
}

/// The whole of it.
pub(crate) struct Shop {
    pub(crate) methods: Methods,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) receiver: Receiver,
    server: Server,
}

/// How a test wants its shop.
pub(crate) struct Opening {
    dispatcher: DispatcherBuilder,
    worker: fn(WorkerBuilder) -> WorkerBuilder,
    layer: Box<dyn FnOnce(RpcLayerBuilder) -> RpcLayerBuilder + Send>,
    outer: fn(Router) -> Router,
}

impl Opening {
    pub(crate) fn on(outbox: impl Outbox) -> Self {
        Self::under(Policy::default().allow(Rule::loopback()), outbox)
    }

    pub(crate) fn under(policy: Policy, outbox: impl Outbox) -> Self {
        let sink = HttpSink::builder().policy(policy).build().expect("a sink");
        Self {
            dispatcher: Dispatcher::builder(outbox).sink(sink),
            worker: |worker| worker,
            layer: Box::new(|layer| layer),
            outer: |router| router,
        }
    }

    pub(crate) fn dispatcher(mut self, with: impl FnOnce(DispatcherBuilder) -> DispatcherBuilder) -> Self {
        self.dispatcher = with(self.dispatcher);
        self
    }

    pub(crate) fn worker(mut self, with: fn(WorkerBuilder) -> WorkerBuilder) -> Self {
        self.worker = with;
        self
    }

    pub(crate) fn layer(mut self, with: impl FnOnce(RpcLayerBuilder) -> RpcLayerBuilder + Send + 'static) -> Self {
        self.layer = Box::new(with);
        self
    }

    /// Lays what an application has around the layer.
    pub(crate) fn outer(mut self, with: fn(Router) -> Router) -> Self {
        self.outer = with;
        self
    }

    pub(crate) async fn open(self) -> Shop {
        let methods = Methods::default();
        let dispatcher = self.dispatcher.start().await.expect("started");
        let worker = (self.worker)(dispatcher.worker("rpc", Interrupted::RunAgain));
        let handler = RpcHandler::new(methods.router()).extension::<Tenant>("tenant");
        let worker = worker.run(handler).expect("registered");
        let layer = (self.layer)(RpcLayer::builder(worker)).build().expect("a topic that is served");
        let router = Router::new().fallback_service(layer.layer(methods.router()));
        let server = Server::start((self.outer)(router)).await;
        Shop { methods, dispatcher, receiver: Receiver::start().await, server }
    }
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Opening::on(MemoryOutbox::new()).open().await
    }

    pub(crate) fn callback(&self) -> String {
        self.receiver.url("/order/callback")
    }

    /// Sends a body as JSON; `%CALLBACK%` in it becomes the receiver's DSN.
    pub(crate) async fn post(&self, body: &str) -> Reply {
        self.send(&[("content-type", "application/json")], body.replace("%CALLBACK%", &self.callback())).await
    }

    pub(crate) async fn send(&self, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        post(self.server.address, headers, body).await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    pub(crate) async fn next(&mut self) -> Received {
        self.receiver.next().await
    }

    /// Ends the shop: no method ran, nothing was sent, and nothing is stored that could still be.
    #[track_caller]
    pub(crate) fn nothing_came_of_it(self, outbox: MemoryOutbox) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            self.dispatcher.close(PATIENCE).await;
            let later = Opening::on(outbox).open().await;
            later.post(r#"{"id":1,"method":"echo","params":{"$rpc.callback":"%CALLBACK%"}}"#).await.result();
            let mut later = later;
            later.next().await;
            later.dispatcher.close(PATIENCE).await;
            assert_eq!(later.methods.seen().len(), 1, "{place}: something was stored");
            assert!(self.methods.seen().is_empty(), "{place}: {:?}", self.methods.seen());
            assert!(self.receiver.is_empty(), "{place}: something was sent");
        }
    }
}

/// What a client got.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/json");
        let answer = self.json();
        assert_eq!(answer["jsonrpc"], "2.0", "{answer}");
        answer.get("result").unwrap_or_else(|| panic!("{answer}")).clone()
    }

    /// The task's id, of an acknowledgment.
    #[track_caller]
    pub(crate) fn task(&self) -> String {
        self.result()["callback"]["id"].as_str().expect("an id").to_owned()
    }
}

pub(crate) async fn post(address: SocketAddr, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    request(http::Method::POST, address, headers, body).await
}

pub(crate) async fn request(
    method: http::Method,
    address: SocketAddr,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Reply {
    request_at(method, address, "/rpc?v=1", headers, body).await
}

/// Sends a request to this path; no redirect is followed.
pub(crate) async fn request_at(
    method: http::Method,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Reply {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let client = reqwest::Client::builder().tls_backend_preconfigured(config).no_proxy().timeout(PATIENCE);
    let client = client.redirect(reqwest::redirect::Policy::none()).build().expect("a client");
    let mut request = client.request(method, format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.body(body.into()).send().await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    Reply { status, headers, body: response.bytes().await.expect("a body") }
}

/// A time limit that is soon over.
pub(crate) const SOON: Duration = Duration::from_millis(50);
