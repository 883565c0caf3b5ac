#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(any(feature = "sqlite", feature = "postgres")),
    expect(dead_code, reason = "only a database keeps rows as text and numbers")
)]

mod dispatcher;
mod worker;

mod attach;
mod event;
mod outcome;
mod profile;
mod subscription;
mod task;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod transaction;
mod validator;
mod work;

mod dead_letter;
mod health;
mod lane;
mod notice;

mod clock;
mod error;

mod engine;
mod failpoint;
mod measure;
mod outbox;
mod row;
mod seal;
mod state;

pub use attach::{Attach, Attachment};
pub use clock::{Clock, SystemClock, TokioClock};
pub use dead_letter::{Cursor, DeadLetter, DeadLetterQuery, DeadLetters, FailedAttempt, Page};
pub use dispatcher::{Dispatcher, DispatcherBuilder};
pub use error::{AcceptError, AttachError, ChangeError, EndError, StartError, WorkerError};
pub use event::Event;
pub use health::{Health, Refusal};
pub use lane::Lane;
pub use notice::Notice;
#[cfg(feature = "sqlite")]
pub use outbox::SqliteOutbox;
pub use outbox::{MemoryOutbox, Outbox, OutboxError};
#[cfg(feature = "postgres")]
pub use outbox::{PostgresOutbox, PostgresOutboxBuilder};
pub use outcome::{Failure, Outcome};
pub use profile::{Bare, CloudEvents, Hal, Os1, Profile, Recipient};
#[cfg(feature = "seal")]
pub use seal::{SealKeyError, SealKeys};
pub use subscription::{
    NewSubscription, Subscription, SubscriptionChange, SubscriptionEnd, SubscriptionId, SubscriptionQuery,
    SubscriptionState, Subscriptions,
};
pub use task::{Task, TaskState};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use transaction::Transaction;
pub use validator::{Submission, Validator, Violation, Violations};
pub use work::Work;
pub use worker::{Handler, Interrupted, Worker, WorkerBuilder};
