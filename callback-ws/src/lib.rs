#![cfg_attr(all(feature = "server", feature = "receiver"), doc = include_str!("../README.md"))]
#![cfg_attr(
    not(all(feature = "server", feature = "receiver")),
    doc = "Delivers results to WebSocket servers; feature `server` to clients that connect to us, feature `receiver` takes callbacks in."
)]

mod config;
#[cfg(feature = "server")]
mod hub;
#[cfg(feature = "receiver")]
mod receiver;
mod sink;

mod outcome;
mod session;
mod wire;

mod connection;
mod dial;
mod handshake;
mod link;
mod tls;
#[cfg(any(feature = "server", feature = "receiver"))]
mod upgrade;

#[cfg(all(test, feature = "server"))]
mod autobahn;

pub use config::{WsSinkBuilder, WsSinkError};
#[cfg(feature = "server")]
pub use hub::{Hub, HubBuilder, HubError};
#[cfg(feature = "receiver")]
pub use receiver::{WsReceiver, WsReceiverBuilder, WsReceiverError};
pub use sink::WsSink;

/// The client for browsers, an ES module: what a page imports, served as `text/javascript`.
pub const CLIENT_JS: &str = include_str!("../client/callback.js");
