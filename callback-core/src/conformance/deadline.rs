#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! Deliveries are over in time.

use super::{
    Fault, Harness, Unproved,
    probe::{Probe, attempt, out_of_reach, plain},
    prove::ensure,
};
use crate::ErrorKind;
use std::time::{Duration, Instant};

/// How many deliveries hang at once. One after the other they take longer than the kit waits.
const HANGING: usize = 64;

/// Deliveries that a far end never answers end as [`TimedOut`](ErrorKind::TimedOut), also many at once.
///
/// Where there is no connection yet, they may also end as [`Unavailable`](ErrorKind::Unavailable): connecting has a
/// limit of its own then.
pub async fn a_stalled_delivery_times_out<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let connected = Probe::new(harness);
    connected.delivered(&plain()).await?;
    harness.inject(Fault::Stall).await?;
    for (probe, is_connected) in [(connected, true), (Probe::new(harness), false)] {
        let deliveries: Vec<_> = (0..HANGING).map(|_| probe.spawn(&plain(), attempt(1, probe.soon()))).collect();
        let all = async {
            for delivery in deliveries {
                match probe.end(delivery).await? {
                    Ok(_) => return Err(Unproved::Broken("deliver resolves Ok, and nobody answered".to_owned())),
                    Err(error) => {
                        let fits = error.kind() == ErrorKind::TimedOut || (!is_connected && out_of_reach(&error));
                        ensure!(fits, "a stall is told as {}", error.chain());
                    }
                }
            }
            Ok(())
        };
        probe.in_time("many deliveries without an answer", 1, all).await??;
    }
    Ok(())
}

/// An attempt whose deadline was over before it began ends as [`TimedOut`](ErrorKind::TimedOut); the sink lives on.
pub async fn a_deadline_that_is_over_times_out<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    probe.delivered(&plain()).await?;
    let now = Instant::now();
    for over in [now.checked_sub(Duration::from_secs(1)).unwrap_or(now), now] {
        match probe.deliver(&plain(), attempt(1, over)).await? {
            Ok(_) => return Err(Unproved::Broken("deliver resolves Ok after its deadline".to_owned())),
            Err(error) => {
                ensure!(error.kind() == ErrorKind::TimedOut, "a deadline that is over is told as {}", error.chain());
            }
        }
    }
    probe.delivers_again("a deadline that was over").await
}
