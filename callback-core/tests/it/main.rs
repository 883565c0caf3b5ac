//! The conformance kit from outside.

mod memory;
