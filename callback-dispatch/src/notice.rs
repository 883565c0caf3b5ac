//! What an operator is told without asking.

use callback_core::{Destination, Dsn, ErrorKind, TaskId};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// Something that an operator wants to know of: given to [`on_notice`](crate::DispatcherBuilder::on_notice), and logged
/// as a warning.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// A message was given up after its last attempt; it is a dead letter.
    #[non_exhaustive]
    Dead {
        /// The task, or the delivery of an event: the dead letter's id.
        id: TaskId,
        /// Where it could not be sent.
        destination: Destination,
        /// Why it was given up.
        kind: ErrorKind,
        /// The failed attempts of this delivery.
        attempts: u32,
    },
    /// A lane's breaker opened: it cannot be reached, and nothing is sent for a while.
    #[non_exhaustive]
    BreakerOpened {
        /// Which destination.
        destination: Destination,
        /// Whose lane.
        owner: Option<String>,
        /// For how long.
        pause: Duration,
    },
    /// A lane's breaker closed: it was reached.
    #[non_exhaustive]
    BreakerClosed {
        /// Which destination.
        destination: Destination,
        /// Whose lane.
        owner: Option<String>,
    },
    /// A destination said that a Dsn is no more; other messages on their way to it are given up unattempted.
    ///
    /// They are dead letters of the kind [`ErrorKind::Gone`], and have no notices of their own. What another process on the
    /// database has in hand is attempted there, and given up by the answer to it.
    #[non_exhaustive]
    Gone {
        /// The Dsn; it masks what is secret in it.
        dsn: Dsn,
    },
}

type Hook = dyn Fn(&Notice) + Send + Sync;

/// Who is told.
#[derive(Default)]
pub(crate) struct Notices(Vec<Box<Hook>>);

impl Notices {
    pub(crate) fn add(&mut self, hook: impl Fn(&Notice) + Send + Sync + 'static) {
        self.0.push(Box::new(hook));
    }

    pub(crate) fn raise(&self, notice: &Notice) {
        match notice {
            Notice::Dead { id, destination, kind, attempts } => {
                tracing::warn!(%id, %destination, %kind, attempts, "a message was given up");
            }
            Notice::BreakerOpened { destination, owner, pause } => {
                tracing::warn!(%destination, owner, pause_s = pause.as_secs(), "a breaker opened");
            }
            Notice::BreakerClosed { destination, owner } => {
                tracing::warn!(%destination, owner, "a breaker closed");
            }
            Notice::Gone { dsn } => {
                tracing::warn!(destination = %dsn.destination(), "a Dsn is gone: other messages to it are given up");
            }
        }
        for hook in &self.0 {
            if catch_unwind(AssertUnwindSafe(|| hook(notice))).is_err() {
                tracing::error!("who was told of a notice panicked");
            }
        }
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}
