//! Where a transport offers what comes in.

use crate::{
    HandleId, InboxError, Incoming, ReceiveError, Verdict,
    inbox::{Micros, Write, Written},
    listener::Signed,
    memory::Key,
    named::{Judge, Named},
    receiver::Shared,
    registry::Handle,
    slot::Offered,
    sync::lock,
};
use callback_core::{Verifier, VerifyError};
use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::yield_now,
    time::{Instant, timeout},
};

/// Where a [`Listener`](crate::Listener) offers each message. Cheap to clone.
///
/// It keeps no receiver alive: once that is gone, every offer is answered with [`Verdict::RetryLater`].
#[derive(Clone, Debug)]
pub struct Intake {
    shared: Weak<Shared>,
    body_limit: usize,
}

/// What a handle is to this receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It takes messages.
    Open,
    /// This receiver made it, and nobody waits for it any more.
    Ended,
    /// This receiver did not make it.
    Unknown,
}

impl Intake {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::downgrade(shared), body_limit: shared.settings.body_limit }
    }

    /// Offers a message to a handle; resolves with what its sender is to be told, within `answer_within`.
    ///
    /// # Cancellation
    /// Dropped, the message may have been taken all the same: it is known when it comes again, or joins the one that waits.
    pub async fn offer(&self, handle: &HandleId, incoming: Incoming) -> Verdict {
        let Some(shared) = self.shared.upgrade() else { return Verdict::RetryLater(None) };
        let verdict = shared.offer(handle, incoming).await;
        count(&verdict);
        verdict
    }

    /// What a handle is to this receiver, for a handshake.
    ///
    /// Once the receiver is gone nobody can tell: then it is [`Standing::Open`], and an offer is told to come again.
    #[must_use]
    pub fn standing(&self, handle: &HandleId) -> Standing {
        let Some(shared) = self.shared.upgrade() else { return Standing::Open };
        match shared.registry.find(handle) {
            Some(Handle::Spawned(slot)) if slot.is_ended() => Standing::Ended,
            Some(_) => Standing::Open,
            None if shared.minter.made(handle) => Standing::Ended,
            None => Standing::Unknown,
        }
    }

    /// How many bytes a body may have, whether or not the receiver is still there.
    #[must_use]
    pub const fn body_limit(&self) -> usize {
        self.body_limit
    }

    /// The offset behind which each log is to be read on, as of the start: the last one that the inbox has stored.
    #[must_use]
    pub fn positions(&self) -> Vec<(String, i64)> {
        self.shared.upgrade().map_or_else(Vec::new, |shared| shared.positions.clone())
    }

    /// Stores how far logs were passed, where no message is to be stored with it; a lower offset than the one known is not.
    ///
    /// # Errors
    /// When there is no inbox, it fails, or the receiver is closed.
    ///
    /// # Cancellation
    /// Dropped, the positions may be stored all the same.
    pub async fn pass(&self, positions: Vec<(String, i64)>) -> Result<(), ReceiveError> {
        let shared = self.shared.upgrade().ok_or(ReceiveError::Closed)?;
        shared.write_then(Write::Pass { positions }, drop).await
    }
}

impl Shared {
    async fn offer(&self, handle: &HandleId, incoming: Incoming) -> Verdict {
        if incoming.message.body().len() > self.settings.body_limit {
            return Verdict::TooLarge;
        }
        if self.is_closing() {
            return Verdict::RetryLater(None);
        }
        match self.registry.find(handle) {
            Some(Handle::Spawned(slot)) => {
                if !self.is_genuine(handle, slot.verifier().or_else(|| self.verifier.clone()).as_ref(), &incoming) {
                    return Verdict::Unverified;
                }
                let (room, now) = (self.settings.queue, Instant::now());
                match slot.offer(incoming.into_message(), &self.memory, room, now) {
                    Offered::Verdict(verdict) => verdict,
                    Offered::Waiting(verdict) => in_time(verdict, self.settings.answer_within).await,
                }
            }
            Some(Handle::Named(named)) => {
                let verifier = match named.judge() {
                    Judge::Own(verifier) => Some(verifier),
                    Judge::Receiver => self.verifier.clone(),
                    Judge::Missing => {
                        tracing::warn!(?handle, "a message came before the key of its handle was given");
                        return Verdict::RetryLater(None);
                    }
                };
                if !self.is_genuine(handle, verifier.as_ref(), &incoming) {
                    return Verdict::Unverified;
                }
                self.store(named, incoming).await
            }
            None => self.offer_to_nobody(handle, &incoming).await,
        }
    }

    /// A handle that is not there may have taken the message before it ended.
    async fn offer_to_nobody(&self, handle: &HandleId, incoming: &Incoming) -> Verdict {
        if !self.minter.made(handle) {
            return Verdict::Unknown;
        }
        // Known or not comes first: what the handle took may be signed by a key of its own, which nobody has any more.
        let id = incoming.message.id();
        if lock(&self.memory).knows(&Key::of(handle, id), Instant::now()) {
            return Verdict::Duplicate;
        }
        let is_known = match &self.inbox {
            None => Ok(false),
            Some(inbox) => inbox.knows(handle, id.as_str()).await,
        };
        match is_known {
            Ok(true) => Verdict::Duplicate,
            Ok(false) if self.is_genuine(handle, self.verifier.as_ref(), incoming) => Verdict::Ended,
            Ok(false) => Verdict::Unverified,
            Err(error) => not_now(&error),
        }
    }

    /// Stores the message; what happens in memory happens in the order of the store, whether or not the sender waits.
    async fn store(&self, named: Arc<Named>, incoming: Incoming) -> Verdict {
        let Some(inbox) = &self.inbox else { return Verdict::RetryLater(None) };
        if !named.reserve(self.settings.backlog) {
            return Verdict::RetryLater(None);
        }
        let (answer, verdict) = oneshot::channel();
        let Incoming { message, position, .. } = incoming;
        let (handle, now) = (named.handle, Micros::now());
        let write = Write::Store { handle, message: message.clone(), position, now };
        let place = Arc::clone(&named);
        let done = Box::new(move |written: Result<Written, InboxError>| {
            let verdict = match written {
                Ok(Written::Stored(seq)) => {
                    place.stored(seq, message);
                    Verdict::Accepted
                }
                Ok(Written::Duplicate) => {
                    place.release();
                    Verdict::Duplicate
                }
                Ok(_) => {
                    place.release();
                    Verdict::Ended
                }
                Err(error) => {
                    if error.is_unknown() {
                        // Counted as waiting: it may.
                        place.doubt();
                    } else {
                        place.release();
                    }
                    not_now(&error)
                }
            };
            let _ = answer.send(verdict);
        });
        if let Err(error) = inbox.submit(write, done) {
            named.release();
            return not_now(&error);
        }
        in_time(verdict, self.settings.answer_within).await
    }

    /// Judges a signature, where there is a key. Why it does not count is logged, and not told to the sender.
    fn is_genuine(&self, handle: &HandleId, verifier: Option<&Verifier>, incoming: &Incoming) -> bool {
        let Some(verifier) = verifier else { return true };
        let unsigned = Signed::default();
        let Signed { timestamp, signature, content } = incoming.signed.as_deref().unwrap_or(&unsigned);
        let content = content.as_ref().unwrap_or_else(|| incoming.message.body());
        let (id, body) = (incoming.message.id().as_str(), &content[..]);
        let verified = if incoming.is_stored {
            verifier.verify_stored_headers(id, timestamp, signature, body)
        } else {
            verifier.verify_headers(id, timestamp, signature, body, SystemTime::now())
        };
        let Err(error) = verified else { return true };
        let is_theirs = || verifier.verify_stored_headers(id, timestamp, signature, body).is_ok();
        if error == VerifyError::Stale && is_theirs() {
            let signed_at: i64 = timestamp.parse().unwrap_or(0);
            let seconds = (Micros::now().0 / 1_000_000).saturating_sub(signed_at);
            tracing::warn!(
                ?handle,
                id,
                seconds,
                "the signature is right, its time is not: a clock is wrong, or it is replayed"
            );
        } else {
            tracing::warn!(?handle, id, %error, "the signature is wrong: it may be forged");
        }
        false
    }
}

/// The verdict, if it is there in time and comes at all.
async fn in_time(mut verdict: oneshot::Receiver<Verdict>, limit: Duration) -> Verdict {
    // Most are there once the others had their turn, and need no timer.
    yield_now().await;
    match verdict.try_recv() {
        Ok(verdict) => verdict,
        // It must not be polled again.
        Err(TryRecvError::Closed) => Verdict::RetryLater(None),
        Err(TryRecvError::Empty) => match timeout(limit, verdict).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) | Err(_) => Verdict::RetryLater(None),
        },
    }
}

/// Counts a verdict; written out, so that no label is made each time.
fn count(verdict: &Verdict) {
    macro_rules! count {
        ($verdict:literal) => {
            metrics::counter!("callback_offered_total", "verdict" => $verdict).increment(1)
        };
    }
    match verdict {
        Verdict::Accepted => count!("accepted"),
        Verdict::Duplicate => count!("duplicate"),
        Verdict::Ended => count!("ended"),
        Verdict::Refused(_) => count!("refused"),
        Verdict::RetryLater(_) => count!("retry_later"),
        Verdict::TooLarge => count!("too_large"),
        Verdict::Unknown => count!("unknown"),
        Verdict::Unverified => count!("unverified"),
    }
}

fn not_now(error: &InboxError) -> Verdict {
    tracing::error!(error = error as &dyn std::error::Error, "the inbox failed");
    Verdict::RetryLater(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_verdict_comes_in_time_or_the_sender_is_told_to_come_again() {
        let later = Verdict::RetryLater(None);
        let (sender, verdict) = oneshot::channel();
        sender.send(Verdict::Accepted).expect("it is awaited");
        assert_eq!(in_time(verdict, LIMIT).await, Verdict::Accepted);
        let (sender, verdict) = oneshot::channel();
        drop(sender);
        assert_eq!(in_time(verdict, LIMIT).await, later, "whoever would say it is gone");
        let (sender, verdict) = oneshot::channel();
        let answered = tokio::spawn(in_time(verdict, LIMIT));
        tokio::time::sleep(LIMIT / 2).await;
        drop(sender);
        assert_eq!(answered.await.expect("no panic"), later, "he has gone meanwhile");
        let (_sender, verdict) = oneshot::channel();
        assert_eq!(in_time(verdict, LIMIT).await, later, "he says nothing");
    }
}
