//! An attempt: from a row with a result to what the destination said of it.

use super::{Engine, Place};
use crate::{
    clock::Micros,
    outbox::{Settle, Write},
    row::{FailedRow, Row},
    state::{self, Verdict},
};
use callback_core::{Attempt, Message, Receipt, SinkError, TaskId};
use futures_util::FutureExt;
use std::{panic::AssertUnwindSafe, sync::Arc};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

impl Engine {
    /// Makes one attempt and stores what follows from it.
    pub(super) async fn deliver(self: &Arc<Self>, row: Arc<Row>, place: Place, cancelled: Option<&CancellationToken>) {
        let (Some(result), Some(lane)) = (&row.result, place.lane.clone()) else { return };
        let permits = async { lane.attempts.acquire().await.ok().zip(self.attempts.acquire().await.ok()) };
        let permit = tokio::select! {
            biased;
            permits = permits => permits,
            // A closing dispatcher still delivers what it has in hand, but waits for no permit.
            () = self.closing.cancelled() => None,
        };
        let Some(permit) = permit else {
            self.release(&row).await;
            return;
        };
        if cancelled.is_some_and(CancellationToken::is_cancelled) {
            return;
        }
        let (begun, now) = (Instant::now(), self.now());
        let attempt = tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            answer = self.attempt(&row, &result.message, result.traceparent.as_deref(), now) => Some(answer),
        };
        drop(permit);
        let Some(answer) = attempt else {
            // Whether it was delivered is unknown; the next start tries again.
            self.release(&row).await;
            return;
        };

        let number = row.attempts.saturating_add(1);
        let verdict = state::after_attempt(
            answer.as_ref(),
            number,
            row.first_due,
            self.now(),
            &self.schedule,
            seed(row.id, number),
        );
        let failed = answer.as_ref().err().map(|error| FailedRow {
            number,
            time: now,
            took: begun.elapsed(),
            kind: error.kind(),
            phase: error.phase(),
            status: error.status(),
            reason: error.chain(),
        });
        log(&row, number, verdict, answer.as_ref());
        let step = Settle {
            id: row.id,
            token: row.token,
            from: row.stage,
            to: verdict.stage(),
            held: false,
            due: if let Verdict::Retry { due } = verdict { due } else { row.due },
            attempts: number,
            now: self.now(),
            failed,
        };
        let stored = self.persist(Write::Settle(step)).await;
        drop(place);
        if stored {
            match verdict {
                // It may have come due while it was stored, and have been passed over.
                Verdict::Retry { due } if due <= self.now() => self.look_again(),
                Verdict::Retry { .. } => self.wake.notify_one(),
                Verdict::Delivered | Verdict::Dead => self.ended(row.id),
            }
        }
    }

    /// Signs, and gives the message to the sink of its scheme.
    async fn attempt(
        &self,
        row: &Row,
        message: &Message,
        traceparent: Option<&str>,
        now: Micros,
    ) -> Result<Receipt, SinkError> {
        let Some(dsn) = &row.dsn else { return Err(SinkError::refused("no Dsn is stored")) };
        let sink = self.sink(dsn)?;
        let deadline = Instant::now() + self.deadline;
        let mut attempt = Attempt::new(row.attempts.saturating_add(1), now.to_system(), deadline.into_std());
        if let Some(traceparent) = traceparent {
            attempt = attempt.with_traceparent(traceparent);
        }
        if let Some(signer) = self.keys.signer(row.owner.as_deref(), dsn) {
            attempt = attempt.sign(signer, message);
        }
        let delivery = AssertUnwindSafe(async { sink.deliver(dsn, message, &attempt).await }).catch_unwind();
        match timeout_at(deadline, delivery).await {
            Ok(Ok(result)) => result,
            Ok(Err(_panic)) => Err(SinkError::unavailable("the sink panicked")),
            Err(_elapsed) => Err(SinkError::timed_out("the deadline passed")),
        }
    }
}

/// The jitter of one attempt: the same whenever it is asked for.
fn seed(id: TaskId, number: u32) -> u64 {
    let bytes = id.as_bytes();
    let mut tail = [0; 8];
    tail.copy_from_slice(&bytes[8..]);
    u64::from_be_bytes(tail).wrapping_add(u64::from(number))
}

fn log(row: &Row, attempt: u32, verdict: Verdict, answer: Result<&Receipt, &SinkError>) {
    let Some(dsn) = &row.dsn else { return };
    let id = row.id;
    match (verdict, answer) {
        (Verdict::Retry { .. }, Err(error)) => {
            tracing::info!(%id, attempt, destination = %dsn.destination(), kind = %error.kind(), "an attempt failed");
        }
        (_, Err(error)) => {
            tracing::warn!(%id, attempt, destination = %dsn.destination(), kind = %error.kind(), "a message was given up");
        }
        (_, Ok(_)) => tracing::debug!(%id, attempt, destination = %dsn.destination(), "a message was delivered"),
    }
}
