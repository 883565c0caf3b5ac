//! Sink and receiver against a real RabbitMQ, and the sink against servers that are none.

mod broker;

mod bad_input;
mod dispatch;
mod faults;
#[cfg(feature = "receiver")]
mod receiver;
#[cfg(feature = "receiver")]
mod receiver_faults;
#[cfg(feature = "receiver")]
mod round_trip;
mod routing;
mod secrets;
mod settings;
mod sink;
mod tls;
