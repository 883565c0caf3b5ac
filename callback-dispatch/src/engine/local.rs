//! Local sinks: their destinations come to a process, and are attempted where they are attached.

mod keep;
mod park;

pub(super) use park::is_unconnected;

use super::{Engine, Hand};
use crate::{
    Attach, AttachError, Attachment, OutboxError,
    outbox::{Attaching, AttachmentId, Keep, NotQueued, SecretDigest, Write, Written},
    row::Row,
};
use callback_core::Dsn;
use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How many rows become due in one transaction.
const AT_ONCE: usize = 1_000;

/// What is attached here, and what was.
pub(crate) struct Local {
    /// Those that local sinks serve.
    schemes: HashSet<String>,
    state: Mutex<State>,
    /// Told when there is something to be stored.
    changed: Notify,
    /// Told when what waited for a Dsn that is gone was given up.
    pub(super) buried: Notify,
    closed: CancellationToken,
}

#[derive(Default)]
struct State {
    here: HashMap<Dsn, Here>,
    /// When the first of them is to be stored again.
    next: Option<Instant>,
    /// What is not in force any more, until that is stored.
    left: Vec<Left>,
}

/// An attachment in force.
struct Here {
    id: AttachmentId,
    keep: Duration,
    /// When it is to be stored that it is.
    refresh: Instant,
    lost: CancellationToken,
}

struct Left {
    dsn: Dsn,
    id: AttachmentId,
    keep: Duration,
    state: Keep,
    /// Told when it is stored.
    stored: Option<oneshot::Sender<()>>,
}

/// How a row gets to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Open,
    /// By a local sink.
    Local,
    /// No sink serves its scheme in this process.
    None,
}

impl Local {
    pub(crate) fn new(schemes: HashSet<String>, closed: CancellationToken) -> Self {
        Self { schemes, state: Mutex::default(), changed: Notify::new(), buried: Notify::new(), closed }
    }

    /// Whether there is no local sink.
    pub(crate) fn is_unused(&self) -> bool {
        self.schemes.is_empty()
    }

    pub(crate) fn serves(&self, scheme: &str) -> bool {
        self.schemes.contains(scheme)
    }

    fn attachment(&self, dsn: &Dsn) -> Option<AttachmentId> {
        self.state().here.get(dsn).map(|here| here.id)
    }

    /// Lets go of an attachment whose client is away.
    pub(crate) fn leave(&self, dsn: &Dsn, id: AttachmentId) {
        self.let_go(dsn, id, Keep::Away, None);
    }

    /// Ends an attachment; resolves when that is stored.
    pub(crate) async fn end(&self, dsn: &Dsn, id: AttachmentId) {
        let (sender, stored) = oneshot::channel();
        if self.let_go(dsn, id, Keep::Over, Some(sender)) {
            tokio::select! {
                _ = stored => {}
                () = self.closed.cancelled() => {}
            }
        }
    }

    /// Whether this was in force.
    fn let_go(&self, dsn: &Dsn, id: AttachmentId, to: Keep, stored: Option<oneshot::Sender<()>>) -> bool {
        let mut state = self.state();
        let Some(here) = state.take(dsn, |here| here.id == id) else { return false };
        state.left.push(Left { dsn: dsn.clone(), id, keep: here.keep, state: to, stored });
        drop(state);
        here.lost.cancel();
        self.changed.notify_one();
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole before it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, dsn: &Dsn, is_it: impl FnOnce(&Here) -> bool) -> Option<Here> {
        if self.here.get(dsn).is_some_and(is_it) { self.here.remove(dsn) } else { None }
    }
}

impl Engine {
    /// Attaches a Dsn, where `presented` is what its client knew it by before, if it was here before.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        dsn: &Dsn,
        presented: Option<[u8; 32]>,
        attach: Attach,
    ) -> Result<Attachment, AttachError> {
        if self.closing.is_cancelled() {
            return Err(AttachError::Closed);
        }
        self.check(dsn)?;
        if !self.local.serves(dsn.scheme()) {
            return Err(AttachError::NotLocal(dsn.scheme().to_owned()));
        }
        self.until_buried(dsn).await;
        let (id, now, keep) = (AttachmentId::new(), self.now(), attach.keep);
        let attaching = Attaching {
            dsn: dsn.clone(),
            id,
            presented: presented.map(SecretDigest),
            secret: attach.secret.map(SecretDigest),
            now,
            until: now.after(keep),
            limit: AT_ONCE,
        };
        let (sender, receiver) = oneshot::channel();
        let (engine, dsn) = (Arc::clone(self), dsn.clone());
        // It is in force where the commit is known. Of a caller who gave up, it is dropped.
        let done = Box::new(move |result: Result<Written, OutboxError>| {
            let attached = match result {
                Ok(Written::Count(roused)) => Ok(engine.attached(dsn, id, keep, roused)),
                Ok(Written::Unknown) => Err(AttachError::Unknown),
                Ok(_) => Err(AttachError::Outbox(OutboxError::not_stored("this process has no lease"))),
                Err(error) => {
                    if error.is_unknown() {
                        // It may be stored, and nobody has it.
                        let left = Left { dsn, id, keep, state: Keep::Away, stored: None };
                        engine.local.state().left.push(left);
                        engine.local.changed.notify_one();
                    }
                    Err(AttachError::Outbox(error))
                }
            };
            let _ = sender.send(attached);
        });
        self.store.submit(Write::Attach(attaching), done).map_err(|refused| match refused {
            NotQueued::Full => AttachError::Outbox(OutboxError::not_stored("too many writes are waiting")),
            NotQueued::Closed => AttachError::Closed,
        })?;
        receiver.await.unwrap_or(Err(AttachError::Closed))
    }

    /// Puts an attachment in force that is stored.
    fn attached(self: &Arc<Self>, dsn: Dsn, id: AttachmentId, keep: Duration, roused: u64) -> Attachment {
        let lost = CancellationToken::new();
        let refresh = Instant::now() + keep / 3;
        let here = Here { id, keep, refresh, lost: lost.clone() };
        let mut state = self.local.state();
        state.next = state.next.into_iter().chain([refresh]).min();
        // Under the lock: whoever is attached finds that all before it know that they are lost.
        if let Some(former) = state.here.insert(dsn.clone(), here) {
            former.lost.cancel();
        }
        drop(state);
        self.local.changed.notify_one();
        self.lanes.lift(&dsn.destination());
        if roused >= AT_ONCE as u64 {
            self.rouse(dsn.clone());
        }
        self.look_again();
        Attachment { local: Arc::clone(&self.local), dsn, id, lost }
    }

    /// Makes due what waits for this Dsn, and is in nobody's hands.
    pub(super) fn rouse(self: &Arc<Self>, dsn: Dsn) {
        let engine = Arc::clone(self);
        let rouse = async move {
            loop {
                let rouse = Write::Rouse { dsn: dsn.clone(), now: engine.now(), limit: AT_ONCE };
                let Some(Written::Count(roused)) = engine.write_until_stored(rouse).await else { return };
                engine.look_again();
                if roused < AT_ONCE as u64 {
                    return;
                }
            }
        };
        self.tasks.spawn_on(rouse, &self.runtime);
    }

    /// Resolves when nothing is being given up that waited for this Dsn: what comes after is for whom it is attached next.
    async fn until_buried(&self, dsn: &Dsn) {
        loop {
            let buried = self.local.buried.notified();
            if !self.state().is_gone(dsn) {
                return;
            }
            buried.await;
        }
    }

    /// The attachment that is in force here for a row that goes by a local sink.
    pub(super) fn attachment(&self, row: &Row, way: Way) -> Option<AttachmentId> {
        row.dsn.as_ref().filter(|_| way == Way::Local).and_then(|dsn| self.local.attachment(dsn))
    }

    pub(super) fn way(&self, row: &Row) -> Way {
        match &row.dsn {
            Some(dsn) if !self.sinks.contains_key(dsn.scheme()) => Way::None,
            Some(dsn) if self.local.serves(dsn.scheme()) => Way::Local,
            _ => Way::Open,
        }
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("schemes", &self.schemes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
