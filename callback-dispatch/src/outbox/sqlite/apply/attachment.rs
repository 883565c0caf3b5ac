//! Destinations that a process has attached.

use super::bind::{address, count};
use crate::{
    clock::Micros,
    outbox::{
        Attaching, AttachmentRow, Holder, Keep, Keeping, Parked, Parking, SecretDigest, Written,
        sqlite::read::{hex, number},
    },
    row::Stage,
};
use callback_core::Dsn;
use sqlx::{Error, Row as _, SqliteConnection, query, query_scalar};
use std::collections::HashSet;

pub(super) const FIND: &str = "SELECT held, until, secret, former FROM callback_attachment WHERE address = ?";

pub(super) const ATTACH: &str = "INSERT INTO callback_attachment (address, id, held, until, secret, former) \
    VALUES (?, ?, 1, ?, ?, ?) ON CONFLICT (address) DO UPDATE \
    SET id = excluded.id, held = 1, until = excluded.until, secret = excluded.secret, former = excluded.former";

/// Of a key those that are not the first are never due.
pub(super) const ROUSE: &str = "UPDATE callback_outbox SET due = ?2 WHERE seq IN ( \
    SELECT seq FROM callback_outbox WHERE address = ?1 AND stage = 3 AND held = 0 AND +due > ?2 AND +due < ?3 LIMIT ?4)";

pub(super) const HAND: &str = "SELECT stage, token FROM callback_outbox WHERE id = ?";

pub(super) const PARK: &str =
    "UPDATE callback_outbox SET held = 0, claim = NULL, due = coalesce(?2, due) WHERE id = ?1";

/// Nobody comes back to it, whatever his clock says.
pub(super) const END: &str = "UPDATE callback_attachment SET secret = NULL, former = NULL WHERE address = ?";

pub(super) const KEEP: &str = "UPDATE callback_attachment SET held = v.held, until = v.until, \
        secret = iif(v.over, NULL, secret), former = iif(v.over, NULL, former) FROM ( \
        SELECT unhex(json_extract(value, '$[0]')) AS address, unhex(json_extract(value, '$[1]')) AS id, \
               json_extract(value, '$[2]') AS until, json_extract(value, '$[3]') AS held, \
               json_extract(value, '$[4]') AS over FROM json_each(?)) AS v \
    WHERE callback_attachment.address = v.address AND callback_attachment.id = v.id RETURNING id";

pub(super) const LET_GO_OF_ALL: &str = "UPDATE callback_attachment SET held = 0 WHERE held = 1";

pub(super) const CLEAN_ATTACHMENTS: &str = "DELETE FROM callback_attachment \
    WHERE address IN (SELECT address FROM callback_attachment WHERE until < ?1 LIMIT ?2)";

async fn find(connection: &mut SqliteConnection, dsn: &Dsn) -> Result<Option<AttachmentRow<Vec<u8>>>, Error> {
    let Some(line) = query(FIND).bind(address(dsn)).fetch_optional(connection).await? else { return Ok(None) };
    Ok(Some(AttachmentRow {
        holder: if line.try_get("held")? { Holder::This } else { Holder::Nobody },
        until: Micros(line.try_get("until")?),
        secret: line.try_get("secret")?,
        former: line.try_get("former")?,
    }))
}

pub(super) async fn attach(connection: &mut SqliteConnection, attaching: &Attaching) -> Result<Written, Error> {
    let Attaching { dsn, id, presented, secret, now, until, limit } = attaching;
    if let Some(presented) = presented
        && !find(connection, dsn).await?.is_some_and(|row| row.admits(presented, *now))
    {
        return Ok(Written::Unknown);
    }
    let bytes = |digest: &Option<SecretDigest>| digest.as_ref().map(|digest| digest.0.to_vec());
    let attach = query(ATTACH).bind(address(dsn)).bind(id.0.as_bytes().to_vec()).bind(until.0);
    attach.bind(bytes(secret)).bind(bytes(presented)).execute(&mut *connection).await?;
    Ok(Written::Count(rouse(connection, dsn, *now, *limit).await?))
}

/// Makes what waits for this Dsn due; how many rows.
pub(super) async fn rouse(
    connection: &mut SqliteConnection,
    dsn: &Dsn,
    now: Micros,
    limit: usize,
) -> Result<u64, Error> {
    let rouse = query(ROUSE).bind(address(dsn)).bind(now.0).bind(Micros::NEVER.0).bind(count(limit));
    Ok(rouse.execute(connection).await?.rows_affected())
}

pub(super) async fn park(connection: &mut SqliteConnection, parking: &Parking) -> Result<Written, Error> {
    let Parking { id, token, dsn, now, soon } = parking;
    let id = &id.as_bytes()[..];
    let Some(line) = query(HAND).bind(id).fetch_optional(&mut *connection).await? else {
        return Ok(Written::Unknown);
    };
    if line.try_get::<i64, _>("stage")? != Stage::Delivering.number() || number(&line, "token")? != *token {
        return Ok(Written::Superseded);
    }
    let Some(row) = find(connection, dsn).await? else { return Ok(Written::Parked(Parked::Unknown)) };
    let parked = row.parked(*now);
    let due = match parked {
        Parked::Here => Some(soon.0),
        Parked::Elsewhere => None,
        Parked::Away => Some(row.until.0),
        Parked::Over | Parked::Unknown => {
            query(END).bind(address(dsn)).execute(connection).await?;
            return Ok(Written::Parked(parked));
        }
    };
    query(PARK).bind(id).bind(due).execute(connection).await?;
    Ok(Written::Parked(parked))
}

pub(super) async fn keep_attached(connection: &mut SqliteConnection, keeping: &[Keeping]) -> Result<Written, Error> {
    let values = keeping.iter().map(|Keeping { dsn, id, until, state }| {
        let (held, over) = (i64::from(*state == Keep::Held), i64::from(*state == Keep::Over));
        serde_json::json!([hex(&address(dsn)), hex(id.0.as_bytes()), until.0, held, over])
    });
    let values = serde_json::Value::Array(values.collect()).to_string();
    let kept: HashSet<Vec<u8>> = query_scalar(KEEP).bind(values).fetch_all(connection).await?.into_iter().collect();
    let replaced = keeping.iter().map(|it| it.id).filter(|id| !kept.contains(&id.0.as_bytes()[..]));
    Ok(Written::Replaced(replaced.collect()))
}
