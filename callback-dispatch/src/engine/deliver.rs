//! An attempt: from a row with a result to what the destination said of it.

use super::{
    Engine, Hand, Place,
    attempt::Answer,
    chain,
    local::{Way, is_unconnected},
};
use crate::{
    Notice, OutboxError, SubscriptionEnd, failpoint,
    lane::{Breaker, LanePermit, OpenBreaker, OpenLane, Rate, Sign},
    measure,
    outbox::{Settle, Write, Written},
    row::{FailedRow, Row, Stage},
    state::{self, Verdict},
};
use callback_core::{ErrorKind, Receipt, SinkError, TaskId};
use std::sync::{Arc, atomic::Ordering};
use tokio::{sync::SemaphorePermit, time::Instant};

/// What an attempt takes while it goes on.
struct Places<'a> {
    _lane: LanePermit,
    _host: SemaphorePermit<'a>,
    _doubtful: Option<SemaphorePermit<'a>>,
    _all: SemaphorePermit<'a>,
    /// The rate that the destination allows, as far as it was known.
    allowed: Option<Arc<Rate>>,
}

impl Engine {
    /// Makes one attempt and stores what follows from it.
    pub(super) async fn deliver(self: &Arc<Self>, row: Arc<Row>, place: Place, hand: &Arc<Hand>) {
        let (Some(result), Some(lane)) = (&row.result, place.lane.clone()) else { return };
        if row.subscribed.as_ref().is_some_and(|it| it.to.ended == Some(SubscriptionEnd::Cancelled)) {
            drop(place);
            self.leave_unattempted(&row).await;
            return;
        }
        let way = self.way(&row);
        let is_away = way != Way::Open && self.attachment(&row, way).is_none();
        if is_away && self.park(&row, &place, hand, (way, None)).await {
            return;
        }
        let places = tokio::select! {
            biased;
            places = self.places(&lane) => places,
            // A closing dispatcher still delivers what it has in hand, but waits for no place.
            () = self.closing.cancelled() => None,
        };
        // Without a lease another process may have the row.
        let Some(places) = places.filter(|_| self.store.is_leased(hand.lease)) else {
            if hand.gone.load(Ordering::Acquire) {
                self.give_up_unattempted(&row).await;
            } else {
                self.release(&row).await;
            }
            drop(place);
            self.look_again();
            return;
        };
        if hand.cancelled.is_cancelled() {
            return;
        }
        if hand.gone.load(Ordering::Acquire) {
            drop(places);
            self.give_up_unattempted(&row).await;
            return;
        }
        if hand.left.load(Ordering::Acquire) {
            drop(places);
            self.leave_unattempted(&row).await;
            return;
        }
        let attachment = self.attachment(&row, way);
        if way == Way::Local && attachment.is_none() {
            drop(places);
            self.park(&row, &place, hand, (way, None)).await;
            return;
        }
        let (begun, now) = (Instant::now(), self.now());
        let in_flight = measure::Ongoing::attempt();
        failpoint::reach("before-attempt");
        let attempt = tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            answer = self.attempt(&row, result, &lane, places.allowed.as_ref(), now) => answer,
        };
        if let (Way::Local, Some(Answer { result: Err(error), .. })) = (way, &attempt)
            && is_unconnected(error)
        {
            drop((places, in_flight));
            self.park(&row, &place, hand, (way, attachment)).await;
            return;
        }
        let attempt = attempt.map(|Answer { sign, result }| {
            measure::attempted(&row, result.as_ref(), begun.elapsed());
            self.learn(&row, &lane, sign);
            result
        });
        failpoint::reach("after-attempt");
        let gone = match (&attempt, &row.dsn) {
            (Some(Err(error)), Some(dsn)) if error.kind() == ErrorKind::Gone => {
                // Before the next message to it has the permit.
                self.mark_gone(dsn, hand).then_some(dsn)
            }
            _ => None,
        };
        drop((places, in_flight));
        let Some(answer) = attempt else {
            // Whether it was delivered is unknown, and the next start tries again; or the destination allows no more for
            // now, and it waits for its turn.
            self.release(&row).await;
            drop(place);
            self.look_again();
            return;
        };

        if matches!(&answer, Err(error) if error.kind() == ErrorKind::Gone) {
            // Before the row ends: one for one event is over by then, and would be completed.
            self.end_once(&row, SubscriptionEnd::Gone).await;
        }
        let number = row.attempts.saturating_add(1);
        // A clock that leapt ahead meanwhile is not believed yet: it may be set back, and the retry be due hours later.
        let answered = self.now().min(now.after(begun.elapsed()));
        let verdict = state::after_attempt(
            answer.as_ref(),
            number,
            row.first_due,
            answered,
            &self.schedule,
            seed(row.id, number),
        );
        let is_left = || self.attachment(&row, way) != attachment;
        let verdict = match verdict {
            // Its client has come back meanwhile, or is away: it waits for nothing else.
            Verdict::Retry { .. } if is_left() => Verdict::Retry { due: answered },
            verdict => verdict,
        };
        let failed = answer.as_ref().err().map(|error| FailedRow {
            number,
            time: now,
            took: begun.elapsed(),
            kind: error.kind(),
            phase: error.phase(),
            status: error.status(),
            reason: error.chain(),
        });
        log(&row, number, answer.as_ref());
        let step = Settle {
            id: row.id,
            token: row.token,
            from: row.stage,
            to: verdict.stage(),
            held: false,
            due: if let Verdict::Retry { due } = verdict { due } else { row.due },
            attempts: number,
            now: self.now(),
            kind: failed.as_ref().map(|failed| failed.kind),
            failed,
            order: row.order,
        };
        let stored = self.persist(Write::Settle(step)).await;
        failpoint::reach("after-mark");
        drop(place);
        // What was set back while it was stored was not pulled in.
        self.compare(answered, self.now());
        if stored {
            if let (Verdict::Retry { .. }, Some(dsn)) = (verdict, row.dsn.as_ref().filter(|_| is_left())) {
                self.rouse(dsn.clone());
            }
            match verdict {
                // It may have come due while it was stored, and have been passed over.
                Verdict::Retry { due } if due <= self.now() => self.look_again(),
                Verdict::Retry { .. } => self.wake.notify_one(),
                Verdict::Delivered | Verdict::Dead => {
                    match verdict {
                        Verdict::Dead => measure::dead(),
                        _ => measure::arrived(self.now().since(row.accepted_at)),
                    }
                    self.ended(row.id);
                    if row.order.is_some() {
                        self.look_again();
                    }
                    self.end_once(&row, SubscriptionEnd::Completed).await;
                    if let (Some(dsn), Err(error)) = (&row.dsn, &answer) {
                        let (id, destination, kind) = (row.id, dsn.destination(), error.kind());
                        self.notices.raise(&Notice::Dead { id, destination, kind, attempts: number });
                    }
                }
            }
        }
        if let Some(dsn) = gone {
            self.end_attached(dsn, attachment).await;
            self.bury(dsn).await;
        }
    }

    /// Waits for all that an attempt needs; none if the lane is closed.
    async fn places<'a>(&'a self, lane: &'a Arc<OpenLane>) -> Option<Places<'a>> {
        let permit = lane.enter().await?;
        loop {
            let allowed = lane.host.consent.rate();
            let rates = || lane.rate.iter().chain(&lane.host.rate).chain(allowed.as_deref());
            for rate in rates() {
                if lane.closed_until(Instant::now()).is_some() {
                    return None;
                }
                rate.wait().await;
            }
            let host = lane.host.attempts.acquire().await.ok()?;
            // What hangs must not take the place of what goes well.
            let doubtful = if lane.is_doubtful() { Some(self.doubtful.acquire().await.ok()?) } else { None };
            let all = self.attempts.acquire().await.ok()?;
            let now = Instant::now();
            if lane.closed_until(now).is_some() {
                return None;
            }
            // Last, so that those who waited for the others do not all begin at once. Who is too soon holds nothing up.
            if Rate::take(rates(), now) {
                return Some(Places { _lane: permit, _host: host, _doubtful: doubtful, _all: all, allowed });
            }
        }
    }

    /// Ends a message whose subscription was cancelled.
    async fn leave_unattempted(&self, row: &Row) {
        if self.persist(Write::Settle(self.settle(row, Stage::Cancelled, false))).await {
            self.ended(row.id);
            if row.order.is_some() {
                self.look_again();
            }
        }
    }

    /// Ends a subscription for one event, which is over; the first end counts.
    pub(super) async fn end_once(&self, row: &Row, end: SubscriptionEnd) {
        if let Some(subscribed) = row.subscribed.as_ref().filter(|it| it.to.once && it.to.ended.is_none()) {
            let id = subscribed.to.id;
            let _ = self.write_until_stored(Write::EndSubscription { id, end, now: self.now() }).await;
        }
    }

    /// Takes in what an attempt said of the far end, and stores what the breaker does about it.
    fn learn(&self, row: &Row, lane: &OpenLane, sign: Sign) {
        let Some(change) = lane.learn(sign) else { return };
        let Some(lane) = row.lane() else { return };
        let (destination, owner) = (lane.destination.clone(), lane.owner.as_deref().map(str::to_owned));
        let write = match change {
            Breaker::Opened { pause, times } => {
                if times == 1 {
                    measure::breaker_opened();
                }
                self.notices.raise(&Notice::BreakerOpened { destination, owner, pause });
                Write::OpenBreaker(OpenBreaker { lane, times, until: self.now().after(pause) })
            }
            Breaker::Closed => {
                measure::breaker_closed();
                self.notices.raise(&Notice::BreakerClosed { destination, owner });
                Write::CloseBreaker(lane)
            }
        };
        // Nobody waits for it: lost in a crash, it costs as many attempts as it took to open.
        let done = Box::new(|result: Result<Written, OutboxError>| {
            if let Err(error) = result {
                tracing::warn!(error = %chain(&error), "the state of a breaker could not be stored");
            }
        });
        let _ = self.store.submit(write, done);
    }
}

/// The jitter of one attempt: the same whenever it is asked for.
fn seed(id: TaskId, number: u32) -> u64 {
    let bytes = id.as_bytes();
    let mut tail = [0; 8];
    tail.copy_from_slice(&bytes[8..]);
    u64::from_be_bytes(tail).wrapping_add(u64::from(number))
}

fn log(row: &Row, attempt: u32, answer: Result<&Receipt, &SinkError>) {
    let Some(dsn) = &row.dsn else { return };
    let id = row.id;
    match answer {
        Err(error) => {
            tracing::info!(%id, attempt, destination = %dsn.destination(), kind = %error.kind(), "an attempt failed");
        }
        Ok(_) => tracing::debug!(%id, attempt, destination = %dsn.destination(), "a message was delivered"),
    }
}
