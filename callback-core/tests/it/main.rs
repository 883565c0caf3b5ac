//! The conformance kit from outside.

mod broken;
mod memory;
mod proxy;
mod skipped;
