#![doc = include_str!("../README.md")]
//!
//! # Plan
//!
//! The feature `receiver` pulls in `callback-receive`; `receiver.rs` will hold `KafkaReceiver`, its listener, without a consumer group:
//!
//! - It assigns itself the partitions that it needs, from the high watermark read before the first Dsn is given out; with an inbox, offsets are stored in the inbox's own transaction.
//! - Records whose key nobody expects are kept for `keep_unknown` (default 1 h, bounded by bytes); without an inbox they are counted and passed over.

mod cluster;
mod config;
mod sink;

mod producer;
mod topics;
mod unsettled;

mod outcome;
mod target;
mod wire;

pub use cluster::KafkaCluster;
pub use config::{KafkaSinkBuilder, KafkaSinkError};
pub use sink::KafkaSink;
