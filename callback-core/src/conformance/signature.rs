#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! What travels along with a body.

use super::{
    Harness, Received, Skip, Unproved,
    probe::{Probe, attempt, build, message, plain},
    prove::ensure,
    received::headers,
};
use crate::{Attempt, Message, MessageId, Signer};
use std::collections::BTreeMap;

/// The signature of an attempt arrives as it is, with the id and time that it covers; without one there is none.
pub async fn the_signature_is_copied<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    let signed = plain();
    let attempt_of_signed = attempt(1, probe.ample()).sign(&signer(), &signed);
    let arrived = arrived(&probe, &signed, &attempt_of_signed).await?;
    for (name, value) in attempt_of_signed.headers(&signed).filter(|(name, _)| name.starts_with("webhook-")) {
        ensure!(arrived.get(name).is_some_and(|arrived| *arrived == value), "{name} does not arrive as it was given");
    }
    let unsigned = plain();
    let arrived = self::arrived(&probe, &unsigned, &attempt(1, probe.ample())).await?;
    ensure!(!arrived.contains_key("webhook-signature"), "an attempt without a signature arrives with one");
    Ok(())
}

/// Each attribute of a message and its attempt arrives, and each header of its own.
pub async fn the_attributes_arrive<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let probe = Probe::new(harness);
    let message = build(
        message(serde_json::json!({ "status": "completed" }))
            .event_id(MessageId::new())
            .correlation_id("ray-7")
            .header("x-request-id", "request-8"),
    );
    let attempt = attempt(3, probe.ample()).with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let arrived = arrived(&probe, &message, &attempt).await?;
    for (name, value) in headers(&message, &attempt) {
        let found = arrived.get(&name);
        ensure!(found.is_some(), "{name} does not arrive");
        ensure!(found == Some(&value), "{name} arrives as {found:?}, and not as {value:?}");
    }
    Ok(())
}

async fn arrived<H: Harness>(
    probe: &Probe<'_, H>,
    message: &Message,
    attempt: &Attempt,
) -> Result<BTreeMap<String, String>, Unproved> {
    let ended = probe.deliver(message, attempt.clone()).await?;
    ensure!(ended.is_ok(), "a delivery fails without a fault");
    match probe.arrivals(message).await?.pop() {
        Some(Received { headers: Some(headers), .. }) => Ok(headers),
        Some(_) => Err(Skip::because("the harness shows no headers").into()),
        None => Err(Unproved::Broken("deliver resolved Ok, and the far end does not have the message".to_owned())),
    }
}

fn signer() -> Signer {
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key")
}
