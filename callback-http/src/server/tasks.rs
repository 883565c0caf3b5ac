//! Long-running tasks over plain HTTP (protocol §3.2).

mod answer;
mod handler;
mod layer;
#[cfg(feature = "axum")]
mod router;
mod service;

pub use handler::TaskHandler;
pub use layer::{TaskLayer, TaskLayerBuilder, TaskLayerError};
#[cfg(feature = "axum")]
pub use router::task_router;
pub use service::TaskService;
