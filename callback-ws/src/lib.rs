#![cfg_attr(feature = "receiver", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "receiver"),
    doc = "Delivers results to WebSocket servers; feature `receiver` takes callbacks in."
)]

mod config;
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
#[cfg_attr(not(any(test, feature = "receiver")), expect(dead_code, reason = "the hub takes sessions in with it"))]
mod upgrade;

pub use config::{WsSinkBuilder, WsSinkError};
#[cfg(feature = "receiver")]
pub use receiver::{WsReceiver, WsReceiverBuilder, WsReceiverError};
pub use sink::WsSink;
