#![cfg_attr(all(feature = "server", feature = "receiver"), doc = include_str!("../README.md"))]
#![cfg_attr(
    not(all(feature = "server", feature = "receiver")),
    doc = "Delivers results to webhooks; feature `server` gives a JSON-RPC service `$rpc.callback`, feature `receiver` takes callbacks in."
)]

mod config;
mod consent;
#[cfg(feature = "receiver")]
mod receiver;
mod sink;

mod outcome;
mod wire;

#[cfg(feature = "server")]
pub mod server;

pub use config::{HttpSinkBuilder, HttpSinkError};
pub use consent::HttpConsent;
#[cfg(feature = "receiver")]
pub use receiver::{HttpReceiver, HttpReceiverBuilder, HttpReceiverError};
pub use sink::HttpSink;
