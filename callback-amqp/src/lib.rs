#![cfg_attr(feature = "receiver", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "receiver"),
    doc = "Delivers results to RabbitMQ (AMQP 0-9-1); feature `receiver` takes callbacks in from a queue."
)]

mod config;
#[cfg(feature = "receiver")]
mod receiver;
mod sink;

mod address;
mod outcome;
mod window;
mod wire;

mod connection;
mod dial;
mod frames;
mod lane;
mod tls;

#[cfg(test)]
mod fake;

pub use config::{AmqpCluster, AmqpSinkBuilder, AmqpSinkError};
#[cfg(feature = "receiver")]
pub use receiver::{AmqpReceiver, AmqpReceiverBuilder, AmqpReceiverError};
pub use sink::AmqpSink;
