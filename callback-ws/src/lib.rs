#![doc = include_str!("../README.md")]

mod config;
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
#[cfg_attr(not(test), expect(dead_code, reason = "the hub and the receiver take connections in with it"))]
mod upgrade;

#[cfg(all(test, feature = "server"))]
mod autobahn;

pub use config::{WsSinkBuilder, WsSinkError};
pub use sink::WsSink;

/// The client for browsers, an ES module: what a page imports, served as `text/javascript`.
pub const CLIENT_JS: &str = include_str!("../client/callback.js");
