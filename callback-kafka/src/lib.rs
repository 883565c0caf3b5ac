#![doc = include_str!("../README.md")]

mod cluster;
mod config;
mod sink;

mod producer;
mod unsettled;

mod outcome;
mod target;
mod wire;

pub use cluster::KafkaCluster;
pub use config::{KafkaSinkBuilder, KafkaSinkError};
pub use sink::KafkaSink;
