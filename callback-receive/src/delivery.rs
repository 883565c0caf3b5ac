//! One callback, as it is handed over.

use crate::{
    InboxError, ReceiveError, Transaction, Verdict,
    inbox::{Micros, Write, Written},
    named::Named,
    receiver::{InHandGuard, Shared},
    slot::Slot,
};
use callback_core::{Message, Problem, RpcOutcome};
use serde::de::DeserializeOwned;
use std::{fmt, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// A message that wants a verdict: [`accept`](Self::accept), [`refuse`](Self::refuse) or [`retry_later`](Self::retry_later).
///
/// Dropped unanswered it comes again: from its sender, who is told to come later, or from the inbox, at once the first time
/// and then after a wait that grows from 100 ms to 60 s.
#[must_use = "dropped unanswered it comes again"]
pub struct Delivery(Held);

impl Delivery {
    pub(crate) fn direct(message: Message, slot: Arc<Slot>, number: u64, shared: Arc<Shared>) -> Self {
        Self(Held::new(message, Place::Direct(slot, number), shared))
    }

    pub(crate) fn stored(message: Message, named: Arc<Named>, seq: i64, shared: Arc<Shared>) -> Self {
        Self(Held::new(message, Place::Stored(named, seq), shared))
    }

    /// The message.
    #[must_use]
    pub const fn message(&self) -> &Message {
        &self.0.message
    }

    /// Whether its sender still waits for the verdict; what was stored first has nobody who does.
    #[must_use]
    pub fn sender_waits(&self) -> bool {
        match &self.0.place {
            Place::Direct(slot, number) => slot.is_awaited(*number),
            Place::Stored(..) => false,
        }
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    /// When it is no JSON of this shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        self.0.message.json()
    }

    /// Reads the body as a JSON-RPC response: `delivery.rpc::<Order>()??` is its result.
    ///
    /// # Errors
    /// When it is no JSON-RPC response, or the result is not of this shape.
    pub fn rpc<T: DeserializeOwned>(&self) -> Result<RpcOutcome<T>, serde_json::Error> {
        self.0.message.rpc()
    }

    /// Takes the message: it is not handed over again.
    ///
    /// Of a spawned handle this answers the sender, and cannot fail; a sender who is gone and comes again is told the same.
    /// Of a named one it resolves once that is stored.
    ///
    /// # Errors
    /// When the inbox fails: then it comes again, unless [`InboxError::is_unknown`](crate::InboxError::is_unknown).
    /// [`ReceiveError::AlreadyAccepted`] if a transaction in which it was accepted was committed meanwhile.
    ///
    /// # Cancellation
    /// Once polled it goes on without its caller.
    pub async fn accept(self) -> Result<Message, ReceiveError> {
        let message = self.0.message.clone();
        let accept = |seq| Write::Accept { seq, now: Micros::now() };
        self.0.answer(&Verdict::Accepted, accept).await.map(|()| message)
    }

    /// Takes the message in a transaction of the inbox's database: it is accepted if that commits, so that its effect, in
    /// the same transaction, happens once.
    ///
    /// If the transaction is rolled back the message comes again, a moment after. Whoever has it handed over meanwhile, or
    /// after a crash, gets [`ReceiveError::AlreadyAccepted`] if it was committed, and rolls his own back. It is best begun
    /// with `BEGIN IMMEDIATE`, and short: while it is open nothing is stored in the inbox.
    ///
    /// # Errors
    /// [`ReceiveError::AlreadyAccepted`]; [`ReceiveError::NotTransactional`] for a message of a spawned handle, a
    /// `MemoryInbox`, or a transaction in another database; or the inbox failed. The transaction is to be rolled back then.
    pub async fn accept_in(self, transaction: &mut impl Transaction) -> Result<Message, ReceiveError> {
        let held = self.0;
        let Place::Stored(named, seq) = &held.place else { return Err(ReceiveError::NotTransactional) };
        let inbox = held.shared.inbox()?;
        if !inbox.accept_in(transaction.connection(), &named.handle, *seq, Micros::now()).await? {
            held.settle(None);
            return Err(ReceiveError::AlreadyAccepted);
        }
        let message = held.message.clone();
        held.recheck();
        Ok(message)
    }

    /// Does not want the message.
    ///
    /// Of a spawned handle its sender is told the problem, and the id is not remembered. Of a named one it becomes a dead
    /// letter of the inbox: see [`DeadLetters`](crate::DeadLetters).
    ///
    /// # Errors
    /// As of [`accept`](Self::accept).
    ///
    /// # Cancellation
    /// Once polled it goes on without its caller.
    pub async fn refuse(self, problem: impl Into<Problem>) -> Result<(), ReceiveError> {
        let problem = problem.into();
        let reason = serde_json::to_string(&problem).unwrap_or_default();
        let refuse = |seq| Write::Refuse { seq, reason, now: Micros::now() };
        self.0.answer(&Verdict::Refused(problem), refuse).await
    }

    /// Wants the message later.
    ///
    /// Of a spawned handle its sender is told to come again after this time. Of a named one it is handed over again then,
    /// through restarts.
    ///
    /// # Errors
    /// As of [`accept`](Self::accept).
    ///
    /// # Cancellation
    /// Once polled it goes on without its caller.
    pub async fn retry_later(self, wait: Duration) -> Result<(), ReceiveError> {
        let later = |seq| Write::Later { seq, due: Micros::now().after(wait) };
        self.0.answer(&Verdict::RetryLater(Some(wait)), later).await
    }
}

/// The message, without its body.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("message", &self.0.message).finish_non_exhaustive()
    }
}

/// A message in hand; dropped unsettled, it comes again.
struct Held {
    message: Message,
    shared: Arc<Shared>,
    place: Place,
    is_settled: bool,
    guard: Option<InHandGuard>,
}

enum Place {
    Direct(Arc<Slot>, u64),
    Stored(Arc<Named>, i64),
}

impl Held {
    fn new(message: Message, place: Place, shared: Arc<Shared>) -> Self {
        let guard = Some(shared.in_hand.one());
        Self { message, shared, place, is_settled: false, guard }
    }

    /// Answers the sender, or stores the verdict; what memory knows follows what is stored.
    async fn answer(mut self, verdict: &Verdict, write: impl FnOnce(i64) -> Write) -> Result<(), ReceiveError> {
        let seq = match &self.place {
            Place::Stored(_, seq) => *seq,
            Place::Direct(slot, number) => {
                self.shared.settle_spawned(slot, *number, verdict);
                self.is_settled = true;
                return Ok(());
            }
        };
        let write = write(seq);
        let due = match &write {
            Write::Later { due, .. } => Some(*due),
            _ => None,
        };
        let inbox = Arc::clone(self.shared.inbox()?);
        let (sender, receiver) = oneshot::channel();
        let done = move |written: Result<Written, InboxError>| {
            let result = written.map(|written| matches!(written, Written::Changed(true)));
            match &result {
                Ok(is_changed) => self.settle(due.filter(|_| *is_changed)),
                Err(error) if error.is_unknown() => self.recheck(),
                Err(_) => drop(self),
            }
            // Whoever asked may have gone.
            let _ = sender.send(result);
        };
        inbox.submit(write, Box::new(done))?;
        match receiver.await.map_err(|_| ReceiveError::Closed)?? {
            true => Ok(()),
            false => Err(ReceiveError::AlreadyAccepted),
        }
    }

    /// A verdict is stored: the message is done with, or due later.
    fn settle(mut self, due: Option<Micros>) {
        self.is_settled = true;
        let Place::Stored(named, seq) = &self.place else { return };
        match due {
            None => named.settled(*seq),
            Some(due) => {
                named.postponed(*seq);
                self.shared.come_back(named, *seq, due.since(Micros::now()));
            }
        }
    }

    /// Nobody knows what is stored: it is looked for.
    fn recheck(mut self) {
        if let (Place::Stored(named, seq), Some(guard)) = (&self.place, self.guard.take()) {
            self.is_settled = true;
            self.shared.recheck(Arc::clone(named), *seq, self.message.clone(), guard);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        match &self.place {
            Place::Direct(slot, number) => {
                self.shared.settle_spawned(slot, *number, &Verdict::RetryLater(None));
            }
            Place::Stored(named, seq) => self.shared.dropped(named, *seq, self.message.clone()),
        }
    }
}
