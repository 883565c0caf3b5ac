//! The engine as its users see it.

#[macro_use]
mod support;

mod acceptance;
mod attachments;
mod cancellation;
mod clock;
mod close;
mod completion;
mod consent;
mod custom_sink;
mod dead_letters;
mod delivery;
mod expiry;
mod failure;
mod idempotency;
mod isolation;
mod lanes;
mod metrics;
mod notices;
mod order;
mod paused_time;
#[cfg(feature = "postgres")]
mod postgres;
mod profiles;
mod recovery;
mod retry;
#[cfg(all(feature = "sqlite", feature = "seal"))]
mod sealed;
mod secrets;
mod signature;
#[cfg(feature = "sqlite")]
mod sqlite;
mod subscriptions;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod transaction;
