//! `$rpc.callback` for an existing JSON-RPC service, as tower layers. Feature `server`.

mod body;
mod handler;
mod idempotency;
mod layer;
mod reply;
mod service;

pub use body::Body;
pub use handler::RpcHandler;
pub use layer::{RpcLayer, RpcLayerBuilder};
pub use service::RpcService;
