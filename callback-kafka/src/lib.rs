#![cfg_attr(feature = "receiver", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "receiver"),
    doc = "Delivers results to Kafka; feature `receiver` takes callbacks in from a topic."
)]

mod cluster;
mod config;
mod log;
#[cfg(feature = "receiver")]
mod receiver;
mod sink;

mod producer;
mod topics;
mod unsettled;

mod outcome;
mod target;
mod wire;

pub use cluster::KafkaCluster;
pub use config::{KafkaSinkBuilder, KafkaSinkError};
#[cfg(feature = "receiver")]
pub use receiver::{KafkaReceiver, KafkaReceiverBuilder, KafkaReceiverError};
pub use sink::KafkaSink;
