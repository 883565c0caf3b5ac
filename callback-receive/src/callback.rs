//! One handle: where callbacks come to.

use crate::{Delivery, InboxError, ReceiveError, inbox::Micros, named::Named, receiver::Shared, slot::Slot};
use callback_core::{Dsn, Verifier};
use futures_core::Stream;
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

/// A handle: its [`url`](Self::url) is given to somebody, and what he sends there comes out of [`next`](Self::next).
///
/// It is a [`Stream`] of any number of deliveries. Dropping a spawned one ends it: whoever sends there is told that it is
/// gone. Dropping a named one detaches it: what comes in is stored for whoever [expects](crate::Receiver::expect) it next;
/// [`finish`](Self::finish) ends it.
#[must_use = "a handle ends when it is dropped"]
pub struct Callback {
    place: Place,
    shared: Arc<Shared>,
    is_resumed: bool,
}

enum Place {
    Spawned(Arc<Slot>),
    Named(Arc<Named>),
}

impl Callback {
    pub(crate) fn spawned(slot: Arc<Slot>, shared: Arc<Shared>) -> Self {
        Self { place: Place::Spawned(slot), shared, is_resumed: false }
    }

    /// Of a handle that was attached for it.
    pub(crate) fn named(named: Arc<Named>, shared: Arc<Shared>, is_resumed: bool) -> Self {
        Self { place: Place::Named(named), shared, is_resumed }
    }

    /// The Dsn: what is put into `$rpc.callback`. Whoever knows it may send.
    #[must_use]
    pub fn dsn(&self) -> Dsn {
        let handle = match &self.place {
            Place::Spawned(slot) => &slot.handle,
            Place::Named(named) => &named.handle,
        };
        self.shared.listener.dsn(handle)
    }

    /// The Dsn in full, as a partner is given it.
    #[must_use]
    pub fn url(&self) -> String {
        self.dsn().expose().to_owned()
    }

    /// The name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.place {
            Place::Spawned(_) => None,
            Place::Named(named) => Some(&named.name),
        }
    }

    /// Whether the handle was there before: its Dsn may have been given away already, and something may be on its way.
    ///
    /// A process that dies between `expect` and telling the Dsn finds this `true` as well: what is asked for under the Dsn
    /// is best asked for in a way that may be repeated.
    #[must_use]
    pub const fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Sets the keys that messages to this handle must be signed by, instead of the receiver's.
    ///
    /// To be called before the Dsn is told to anybody. Keys are not stored: after a restart a named handle that had some is
    /// answered with `RetryLater` until it is given them again, here or by [`Expect::verifier`](crate::Expect::verifier).
    pub fn verifier(self, verifier: Verifier) -> Self {
        match &self.place {
            Place::Spawned(slot) => slot.set_verifier(verifier),
            Place::Named(named) => {
                named.set_verifier(verifier);
                self.change(named);
            }
        }
        self
    }

    /// Ends the handle after this time, from now on: `next()` gives `None`, senders are told that it is gone.
    ///
    /// What then waits for a named one becomes dead letters. Default: never.
    pub fn expires_in(self, time: Duration) -> Self {
        match &self.place {
            Place::Spawned(slot) => {
                let (shared, handle) = (Arc::downgrade(&self.shared), Arc::downgrade(slot));
                let expiry = self.shared.runtime.spawn(async move {
                    tokio::time::sleep(time).await;
                    if let (Some(shared), Some(slot)) = (shared.upgrade(), handle.upgrade()) {
                        shared.end_spawned(&slot);
                    }
                });
                slot.set_expiry(expiry.abort_handle());
            }
            Place::Named(named) => {
                let expires = Micros::now().after(time);
                self.shared.expire_at(named, expires);
                self.change(named);
            }
        }
        self
    }

    /// Stores what was said of a named handle after it was made, in the order in which it is said.
    fn change(&self, named: &Named) {
        let failed = |error: ReceiveError| {
            tracing::error!(error = &error as &dyn std::error::Error, "a change of a handle is not stored");
        };
        let done = move |written: Result<_, InboxError>| {
            if let Err(error) = written {
                failed(error.into());
            }
        };
        let inbox = self.shared.inbox();
        let queued = inbox.and_then(|inbox| Ok(inbox.submit(named.change(), Box::new(done))?));
        if let Err(error) = queued {
            failed(error);
        }
    }

    /// Waits for the next delivery; `None` once the handle has ended or the receiver is closed.
    ///
    /// # Cancellation
    /// Dropped before it resolves, it has taken nothing.
    pub async fn next(&mut self) -> Option<Delivery> {
        poll_fn(|context| self.poll_delivery(context)).await
    }

    /// Ends the handle: nothing more is taken for it, and its name is free. What waits unanswered in an inbox becomes dead
    /// letters.
    ///
    /// # Errors
    /// When the inbox fails: then the handle is still there, detached.
    ///
    /// # Cancellation
    /// Once polled it goes on without its caller.
    pub async fn finish(self) -> Result<(), ReceiveError> {
        match &self.place {
            Place::Spawned(_) => Ok(()),
            Place::Named(named) => self.shared.end_named(named, "finished").await,
        }
    }

    fn poll_delivery(&self, context: &Context<'_>) -> Poll<Option<Delivery>> {
        match &self.place {
            Place::Spawned(slot) => {
                let taken = ready!(slot.poll_take(context));
                Poll::Ready(taken.map(|(number, message)| {
                    Delivery::direct(message, Arc::clone(slot), number, Arc::clone(&self.shared))
                }))
            }
            Place::Named(named) => {
                let (taken, filling) = named.poll_take(context);
                if let Some(filling) = filling {
                    self.shared.fill(named, filling);
                }
                Poll::Ready(
                    ready!(taken).map(|(seq, message)| {
                        Delivery::stored(message, Arc::clone(named), seq, Arc::clone(&self.shared))
                    }),
                )
            }
        }
    }
}

impl Stream for Callback {
    type Item = Delivery;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.poll_delivery(context)
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        match &self.place {
            Place::Spawned(slot) => self.shared.end_spawned(slot),
            Place::Named(named) => named.detach(),
        }
    }
}

/// The name; not the Dsn, which is as good as a key.
impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handle = match &self.place {
            Place::Spawned(slot) => &slot.handle,
            Place::Named(named) => &named.handle,
        };
        f.debug_struct("Callback").field("handle", handle).field("name", &self.name()).finish_non_exhaustive()
    }
}
