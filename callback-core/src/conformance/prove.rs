//! Runs clauses.

use super::{Harness, Skip, log::Log};
use std::{any::type_name, env, fmt, io::Write, mem, pin::Pin, time::Duration};
use tokio::runtime::{Builder, Runtime};
use tracing::{Dispatch, dispatcher, subscriber::NoSubscriber};

/// Why a clause does not stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unproved {
    /// It cannot be shown.
    #[error("skipped: {0}")]
    Skipped(Skip),
    /// The sink breaks it.
    #[error("broken: {0}")]
    Broken(String),
}

impl From<Skip> for Unproved {
    fn from(skip: Skip) -> Self {
        Self::Skipped(skip)
    }
}

/// Ends a clause as broken unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Unproved::Broken(format!($($text)+)));
        }
    };
}
pub(super) use ensure;

type Proof<'a> = Pin<Box<dyn Future<Output = Result<(), Unproved>> + Send + 'a>>;

/// One clause of the contract of [`Sink`](crate::Sink), as a value.
pub struct Clause<H> {
    name: &'static str,
    run: for<'a> fn(&'a H) -> Proof<'a>,
}

impl<H: Harness> Clause<H> {
    /// The name of the clause's function.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Starts a harness and tries the clause on it, on a runtime of its own: blocks the thread.
    ///
    /// # Errors
    /// When the clause is skipped, or the sink breaks it.
    ///
    /// # Panics
    /// When the harness panics, when no runtime can be made, and inside another runtime.
    pub fn check(&self) -> Result<(), Unproved> {
        // While there is one subscriber alone, `tracing` asks the thread that comes first, which may have none, for all of them.
        let _other = Dispatch::new(NoSubscriber::new());
        let log = (self.name == "no_secret_is_logged").then(|| Dispatch::new(Log::default()));
        let _logged = log.as_ref().map(dispatcher::set_default);
        let runtime = runtime(log);
        let result = runtime.block_on(async {
            let harness = H::start().await?;
            match harness.skip(self.name) {
                Some(skip) => Err(skip.into()),
                None => (self.run)(&harness).await,
            }
        });
        // What blocks a thread in a broken sink does not hold the test.
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }
}

impl<H> fmt::Debug for Clause<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clause").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A runtime whose threads all log to this one place; elsewhere than the test's own log, where there is one.
fn runtime(log: Option<Dispatch>) -> Runtime {
    let mut runtime = Builder::new_multi_thread();
    if let Some(log) = log {
        // A thread that ends needs no other log after it.
        runtime.on_thread_start(move || mem::forget(dispatcher::set_default(&log)));
    }
    runtime.worker_threads(2).enable_all().build().expect("threads and an I/O driver can be had")
}

/// Tries the clause of this name: what each test of [`conformance!`](crate::conformance!) does.
///
/// # Panics
/// When the sink breaks the clause, when the far end is [absent](Skip::absent) and the environment has `CI`, and when
/// there is no such clause.
pub fn prove<H: Harness>(name: &str) {
    let clauses = clauses::<H>();
    let clause = clauses.iter().find(|clause| clause.name == name).expect("the name of a clause");
    match clause.check() {
        Ok(()) => {}
        Err(Unproved::Skipped(skip)) if skip.is_absent() && env::var_os("CI").is_some() => {
            panic!("{name}: {skip}, and in CI nothing is missing");
        }
        Err(Unproved::Skipped(skip)) => {
            // Not by `eprintln!`, which the test runner hides where the test passes.
            let line = format!("skipped: {name} of {}: {skip}\n", type_name::<H>());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        Err(broken) => panic!("{name}: {broken}"),
    }
}

/// The address of a shared server, from a variable of the environment.
///
/// # Errors
/// [`Skip::absent`] where the variable is not set.
pub fn server(variable: &str) -> Result<String, Skip> {
    env::var(variable).map_err(|_| Skip::absent(format!("{variable} is not set")))
}

/// Makes the list of clauses the macro of tests and the function that lists them.
macro_rules! list {
    (($dollar:tt) $($name:ident)*) => {
        /// Makes one `#[test]` for each clause of the contract of a sink, from the type of a
        /// [`Harness`](crate::conformance::Harness).
        #[macro_export]
        macro_rules! conformance {
            ($dollar harness:ty) => {
                $(
                    #[test]
                    fn $name() {
                        $crate::conformance::prove::<$dollar harness>(stringify!($name));
                    }
                )*
            };
        }

        /// Every clause, for whoever wants a table rather than tests.
        #[must_use]
        pub fn clauses<H: Harness>() -> Vec<Clause<H>> {
            vec![$(Clause { name: stringify!($name), run: |harness| Box::pin(super::$name(harness)) }),*]
        }
    };
}

list! { ($)
    a_delivered_message_is_at_the_far_end
    a_retry_carries_the_same_message
    a_failed_delivery_is_not_repeated
    the_signature_is_copied
    the_attributes_arrive
    an_empty_body_arrives_unchanged
    a_unicode_body_arrives_unchanged
    a_binary_body_arrives_unchanged
    a_large_body_arrives_unchanged
    hundreds_of_deliveries_at_once_arrive_once
    dropped_deliveries_leave_the_sink_usable
    a_stalled_delivery_times_out
    a_deadline_that_is_over_times_out
    an_outage_is_temporary_and_heals
    a_broken_connection_is_mended
    a_refusal_is_told
    throttling_is_told
    the_time_to_wait_is_passed_on
    the_sink_serves_its_dsn
    check_asks_nobody
    a_foreign_scheme_is_an_error
    an_unknown_parameter_is_named
    a_forbidden_dsn_is_refused
    a_forbidden_address_is_not_dialled
    close_is_idempotent
    after_close_nothing_is_delivered
    close_settles_what_is_in_flight
    no_secret_is_printed
    no_secret_is_logged
}
