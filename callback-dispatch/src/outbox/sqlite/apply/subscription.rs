//! Subscriptions come, change and end.

use super::{
    Rows,
    bind::{add_text, address, count, not_sealed},
};
use crate::{
    clock::Micros,
    lane::LaneKey,
    outbox::Written,
    subscription::{SubscriptionEnd, SubscriptionId, SubscriptionRow},
};
use callback_core::Dsn;
use sqlx::{Arguments, Error, SqliteConnection, query, query_scalar, query_with, sqlite::SqliteArguments};
use std::collections::BTreeSet;

/// Whether an owner has as many as it may have.
pub(super) const IS_FULL: &str = "SELECT count(*) >= ?3 FROM (SELECT 1 FROM callback_subscription \
    WHERE owner = ?1 AND ended IS NULL AND expires > ?2 LIMIT ?3)";

pub(super) const CHANGE: &str = "UPDATE callback_subscription SET revision = ?1, active = ?2, expires = ?3, detail = ?4 \
    WHERE id = ?5 AND revision = ?6 AND ended IS NULL";

pub(super) const END: &str =
    "UPDATE callback_subscription SET ended = ?1, ended_at = ?2 WHERE id = ?3 AND ended IS NULL";

pub(super) const END_ALL_TO: &str = "UPDATE callback_subscription SET ended = ?1, ended_at = ?2 \
    WHERE address = ?3 AND ended IS NULL";

pub(super) const FORGET_INTERESTS: &str = "DELETE FROM callback_interest WHERE subscription = ?";

/// Those of a Dsn that is gone.
pub(super) const FORGET_INTERESTS_TO: &str = "DELETE FROM callback_interest WHERE subscription IN ( \
    SELECT id FROM callback_subscription WHERE address = ? AND ended IS NULL)";

/// Those that have got the one event that they may get, and have no open row of it left.
pub(super) const END_SPENT: &str = "UPDATE callback_subscription SET ended = ?1, ended_at = ?2 WHERE seq IN ( \
    SELECT s.seq FROM callback_subscription AS s WHERE s.spent AND s.ended IS NULL \
    AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.subscription = s.id AND o.stage < 10) \
    ORDER BY s.id LIMIT ?3) RETURNING id";

/// What ended long ago, or whose lease was over then, and that no row delivers anything to.
pub(super) const CLEAN_ENDED: &str = "DELETE FROM callback_subscription WHERE seq IN ( \
    SELECT s.seq FROM callback_subscription AS s WHERE s.ended IS NOT NULL AND s.ended_at < ?1 \
    AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.subscription = s.id) ORDER BY s.ended_at LIMIT ?2)";

pub(super) const CLEAN_EXPIRED: &str = "DELETE FROM callback_subscription WHERE seq IN ( \
    SELECT s.seq FROM callback_subscription AS s \
    WHERE s.ended IS NULL AND s.expires < 9223372036854775807 AND s.expires < ?1 \
    AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.subscription = s.id) ORDER BY s.expires LIMIT ?2) \
    RETURNING id";

impl Rows {
    pub(super) async fn subscribe(
        &self,
        connection: &mut SqliteConnection,
        row: &SubscriptionRow,
        limit: usize,
    ) -> Result<Written, Error> {
        if let Some(owner) = row.owner.as_deref() {
            let is_full = query_scalar(IS_FULL).bind(owner).bind(row.created_at.0).bind(count(limit));
            if is_full.fetch_one(&mut *connection).await? {
                return Ok(Written::TooMany);
            }
        }
        let detail = self.codec.encode_subscription(row).map_err(not_sealed)?;
        let lane = LaneKey { owner: row.owner.clone(), destination: row.dsn.destination() };
        let mut arguments = SqliteArguments::default();
        let bind = |arguments: &mut SqliteArguments| {
            arguments.add(&row.id.0.as_bytes()[..])?;
            arguments.add(row.number())?;
            arguments.add(i64::from(row.revision))?;
            arguments.add(row.owner.as_deref())?;
            arguments.add(lane.destination.as_str())?;
            arguments.add(lane.number())?;
            arguments.add(address(&row.dsn))?;
            for flag in [row.once, row.ordered, row.stops, row.active, row.spent] {
                arguments.add(flag)?;
            }
            arguments.add(row.created_at.0)?;
            arguments.add(row.expires.0)?;
            arguments.add(i64::from(row.sequence))?;
            add_text(arguments, Some(&detail))
        };
        bind(&mut arguments).map_err(Error::Encode)?;
        let insert = "INSERT INTO callback_subscription (id, number, revision, owner, destination, lane, address, once, \
                      ordered, stops, active, spent, created_at, expires, sequence, detail) \
                      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        query_with(insert, arguments).execute(&mut *connection).await?;
        note_interests(connection, row).await?;
        Ok(Written::Done)
    }

    pub(super) async fn change_subscription(
        &self,
        connection: &mut SqliteConnection,
        row: &SubscriptionRow,
    ) -> Result<Written, Error> {
        let detail = self.codec.encode_subscription(row).map_err(not_sealed)?;
        let mut arguments = SqliteArguments::default();
        let bind = |arguments: &mut SqliteArguments| {
            arguments.add(i64::from(row.revision))?;
            arguments.add(row.active)?;
            arguments.add(row.expires.0)?;
            add_text(arguments, Some(&detail))?;
            arguments.add(&row.id.0.as_bytes()[..])?;
            arguments.add(i64::from(row.revision) - 1)
        };
        bind(&mut arguments).map_err(Error::Encode)?;
        if query_with(CHANGE, arguments).execute(&mut *connection).await?.rows_affected() == 0 {
            return Ok(Written::Superseded);
        }
        query(FORGET_INTERESTS).bind(&row.id.0.as_bytes()[..]).execute(&mut *connection).await?;
        note_interests(connection, row).await?;
        Ok(Written::Done)
    }
}

async fn note_interests(connection: &mut SqliteConnection, row: &SubscriptionRow) -> Result<(), Error> {
    for (event, service) in row.interests().into_iter().collect::<BTreeSet<_>>() {
        let insert = query("INSERT INTO callback_interest (event, service, subscription) VALUES (?, ?, ?)");
        insert.bind(event).bind(service).bind(&row.id.0.as_bytes()[..]).execute(&mut *connection).await?;
    }
    Ok(())
}

pub(super) async fn end_subscription(
    connection: &mut SqliteConnection,
    id: SubscriptionId,
    end: SubscriptionEnd,
    now: Micros,
) -> Result<Written, Error> {
    let id = &id.0.as_bytes()[..];
    let ended = query(END).bind(end.number()).bind(now.0).bind(id).execute(&mut *connection).await?;
    if ended.rows_affected() > 0 {
        query(FORGET_INTERESTS).bind(id).execute(connection).await?;
        return Ok(Written::Done);
    }
    let known = query("SELECT 1 FROM callback_subscription WHERE id = ?").bind(id).fetch_optional(connection).await?;
    Ok(if known.is_some() { Written::Superseded } else { Written::Unknown })
}

/// Ends the subscriptions to a Dsn that is gone.
pub(super) async fn end_all_to(connection: &mut SqliteConnection, dsn: &Dsn, now: Micros) -> Result<(), Error> {
    query(FORGET_INTERESTS_TO).bind(address(dsn)).execute(&mut *connection).await?;
    let end = query(END_ALL_TO).bind(SubscriptionEnd::Gone.number()).bind(now.0).bind(address(dsn));
    end.execute(connection).await.map(drop)
}

/// Ends those for one event that are over; how many.
pub(super) async fn end_spent(connection: &mut SqliteConnection, now: Micros, limit: usize) -> Result<u64, Error> {
    let end = query(END_SPENT).bind(SubscriptionEnd::Completed.number()).bind(now.0).bind(count(limit));
    let ended = end.fetch_all(&mut *connection).await?;
    for line in &ended {
        let id = crate::outbox::sqlite::read::task_id(line)?;
        query(FORGET_INTERESTS).bind(&id.as_bytes()[..]).execute(&mut *connection).await?;
    }
    Ok(ended.len() as u64)
}

/// Deletes subscriptions of long ago; how many.
pub(super) async fn clean_subscriptions(
    connection: &mut SqliteConnection,
    before: Micros,
    limit: usize,
) -> Result<u64, Error> {
    let ended = query(CLEAN_ENDED).bind(before.0).bind(count(limit)).execute(&mut *connection).await?.rows_affected();
    let expired = query(CLEAN_EXPIRED).bind(before.0).bind(count(limit)).fetch_all(&mut *connection).await?;
    for line in &expired {
        let id = crate::outbox::sqlite::read::task_id(line)?;
        query(FORGET_INTERESTS).bind(&id.as_bytes()[..]).execute(&mut *connection).await?;
    }
    Ok(ended.max(expired.len() as u64))
}
