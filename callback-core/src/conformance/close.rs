#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! The end of a sink.

use super::{
    Fault, Harness, Unproved,
    probe::{Probe, attempt, plain},
    prove::ensure,
};
use crate::{ErrorKind, Sink};
use std::{future::poll_fn, task::Poll, time::Instant};
use tokio::time;

/// A sink closes, twice at once, and once more later.
pub async fn close_is_idempotent<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    probe.delivered(&plain()).await?;
    let (one, another) = tokio::join!(probe.close(), probe.close());
    one.and(another)?;
    probe.close().await
}

/// After `close`, `deliver` is [`Unavailable`](ErrorKind::Unavailable), and nothing arrives.
pub async fn after_close_nothing_is_delivered<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let (probe, message) = (Probe::new(harness), plain());
    probe.delivered(&plain()).await?;
    probe.close().await?;
    for number in 1..=3 {
        match probe.deliver(&message, attempt(number, probe.ample())).await? {
            Ok(_) => return Err(Unproved::Broken("a closed sink delivers".to_owned())),
            Err(error) => {
                ensure!(error.kind() == ErrorKind::Unavailable, "a closed sink fails as {}", error.chain());
            }
        }
    }
    let arrivals = probe.arrivals(&message).await?.len();
    ensure!(arrivals == 0, "a closed sink sent {arrivals} messages");
    Ok(())
}

/// When `close` is over, no delivery is in flight: each has its result, and those that are `Ok` are at the far end.
///
/// Deliveries hang where the harness can stall its far end.
pub async fn close_settles_what_is_in_flight<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let (probe, message) = (Probe::new(harness), plain());
    probe.delivered(&plain()).await?;
    let stalled = harness.inject(Fault::Stall).await.is_ok();
    // Far enough away to be told from the moment at which `close` is over.
    let attempt_of_it = attempt(1, Instant::now() + harness.patience() / 8);
    let mut delivery = probe.sink.deliver(&probe.dsn, &message, &attempt_of_it);
    // In flight is what was polled.
    let mut ended = poll_fn(|context| match delivery.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending => Poll::Ready(None),
    })
    .await;

    let mut closing = probe.sink.close();
    let closed = poll_fn(|context| {
        if ended.is_none()
            && let Poll::Ready(result) = delivery.as_mut().poll(context)
        {
            ended = Some(result);
        }
        closing.as_mut().poll(context)
    });
    // What it could not settle is told, and is no breach.
    let _told = probe.in_time("close", 2, closed).await?;
    if ended.is_none() {
        // It is settled, and may take a moment to say so.
        ended = time::timeout(harness.patience() / 100, &mut delivery).await.ok();
    }
    match ended {
        None => Err(Unproved::Broken("close is over, and a delivery is in flight".to_owned())),
        Some(Ok(_)) if stalled => Err(Unproved::Broken("deliver resolves Ok, and nobody answered".to_owned())),
        Some(Ok(_)) => probe.arrived_once(&message).await,
        Some(Err(_)) => Ok(()),
    }
}
