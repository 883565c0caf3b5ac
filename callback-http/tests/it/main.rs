//! The crate from outside, over sockets of its own on loopback.

mod receiver;

#[cfg(feature = "receiver")]
mod client;
#[cfg(feature = "receiver")]
mod fish;
#[cfg(feature = "receiver")]
mod hostile_senders;
#[cfg(all(feature = "axum", feature = "receiver"))]
mod nested;
#[cfg(feature = "receiver")]
mod round_trip;

mod answers;
mod consent;
mod hostile_receivers;
mod policy;
mod sink;
mod tls;

#[cfg(feature = "server")]
mod shop;

#[cfg(feature = "server")]
mod bad_input;
#[cfg(feature = "server")]
mod batch;
#[cfg(feature = "server")]
mod faults;
#[cfg(all(feature = "axum", feature = "server"))]
mod golden;
#[cfg(feature = "server")]
mod idempotency;
#[cfg(feature = "server")]
mod limits;
#[cfg(feature = "server")]
mod notification;
#[cfg(feature = "server")]
mod plain;
#[cfg(feature = "server")]
mod recovery;
#[cfg(feature = "server")]
mod rpc;
#[cfg(feature = "server")]
mod settings;
#[cfg(feature = "server")]
mod store;
#[cfg(all(feature = "axum", feature = "server"))]
mod subscriptions;
#[cfg(all(feature = "axum", feature = "server"))]
mod tasks;
