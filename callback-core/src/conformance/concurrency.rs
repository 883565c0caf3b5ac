#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! Many deliveries at once.

use super::{
    Harness, Unproved,
    probe::{Probe, attempt, check_body, plain},
    prove::ensure,
};
use std::collections::HashMap;

/// How many deliveries are begun before one of them is waited for.
const MANY: usize = 256;

/// 256 deliveries to one Dsn at once resolve `Ok`, and each is at the far end once.
pub async fn hundreds_of_deliveries_at_once_arrive_once<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    let messages: Vec<_> = (0..MANY).map(|_| plain()).collect();
    let deliveries: Vec<_> = messages.iter().map(|message| probe.spawn(message, attempt(1, probe.ample()))).collect();
    for delivery in deliveries {
        if let Err(error) = probe.end(delivery).await? {
            return Err(Unproved::Broken(format!("one of {MANY} deliveries at once fails: {}", error.chain())));
        }
    }
    let mut arrivals = HashMap::new();
    for received in harness.received().await {
        arrivals.entry(received.id.clone()).or_insert_with(Vec::new).push(received);
    }
    for message in &messages {
        let arrived = arrivals.remove(message.id()).unwrap_or_default();
        ensure!(arrived.len() == 1, "one of {MANY} deliveries at once arrived {} times", arrived.len());
        check_body(message, &arrived[0])?;
    }
    ensure!(arrivals.is_empty(), "{} messages arrived that nobody sent", arrivals.len());
    Ok(())
}
