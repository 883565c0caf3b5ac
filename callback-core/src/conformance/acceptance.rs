#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! Acceptance, and that the engine alone repeats.

use super::{
    Fault, Harness, Unproved,
    probe::{Probe, attempt, check_body, plain},
    prove::ensure,
};

/// What resolved `Ok` is at the far end: with its id and body, once, at that moment.
pub async fn a_delivered_message_is_at_the_far_end<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    for _ in 0..3 {
        let message = plain();
        probe.delivered(&message).await?;
        probe.arrived_once(&message).await?;
    }
    let received = harness.received().await.len();
    ensure!(received == 3, "three deliveries arrived as {received}");
    Ok(())
}

/// Two attempts of one message arrive under one id, with one body. A far end that knows the id may keep one.
pub async fn a_retry_carries_the_same_message<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let (probe, message) = (Probe::new(harness), plain());
    for number in 1..=2 {
        let ended = probe.deliver(&message, attempt(number, probe.ample())).await?;
        ensure!(ended.is_ok(), "attempt {number} fails without a fault");
    }
    let received = harness.received().await;
    ensure!(!received.is_empty(), "two attempts resolved Ok, and the far end has neither");
    for received in received {
        ensure!(received.id == *message.id(), "an attempt arrived under another id than its message's");
        check_body(&message, &received)?;
    }
    Ok(())
}

/// A delivery that the far end left without an answer fails, and arrives once at most: the engine repeats, not the sink.
pub async fn a_failed_delivery_is_not_repeated<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let (probe, message) = (Probe::new(harness), plain());
    probe.delivered(&plain()).await?;
    harness.inject(Fault::Stall).await?;
    let ended = probe.deliver(&message, attempt(1, probe.soon())).await?;
    ensure!(ended.is_err(), "deliver resolves Ok, and nobody answered");
    harness.heal().await;
    probe.delivers_again("a stall").await?;
    probe.close().await?;
    let arrivals = probe.arrivals(&message).await?.len();
    ensure!(arrivals <= 1, "one failed delivery arrived {arrivals} times");
    Ok(())
}
