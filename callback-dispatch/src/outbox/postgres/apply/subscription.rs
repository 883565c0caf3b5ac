//! Subscriptions come, change and end.

use super::{
    By,
    bind::{address, bytes, count, not_sealed, uuid},
};
use crate::{
    clock::Micros,
    lane::LaneKey,
    outbox::{Written, postgres::text::stored},
    subscription::{SubscriptionEnd, SubscriptionId, SubscriptionRow},
};
use callback_core::Dsn;
use sqlx::{Error, PgConnection, query, query_scalar, types::Uuid};
use std::collections::BTreeSet;

/// Whether an owner has as many as it may have.
pub(super) const IS_FULL: &str = "SELECT count(*) >= $3 FROM (SELECT 1 FROM callback_subscription \
    WHERE owner = $1 AND ended IS NULL AND expires > $2 LIMIT $3) AS live";

pub(super) const CHANGE: &str = "UPDATE callback_subscription SET revision = $1, active = $2, expires = $3, detail = $4 \
    WHERE id = $5 AND revision = $6 AND ended IS NULL";

pub(super) const END: &str =
    "UPDATE callback_subscription SET ended = $1, ended_at = $2 WHERE id = $3 AND ended IS NULL";

pub(super) const END_ALL_TO: &str = "UPDATE callback_subscription SET ended = $1, ended_at = $2 \
    WHERE address = $3 AND ended IS NULL RETURNING id";

pub(super) const FORGET_INTERESTS: &str = "DELETE FROM callback_interest WHERE subscription = ANY ($1)";

/// Those that have got the one event that they may get, and have no open row of it left.
pub(super) const END_SPENT: &str = "\
    WITH over AS MATERIALIZED ( \
        SELECT s.seq FROM callback_subscription AS s WHERE s.spent AND s.ended IS NULL \
        AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.subscription = s.id AND o.stage < 10) \
        ORDER BY s.id LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED) \
    UPDATE callback_subscription AS s SET ended = $1, ended_at = $2 FROM over WHERE s.seq = over.seq RETURNING s.id";

/// What ended long ago, and that no row delivers anything to. Who stores an event for one holds its line.
pub(super) const LOCK_ENDED: &str = "\
    SELECT s.id FROM callback_subscription AS s WHERE s.ended IS NOT NULL AND s.ended_at < $1 \
    AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.subscription = s.id) \
    ORDER BY s.ended_at LIMIT $2 FOR UPDATE SKIP LOCKED";

/// The same for those whose lease was over then.
pub(super) const LOCK_EXPIRED: &str = "\
    SELECT s.id FROM callback_subscription AS s \
    WHERE s.ended IS NULL AND s.expires < 9223372036854775807 AND s.expires < $1 \
    AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.subscription = s.id) \
    ORDER BY s.expires LIMIT $2 FOR UPDATE SKIP LOCKED";

/// Looks again, once they are locked: an event that was being stored for one is.
pub(super) const DELETE_UNUSED: &str = "DELETE FROM callback_subscription AS s WHERE s.id = ANY ($1) \
    AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.subscription = s.id) RETURNING s.id";

pub(super) async fn subscribe(
    connection: &mut PgConnection,
    by: By<'_>,
    row: &SubscriptionRow,
    limit: usize,
) -> Result<Written, Error> {
    if let Some(owner) = row.owner.as_deref() {
        let is_full = query_scalar(IS_FULL).bind(stored(owner)).bind(row.created_at.0).bind(count(limit));
        if is_full.fetch_one(&mut *connection).await? {
            return Ok(Written::TooMany);
        }
    }
    let detail = by.codec.encode_subscription(row).map_err(not_sealed)?;
    let lane = LaneKey { owner: row.owner.clone(), destination: row.dsn.destination() };
    let insert = "INSERT INTO callback_subscription (id, number, revision, owner, destination, lane, address, once, \
                  ordered, stops, active, spent, created_at, expires, sequence, detail) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)";
    query(insert)
        .bind(uuid(row.id.0))
        .bind(row.number())
        .bind(i64::from(row.revision))
        .bind(row.owner.as_deref().map(stored))
        .bind(lane.destination.as_str())
        .bind(lane.number())
        .bind(address(&row.dsn))
        .bind(row.once)
        .bind(row.ordered)
        .bind(row.stops)
        .bind(row.active)
        .bind(row.spent)
        .bind(row.created_at.0)
        .bind(row.expires.0)
        .bind(i64::from(row.sequence))
        .bind(bytes(&detail))
        .execute(&mut *connection)
        .await?;
    note_interests(connection, row).await?;
    Ok(Written::Done)
}

pub(super) async fn change_subscription(
    connection: &mut PgConnection,
    by: By<'_>,
    row: &SubscriptionRow,
) -> Result<Written, Error> {
    let detail = by.codec.encode_subscription(row).map_err(not_sealed)?;
    let revision = i64::from(row.revision);
    let change = query(CHANGE).bind(revision).bind(row.active).bind(row.expires.0).bind(bytes(&detail));
    let changed = change.bind(uuid(row.id.0)).bind(revision - 1).execute(&mut *connection).await?;
    if changed.rows_affected() == 0 {
        return Ok(Written::Superseded);
    }
    forget_interests(connection, vec![uuid(row.id.0)]).await?;
    note_interests(connection, row).await?;
    Ok(Written::Done)
}

async fn note_interests(connection: &mut PgConnection, row: &SubscriptionRow) -> Result<(), Error> {
    let interests: BTreeSet<(&str, &str)> = row.interests().into_iter().collect();
    let (events, services): (Vec<&str>, Vec<&str>) = interests.into_iter().unzip();
    let insert = "INSERT INTO callback_interest (event, service, subscription) \
                  SELECT event, service, $3 FROM unnest($1::text[], $2::text[]) AS v (event, service)";
    query(insert).bind(events).bind(services).bind(uuid(row.id.0)).execute(connection).await.map(drop)
}

async fn forget_interests(connection: &mut PgConnection, ids: Vec<Uuid>) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    query(FORGET_INTERESTS).bind(ids).execute(connection).await.map(drop)
}

pub(super) async fn end_subscription(
    connection: &mut PgConnection,
    id: SubscriptionId,
    end: SubscriptionEnd,
    now: Micros,
) -> Result<Written, Error> {
    let ended = query(END).bind(end.number()).bind(now.0).bind(uuid(id.0)).execute(&mut *connection).await?;
    if ended.rows_affected() > 0 {
        forget_interests(connection, vec![uuid(id.0)]).await?;
        return Ok(Written::Done);
    }
    let known = query("SELECT 1 FROM callback_subscription WHERE id = $1").bind(uuid(id.0));
    let known = known.fetch_optional(connection).await?.is_some();
    Ok(if known { Written::Superseded } else { Written::Unknown })
}

/// Ends the subscriptions to a Dsn that is gone.
pub(super) async fn end_all_to(connection: &mut PgConnection, dsn: &Dsn, now: Micros) -> Result<(), Error> {
    let end = query_scalar(END_ALL_TO).bind(SubscriptionEnd::Gone.number()).bind(now.0).bind(address(dsn));
    let ended = end.fetch_all(&mut *connection).await?;
    forget_interests(connection, ended).await
}

/// Ends those for one event that are over; how many.
pub(super) async fn end_spent(connection: &mut PgConnection, now: Micros, limit: usize) -> Result<u64, Error> {
    let end = query_scalar(END_SPENT).bind(SubscriptionEnd::Completed.number()).bind(now.0).bind(count(limit));
    let ended: Vec<Uuid> = end.fetch_all(&mut *connection).await?;
    let count = ended.len() as u64;
    forget_interests(connection, ended).await?;
    Ok(count)
}

/// Deletes subscriptions of long ago; how many.
pub(super) async fn clean_subscriptions(
    connection: &mut PgConnection,
    before: Micros,
    limit: usize,
) -> Result<u64, Error> {
    let mut most = 0;
    for lock in [LOCK_ENDED, LOCK_EXPIRED] {
        let old: Vec<Uuid> = query_scalar(lock).bind(before.0).bind(count(limit)).fetch_all(&mut *connection).await?;
        if old.is_empty() {
            continue;
        }
        let deleted: Vec<Uuid> = query_scalar(DELETE_UNUSED).bind(old).fetch_all(&mut *connection).await?;
        most = most.max(deleted.len() as u64);
        forget_interests(connection, deleted).await?;
    }
    Ok(most)
}
