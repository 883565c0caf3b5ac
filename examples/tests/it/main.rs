//! The programs, as people run them.

mod abort;
mod crash;
mod dead_letters;
mod delivery_broker;
mod faults;
mod file_sink;
#[cfg(feature = "jsonschema")]
mod json_schema;
mod openapi;
mod order_service;
mod orders;
#[cfg(feature = "redis")]
mod redis_sink;
mod service;
mod transactional;
mod walks;
mod web_socket;
