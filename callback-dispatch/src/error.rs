//! Why the dispatcher did not do what it was asked.

use crate::{OutboxError, Violations};
use callback_core::{DsnError, MessageError};
use std::time::Duration;

/// Why work or an event was not accepted. Nothing was stored, but where [`Outbox`](Self::Outbox) says that it is unknown.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The dispatcher is closing.
    #[error("the dispatcher is closed")]
    Closed,
    /// Another request was accepted under this idempotency key.
    #[error("another request was accepted under this idempotency key")]
    Conflict,
    /// The task that was to publish is over.
    #[error("the task is over")]
    Ended,
    /// A value that was kept beside the request ([`Work::extension`](crate::Work::extension)) is nested too deeply.
    #[error("an extension is nested too deeply")]
    Extension,
    /// The Dsn cannot be used.
    #[error(transparent)]
    Dsn(#[from] DsnError),
    /// Something in it is wrong; every violation is named.
    #[error("{0}")]
    Invalid(Violations),
    /// An attribute or header that no message can carry.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// No subscription can have this owner: 1 to 255 bytes, and no control character.
    #[error("an owner has 1 to 255 bytes and no control character")]
    Owner,
    /// No profile of this name is registered.
    #[error("no profile named {0} is registered")]
    Profile(String),
    /// The transaction is not one of the outbox's database.
    #[error("the transaction is of {transaction}, the outbox is in {outbox}")]
    OtherDatabase {
        /// Where the transaction is.
        transaction: &'static str,
        /// Where the outbox is.
        outbox: &'static str,
    },
    /// The outbox failed. [`OutboxError::is_unknown`] says whether it may have been stored all the same.
    #[error("the outbox failed")]
    Outbox(#[source] OutboxError),
    /// Too much is waiting to be stored.
    #[error("overloaded, try again in {} s", .retry_after.as_secs())]
    Overloaded {
        /// When to try again.
        retry_after: Duration,
    },
    /// The body is larger than the limit.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The owner has as many subscriptions as it may have.
    #[error("the owner has {limit} subscriptions, and may have no more")]
    TooMany {
        /// The limit ([`subscription_limit`](crate::DispatcherBuilder::subscription_limit)).
        limit: usize,
    },
}

/// Why a Dsn was not attached.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The dispatcher is closing.
    #[error("the dispatcher is closed")]
    Closed,
    /// The Dsn cannot be used.
    #[error(transparent)]
    Dsn(#[from] DsnError),
    /// No [local sink](crate::DispatcherBuilder::local_sink) serves its scheme.
    #[error("no local sink serves the scheme {0}")]
    NotLocal(String),
    /// The outbox failed.
    #[error("the outbox failed")]
    Outbox(#[source] OutboxError),
    /// It is not kept, its time is over, or another secret was presented.
    #[error("there is no such attachment")]
    Unknown,
}

/// Why a dispatcher did not start.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Two ask the destinations of one scheme for their consent.
    #[error("two ask for consent by the scheme {0}")]
    ConsentTaken(String),
    /// Another dispatcher has the outbox. That of a file is waited for: for a second, in which one that was dropped lets go.
    #[error("another dispatcher has this outbox")]
    Locked(#[source] OutboxError),
    /// The outbox failed.
    #[error("the outbox failed")]
    Outbox(#[source] OutboxError),
    /// Two profiles have one name.
    #[error("two profiles are named {0}")]
    ProfileTaken(String),
    /// Two sinks serve one scheme.
    #[error("two sinks serve the scheme {0}")]
    SchemeTaken(String),
    /// The source is no URI-reference of 1 to 255 printable ASCII characters.
    #[error("the source cannot be used")]
    Source(#[source] MessageError),
}

/// Why a worker was not registered.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The dispatcher is closing.
    #[error("the dispatcher is closed")]
    Closed,
    /// A worker of this name is registered already.
    #[error("a worker named {0} is registered already")]
    NameTaken(String),
}

/// Why a subscription was not changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// It has ended.
    #[error("the subscription has ended")]
    Ended,
    /// Something in the change is wrong; every violation is named.
    #[error("{0}")]
    Invalid(Violations),
    /// The outbox failed.
    #[error("the outbox failed")]
    Outbox(#[from] OutboxError),
    /// There is no such subscription.
    #[error("there is no such subscription")]
    Unknown,
}

/// Why a task was not cancelled, or not completed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndError {
    /// It is over: the first end that is stored wins.
    #[error("the task is over")]
    Ended,
    /// The result cannot be sent.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The outbox failed.
    #[error("the outbox failed")]
    Outbox(#[from] OutboxError),
    /// The result is larger than the limit.
    #[error("the result is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// There is no such task.
    #[error("there is no such task")]
    Unknown,
}
