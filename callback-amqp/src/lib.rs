#![doc = include_str!("../README.md")]

mod config;
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
pub use sink::AmqpSink;
