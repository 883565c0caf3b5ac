#![cfg_attr(feature = "server", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "server"),
    doc = "Delivers results to webhooks; with the feature `server`, gives a JSON-RPC service `$rpc.callback`."
)]

mod config;
mod sink;

mod outcome;
mod wire;

#[cfg(feature = "server")]
pub mod server;

pub use config::{HttpSinkBuilder, HttpSinkError};
pub use sink::HttpSink;
