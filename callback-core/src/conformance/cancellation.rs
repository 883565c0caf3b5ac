#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! Deliveries whose future is dropped.

use super::{
    Fault, Harness, Unproved,
    probe::{Probe, attempt, plain},
    prove::ensure,
};
use crate::{Message, Sink};
use std::{future::poll_fn, task::Poll, time::Duration};
use tokio::time;

/// How many deliveries are dropped.
const DROPPED: u32 = 128;

/// How many are dropped while the far end does not answer, so many at once, in so many rounds: together more than a
/// sink has places for on a connection, and at once no more than there are files for.
const STALLED: (usize, u32) = (64, 20);

/// Deliveries dropped at many points, also while the far end does not answer, disturb no other; afterwards the sink
/// delivers and closes as before.
pub async fn dropped_deliveries_leave_the_sink_usable<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for number in 0..DROPPED {
        let message = plain();
        let attempt_of_it = attempt(1, probe.ample());
        let mut delivery = probe.sink.deliver(&probe.dsn, &message, &attempt_of_it);
        // After its first poll, its second, and so on: each is another place in the sink's code.
        let mut polls = number % 8 + 1;
        let part = poll_fn(|context| {
            polls -= 1;
            match delivery.as_mut().poll(context) {
                Poll::Pending if polls > 0 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        });
        // Nobody may wake it as often.
        let _ = time::timeout(Duration::from_millis(5), part).await;
        drop(delivery);
        dropped.push(message);
        if number % 4 == 0 {
            let message = plain();
            kept.push((probe.spawn(&message, attempt(1, probe.ample())), message));
        }
    }
    for (delivery, message) in kept {
        if let Err(error) = probe.end(delivery).await? {
            let text = error.chain();
            return Err(Unproved::Broken(format!("a delivery fails because others were dropped: {text}")));
        }
        probe.arrived_once(&message).await?;
    }
    let message = plain();
    probe.delivered(&message).await?;
    probe.arrived_once(&message).await?;
    for _ in 0..STALLED.1 {
        dropped.extend(dropped_without_an_answer(&probe).await?);
    }
    probe.close().await?;
    let received = harness.received().await;
    for message in dropped {
        let arrivals = received.iter().filter(|received| received.id == *message.id()).count();
        ensure!(arrivals <= 1, "one dropped delivery arrived {arrivals} times");
    }
    Ok(())
}

/// Drops deliveries while the far end does not answer; then the sink delivers. Nothing where it cannot be made to.
async fn dropped_without_an_answer<H: Harness>(probe: &Probe<'_, H>) -> Result<Vec<Message>, Unproved> {
    if probe.harness.inject(Fault::Stall).await.is_err() {
        return Ok(Vec::new());
    }
    let begin = |message: Message| (probe.spawn(&message, attempt(1, probe.ample())), message);
    let deliveries: Vec<_> = (0..STALLED.0).map(|_| begin(plain())).collect();
    time::sleep(Duration::from_millis(5)).await;
    let mut dropped = Vec::new();
    for (delivery, message) in deliveries {
        delivery.abort();
        // Its future is gone when this is over.
        let _ = probe.in_time("a delivery that is dropped", 1, delivery).await?;
        dropped.push(message);
    }
    probe.harness.heal().await;
    probe.delivers_again("deliveries that were dropped in a stall").await?;
    Ok(dropped)
}
