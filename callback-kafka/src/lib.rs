#![doc = include_str!("../README.md")]
//!
//! # Plan
//!
//! Depends on `callback-core` for its sink; the feature `receiver` pulls in `callback-receive`. It never depends on another transport.
//!
//! | file | will hold |
//! |---|---|
//! | `config.rs` | `KafkaSinkBuilder`: default cluster, named clusters; `KafkaCluster`: TLS, SASL (PLAIN, SCRAM), patterns of topics, the operator's librdkafka settings |
//! | `sink.rs` | `KafkaSink`: one producer a cluster, behind a bound on what is in flight |
//! | `wire.rs` | message and attempt to record and back, pure |
//! | `outcome.rs` | delivery report or error to `Receipt` or `SinkError`, pure |
//! | `receiver.rs` | `KafkaReceiver`, the listener for `callback-receive`, without a consumer group |
//!
//! Rules that the code will keep:
//!
//! - Nothing blocks the runtime: a producer is flushed and dropped on a blocking thread, and rebuilt after a fatal error.
//! - `delivery.timeout` lies within the attempt's deadline. With an ordering key, the next message waits until the old one is reported or purged.
//! - The receiver assigns itself the partitions that it needs, from the high watermark read before the first Dsn is given out; with an inbox, offsets are stored in the inbox's own transaction.
//! - Records whose key nobody expects are kept for `keep_unknown` (default 1 h, bounded by bytes); without an inbox they are counted and passed over.
//! - The feature `vendored` builds with gcc, make and perl alone.
//! - The conformance kit for sinks passes against a real broker.
