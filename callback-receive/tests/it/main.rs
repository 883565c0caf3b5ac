//! The crate from outside, over a transport of its own in memory.

mod call;
#[cfg(feature = "sqlite")]
mod crash;
mod direct;
mod named;
mod properties;
mod secrets;
mod signature;
#[cfg(feature = "sqlite")]
mod sqlite;
mod wire;
