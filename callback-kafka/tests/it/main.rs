//! The crate from outside: against Apache Kafka, and against librdkafka's mock of it.

mod support;

mod bad_input;
mod close;
mod delivery;
mod dispatch;
mod faults;
mod mock;
#[cfg(feature = "receiver")]
mod receiving;
mod refusal;
#[cfg(feature = "receiver")]
mod round_trip;
mod secrets;
mod security;
