#![doc = include_str!("../README.md")]

mod batched;
mod database;
mod error;
mod lock;
mod migrations;
mod writer;

pub use batched::Batched;
pub use database::{Database, OpenOptions};
pub use error::{StoreError, SubmitError, WriteError, WriteErrorKind};
pub use lock::Lock;
pub use migrations::Migrations;
pub use writer::{Apply, Writer};
