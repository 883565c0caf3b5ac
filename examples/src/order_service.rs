//! The online store: a JSON-RPC service whose results come by callback.

use crate::Server;
use axum::{
    Extension, Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use callback_core::{Dsn, Keys, RpcError, RpcRequest, RpcResponse, Sink};
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, SqliteOutbox, Task};
use callback_http::server::{RpcHandler, RpcLayer};
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
    /// Starts the service; what an earlier process left in the store goes on.
    ///
    /// # Errors
    /// When the store cannot be opened, another process has it, the address is taken, or no sink serves the topic.
    pub async fn start(settings: Settings, sinks: Vec<Arc<dyn Sink>>) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let builder = match &settings.store {
            Store::Memory => Dispatcher::builder(MemoryOutbox::new()),
            Store::Sqlite(path) => Dispatcher::builder(SqliteOutbox::open(path).await?),
        };
        let builder = sinks.into_iter().fold(builder, |builder, sink| builder.sink(sink));
        let public_keys = Json(json!({ "keys": settings.keys.public_keys() }));
        let dispatcher = builder.signer(settings.keys).source("/orders").start().await?;

        let orders = Router::new().route("/rpc", post(order)).with_state(settings.work);
        let worker =
            dispatcher.worker("orders", Interrupted::RunAgain).concurrency(256).run(RpcHandler::new(orders.clone()))?;
        let layer = RpcLayer::builder(worker);
        let layer = settings.topic.into_iter().fold(layer, |layer, topic| layer.topic(topic)).build()?;
        let app = orders
            // On the routes alone: a wrong path is no call, and stays a 404.
            .route_layer(layer)
            .route("/.well-known/callback-keys", get(move || async move { public_keys.clone() }));

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

/// One call, or several. A call with a callback comes alone, as a task, which is among the extensions then.
async fn order(State(work): State<Duration>, task: Option<Extension<Task>>, Json(calls): Json<Calls>) -> Response {
    let task = task.map(|task| task.id().to_string());
    let answers = match calls {
        Calls::One(call) => match answer(call, work, task).await {
            Some(answer) => return Json(answer).into_response(),
            None => Vec::new(),
        },
        Calls::Batch(calls) => join_all(calls.into_iter().map(|call| answer(call, work, None))).await,
    };
    let answers: Vec<RpcResponse> = answers.into_iter().flatten().collect();
    if answers.is_empty() { StatusCode::NO_CONTENT.into_response() } else { Json(answers).into_response() }
}

/// The answer to a call; none to a notification (JSON-RPC 2.0 §4.1).
async fn answer(call: RpcRequest, work: Duration, task: Option<String>) -> Option<RpcResponse> {
    tracing::info!(method = call.method, task, "a method is called");
    let result = process(&call.method, call.params, work).await;
    let id = call.id?;
    Some(match result {
        Ok(result) => RpcResponse::success(id, result),
        Err(error) => RpcResponse::failure(id, error),
    })
}

async fn process(method: &str, params: Option<Value>, work: Duration) -> Result<Value, RpcError> {
    let order: Order = match method {
        "OrderService.processOrder" | "OrderService.failOrder" => serde_json::from_value(params.unwrap_or_default())
            .map_err(|error| RpcError::at(RpcError::INVALID_PARAMS, "Invalid params", "/params", error.to_string()))?,
        _ => return Err(RpcError::new(RpcError::METHOD_NOT_FOUND, "Method not found")),
    };
    sleep(work).await;
    if method == "OrderService.failOrder" {
        return Err(RpcError::new(-32001, "Out of stock").with_data(json!({ "orderId": order.order_id })));
    }
    Ok(json!({
        "orderId": order.order_id,
        "status": "completed",
        "totalAmount": 99.99,
        "message": "Your order has been processed successfully.",
    }))
}
