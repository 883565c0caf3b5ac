//! `$rpc.callback` for an existing JSON-RPC service, and long-running tasks for any `POST` route, as tower layers. Feature
//! `server`; routers for axum with the feature `axum`.

mod body;
mod idempotency;
mod stored;

mod handler;
mod layer;
mod reply;
mod service;

mod expression;
#[cfg(feature = "axum")]
mod keys;
#[cfg(feature = "axum")]
mod openapi;
mod owner;
mod prefer;
mod problem;
#[cfg(feature = "axum")]
mod subscriptions;
mod tasks;

pub use body::Body;
pub use expression::{Expression, ExpressionError};
pub use handler::RpcHandler;
#[cfg(feature = "axum")]
pub use keys::key_router;
pub use layer::{RpcLayer, RpcLayerBuilder};
#[cfg(feature = "axum")]
pub use openapi::OpenApi;
pub use owner::Owner;
#[cfg(feature = "axum")]
pub use problem::problem_router;
pub use service::RpcService;
#[cfg(feature = "axum")]
pub use subscriptions::{SubscriptionRouter, SubscriptionRouterBuilder};
#[cfg(feature = "axum")]
pub use tasks::task_router;
pub use tasks::{TaskHandler, TaskLayer, TaskLayerBuilder, TaskLayerError, TaskService};
