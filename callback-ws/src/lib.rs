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

pub use config::{WsSinkBuilder, WsSinkError};
pub use sink::WsSink;
