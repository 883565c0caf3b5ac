//! The keys of a database: which it needs, and how it gets rid of them.

use super::{PostgresOutbox, not_stored};
use crate::outbox::OutboxError;
use sqlx::query_as;

#[cfg(feature = "seal")]
mod reseal;

#[cfg(feature = "seal")]
pub(super) use reseal::{reseal, step};

/// Whether the keys are those that the database needs. The first of them is needed from then on.
pub(super) async fn check(outbox: &PostgresOutbox) -> Result<(), OutboxError> {
    let known = async || {
        let known = query_as("SELECT key, proof FROM callback_seal ORDER BY key").fetch_all(&outbox.0.pool).await;
        known.map_err(|error| not_stored(&error))
    };
    let codec = &outbox.0.codec;
    let Some((key, proof)) = codec.check(&known().await?).map_err(OutboxError::sealed)? else { return Ok(()) };
    learn(outbox, key, proof).await?;
    // Somebody else may have been first, with another key of this id.
    codec.check(&known().await?).map(drop).map_err(OutboxError::sealed)
}

#[cfg(feature = "seal")]
async fn learn(outbox: &PostgresOutbox, key: String, proof: Vec<u8>) -> Result<(), OutboxError> {
    use crate::outbox::{SealStep, Write, write};
    write(outbox, Write::Seal(SealStep::Learn { key, proof })).await.map(drop)
}

#[cfg(not(feature = "seal"))]
#[expect(clippy::unused_async, reason = "there is no key to learn")]
async fn learn(_: &PostgresOutbox, _: String, _: Vec<u8>) -> Result<(), OutboxError> {
    Ok(())
}
