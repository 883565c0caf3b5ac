//! What is attached stays so in the store, and what is not any more does not.

use super::{Engine, Left, Local, State};
use crate::{
    engine::chain,
    outbox::{AttachmentId, Keep, Keeping, Lease, Write, Written, write},
};
use callback_core::Dsn;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// How many attachments are stored in one write.
const BATCH: usize = 1_000;

/// The longest sleep, and that of a process whose lease may be over unnoticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
const LOOK_AT_LEASE: Duration = Duration::from_secs(1);

/// After how long a write is tried again that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be stored.
#[derive(Default)]
struct Round {
    held: Vec<(Dsn, AttachmentId, Duration)>,
    left: Vec<Left>,
}

impl Engine {
    /// Stores what is attached here at a third of the time that it is kept for, and what is let go of, until the dispatcher
    /// closes.
    pub(crate) async fn keep_attached_until_closed(self: Arc<Self>) {
        let mut lease = self.store.lease();
        loop {
            let wait = self.local.state().next;
            let wait = wait.map_or(LONGEST_SLEEP, |at| at.saturating_duration_since(Instant::now()).min(LOOK_AT_LEASE));
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                () = self.local.changed.notified() => {}
                () = sleep(wait) => {}
            }
            if !self.keep_attached(&mut lease).await && self.pause(AGAIN).await {
                return;
            }
        }
    }

    /// Whether all is stored that is to be.
    async fn keep_attached(self: &Arc<Self>, lease: &mut Lease) -> bool {
        let current = self.store.lease();
        let is_another = current != *lease;
        let begun = Instant::now();
        let round = self.local.state().round(begun, is_another);
        if !self.store_round(round, begun).await {
            return false;
        }
        if is_another {
            // Others thought this process dead, and may have put off what waits for it.
            for dsn in self.local.attached() {
                self.rouse(dsn);
            }
        }
        *lease = current;
        true
    }

    async fn store_round(self: &Arc<Self>, round: Round, begun: Instant) -> bool {
        let Round { held, mut left } = round;
        for part in held.chunks(BATCH) {
            let now = self.now();
            let keeping = part.iter().map(|(dsn, id, keep)| Keeping {
                dsn: dsn.clone(),
                id: *id,
                until: now.after(*keep),
                state: Keep::Held,
            });
            match self.store_keeping(keeping.collect()).await {
                Some(lost) => {
                    for dsn in self.local.refreshed(part, &lost, begun) {
                        // What was attempted here to no avail is not to wait there.
                        self.rouse(dsn);
                    }
                }
                None => {
                    let mut state = self.local.state();
                    state.next = Some(begun);
                    state.left.append(&mut left);
                    return false;
                }
            }
        }
        while !left.is_empty() {
            let rest = left.split_off(left.len().min(BATCH));
            let part = std::mem::replace(&mut left, rest);
            let now = self.now();
            let keeping = part.iter().map(|it| {
                let until = if it.state == Keep::Over { now } else { now.after(it.keep) };
                Keeping { dsn: it.dsn.clone(), id: it.id, until, state: it.state }
            });
            if self.store_keeping(keeping.collect()).await.is_none() {
                self.local.state().left.extend(part.into_iter().chain(left));
                return false;
            }
            for Left { dsn, state, stored, .. } in part {
                if state == Keep::Over {
                    self.rouse(dsn);
                }
                stored.map(|stored| stored.send(()));
            }
        }
        true
    }

    /// Those whose place another has taken; none if it could not be stored.
    async fn store_keeping(&self, keeping: Vec<Keeping>) -> Option<Vec<AttachmentId>> {
        match write(&*self.store, Write::KeepAttached(keeping)).await {
            Ok(Written::Replaced(lost)) => Some(lost),
            Ok(_) => Some(Vec::new()),
            Err(error) => {
                tracing::error!(error = %chain(&error), "what is attached could not be stored, trying again");
                None
            }
        }
    }

    /// Lets go of all that is attached, within this time.
    pub(crate) async fn leave_all(self: &Arc<Self>, limit: Duration) {
        let round = Round { held: Vec::new(), left: self.local.state().leave_all() };
        if !round.left.is_empty() {
            let _ = timeout(limit, self.store_round(round, Instant::now())).await;
        }
    }
}

impl Local {
    fn attached(&self) -> Vec<Dsn> {
        self.state().here.keys().cloned().collect()
    }

    /// Takes in what was stored; what is attached by others.
    fn refreshed(&self, stored: &[(Dsn, AttachmentId, Duration)], lost: &[AttachmentId], begun: Instant) -> Vec<Dsn> {
        let mut state = self.state();
        let mut left = Vec::new();
        for (dsn, id, keep) in stored {
            if lost.contains(id) {
                if let Some(here) = state.take(dsn, |here| here.id == *id) {
                    here.lost.cancel();
                    left.push(dsn.clone());
                }
            } else if let Some(here) = state.here.get_mut(dsn).filter(|here| here.id == *id) {
                here.refresh = begun + *keep / 3;
            }
        }
        left
    }
}

impl State {
    /// What is to be stored by now. What would be soon is, too, so that all go together after a while.
    fn round(&mut self, now: Instant, all: bool) -> Round {
        let left = std::mem::take(&mut self.left);
        if !all && self.next.is_none_or(|next| next > now) {
            return Round { held: Vec::new(), left };
        }
        let mut held = Vec::new();
        self.next = None;
        for (dsn, here) in &self.here {
            let is_due = all || here.refresh <= now + here.keep / 12;
            if is_due {
                held.push((dsn.clone(), here.id, here.keep));
            }
            let next = if is_due { now + here.keep / 3 } else { here.refresh };
            self.next = self.next.into_iter().chain([next]).min();
        }
        Round { held, left }
    }

    fn leave_all(&mut self) -> Vec<Left> {
        let mut left = std::mem::take(&mut self.left);
        left.extend(self.here.drain().map(|(dsn, here)| {
            here.lost.cancel();
            Left { dsn, id: here.id, keep: here.keep, state: Keep::Away, stored: None }
        }));
        left
    }
}
