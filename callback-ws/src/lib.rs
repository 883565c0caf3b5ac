#![doc = include_str!("../README.md")]

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

pub use config::{WsSinkBuilder, WsSinkError};
#[cfg(feature = "server")]
pub use hub::{Hub, HubBuilder, HubError};
pub use sink::WsSink;
