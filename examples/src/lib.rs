//! What the example programs are made of.

mod exchange;
mod file_sink;
#[cfg(feature = "jsonschema")]
mod json_schema;
mod order_service;
mod page;
#[cfg(feature = "redis")]
mod redis_sink;
mod server;

pub use exchange::{Hook, exchange};
pub use file_sink::FileSink;
#[cfg(feature = "jsonschema")]
pub use json_schema::JsonSchema;
pub use order_service::{OrderService, Settings, Store};
#[cfg(feature = "redis")]
pub use redis_sink::RedisSink;
pub use server::Server;

/// The README's examples, compiled where brokers are built: one is of them.
#[cfg(all(doctest, feature = "amqp", feature = "kafka"))]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The examples of the page on sinks, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/custom-sink.md")]
struct CustomSink;
