//! The keys of a file: which it needs, and how it gets rid of them.

use super::apply::Rows;
use crate::outbox::{OutboxError, codec::Codec};
use callback_store::{Database, Writer};
use sqlx::query_as;

#[cfg(feature = "seal")]
mod reseal;

#[cfg(feature = "seal")]
pub(super) use reseal::{reseal, step};

/// Whether the keys are those that the file needs. The first of them is needed from then on.
pub(super) async fn check(database: &Database, writer: &Writer<Rows>, codec: &Codec) -> Result<(), OutboxError> {
    let known =
        async || query_as("SELECT key, proof FROM callback_seal ORDER BY key").fetch_all(database.reader()).await;
    let Some((key, proof)) = codec.check(&known().await?).map_err(OutboxError::sealed)? else { return Ok(()) };
    learn(writer, key, proof).await?;
    // Somebody else may have been first, with another key of this id.
    codec.check(&known().await?).map(drop).map_err(OutboxError::sealed)
}

#[cfg(feature = "seal")]
async fn learn(writer: &Writer<Rows>, key: String, proof: Vec<u8>) -> Result<(), OutboxError> {
    use crate::outbox::{SealStep, Write};
    writer.write(Write::Seal(SealStep::Learn { key, proof })).await?;
    Ok(())
}

#[cfg(not(feature = "seal"))]
#[expect(clippy::unused_async, reason = "there is no key to learn")]
async fn learn(_: &Writer<Rows>, _: String, _: Vec<u8>) -> Result<(), OutboxError> {
    Ok(())
}
