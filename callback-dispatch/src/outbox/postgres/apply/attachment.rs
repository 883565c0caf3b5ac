//! Destinations that a process has attached.

use super::{
    By,
    bind::{address, column, count, uuid},
};
use crate::{
    clock::Micros,
    outbox::{
        Attaching, AttachmentRow, Holder, Keep, Keeping, Parked, Parking, SecretDigest, Written, postgres::read::number,
    },
    row::Stage,
};
use callback_core::Dsn;
use sqlx::{Error, PgConnection, Row as _, query, query_scalar, types::Uuid};
use std::collections::HashSet;

/// Locked: of who parks a row and who attaches its Dsn, at once, the second sees what the first did. A process that is not
/// heard of has nothing attached.
pub(super) const FIND: &str = "\
    SELECT until, secret, former, CASE \
        WHEN NOT EXISTS (SELECT FROM callback_process AS p \
                         WHERE p.id = a.holder AND (p.id = $2 OR p.alive_until > now())) THEN 0 \
        WHEN holder = $2 THEN 1 ELSE 2 END AS whose \
    FROM callback_attachment AS a WHERE address = $1 FOR UPDATE OF a";

pub(super) const ATTACH: &str = "\
    INSERT INTO callback_attachment (address, id, holder, until, secret, former) VALUES ($1, $2, $3, $4, $5, $6) \
    ON CONFLICT (address) DO UPDATE SET id = excluded.id, holder = excluded.holder, until = excluded.until, \
                                        secret = excluded.secret, former = excluded.former";

/// Of a key those that are not the first are never due.
pub(super) const ROUSE: &str = "\
    WITH waiting AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox \
        WHERE address = $1 AND stage = 3 AND holder IS NULL AND due + 0 > $2 AND due + 0 < $3 \
        LIMIT $4 FOR UPDATE SKIP LOCKED) \
    UPDATE callback_outbox AS o SET due = $2 FROM waiting WHERE o.seq = waiting.seq";

pub(super) const HAND: &str = "SELECT stage, token FROM callback_outbox WHERE id = $1";

pub(super) const PARK: &str = "\
    UPDATE callback_outbox SET holder = NULL, claim = NULL, due = coalesce($3, due) \
    WHERE id = $1 AND token = $2 AND stage = 3";

/// Nobody comes back to it, whatever his clock says.
pub(super) const END: &str = "UPDATE callback_attachment SET secret = NULL, former = NULL WHERE address = $1";

/// Without a lease, who holds it stays.
pub(super) const KEEP: &str = "\
    UPDATE callback_attachment AS a SET holder = CASE WHEN v.held THEN coalesce($6, a.holder) END, until = v.until, \
        secret = CASE WHEN NOT v.over THEN a.secret END, former = CASE WHEN NOT v.over THEN a.former END \
    FROM unnest($1::bytea[], $2::uuid[], $3::bigint[], $4::bool[], $5::bool[]) AS v (address, id, until, held, over) \
    WHERE a.address = v.address AND a.id = v.id RETURNING a.id";

pub(super) const CLEAN_ATTACHMENTS: &str = "\
    WITH old AS MATERIALIZED ( \
        SELECT address FROM callback_attachment WHERE until < $1 ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED) \
    DELETE FROM callback_attachment AS a USING old WHERE a.address = old.address";

async fn find(connection: &mut PgConnection, by: By<'_>, dsn: &Dsn) -> Result<Option<AttachmentRow<Vec<u8>>>, Error> {
    let found = query(FIND).bind(address(dsn)).bind(by.holder).fetch_optional(connection).await?;
    let Some(line) = found else { return Ok(None) };
    Ok(Some(AttachmentRow {
        holder: match line.try_get::<i32, _>("whose")? {
            0 => Holder::Nobody,
            1 => Holder::This,
            _ => Holder::Other,
        },
        until: Micros(line.try_get("until")?),
        secret: line.try_get("secret")?,
        former: line.try_get("former")?,
    }))
}

pub(super) async fn attach(connection: &mut PgConnection, by: By<'_>, attaching: &Attaching) -> Result<Written, Error> {
    let Attaching { dsn, id, presented, secret, now, until, limit } = attaching;
    if by.holder.is_none() {
        return Ok(Written::Superseded);
    }
    if let Some(presented) = presented
        && !find(connection, by, dsn).await?.is_some_and(|row| row.admits(presented, *now))
    {
        return Ok(Written::Unknown);
    }
    let bytes = |digest: &Option<SecretDigest>| digest.as_ref().map(|digest| digest.0.to_vec());
    let attach = query(ATTACH).bind(address(dsn)).bind(uuid(id.0)).bind(by.holder).bind(until.0);
    attach.bind(bytes(secret)).bind(bytes(presented)).execute(&mut *connection).await?;
    Ok(Written::Count(rouse(connection, dsn, *now, *limit).await?))
}

/// Makes what waits for this Dsn due; how many rows.
pub(super) async fn rouse(connection: &mut PgConnection, dsn: &Dsn, now: Micros, limit: usize) -> Result<u64, Error> {
    let rouse = query(ROUSE).bind(address(dsn)).bind(now.0).bind(Micros::NEVER.0).bind(count(limit));
    Ok(rouse.execute(connection).await?.rows_affected())
}

pub(super) async fn park(connection: &mut PgConnection, by: By<'_>, parking: &Parking) -> Result<Written, Error> {
    let Parking { id, token, dsn, now, soon } = parking;
    let Some(line) = query(HAND).bind(uuid(*id)).fetch_optional(&mut *connection).await? else {
        return Ok(Written::Unknown);
    };
    let stage = i64::from(line.try_get::<i32, _>("stage")?);
    if stage != Stage::Delivering.number() || number(&line, "token")? != *token {
        return Ok(Written::Superseded);
    }
    let Some(row) = find(connection, by, dsn).await? else { return Ok(Written::Parked(Parked::Unknown)) };
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
    let park = query(PARK).bind(uuid(*id)).bind(i64::from(*token)).bind(due).execute(connection).await?;
    Ok(if park.rows_affected() > 0 { Written::Parked(parked) } else { Written::Superseded })
}

pub(super) async fn keep_attached(
    connection: &mut PgConnection,
    by: By<'_>,
    keeping: &[Keeping],
) -> Result<Written, Error> {
    let kept: Vec<Uuid> = query_scalar(KEEP)
        .bind(column(keeping, |it| address(&it.dsn)))
        .bind(column(keeping, |it| uuid(it.id.0)))
        .bind(column(keeping, |it| it.until.0))
        .bind(column(keeping, |it| it.state == Keep::Held))
        .bind(column(keeping, |it| it.state == Keep::Over))
        .bind(by.holder)
        .fetch_all(connection)
        .await?;
    let kept: HashSet<Uuid> = kept.into_iter().collect();
    let replaced = keeping.iter().map(|it| it.id).filter(|id| !kept.contains(&uuid(id.0)));
    Ok(Written::Replaced(replaced.collect()))
}
