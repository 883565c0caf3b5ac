//! The programs, as people run them.

mod abort;
mod crash;
mod faults;
mod file_sink;
mod order_service;
mod service;
