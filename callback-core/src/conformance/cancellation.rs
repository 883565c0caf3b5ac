#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! Deliveries whose future is dropped.

use super::{
    Harness, Unproved,
    probe::{Probe, attempt, plain},
    prove::ensure,
};
use crate::Sink;
use std::{future::poll_fn, task::Poll, time::Duration};
use tokio::time;

/// How many deliveries are dropped.
const DROPPED: u32 = 128;

/// Deliveries dropped at many points disturb no other; afterwards the sink delivers and closes as before.
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
    probe.close().await?;
    let received = harness.received().await;
    for message in dropped {
        let arrivals = received.iter().filter(|received| received.id == *message.id()).count();
        ensure!(arrivals <= 1, "one dropped delivery arrived {arrivals} times");
    }
    Ok(())
}
