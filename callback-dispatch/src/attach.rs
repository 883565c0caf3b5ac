//! Destinations that come to us: a local sink reaches them in the process that has them attached.

use crate::{engine::Local, outbox::AttachmentId};
use callback_core::Dsn;
use std::{fmt, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The shortest and the longest time that an attachment is kept while its client is away: a second, and a year.
const KEEP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(366 * 24 * 60 * 60));

/// For how long a destination is kept while its client is away, and by what it is known when it comes back.
///
/// ```
/// use callback_dispatch::Attach;
/// use std::time::Duration;
///
/// let attach = Attach::new(Duration::from_secs(600)).secret([7; 32]);
/// assert!(!format!("{attach:?}").contains('7'));
/// ```
#[derive(Clone, Copy)]
#[must_use]
pub struct Attach {
    pub(crate) keep: Duration,
    pub(crate) secret: Option<[u8; 32]>,
}

impl Attach {
    /// Keeps what waits for so long after the [`Attachment`] was dropped, or its process has died: at least a second, at
    /// most a year.
    ///
    /// Of a process that was killed, two thirds of it are left at least.
    pub const fn new(keep: Duration) -> Self {
        let keep = if keep.as_secs() < KEEP.0.as_secs() { KEEP.0 } else { keep };
        let keep = if keep.as_secs() >= KEEP.1.as_secs() { KEEP.1 } else { keep };
        Self { keep, secret: None }
    }

    /// Sets the digest of the secret that the client shows when it comes back (`Dispatcher::resume`). Default: none, and
    /// it cannot be resumed.
    ///
    /// It is stored as it is: a SHA-256 of 128 random bits or more, never the secret.
    pub const fn secret(mut self, digest: [u8; 32]) -> Self {
        self.secret = Some(digest);
        self
    }
}

impl fmt::Debug for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attach").field("keep", &self.keep).finish_non_exhaustive()
    }
}

/// While it lives, messages to its Dsn are attempted by this process: by [`Dispatcher::attach`](crate::Dispatcher::attach)
/// and [`Dispatcher::resume`](crate::Dispatcher::resume).
///
/// Dropped, the client is away: what is on its way to it waits, uses up no attempt, and holds nothing up. When the time for
/// which it is kept is over, it ends as [`Gone`](callback_core::ErrorKind::Gone). A later attachment of the same Dsn takes
/// the place of this one, which does nothing from then on.
#[must_use = "dropped, its client is away"]
pub struct Attachment {
    pub(crate) local: Arc<Local>,
    pub(crate) dsn: Dsn,
    pub(crate) id: AttachmentId,
    pub(crate) lost: CancellationToken,
}

impl Attachment {
    /// What is attached.
    #[must_use]
    pub const fn dsn(&self) -> &Dsn {
        &self.dsn
    }

    /// Ends it at once: what waits for its Dsn, and what comes later, is dead as [`Gone`](callback_core::ErrorKind::Gone)
    /// when its turn comes, and nobody can come back to it.
    ///
    /// Resolves when the end is stored, or the dispatcher has closed. One that was replaced ends nothing.
    ///
    /// # Cancellation
    /// It ends all the same.
    pub async fn end(self) {
        self.local.end(&self.dsn, self.id).await;
    }

    /// Resolves when it is not in force any more: another has taken its place, its Dsn is gone, or the dispatcher has closed
    /// its sinks.
    ///
    /// Of one that another process has made, this one hears within a third of the time for which it is kept; messages that it
    /// has in hand by then are attempted here. Cancel-safe.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.local.leave(&self.dsn, self.id);
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("dsn", &self.dsn).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_for_a_second_at_least_and_a_year_at_most() {
        for (asked, kept) in [(0, 1), (1, 1), (600, 600), (u64::MAX, 366 * 24 * 60 * 60)] {
            assert_eq!(Attach::new(Duration::from_secs(asked)).keep, Duration::from_secs(kept));
        }
    }
}
