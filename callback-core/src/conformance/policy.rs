#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! Who may send where.

use super::{
    Harness, Unproved,
    probe::{Probe, attempt, plain},
    prove::ensure,
};
use crate::{Dsn, DsnErrorKind, ErrorKind, Sink};
use std::sync::Arc;

/// A Dsn that the policy forbids is forbidden in `check`, and in `deliver` too: nothing arrives.
pub async fn a_forbidden_dsn_is_refused<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let (sink, dsn) = harness.forbidden()?;
    match sink.check(&dsn) {
        Ok(()) => return Err(Unproved::Broken("`check` passes a Dsn that the policy forbids".to_owned())),
        Err(error) => ensure!(error.kind() == DsnErrorKind::Forbidden, "the policy's no is told as {error}"),
    }
    deliver_is_forbidden(harness, sink, dsn).await
}

/// A Dsn that leads to a forbidden address is forbidden at connect: nothing arrives, and nobody connects.
pub async fn a_forbidden_address_is_not_dialled<H: Harness>(harness: &H) -> Result<(), Unproved> {
    let (sink, dsn) = harness.forbidden_at_connect()?;
    if let Err(error) = sink.check(&dsn) {
        return Err(Unproved::Broken(format!("`check` knows what a name resolves to: {error}")));
    }
    let before = harness.connections().await;
    deliver_is_forbidden(harness, sink, dsn).await?;
    let after = harness.connections().await;
    ensure!(before == after, "a forbidden address is connected to: {before:?} connections became {after:?}");
    Ok(())
}

async fn deliver_is_forbidden<H: Harness>(harness: &H, sink: H::Sink, dsn: Dsn) -> Result<(), Unproved> {
    let probe = Probe { harness, sink: Arc::new(sink), dsn };
    match probe.deliver(&plain(), attempt(1, probe.ample())).await? {
        Ok(_) => return Err(Unproved::Broken("`deliver` sends where the policy forbids it".to_owned())),
        Err(error) => ensure!(error.kind() == ErrorKind::Forbidden, "the policy's no is told as {}", error.chain()),
    }
    ensure!(harness.received().await.is_empty(), "a message arrived where the policy forbids it");
    Ok(())
}
