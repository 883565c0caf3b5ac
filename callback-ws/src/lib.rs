#![cfg_attr(feature = "server", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "server"),
    doc = "Delivers results to WebSocket servers; feature `server` to clients that have connected to us."
)]

mod config;
#[cfg(feature = "server")]
mod hub;
mod sink;

mod outcome;
mod session;
mod wire;

mod connection;
mod dial;
mod handshake;
mod link;
mod tls;
#[cfg(feature = "server")]
mod upgrade;

#[cfg(all(test, feature = "server"))]
mod autobahn;

pub use config::{WsSinkBuilder, WsSinkError};
#[cfg(feature = "server")]
pub use hub::{Hub, HubBuilder, HubError};
pub use sink::WsSink;

/// The client for browsers, an ES module: what a page imports, served as `text/javascript`.
pub const CLIENT_JS: &str = include_str!("../client/callback.js");
