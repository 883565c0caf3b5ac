//! What the example programs are made of.

mod file_sink;
mod order_service;
mod server;

pub use file_sink::FileSink;
pub use order_service::{OrderService, Settings, Store};
pub use server::Server;

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
