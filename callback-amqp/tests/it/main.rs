//! The sink against a real RabbitMQ, and against servers that are none.

mod broker;

mod bad_input;
mod dispatch;
mod faults;
mod routing;
mod secrets;
mod settings;
mod sink;
mod tls;
