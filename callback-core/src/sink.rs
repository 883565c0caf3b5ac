//! The seam between the engine and a transport.

use crate::{Attempt, Dsn, DsnError, Message, Receipt, SinkError};
use async_trait::async_trait;
use std::{fmt, sync::Arc};

/// Delivers messages to the destinations of its schemes.
///
/// A sink is shared: the engine holds one value and calls it from many tasks. The crate's first page has a whole one.
///
/// # Acceptance
/// [`deliver`](Self::deliver) resolves `Ok` once the *destination* has accepted the message, and gives the evidence.
/// Bytes that were written to a socket or queued in this process are none. Once it resolved `Ok`, the sink holds
/// nothing of the message any more.
///
/// # Policy
/// A sink that dials what a Dsn names owns a [`Policy`](crate::Policy). It asks it in [`check`](Self::check), and
/// again at connect, on the very address that it dials. Its default is [`Policy::default`](crate::Policy::default).
///
/// # Concurrency
/// Many `deliver` calls run at once, also to one Dsn. There is no batch method: a sink that batches does so across
/// concurrent calls.
///
/// # Cancellation
/// A `deliver` future may be dropped at any point. Whether the message was delivered is then unknown, and the sink
/// stays usable.
///
/// # Deadline
/// `deliver` is over by [`Attempt::deadline`], whatever the far end does: connecting, the handshake, and a slow
/// answer included. A deadline that passed is [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut).
///
/// # Signature
/// The engine has signed: a sink copies [`Attempt::signature`], it holds no key.
///
/// # Retry
/// A sink does not repeat a delivery; the engine does. A sink does reconnect.
///
/// # Close
/// After [`close`](Self::close) began, `deliver` fails as [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable).
///
/// # Secrets
/// No password, query value, header value or body of a message reaches `Debug`, an error, a log or a span.
#[async_trait]
pub trait Sink: fmt::Debug + Send + Sync + 'static {
    /// The schemes that this sink serves, lower case.
    fn schemes(&self) -> &[&str];

    /// Judges a Dsn before it is acknowledged. Does no I/O.
    ///
    /// # Errors
    /// When this sink could never deliver to the Dsn, or its policy forbids it. The reason is shown to the client
    /// that named the Dsn.
    fn check(&self, dsn: &Dsn) -> Result<(), DsnError>;

    /// Delivers one message; resolves once the destination has accepted it.
    ///
    /// # Errors
    /// The [kind](SinkError::kind) decides whether, and when, the engine tries again.
    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError>;

    /// Refuses new work, settles what is in flight, closes connections. Idempotent.
    ///
    /// # Errors
    /// Says what could not be settled.
    async fn close(&self) -> Result<(), SinkError>;
}

const _: fn(&dyn Sink) = |_| {};

macro_rules! forward {
    ($($pointer:ident)*) => { $(
        #[async_trait]
        impl<S: Sink + ?Sized> Sink for $pointer<S> {
            fn schemes(&self) -> &[&str] {
                (**self).schemes()
            }

            fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
                (**self).check(dsn)
            }

            async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
                (**self).deliver(dsn, message, attempt).await
            }

            async fn close(&self) -> Result<(), SinkError> {
                (**self).close().await
            }
        }
    )* };
}

forward!(Arc Box);
