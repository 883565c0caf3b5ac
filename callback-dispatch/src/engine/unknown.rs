//! Writes of unknown outcome: what became of them is asked, until it is known.

use super::{Engine, FIRST_WAIT, LONGEST_WAIT, Place};
use crate::{
    AcceptError, OutboxError, measure,
    outbox::{Lease, Settle, Write, Written},
    row::{Row, Stage},
    subscription::FanOut,
};
use callback_core::TaskId;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

/// How long a caller waits until it is known what became of its row.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

impl Engine {
    /// Asks for what became of a new row, and answers its caller within five seconds: what is not known by then goes on.
    pub(super) async fn ask(
        self: Arc<Self>,
        (row, place, lease): (Arc<Row>, Option<Place>, Lease),
        error: OutboxError,
        caller: oneshot::Sender<Result<TaskId, AcceptError>>,
    ) {
        answer(self.make_known(&row, place, lease), row.id, error, caller).await;
    }

    /// The same for an event that goes to all who want it.
    pub(super) async fn ask_event(
        self: Arc<Self>,
        event: Arc<FanOut>,
        error: OutboxError,
        caller: oneshot::Sender<Result<(), AcceptError>>,
    ) {
        let known = async {
            let is_stored = self.until_known(Write::ConfirmEvent(Arc::clone(&event))).await?.is_done();
            if is_stored {
                // How many want it, the outbox knows.
                self.published(&event, 1);
            }
            Some(is_stored)
        };
        answer(known, (), error, caller).await;
    }

    /// Whether a new row is stored, which is handed over then, or never will be; none if the dispatcher closed before.
    async fn make_known(self: &Arc<Self>, row: &Arc<Row>, place: Option<Place>, lease: Lease) -> Option<bool> {
        match self.until_known(Write::Confirm { id: row.id }).await? {
            Written::Done => {}
            _ => return Some(false),
        }
        measure::accepted(row);
        self.expiring.expect(row.expires);
        // Others know of it by now: it may have been taken, or ended.
        let found = self.find_until_read(row.id).await?;
        let is_untouched = |found: &Row| found.held && found.token == row.token && found.stage == row.stage;
        let place = place.filter(|_| found.as_ref().is_some_and(is_untouched));
        self.hand_over(Arc::clone(row), place, lease);
        Some(true)
    }

    /// Gives back what a claim took, if it was stored: nobody has it in hand.
    pub(super) async fn give_back(self: Arc<Self>, claim: u32) {
        if self.until_known(Write::GiveBack { claim }).await.is_some() {
            self.look_again();
        }
    }

    /// Stores a write that settles what became of another; none if the dispatcher closed before.
    async fn until_known(&self, settles: Write) -> Option<Written> {
        let mut wait = FIRST_WAIT;
        loop {
            match self.write_until_stored(settles.clone()).await? {
                Written::NotYet => {}
                written => return Some(written),
            }
            tokio::select! {
                () = self.closed.cancelled() => return None,
                () = sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
            }
        }
    }

    /// What became of a step that found its row elsewhere, after a try of unknown outcome: it may have found its own.
    pub(super) async fn judge(&self, step: &Write, written: Written) -> Option<Written> {
        let (id, token, to) = match step {
            Write::Settle(Settle { id, token, to, .. }) | Write::Result { id, token, to, .. } => (id, *token, *to),
            Write::Defer { id, token, .. } => (id, *token, Stage::Deferred),
            _ => return Some(written),
        };
        let found = self.find_until_read(*id).await?;
        if found.is_some_and(|found| found.token == token && found.stage == to) {
            return Some(Written::Done);
        }
        // Its own it may be all the same, and somebody else have gone on from there.
        self.look_again();
        self.expiring.look_again();
        Some(Written::Superseded)
    }
}

/// Tells a caller within five seconds what became of what it stored; what is not known by then goes on.
async fn answer<T>(
    known: impl Future<Output = Option<bool>>,
    stored: T,
    error: OutboxError,
    caller: oneshot::Sender<Result<T, AcceptError>>,
) {
    let mut known = pin!(known);
    let answer = match timeout(ANSWER_WITHIN, &mut known).await {
        Ok(Some(true)) => Ok(stored),
        Ok(Some(false)) => Err(AcceptError::Outbox(OutboxError::not_stored(error))),
        Ok(None) => Err(AcceptError::Outbox(error)),
        Err(_elapsed) => {
            let _ = caller.send(Err(AcceptError::Outbox(error)));
            known.await;
            return;
        }
    };
    let _ = caller.send(answer);
}

#[cfg(test)]
mod tests;
