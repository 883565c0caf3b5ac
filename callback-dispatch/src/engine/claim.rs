//! The way back from the store: recovery, due retries, and what had no place in memory.

use super::{Engine, OpenLane, Place, chain};
use crate::{
    OutboxError,
    clock::Micros,
    failpoint,
    outbox::{Claim, Lease, PullIn, Write, Written, write},
    row::Row,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

/// How many rows are taken at once, if there is room for them.
const CLAIM: usize = 256;

/// How far off a row's size in the store may be from that in memory.
const SIZES_DIFFER: usize = 8;

/// A claim that found nothing is followed by a rest of so many times its length, so that looking for what is due takes a fifth
/// of the store's time at most, however many lanes are full and ask for it. One that found something rests for less.
const REST: u32 = 4;

/// The longest such rest.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// The longest sleep: after it due times are looked at again, so that a clock set back costs no more than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// How often the store is asked whether somebody else wrote.
const SWEEP: Duration = Duration::from_secs(1);

/// How long after its start a dispatcher names the handlers that stored work waits for.
const MISSING_HANDLERS: Duration = Duration::from_secs(10);

/// How long after a claim the next one comes at the soonest.
fn rest(took: Duration, rows: usize) -> Duration {
    let [all, missing] = [CLAIM, CLAIM - rows.min(CLAIM)].map(|rows| u32::try_from(rows).unwrap_or(u32::MAX));
    (took * REST).min(LONGEST_REST) * missing / all
}

/// What a claim leaves.
struct Claimed {
    /// Whether more may be due.
    more: bool,
    /// How many rows it took; as many as it may, if it took all that there is room for.
    rows: usize,
    /// When the first closed lane may be tried again.
    opens: Option<Instant>,
}

impl Engine {
    /// Claims what is due until the dispatcher closes.
    pub(crate) async fn claim_until_closed(self: Arc<Self>) {
        let shared = self.store.is_shared();
        let mut next = Some(Micros(0));
        // The time up to which everything due was looked for: what is due later must not be passed over.
        let mut seen = Micros(0);
        // When a closed lane may be tried again.
        let mut opens: Option<Instant> = None;
        // Whether due times were looked at: the clock may have been set back since the last process.
        let mut looked = false;
        loop {
            let leapt = self.set_back.swap(false, Ordering::AcqRel);
            if (leapt || !looked) && !self.pull_in(leapt).await {
                self.set_back.store(true, Ordering::Release);
            }
            looked = true;
            // What was due by the time that was believed may have been passed over.
            self.behind.fetch_or(leapt, Ordering::AcqRel);
            let now = self.now();
            let is_due = next.is_some_and(|due| due <= now);
            if self.behind.swap(false, Ordering::AcqRel) || is_due {
                seen = now;
                let began = Instant::now();
                match self.claim(now).await {
                    Ok(claimed) => {
                        self.behind.fetch_or(claimed.more, Ordering::AcqRel);
                        opens = claimed.opens;
                        let rest = rest(began.elapsed(), claimed.rows);
                        if !rest.is_zero() && self.pause(rest).await {
                            return;
                        }
                    }
                    Err(()) => {
                        self.behind.store(true, Ordering::Release);
                        if self.pause(Duration::from_secs(1)).await {
                            return;
                        }
                    }
                }
            }
            // A clock that was set back is believed.
            seen = seen.min(self.now());
            next = self.store.next_due(seen).await.unwrap_or_else(|_| Some(self.now().after(SWEEP)));
            let wait = next.map_or(LONGEST_SLEEP, |due| due.since(self.now()).min(LONGEST_SLEEP));
            let wait = if shared { wait.min(SWEEP) } else { wait };
            let wait = opens.map_or(wait, |opens| wait.min(opens.saturating_duration_since(Instant::now())));
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                () = self.wake.notified() => {}
                () = sleep(wait) => {
                    if shared && matches!(self.store.others_wrote().await, Ok(true)) {
                        self.behind.store(true, Ordering::Release);
                        self.expiring.look_again();
                    }
                }
            }
        }
    }

    /// Brings near what waits for a time that the clock was set back from; false if it could not be stored.
    async fn pull_in(&self, leapt: bool) -> bool {
        if leapt {
            tracing::warn!("the clock was set back: what waits for a retry waits from now on");
        }
        let now = self.now();
        let pull_in = PullIn { now, latest: now.after(self.schedule.longest_step()), leapt };
        let pulled = write(&*self.store, Write::PullIn(pull_in)).await;
        pulled.inspect_err(|error| tracing::error!(error = %chain(error), "due times could not be looked at")).is_ok()
    }

    /// Claims a batch and hands it over.
    async fn claim(self: &Arc<Self>, now: Micros) -> Result<Claimed, ()> {
        if self.outage.is_on() {
            return Err(());
        }
        if self.memory.is_full() {
            return Ok(Claimed { more: true, rows: 0, opens: None });
        }
        let (full, opens) = self.lanes.left_out();
        let (workers, full_workers) = {
            let state = self.state();
            let (ready, full): (Vec<_>, Vec<_>) = state.workers.iter().partition(|(_, worker)| !worker.slots.is_full());
            (ready.into_iter().map(|(name, _)| Arc::clone(name)).collect(), full.len())
        };
        // Who needs more than there is gets it: nothing is too large.
        let bytes = self.memory.left().max(1);
        let partial = full_workers > 0 || !full.is_empty();
        let number = self.claims.fetch_add(1, Ordering::Relaxed);
        let claim = Claim { number, now, limit: CLAIM, bytes, workers, left_out: full, found: None };
        let looked = self.store.look(claim).await;
        let looked =
            looked.map_err(|error| tracing::error!(error = %chain(&error), "what is due could not be looked for"));
        let Some(claim) = looked? else {
            return Ok(Claimed { more: partial, rows: 0, opens });
        };
        let (sender, receiver) = oneshot::channel();
        let (engine, lease) = (Arc::clone(self), self.store.lease());
        // The hand-over happens where the commit is known: a cancel that is stored later finds the run.
        let done = Box::new(move |result: Result<Written, OutboxError>| {
            let claimed = match result {
                Ok(Written::Claimed(rows)) => {
                    let claimed = (rows.len(), rows.iter().map(Row::size).sum::<usize>());
                    if !rows.is_empty() {
                        failpoint::reach("after-claim");
                    }
                    for row in rows {
                        engine.hand_over_claimed(row, lease);
                    }
                    Ok(claimed)
                }
                Ok(_) => Ok((0, 0)),
                Err(error) => {
                    tracing::error!(error = %chain(&error), "due messages could not be claimed");
                    if error.is_unknown() {
                        let (tasks, runtime) = (engine.tasks.clone(), engine.runtime.clone());
                        tasks.spawn_on(engine.give_back(number), &runtime);
                    }
                    Err(())
                }
            };
            let _ = sender.send(claimed);
        });
        self.store.submit(Write::Claim(claim), done).map_err(drop)?;
        let (claimed, size) = receiver.await.unwrap_or(Err(()))?;
        let ended_early = claimed == CLAIM || size.saturating_mul(SIZES_DIFFER) >= bytes;
        if ended_early {
            // There may be more, and nothing else needs to happen before it is taken.
            self.wake.notify_one();
        }
        let rows = if ended_early { CLAIM } else { claimed };
        Ok(Claimed { more: partial || ended_early, rows, opens })
    }

    /// A claimed row gets a place even where its lane is full: a claim is small, and bounded by the memory that is left.
    fn hand_over_claimed(self: &Arc<Self>, row: Row, lease: Lease) {
        let place = self.place(&row);
        if place.is_none() {
            tracing::error!(id = %row.id, "a claimed row has no worker and no Dsn");
        }
        if let Some(place) = place {
            self.hand_over(Arc::new(row), Some(place), lease);
        }
    }

    /// A place in memory, whether there is room or not.
    pub(super) fn place(&self, row: &Row) -> Option<Place> {
        let memory = self.memory.take_anyway(row.size());
        if row.stage.is_open() {
            let slots = Arc::clone(&self.state().workers.get(row.worker.as_ref()?)?.slots);
            Some(Place { lane: None, _stage: slots.take_anyway(1), _memory: memory })
        } else {
            let lane: Arc<OpenLane> = self.lanes.lane(&row.lane()?);
            let slot = lane.slots.take_anyway(1);
            Some(Place { lane: Some(lane), _stage: slot, _memory: memory })
        }
    }

    /// Names the handlers that stored work waits for, once.
    pub(crate) async fn name_missing_handlers(self: Arc<Self>) {
        if self.pause(MISSING_HANDLERS).await {
            return;
        }
        let Ok(waiting) = self.store.waiting_workers().await else { return };
        let registered: BTreeSet<Arc<str>> = self.state().workers.keys().cloned().collect();
        for worker in waiting.into_iter().filter(|name| !registered.contains(name.as_str())) {
            tracing::error!(worker, "stored work waits for a worker that is not registered");
        }
    }

    /// Waits; true if the dispatcher closed meanwhile.
    pub(super) async fn pause(&self, wait: Duration) -> bool {
        tokio::select! {
            () = self.closing.cancelled() => true,
            () = sleep(wait) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_rests_the_longer_the_less_it_found() {
        let milliseconds = Duration::from_millis;
        for (took, rows, expected) in [
            (milliseconds(8), 0, milliseconds(32)),
            (milliseconds(8), CLAIM / 2, milliseconds(16)),
            (milliseconds(8), CLAIM, Duration::ZERO),
            (milliseconds(8), 2 * CLAIM, Duration::ZERO),
            (milliseconds(800), 0, LONGEST_REST),
            (milliseconds(800), CLAIM / 4, LONGEST_REST * 3 / 4),
        ] {
            assert_eq!(rest(took, rows), expected, "{took:?} {rows}");
        }
    }
}
