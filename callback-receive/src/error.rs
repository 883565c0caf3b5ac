//! What can go wrong.

use callback_core::BoxError;
use std::{fmt, sync::Arc};

/// Why a receiver did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The message was accepted before: whatever belongs to it was done. A transaction that was to do it again is rolled back.
    #[error("the message was accepted before")]
    AlreadyAccepted,
    /// The receiver is closed.
    #[error("the receiver is closed")]
    Closed,
    /// The inbox failed. [`InboxError::is_unknown`] says whether it may have been stored all the same.
    #[error("the inbox failed")]
    Inbox(#[from] InboxError),
    /// No handle has such a name: it has 1 to 255 bytes and no control character.
    #[error("a name has 1 to 255 bytes and no control character")]
    Name,
    /// A callback of this name is held already.
    #[error("the callback {0} is held already")]
    NameTaken(String),
    /// There is no inbox: what has a name must be stored.
    #[error("there is no inbox, which what has a name is stored in")]
    NoInbox,
    /// The message is not stored in the database of the transaction: it came to a handle without a name, or into memory.
    #[error("the message is not stored in the transaction's database")]
    NotTransactional,
    /// Closed, with this many deliveries in hand that have no answer; they come again.
    #[error("{0} deliveries had no answer in time")]
    Unanswered(usize),
}

/// Why the inbox failed. Clones share their cause.
#[derive(Clone)]
pub struct InboxError {
    kind: Kind,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Locked,
    NotStored,
    Unknown,
}

impl InboxError {
    /// Whether another receiver has this inbox.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.kind == Kind::Locked
    }

    /// Whether it may have been stored all the same. If it was, it is not handed over again.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.kind == Kind::Unknown
    }

    pub(crate) fn not_stored(source: impl Into<BoxError>) -> Self {
        Self { kind: Kind::NotStored, source: source.into().into() }
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn locked(source: impl Into<BoxError>) -> Self {
        Self { kind: Kind::Locked, source: source.into().into() }
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn unknown(source: impl Into<BoxError>) -> Self {
        Self { kind: Kind::Unknown, source: source.into().into() }
    }
}

impl fmt::Display for InboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Locked => "another receiver has this inbox",
            Kind::NotStored => "the inbox did not do it",
            Kind::Unknown => "the inbox may or may not have done it",
        })
    }
}

impl fmt::Debug for InboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxError").field("kind", &self.kind).field("source", &self.source).finish()
    }
}

impl std::error::Error for InboxError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}
