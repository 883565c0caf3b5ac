#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! What a failing far end is told as, and how the sink lives on.

use super::{
    Fault, Harness, Unproved,
    probe::{Probe, attempt, out_of_reach, plain},
    prove::ensure,
};
use crate::{ErrorKind, SinkError};
use std::time::Duration;

/// How long a far end asks the kit to wait.
const WAIT: Duration = Duration::from_secs(60);

/// An outage is [`Unavailable`](ErrorKind::Unavailable) or [`TimedOut`](ErrorKind::TimedOut); once it is over, the same
/// sink delivers.
pub async fn an_outage_is_temporary_and_heals<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    probe.delivered(&plain()).await?;
    harness.inject(Fault::Outage).await?;
    for number in 1..=3 {
        match probe.deliver(&plain(), attempt(number, probe.soon())).await? {
            Ok(_) => return Err(Unproved::Broken("deliver resolves Ok, and the far end is out of reach".to_owned())),
            Err(error) => ensure!(out_of_reach(&error), "an outage is told as {}", error.chain()),
        }
    }
    harness.heal().await;
    probe.delivers_again("an outage").await
}

/// Connections that break fail what they carried as temporary at worst; what resolved `Ok` is there, and the sink
/// connects again by itself.
pub async fn a_broken_connection_is_mended<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    probe.delivered(&plain()).await?;
    let deliver = |_| {
        let message = plain();
        (probe.spawn(&message, attempt(1, probe.ample())), message)
    };
    let mut deliveries: Vec<_> = (0..32).map(deliver).collect();
    harness.inject(Fault::Disconnect).await?;
    deliveries.extend((0..32).map(deliver));
    for (delivery, message) in deliveries {
        match probe.end(delivery).await? {
            Ok(_) => probe.arrived_once(&message).await?,
            Err(error) => ensure!(out_of_reach(&error), "a broken connection is told as {}", error.chain()),
        }
    }
    probe.delivers_again("a broken connection").await
}

/// A refusal is told as the kind that the harness names, and nothing of it is at the far end.
pub async fn a_refusal_is_told<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let (probe, message) = (Probe::new(harness), plain());
    probe.delivered(&plain()).await?;
    harness.inject(Fault::Refuse).await?;
    match probe.deliver(&message, attempt(1, probe.ample())).await? {
        Ok(_) => return Err(Unproved::Broken("deliver resolves Ok, and the far end refused".to_owned())),
        Err(error) => ensure!(error.kind() == harness.refusal(), "a refusal is told as {}", error.chain()),
    }
    let arrivals = probe.arrivals(&message).await?.len();
    ensure!(arrivals == 0, "what was refused arrived {arrivals} times");
    Ok(())
}

async fn throttled<H: Harness>(harness: &H, wait: Option<Duration>) -> Result<SinkError, Unproved> {
    let probe = Probe::new(harness);
    probe.delivered(&plain()).await?;
    harness.inject(Fault::Throttle(wait)).await?;
    match probe.deliver(&plain(), attempt(1, probe.ample())).await? {
        Ok(_) => Err(Unproved::Broken("deliver resolves Ok, and the far end asked to slow down".to_owned())),
        Err(error) => Ok(error),
    }
}

/// A far end that asks to slow down is [`Throttled`](ErrorKind::Throttled).
pub async fn throttling_is_told<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let error = throttled(harness, None).await?;
    ensure!(error.kind() == ErrorKind::Throttled, "throttling is told as {}", error.chain());
    Ok(())
}

/// The time that a far end asks for is the error's [`retry_after`](SinkError::retry_after).
pub async fn the_time_to_wait_is_passed_on<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let told = throttled(harness, Some(WAIT)).await?.retry_after();
    // A far end may count down.
    let passed_on = told.is_some_and(|told| (WAIT / 2..=WAIT).contains(&told));
    ensure!(passed_on, "the far end asked for {WAIT:?}, and the sink says {told:?}");
    Ok(())
}
