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
mod owner;
mod prefer;
mod problem;
mod tasks;

pub use body::Body;
pub use expression::{Expression, ExpressionError};
pub use handler::RpcHandler;
pub use layer::{RpcLayer, RpcLayerBuilder};
pub use owner::Owner;
#[cfg(feature = "axum")]
pub use problem::problem_router;
pub use service::RpcService;
#[cfg(feature = "axum")]
pub use tasks::task_router;
pub use tasks::{TaskHandler, TaskLayer, TaskLayerBuilder, TaskLayerError, TaskService};
