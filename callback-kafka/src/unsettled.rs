//! Attempts that nobody waits for any more, though their delivery reports are still to come.
//!
//! An attempt that ran out of time, or whose future was dropped, may still arrive. The next attempt of the same message
//! waits for that report first: what has arrived is not sent again, and an old attempt cannot land behind a newer one.

use callback_core::MessageId;
use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, watch},
    time::timeout,
};

/// Where a record went, and which message it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) topic: String,
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<String>,
    pub(crate) id: MessageId,
}

/// What became of a record: its partition and offset, or nothing.
pub(crate) type Settled = Option<(i32, i64)>;

/// All unsettled attempts of a cluster, and what the latest of them came to.
#[derive(Debug)]
pub(crate) struct Unsettled {
    state: Mutex<State>,
    /// How many entries there are: mostly none, and then nobody locks.
    entries: AtomicUsize,
    /// How many reports are still to come.
    pending: watch::Sender<usize>,
    /// How many late receipts are kept.
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Slot, Entry>,
    /// Late receipts, the oldest first.
    late: VecDeque<(Slot, u64)>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    settled: watch::Receiver<Option<Settled>>,
}

impl Unsettled {
    /// Keeps as many late receipts; what is unsettled is bounded by the permits that it holds.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), entries: AtomicUsize::new(0), pending: watch::Sender::new(0), capacity }
    }

    /// Waits for the report of an earlier attempt, if there was one, and takes it.
    ///
    /// `Some` once the earlier attempt has arrived; `None` where there was none, or it can arrive no more.
    pub(crate) async fn earlier(&self, slot: impl FnOnce() -> Slot) -> Settled {
        if self.entries.load(Ordering::Acquire) == 0 {
            return None;
        }
        let slot = slot();
        let (number, mut settled) =
            self.state().entries.get(&slot).map(|entry| (entry.number, entry.settled.clone()))?;
        // Without a sender the runtime is gone, and its records with it.
        let settled = settled.wait_for(Option::is_some).await.ok().and_then(|settled| *settled).flatten()?;
        self.remove(&slot, number);
        Some(settled)
    }

    /// Keeps an attempt until its report comes; the permit is given back then. Needs a runtime, as its future did.
    pub(crate) fn keep<R>(self: &Arc<Self>, slot: Slot, report: R, permit: OwnedSemaphorePermit)
    where
        R: Future<Output = Settled> + Send + 'static,
    {
        let Ok(runtime) = Handle::try_current() else { return };
        let (sender, receiver) = watch::channel(None);
        let number = {
            let mut state = self.state();
            let number = state.next;
            state.next += 1;
            state.entries.insert(slot.clone(), Entry { number, settled: receiver });
            self.entries.store(state.entries.len(), Ordering::Release);
            number
        };
        self.pending.send_modify(|pending| *pending += 1);
        let unsettled = Arc::clone(self);
        runtime.spawn(async move {
            let settled = report.await;
            unsettled.settle(&slot, number, settled.is_some());
            sender.send_replace(Some(settled));
            drop(permit);
            unsettled.pending.send_modify(|pending| *pending -= 1);
        });
    }

    /// Waits until no report is to come any more, or for so long; how many are missing then.
    pub(crate) async fn settled_within(&self, limit: Duration) -> usize {
        let _ = timeout(limit, self.pending.subscribe().wait_for(|pending| *pending == 0)).await;
        *self.pending.borrow()
    }

    fn settle(&self, slot: &Slot, number: u64, arrived: bool) {
        if !arrived {
            return self.remove(slot, number);
        }
        let mut state = self.state();
        state.late.push_back((slot.clone(), number));
        let evicted = (state.late.len() > self.capacity).then(|| state.late.pop_front()).flatten();
        drop(state);
        if let Some((slot, number)) = evicted {
            self.remove(&slot, number);
        }
    }

    /// Removes an entry, unless the message has a newer one.
    fn remove(&self, slot: &Slot, number: u64) {
        let mut state = self.state();
        if state.entries.get(slot).is_some_and(|entry| entry.number == number) {
            state.entries.remove(slot);
        }
        self.entries.store(state.entries.len(), Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single step, so a panic elsewhere leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        sync::{Semaphore, oneshot},
        task::yield_now,
    };

    struct Kept {
        unsettled: Arc<Unsettled>,
        permits: Arc<Semaphore>,
    }

    fn slot(id: &str) -> Slot {
        Slot { topic: "t".to_owned(), partition: None, key: Some("k".to_owned()), id: id.parse().expect("valid") }
    }

    impl Kept {
        fn new(capacity: usize) -> Self {
            Self { unsettled: Arc::new(Unsettled::new(capacity)), permits: Arc::new(Semaphore::new(10)) }
        }

        fn keep(&self, id: &str) -> oneshot::Sender<Settled> {
            let (sender, report) = oneshot::channel();
            let permit = Arc::clone(&self.permits).try_acquire_owned().expect("a permit");
            self.unsettled.keep(slot(id), async { report.await.ok().flatten() }, permit);
            sender
        }

        async fn earlier(&self, id: &str) -> Settled {
            self.unsettled.earlier(|| slot(id)).await
        }

        /// Lets the tasks run that wait for reports.
        async fn settle(&self, permits: usize) {
            while self.permits.available_permits() < permits {
                yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn the_next_attempt_waits_for_the_report_of_the_earlier_one() {
        let kept = Kept::new(10);
        let report = kept.keep("a");
        assert_eq!(kept.unsettled.settled_within(Duration::ZERO).await, 1);
        let (settled, ()) = tokio::join!(kept.earlier("a"), async {
            yield_now().await;
            report.send(Some((1, 7))).expect("somebody waits");
        });
        assert_eq!(settled, Some((1, 7)));
        assert_eq!(kept.unsettled.settled_within(Duration::MAX).await, 0);
        // It is taken once: whoever replays a message that was delivered wants it sent.
        assert_eq!(kept.earlier("a").await, None);
    }

    #[tokio::test]
    async fn a_late_receipt_waits_for_the_next_attempt() {
        let kept = Kept::new(10);
        kept.keep("a").send(Some((0, 3))).expect("somebody waits");
        kept.settle(10).await;
        assert_eq!(kept.earlier("b").await, None);
        assert_eq!(kept.earlier("a").await, Some((0, 3)));
    }

    #[tokio::test]
    async fn what_was_given_up_is_forgotten() {
        let kept = Kept::new(10);
        let report = kept.keep("a");
        assert_eq!(kept.permits.available_permits(), 9);
        report.send(None).expect("somebody waits");
        kept.settle(10).await;
        assert_eq!(kept.earlier("a").await, None);
        assert_eq!(kept.unsettled.state().entries.len(), 0);
    }

    #[tokio::test]
    async fn the_oldest_late_receipts_are_forgotten() {
        let kept = Kept::new(2);
        for (offset, id) in ["a", "b", "c"].into_iter().enumerate() {
            kept.keep(id).send(Some((0, offset as i64))).expect("somebody waits");
            kept.settle(10).await;
        }
        assert_eq!(kept.earlier("a").await, None);
        assert_eq!(kept.earlier("c").await, Some((0, 2)));
        assert_eq!(kept.unsettled.state().entries.len(), 1);
    }

    #[tokio::test]
    async fn a_newer_attempt_is_not_forgotten_with_an_older_one() {
        let kept = Kept::new(10);
        let (older, newer) = (kept.keep("a"), kept.keep("a"));
        older.send(None).expect("somebody waits");
        kept.settle(9).await;
        newer.send(Some((0, 1))).expect("somebody waits");
        assert_eq!(kept.earlier("a").await, Some((0, 1)));
    }
}
