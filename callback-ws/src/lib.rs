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

pub use config::{WsSinkBuilder, WsSinkError};
pub use sink::WsSink;
