//! Long-running tasks over HTTP: each exchange over sockets, as protocol §3.2 and seed 3 write it.

mod accept;
mod end;
mod owner;
mod result;

use crate::{
    receiver::{PATIENCE, Receiver, status},
    shop::{Reply, Server},
};
use axum::{
    Extension, Json, Router,
    extract::State,
    response::{IntoResponse, Redirect, Response},
    routing::post,
};
use bytes::Bytes;
use callback_core::{Policy, Problem, Rule, Secret, TaskId};
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, Os1, Outbox, Outcome, SqliteOutbox, Task, TaskState};
use callback_http::{
    HttpSink,
    server::{Owner, TaskHandler, TaskLayer, TaskLayerBuilder, TaskLayerError, problem_router, task_router},
};
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// More bytes than a message may have.
const MANY: usize = 3 << 20;

/// Orders that can be made to wait.
#[derive(Clone)]
pub(crate) struct Orders {
    pub(crate) gate: Arc<Semaphore>,
    pub(crate) begun: Arc<Semaphore>,
}

/// A service with asynchronous orders.
pub(crate) struct Api {
    pub(crate) server: Server,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) receiver: Receiver,
    pub(crate) orders: Orders,
}

async fn order(State(orders): State<Orders>, task: Option<Extension<Task>>, Json(order): Json<Value>) -> Response {
    match order["item"].as_str().unwrap_or_default() {
        "slow" => {
            orders.begun.add_permits(1);
            orders.gate.acquire().await.expect("open").forget();
        }
        "never" => std::future::pending().await,
        "panics" => panic!("an order panics, as it is told to"),
        "none" => return StatusCode::NO_CONTENT.into_response(),
        "sold out" => {
            let problem = json!({ "type": "/sold-out", "title": "Sold out", "left": 0 });
            let headers = [(header::CONTENT_TYPE, Problem::CONTENT_TYPE)];
            return (StatusCode::CONFLICT, headers, problem.to_string()).into_response();
        }
        "many" => return ([(header::CONTENT_TYPE, "text/csv")], "x".repeat(MANY)).into_response(),
        "too many" => return "x".repeat(5 << 20).into_response(),
        "endless" => return "x".repeat(17 << 20).into_response(),
        "known" => return Redirect::to("/orders/7").into_response(),
        "unheard of" => return (StatusCode::BAD_REQUEST, "no such item").into_response(),
        _ => {}
    }
    let created = json!({ "order": order, "task": task.map(|task| task.id().to_string()) });
    let headers = [
        (header::LOCATION, "/orders/7"),
        (header::CONTENT_LANGUAGE, "en"),
        (header::ETAG, "\"7\""),
        (header::SET_COOKIE, "a=b"),
    ];
    (StatusCode::CREATED, headers, Json(created)).into_response()
}

/// The caller, as a test's requests name it.
pub(crate) fn caller() -> Owner {
    Owner::hook(|request| Some(request.headers.get("x-caller")?.to_str().ok()?.to_owned()))
}

pub(crate) fn at(expression: &str) -> callback_http::server::Expression {
    expression.parse().expect("an expression")
}

impl Api {
    pub(crate) async fn open(owner: Owner) -> Self {
        Self::on(MemoryOutbox::new(), owner, |layer| layer.callback_at(at("$request.body#/callbackUrl"))).await
    }

    pub(crate) async fn on(
        outbox: impl Outbox,
        owner: Owner,
        with: impl FnOnce(TaskLayerBuilder) -> TaskLayerBuilder,
    ) -> Self {
        Self::working(outbox, owner, Interrupted::RunAgain, with).await
    }

    pub(crate) async fn working(
        outbox: impl Outbox,
        owner: Owner,
        interrupted: Interrupted,
        with: impl FnOnce(TaskLayerBuilder) -> TaskLayerBuilder,
    ) -> Self {
        let policy = Policy::default().allow(Rule::loopback());
        let sink = HttpSink::builder().policy(policy).build().expect("a sink");
        let dispatcher = Dispatcher::builder(outbox).sink(sink).profile(Os1::new("x-coreos-hmac-signature"));
        let dispatcher = dispatcher.start().await.expect("started");
        let orders = Orders { gate: Arc::new(Semaphore::new(0)), begun: Arc::new(Semaphore::new(0)) };
        let routes = Router::new()
            .route("/orders", post(order).get(async || "the list of orders"))
            .route("/items/{id}/tasks", post(order))
            .with_state(orders.clone());
        let worker = dispatcher.worker("orders", interrupted);
        let worker = worker.run(TaskHandler::new(routes.clone())).expect("registered");
        let layer = with(TaskLayer::builder(worker, owner.clone())).build().expect("a layer");
        let app = routes
            .route_layer(layer)
            .nest("/tasks", task_router(&dispatcher, owner))
            .nest("/problems", problem_router());
        Self { server: Server::start(app).await, dispatcher, receiver: Receiver::start().await, orders }
    }

    pub(crate) fn callback(&self) -> String {
        self.receiver.url("/send/callback/here")
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        crate::shop::request_at(method, self.server.address, path, headers, body).await
    }

    pub(crate) async fn post(&self, headers: &[(&str, &str)], body: &Value) -> Reply {
        let headers = [&[("content-type", "application/json"), ("x-caller", "acme")], headers].concat();
        self.send(Method::POST, "/orders", &headers, body.to_string()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[("x-caller", "acme")], "").await
    }

    /// The answer once the task is over.
    pub(crate) async fn ended(&self, location: &str) -> Reply {
        self.dispatcher.wait(id(location)).await.expect("readable");
        self.get(location).await
    }
}

pub(crate) fn id(location: &str) -> TaskId {
    let id = location.strip_prefix("/tasks/").expect("a task's").split('.').next().expect("an id");
    id.parse().expect("an id")
}

#[track_caller]
pub(crate) fn location(reply: &Reply) -> String {
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    reply.headers[header::LOCATION].to_str().expect("ASCII").to_owned()
}

#[track_caller]
fn check_hal(reply: &Reply, status: u16, body: &Value) {
    assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/hal+json");
    assert_eq!(reply.headers[header::CACHE_CONTROL], "no-store");
    assert_eq!(&reply.json(), body);
}

#[track_caller]
fn check_problem(reply: &Reply, status: u16, name: &str) -> Value {
    assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/problem+json");
    let problem = reply.json();
    assert_eq!(problem["type"], format!("/problems/{name}"), "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert!(problem["title"].is_string(), "{problem}");
    problem
}
