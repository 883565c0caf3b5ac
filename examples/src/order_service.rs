//! The online store: orders over JSON-RPC and over plain HTTP, whose results come by callback.

use crate::{Server, page::page};
use axum::{
    Extension, Json, Router,
    extract::{State, rejection::JsonRejection},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::post,
};
use callback_core::{Dsn, Keys, Problem, RpcError, RpcRequest, RpcResponse, Sink};
use callback_dispatch::{Dispatcher, Event, Hal, Interrupted, MemoryOutbox, SqliteOutbox, Task};
use callback_http::server::{
    OpenApi, Owner, RpcHandler, RpcLayer, RpcLayerBuilder, SubscriptionRouter, SubscriptionRouterBuilder, TaskHandler,
    TaskLayer, key_router, problem_router, task_router,
};
use callback_ws::Hub;
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{error::Error, fmt, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};
use tokio::time::sleep;

/// How the service is set up.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "settings are written out where the service is started")]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where accepted calls live.
    pub store: Store,
    /// Who signs.
    pub keys: Keys,
    /// How long processing an order takes.
    pub work: Duration,
    /// Where results go of those who ask for `"$rpc.callback": true`.
    pub topic: Option<Dsn>,
}

/// Where accepted calls live: `sqlite:PATH`, or `memory:`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the example has these two")]
pub enum Store {
    /// In this process.
    Memory,
    /// In this file.
    Sqlite(PathBuf),
}

impl FromStr for Store {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("memory", "")) => Ok(Self::Memory),
            _ => Err("expected sqlite:PATH or memory:"),
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
        }
    }
}

/// The running service.
#[derive(Debug)]
pub struct OrderService {
    server: Server,
    dispatcher: Dispatcher,
}

impl OrderService {
    /// Starts the service, with a page for browsers at `/`; what an earlier process left in the store goes on.
    ///
    /// # Errors
    /// When the store cannot be opened, another process has it, the address is taken, or no sink serves the topic.
    pub async fn start(settings: Settings, sinks: Vec<Arc<dyn Sink>>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let builder = match &settings.store {
            Store::Memory => Dispatcher::builder(MemoryOutbox::new()),
            Store::Sqlite(path) => Dispatcher::builder(SqliteOutbox::open(path).await?),
        };
        let builder = sinks.into_iter().fold(builder, |builder, sink| builder.sink(sink));
        let hub = Hub::new();
        let builder = builder.local_sink(hub.clone());
        let keys = settings.keys.clone();
        let dispatcher = builder.signer(settings.keys).profile(Hal).source("/orders").start().await?;
        let shop = Shop { dispatcher: dispatcher.clone(), work: settings.work };

        let rpc = Router::new().route("/rpc", post(call)).with_state(shop.clone());
        let worker =
            dispatcher.worker("orders", Interrupted::RunAgain).concurrency(256).run(RpcHandler::new(rpc.clone()))?;
        let owner = Owner::capability();
        let layer = RpcLayer::builder(worker).tasks_at("/tasks", owner.clone());
        let layer = settings.topic.iter().cloned().fold(layer, RpcLayerBuilder::topic).build()?;
        // On the routes alone: a wrong path is no call, and stays a 404.
        let rpc = rpc.route_layer(layer);

        let orders = Router::new().route("/orders", post(place)).with_state(shop);
        let worker = dispatcher
            .worker("http-orders", Interrupted::RunAgain)
            .concurrency(256)
            .run(TaskHandler::new(orders.clone()))?;
        let layer = TaskLayer::builder(worker, owner.clone())
            .callback_at("$request.body#/callbackUrl".parse()?)
            .expires_at("$request.body#/expires".parse()?)
            .build()?;
        let document = document(&layer);
        let orders = orders.route_layer(layer);

        // The header stands in for authentication: a service of yours knows its callers.
        let customer = |request: &Parts| {
            let named = request.headers.get("x-customer").and_then(|name| name.to_str().ok());
            Some(named.unwrap_or("anybody").to_owned())
        };
        let subscriptions = SubscriptionRouter::builder(&dispatcher, customer).profile("hal");
        let subscriptions = settings.topic.into_iter().fold(subscriptions, SubscriptionRouterBuilder::topic).build()?;
        let app = rpc
            .merge(orders)
            .nest("/tasks", task_router(&dispatcher, owner))
            .nest("/subscriptions", subscriptions)
            .nest("/problems", problem_router())
            .nest("/session", hub.router(&dispatcher))
            .merge(page())
            .merge(key_router(&keys))
            .merge(document.router());

        let server = Server::start(settings.listen, app).await?;
        Ok(Self { server, dispatcher })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// What accepts and delivers.
    #[must_use]
    pub const fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// Takes no new work; what is in flight ends within `grace`, the rest stays stored.
    pub async fn stop(self, grace: Duration) {
        let close = self.dispatcher.close(grace);
        tokio::join!(self.server.stop(), close);
    }
}

/// The routes, as they are served at `/openapi.json`.
fn document(layer: &TaskLayer) -> OpenApi {
    let order = json!({
        "type": "object",
        "properties": {
            "orderId": { "type": "string" },
            "callbackUrl": { "type": ["string", "null"], "maxLength": 2048 },
            "expires": { "type": ["string", "number", "null"], "description": "Seconds from now, or a time of RFC 3339" },
        },
        "required": ["orderId"],
    });
    let done = json!({
        "type": "object",
        "properties": {
            "orderId": { "type": "string" },
            "status": { "const": "completed" },
            "totalAmount": { "type": "number" },
            "message": { "type": "string" },
        },
        "required": ["orderId", "status", "totalAmount", "message"],
    });
    let operation = json!({
        "summary": "Processes an order: at once, or later where a callback is named or `Prefer` says so",
        "requestBody": { "required": true, "content": { "application/json": { "schema": order } } },
        "responses": {
            "200": { "description": "It is processed", "content": { "application/json": { "schema": done } } },
            "415": {
                "description": "The order is not JSON",
                "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
            },
        },
    });
    OpenApi::new("order-service", env!("CARGO_PKG_VERSION"))
        .operation("POST", "/orders", layer.describe(operation))
        .tasks("/tasks")
        .subscriptions("/subscriptions")
        .keys()
        .problems("/problems")
}

/// What the methods work with.
#[derive(Clone)]
struct Shop {
    dispatcher: Dispatcher,
    work: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    order_id: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Calls {
    Batch(Vec<RpcRequest>),
    One(RpcRequest),
}

/// One order over plain HTTP. An order that is done later comes as a task, which is among the extensions then.
async fn place(
    State(shop): State<Shop>,
    task: Option<Extension<Task>>,
    order: Result<Json<Order>, JsonRejection>,
) -> Response {
    match order {
        Ok(Json(order)) => Json(process(&shop, &order, task.as_deref()).await).into_response(),
        Err(rejection) => {
            let status = rejection.status();
            let problem = Problem::new("The order cannot be read").with_status(status.as_u16());
            let problem = problem.with_detail(rejection.body_text());
            let headers = [(header::CONTENT_TYPE, Problem::CONTENT_TYPE)];
            (status, headers, json!(problem).to_string()).into_response()
        }
    }
}

/// One call, or several. A call with a callback comes alone, as a task, which is among the extensions then.
async fn call(State(shop): State<Shop>, task: Option<Extension<Task>>, Json(calls): Json<Calls>) -> Response {
    let answers = match calls {
        Calls::One(call) => match answer(&shop, call, task.as_deref()).await {
            Some(answer) => return Json(answer).into_response(),
            None => Vec::new(),
        },
        Calls::Batch(calls) => join_all(calls.into_iter().map(|call| answer(&shop, call, None))).await,
    };
    let answers: Vec<RpcResponse> = answers.into_iter().flatten().collect();
    if answers.is_empty() { StatusCode::NO_CONTENT.into_response() } else { Json(answers).into_response() }
}

/// The answer to a call; none to a notification (JSON-RPC 2.0 §4.1).
async fn answer(shop: &Shop, call: RpcRequest, task: Option<&Task>) -> Option<RpcResponse> {
    tracing::info!(method = call.method, task = task.map(|task| task.id().to_string()), "a method is called");
    let result = dispatch(shop, &call.method, call.params, task).await;
    let id = call.id?;
    Some(match result {
        Ok(result) => RpcResponse::success(id, result),
        Err(error) => RpcResponse::failure(id, error),
    })
}

async fn dispatch(shop: &Shop, method: &str, params: Option<Value>, task: Option<&Task>) -> Result<Value, RpcError> {
    let order: Order = match method {
        "OrderService.processOrder" | "OrderService.failOrder" => serde_json::from_value(params.unwrap_or_default())
            .map_err(|error| RpcError::at(RpcError::INVALID_PARAMS, "Invalid params", "/params", error.to_string()))?,
        _ => return Err(RpcError::new(RpcError::METHOD_NOT_FOUND, "Method not found")),
    };
    if method == "OrderService.failOrder" {
        sleep(shop.work).await;
        return Err(RpcError::new(-32001, "Out of stock").with_data(json!({ "orderId": order.order_id })));
    }
    Ok(process(shop, &order, task).await)
}

/// Processes an order, and tells those who have subscribed to it.
async fn process(shop: &Shop, order: &Order, task: Option<&Task>) -> Value {
    sleep(shop.work).await;
    let order = json!({
        "orderId": order.order_id,
        "status": "completed",
        "totalAmount": 99.99,
        "message": "Your order has been processed successfully.",
    });
    let completed = Event::new("order.completed", order.clone()).service("orders");
    // With the outcome of a task in one transaction; else for itself.
    let published = match task {
        Some(task) => task.publish(completed).map(drop),
        None => shop.dispatcher.publish(completed).await.map(drop),
    };
    if let Err(error) = published {
        tracing::error!(%error, "order.completed could not be published");
    }
    order
}
