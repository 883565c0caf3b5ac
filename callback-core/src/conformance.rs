//! Proves what a [`Sink`](crate::Sink) promises: a test for each clause of its contract, against the real far end.
//!
//! A test of a sink writes a [`Harness`], and `callback_core::conformance!(ItsType);` makes one `#[test]` a clause.
//! The kit brings its own runtime: the test's crate needs this crate with the feature `conformance`, and no more.
//!
//! ```
//! use callback_core::{
//!     Dsn, MemorySink, async_trait,
//!     conformance::{Fault, Harness, Received, Skip},
//! };
//! use std::sync::Mutex;
//!
//! #[derive(Default)]
//! struct Memory {
//!     sink: MemorySink,
//!     received: Mutex<Vec<Received>>,
//! }
//!
//! #[async_trait]
//! impl Harness for Memory {
//!     type Sink = MemorySink;
//!
//!     async fn start() -> Result<Self, Skip> {
//!         Ok(Self::default())
//!     }
//!
//!     fn sink(&self) -> MemorySink {
//!         self.sink.clone()
//!     }
//!
//!     fn dsn(&self) -> Dsn {
//!         "memory://results".parse().unwrap()
//!     }
//!
//!     async fn received(&self) -> Vec<Received> {
//!         let mut received = self.received.lock().unwrap();
//!         received.extend(self.sink.take("results").iter().map(|delivered| Received::from_parts(&delivered.message, &delivered.attempt)));
//!         received.clone()
//!     }
//!
//!     async fn inject(&self, _fault: Fault) -> Result<(), Skip> {
//!         Err(Skip::because("a channel of this process does not fail"))
//!     }
//! }
//!
//! callback_core::conformance!(Memory);
//! ```
//!
//! # What is skipped
//! A clause that a harness cannot show is skipped, and says so on standard error, past the capture of the test
//! runner: its name, and the harness's reason. A far end that is missing on this machine is a
//! [skip](Skip::absent) too, and a failure where the environment has `CI`.
//!
//! # Far ends that are slow to start
//! Each clause starts a harness of its own, and clauses run at once. So a broker is started once, outside of the
//! tests (a script that sets a variable, see [`server`]), or by the first harness into a `OnceLock`; each
//! [`start`](Harness::start) then takes a destination that nobody else has: a queue, topic or key with a random name.
//! Share processes and addresses, and no task, socket or client: each clause has its own runtime, which ends with it.
//!
//! A [`Proxy`] in front of a TCP server makes the faults of a network.

mod fault;
mod harness;
mod prove;
mod proxy;
mod received;

mod log;
mod probe;

mod acceptance;
mod cancellation;
mod check;
mod close;
mod concurrency;
mod deadline;
mod failure;
mod payload;
mod policy;
mod secrets;
mod signature;

pub use acceptance::{
    a_delivered_message_is_at_the_far_end, a_failed_delivery_is_not_repeated, a_retry_carries_the_same_message,
};
pub use cancellation::dropped_deliveries_leave_the_sink_usable;
pub use check::{
    a_foreign_scheme_is_an_error, an_unknown_parameter_is_named, check_asks_nobody, the_sink_serves_its_dsn,
};
pub use close::{after_close_nothing_is_delivered, close_is_idempotent, close_settles_what_is_in_flight};
pub use concurrency::hundreds_of_deliveries_at_once_arrive_once;
pub use deadline::{a_deadline_that_is_over_times_out, a_stalled_delivery_times_out};
pub use failure::{
    a_broken_connection_is_mended, a_refusal_is_told, an_outage_is_temporary_and_heals, the_time_to_wait_is_passed_on,
    throttling_is_told,
};
pub use fault::{Fault, Skip};
pub use harness::Harness;
pub use payload::{
    a_binary_body_arrives_unchanged, a_large_body_arrives_unchanged, a_unicode_body_arrives_unchanged,
    an_empty_body_arrives_unchanged,
};
pub use policy::{a_forbidden_address_is_not_dialled, a_forbidden_dsn_is_refused};
pub use prove::{Clause, Unproved, clauses, prove, server};
pub use proxy::Proxy;
pub use received::Received;
pub use secrets::{no_secret_is_logged, no_secret_is_printed};
pub use signature::{the_attributes_arrive, the_signature_is_copied};
