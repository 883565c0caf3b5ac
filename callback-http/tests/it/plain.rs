//! The layer and the handler around a service that is no axum: `Clone` and `Send`, and nothing else.

use crate::{
    receiver::{PATIENCE, Receiver},
    shop::post,
};
use bytes::Bytes;
use callback_core::{Policy, RpcError, Rule};
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox};
use callback_http::{
    HttpSink,
    server::{Body, RpcHandler, RpcLayer},
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{net::TcpListener, task::JoinSet};
use tower::{Layer, Service};

/// Not `Sync`; may be called only when it was asked whether it is ready, as `Service` says.
struct Plain {
    calls: Cell<u32>,
    ready: bool,
}

impl Plain {
    const fn new() -> Self {
        Self { calls: Cell::new(0), ready: false }
    }
}

/// A clone was not asked.
impl Clone for Plain {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone(), ready: false }
    }
}

impl Service<Request<Body>> for Plain {
    type Response = Response<Full<Bytes>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Response<Full<Bytes>>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let ready = std::mem::take(&mut self.ready);
        self.calls.set(self.calls.get() + 1);
        Box::pin(async move {
            assert!(ready, "a service is asked whether it is ready before it is called");
            let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
            let call: Value = serde_json::from_slice(&body)?;
            if call["method"] == "fail" {
                return Err(io::Error::other("a planted reason"));
            }
            let answer = json!({ "jsonrpc": "2.0", "id": call["id"], "result": call["params"] });
            Ok(Response::new(Full::from(answer.to_string())))
        })
    }
}

/// Serves over hyper alone.
async fn serve() -> (SocketAddr, Dispatcher, JoinSet<()>) {
    let sink = HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build().expect("a sink");
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink).start().await.expect("started");
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain);
    let worker = worker.run(RpcHandler::new(Plain::new())).expect("registered");
    let service = RpcLayer::new(worker).layer(Plain::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let service = TowerToHyperService::new(service.clone());
            connections.spawn(async move {
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, dispatcher, serving)
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

fn call(method: &str, receiver: &Receiver) -> String {
    json!({ "id": 1, "method": method, "params": { "a": 1, "$rpc.callback": receiver.url("/") } }).to_string()
}

#[tokio::test]
async fn a_plain_service_is_given_callbacks() {
    let (address, _dispatcher, _serving) = serve().await;
    let mut receiver = Receiver::start().await;
    for _ in 0..3 {
        post(address, JSON, call("echo", &receiver)).await.task();
        let callback = receiver.next().await.json();
        assert_eq!(callback, json!({ "jsonrpc": "2.0", "id": 1, "result": { "a": 1 } }));
    }
}

#[tokio::test]
async fn a_plain_service_is_called_as_before() {
    let (address, dispatcher, _serving) = serve().await;
    let reply = post(address, JSON, r#"{"id":1,"method":"echo","params":[1]}"#).await;
    assert_eq!(reply.json()["result"], json!([1]));
    dispatcher.close(PATIENCE).await;
    let reply = post(address, JSON, r#"{"id":2,"method":"echo","params":[2]}"#).await;
    assert_eq!(reply.json()["result"], json!([2]));
}

#[tokio::test]
async fn a_service_that_fails_is_an_internal_error_in_the_callback() {
    let (address, _dispatcher, _serving) = serve().await;
    let mut receiver = Receiver::start().await;
    post(address, JSON, call("fail", &receiver)).await.task();
    let received = receiver.next().await;
    assert_eq!(received.header("ce-type"), Some("callback.rpc.failed"));
    let answer = received.json();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(1), &json!(RpcError::INTERNAL)));
    // What the service says of itself is for the log, not for the client.
    assert!(!answer.to_string().contains("planted"), "{answer}");
}
