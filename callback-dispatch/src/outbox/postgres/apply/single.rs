//! What is rare, and comes one by one.

use super::{
    By,
    attachment::{CLEAN_ATTACHMENTS, attach, keep_attached, park, rouse},
    bind::{address, bytes, column, count, not_sealed, uuid},
    claim::{claim, give_back},
    fan_out::{fan_out, forget_payloads, payloads},
    fan_out_all, insert,
    order::{ENQUEUE, Left, QUEUE, left, locks_its_key, release_aged, release_next},
    subscription::{change_subscription, clean_subscriptions, end_all_to, end_spent, end_subscription, subscribe},
    to_one,
};
use crate::{
    clock::Micros,
    lane::{LaneKey, OpenBreaker, StoredConsent},
    outbox::{
        PullIn, Write, Written,
        codec::Pair,
        postgres::{lease, text::stored},
    },
    row::{Idempotency, Row},
};
use callback_core::{ErrorKind, TaskId};
use sqlx::{Connection, Error, PgConnection, query, query_as, query_scalar, types::Uuid};
use std::collections::BTreeSet;

pub(super) const AGE: &str = concat!(
    "\
    WITH aged AS MATERIALIZED ( \
        SELECT i.seq FROM unnest($2::bigint[]) AS l (lane) CROSS JOIN LATERAL ( \
            SELECT seq FROM callback_outbox \
            WHERE lane = l.lane AND stage = 3 AND holder IS NULL AND due <= $1 AND first_due < $3 AND ",
    locks_its_key!(),
    " \
            ORDER BY due LIMIT $4 FOR UPDATE SKIP LOCKED) AS i LIMIT $4) \
    UPDATE callback_outbox AS o SET stage = 12, ended_at = $1, kind = coalesce(kind, 'timed out'), \
                                    turn = CASE WHEN stops THEN turn END \
    FROM aged WHERE o.seq = aged.seq RETURNING o.id, o.order_key, o.stops"
);

/// Whether the last row, or the last failed attempt, is of a time that is still to come.
pub(super) const FROM_THE_FUTURE: &str = "\
    SELECT coalesce((SELECT accepted_at FROM callback_outbox ORDER BY seq DESC LIMIT 1) > $1, false) \
        OR coalesce((SELECT time FROM callback_attempt ORDER BY seq DESC LIMIT 1) > $1, false)";

pub(super) const WAIT_FROM_NOW: &str = "\
    WITH waiting AS MATERIALIZED ( \
        SELECT o.seq, greatest(o.first_due, (SELECT max(a.time) FROM callback_attempt AS a WHERE a.id = o.id)) AS since \
        FROM callback_outbox AS o WHERE o.stage < 10 AND o.holder IS NULL AND o.due > $1 AND o.due < $2 \
        FOR UPDATE OF o SKIP LOCKED) \
    UPDATE callback_outbox AS o SET due = o.due - (waiting.since - $1) FROM waiting \
    WHERE o.seq = waiting.seq AND waiting.since > $1";

pub(super) const NOT_BEYOND: &str = "\
    WITH beyond AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE stage < 10 AND holder IS NULL AND due > $1 AND due < $2 \
        FOR UPDATE SKIP LOCKED) \
    UPDATE callback_outbox AS o SET due = $1 FROM beyond WHERE o.seq = beyond.seq";

pub(super) const REPLAY: &str = "\
    UPDATE callback_outbox SET stage = 3, holder = NULL, token = token + 1, due = $1, first_due = $1, attempts = 0, \
                               ended_at = NULL, expires = 9223372036854775807, result = coalesce($3, result), \
                               result_body = coalesce($4, result_body) \
    WHERE stage = 12 AND id = ANY ($2::uuid[]) RETURNING id, order_key, turn";

pub(super) const BURY: &str = concat!(
    "\
    WITH buried AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE address = $3 AND stage = 3 AND holder IS NULL AND ",
    locks_its_key!(),
    " \
        ORDER BY seq LIMIT $4 FOR UPDATE SKIP LOCKED) \
    UPDATE callback_outbox AS o SET stage = 12, due = $1, ended_at = $1, kind = $2, turn = CASE WHEN stops THEN turn END \
    FROM buried WHERE o.seq = buried.seq RETURNING o.id, o.order_key, o.turn"
);

/// What another process has in hand is ended there, so that its run and its attempts end with it.
pub(super) const EXPIRE: &str = concat!(
    "\
    WITH over AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE stage < 10 AND expires < 9223372036854775807 AND expires <= $1 \
        AND (holder IS NULL OR holder = $3) AND ",
    locks_its_key!(),
    " \
        ORDER BY expires LIMIT $2 FOR UPDATE SKIP LOCKED) \
    UPDATE callback_outbox AS o SET stage = 14, holder = NULL, due = $1, ended_at = $1, turn = NULL \
    FROM over WHERE o.seq = over.seq RETURNING o.id, o.order_key, o.turn"
);

pub(super) const CLEAN: &str = "\
    WITH old AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE stage >= 10 AND stage <> 12 AND idempotency IS NULL AND ended_at < $1 \
        ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
    DELETE FROM callback_outbox AS o USING old WHERE o.seq = old.seq RETURNING o.id, o.payload";

pub(super) const CLEAN_KEYED: &str = "\
    WITH old AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE stage >= 10 AND stage <> 12 AND idempotency IS NOT NULL AND ended_at < $1 \
        ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
    DELETE FROM callback_outbox AS o USING old WHERE o.seq = old.seq RETURNING o.id";

pub(super) const CLEAN_BREAKERS: &str = "\
    WITH old AS MATERIALIZED ( \
        SELECT lane FROM callback_breaker WHERE until < $1 ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED) \
    DELETE FROM callback_breaker AS b USING old WHERE b.lane = old.lane";

const CONSENT: &str = "INSERT INTO callback_consent (destination, per_minute, until) VALUES ($1, $2, $3) \
    ON CONFLICT (destination) DO UPDATE SET per_minute = excluded.per_minute, until = excluded.until";

const CLEAN_CONSENTS: &str = "\
    WITH old AS MATERIALIZED ( \
        SELECT destination FROM callback_consent WHERE until < $1 ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED) \
    DELETE FROM callback_consent AS c USING old WHERE c.destination = old.destination";

pub(super) const KNOWN: &str = "SELECT id, request FROM callback_outbox WHERE idempotency = $1";

pub(super) const PURGE: &str = "DELETE FROM callback_outbox WHERE stage = 12 AND id = ANY ($1::uuid[]) \
                     RETURNING id, order_key, NULL::bigint AS turn";

pub(super) const FORGET_ATTEMPTS: &str = "DELETE FROM callback_attempt WHERE id = ANY ($1::uuid[])";

/// What comes one by one.
pub(super) async fn single(connection: &mut PgConnection, by: By<'_>, write: &Write) -> Result<Written, Error> {
    match write {
        Write::Result { .. } | Write::Settle(_) => unreachable!("comes in numbers"),
        Write::Insert(row) => insert_once(connection, by, row).await,
        Write::Publish(event) => Ok(Written::Count(fan_out(connection, by, event).await?)),
        Write::Subscribe { row, limit } => subscribe(connection, by, row, *limit).await,
        Write::ChangeSubscription(row) => change_subscription(connection, by, row).await,
        Write::EndSubscription { id, end, now } => end_subscription(connection, *id, *end, *now).await,
        Write::Confirm { id } => confirm(connection, CONFIRM, *id).await,
        Write::ConfirmEvent(event) => confirm(connection, CONFIRM_EVENT, event.id).await,
        Write::Defer { id, token, events } => {
            let sql = "UPDATE callback_outbox SET stage = 2, holder = NULL, due = $1 \
                       WHERE id = $2 AND token = $3 AND stage <= 1";
            let done = query(sql).bind(Micros::NEVER.0).bind(uuid(*id)).bind(i64::from(*token));
            if done.execute(&mut *connection).await?.rows_affected() == 0 {
                return Ok(Written::Superseded);
            }
            insert(connection, by, &to_one(events).collect::<Vec<_>>()).await?;
            fan_out_all(connection, by, events).await?;
            Ok(Written::Done)
        }
        Write::Cancel { id, now } => {
            let sql = "UPDATE callback_outbox SET stage = 13, holder = NULL, ended_at = $1, turn = NULL \
                       WHERE id = $2 AND stage < 10 RETURNING order_key";
            let cancelled = query_scalar(sql).bind(now.0).bind(uuid(*id)).fetch_optional(&mut *connection);
            if let Some(key) = cancelled.await? {
                release_next(connection, Vec::from_iter::<Option<Vec<u8>>>(key), *now).await?;
                return Ok(Written::Done);
            }
            let known = query("SELECT 1 FROM callback_outbox WHERE id = $1").bind(uuid(*id));
            let known = known.fetch_optional(connection).await?.is_some();
            Ok(if known { Written::Superseded } else { Written::Unknown })
        }
        Write::Replay { ids, now } => Ok(Written::Count(replay(connection, ids, *now, None).await?)),
        Write::ReplayAsNew { id, now, result } => {
            let result = by.codec.encode_result(*id, result).map_err(not_sealed)?;
            let done = replay(connection, &[*id], *now, Some(&result)).await? > 0;
            Ok(if done { Written::Done } else { Written::Superseded })
        }
        Write::Purge { ids, now } => {
            let payloads = payloads(connection, ids).await?;
            let ended = left(connection, query_as(PURGE).bind(column(ids, |id| uuid(*id))), *now).await?;
            forget_attempts(connection, &ended).await?;
            forget_payloads(connection, &payloads).await?;
            Ok(Written::Count(ended.len() as u64))
        }
        Write::Bury { dsn, now, limit } => {
            end_all_to(connection, dsn, *now).await?;
            let bury = query_as(BURY).bind(now.0).bind(ErrorKind::Gone.as_str()).bind(address(dsn));
            Ok(Written::Ended(left(connection, bury.bind(count(*limit)), *now).await?))
        }
        Write::Expire { now, limit } => Ok(Written::Ended(
            left(connection, query_as(EXPIRE).bind(now.0).bind(count(*limit)).bind(by.holder), *now).await?,
        )),
        Write::Clean { now, before, keyed_before, breakers_before, limit } => {
            let clean = query_as(CLEAN).bind(before.0).bind(count(*limit));
            let lines: Vec<(Uuid, Option<Uuid>)> = clean.fetch_all(&mut *connection).await?;
            let (mut old, payloads): (Vec<Uuid>, Vec<Option<Uuid>>) = lines.into_iter().unzip();
            let payloads: BTreeSet<Uuid> = payloads.into_iter().flatten().collect();
            let clean = query_scalar(CLEAN_KEYED).bind(keyed_before.0).bind(count(limit.saturating_sub(old.len())));
            old.append(&mut clean.fetch_all(&mut *connection).await?);
            forget_attempts(connection, &column(&old, |id| TaskId::from_bytes(id.into_bytes()))).await?;
            forget_payloads(connection, &payloads.into_iter().collect::<Vec<_>>()).await?;
            let spent = end_spent(connection, *now, *limit).await?;
            let subscriptions = clean_subscriptions(connection, *before, *limit).await?;
            let clean = query(CLEAN_BREAKERS).bind(breakers_before.0).bind(count(*limit));
            let breakers = clean.execute(&mut *connection).await?.rows_affected();
            let clean = query(CLEAN_ATTACHMENTS).bind(breakers_before.0).bind(count(*limit));
            let attachments = clean.execute(&mut *connection).await?.rows_affected();
            let clean = query(CLEAN_CONSENTS).bind(breakers_before.0).bind(count(*limit));
            let consents = clean.execute(connection).await?.rows_affected();
            let counts = [breakers, attachments, consents, spent, subscriptions, old.len() as u64];
            Ok(Written::Count(counts.into_iter().fold(0, u64::max)))
        }
        Write::Age { lanes, before, now, limit } => age(connection, lanes, *before, *now, *limit).await,
        Write::PullIn(PullIn { now, latest, leapt }) => {
            if *leapt || query_scalar(FROM_THE_FUTURE).bind(now.0).fetch_one(&mut *connection).await? {
                query(WAIT_FROM_NOW).bind(now.0).bind(Micros::NEVER.0).execute(&mut *connection).await?;
            }
            query(NOT_BEYOND).bind(latest.0).bind(Micros::NEVER.0).execute(connection).await?;
            Ok(Written::Done)
        }
        Write::OpenBreaker(open) => {
            let sql = "INSERT INTO callback_breaker (lane, owner, destination, times, until) VALUES ($1, $2, $3, $4, $5) \
                       ON CONFLICT (lane) DO UPDATE SET times = excluded.times, until = excluded.until";
            let OpenBreaker { lane, times, until } = open;
            let owner = lane.owner.as_deref().map(stored);
            let insert = query(sql).bind(lane.number()).bind(owner).bind(lane.destination.as_str());
            insert.bind(i64::from(*times)).bind(until.0).execute(connection).await?;
            Ok(Written::Done)
        }
        Write::CloseBreaker(lane) => {
            query("DELETE FROM callback_breaker WHERE lane = $1").bind(lane.number()).execute(connection).await?;
            Ok(Written::Done)
        }
        Write::Consent(StoredConsent { destination, per_minute, until }) => {
            let insert = query(CONSENT).bind(destination.as_str()).bind(per_minute.map(|it| i64::from(it.get())));
            insert.bind(until.0).execute(connection).await?;
            Ok(Written::Done)
        }
        Write::Claim(asked) => Ok(Written::Claimed(match by.holder {
            Some(holder) => claim(connection, by.codec, holder, asked).await?,
            None => Vec::new(),
        })),
        // Under another id of this process, what it took is given back as that of a dead one.
        Write::GiveBack { claim } => match by.holder {
            Some(holder) => give_back(connection, holder, *claim).await,
            None => Ok(Written::NotYet),
        },
        Write::Attach(attaching) => attach(connection, by, attaching).await,
        Write::Rouse { dsn, now, limit } => Ok(Written::Count(rouse(connection, dsn, *now, *limit).await?)),
        Write::Park(parking) => park(connection, by, parking).await,
        Write::KeepAttached(keeping) => keep_attached(connection, by, keeping).await,
        Write::Recover => {
            lease::recover(connection).await?;
            Ok(Written::Done)
        }
        #[cfg(feature = "seal")]
        Write::Seal(step) => crate::outbox::postgres::seals::step(connection, by.codec, step).await,
    }
}

const CONFIRM: &str = "\
    INSERT INTO callback_outbox (id, stage, token, due, attempts, starts, accepted_at, first_due, expires) \
    VALUES ($1, 13, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT (id) DO NOTHING";

const CONFIRM_EVENT: &str =
    "INSERT INTO callback_payload (id, head, body) VALUES ($1, '', '') ON CONFLICT (id) DO NOTHING";

/// The transaction of a row that nobody sees may be open still, its connection lost in the commit: whoever stores the same
/// id waits for it. That is tried for a moment, so that no other write waits for long.
async fn confirm(connection: &mut PgConnection, insert: &'static str, id: TaskId) -> Result<Written, Error> {
    let mut tried = connection.begin().await?;
    query("SET LOCAL lock_timeout = 50").execute(&mut *tried).await?;
    let inserted = query(insert).bind(uuid(id)).execute(&mut *tried).await;
    tried.rollback().await?;
    match inserted {
        Ok(inserted) if inserted.rows_affected() == 0 => Ok(Written::Done),
        Ok(_) => Ok(Written::Unknown),
        Err(Error::Database(error)) if error.code().as_deref() == Some("55P03") => Ok(Written::NotYet),
        Err(error) => Err(error),
    }
}

pub(super) async fn insert_once(connection: &mut PgConnection, by: By<'_>, row: &Row) -> Result<Written, Error> {
    let Some(Idempotency { key, request }) = &row.idempotency else {
        insert(connection, by, &[row]).await?;
        return Ok(Written::Done);
    };
    let known = async |connection: &mut PgConnection| {
        let known = query_as(KNOWN).bind(&key[..]).fetch_optional(connection).await?;
        let known = known.map(|(id, of): (Uuid, Vec<u8>)| (TaskId::from_bytes(id.into_bytes()), of));
        Ok::<_, Error>(known.map(|(id, of)| Written::Known { id, same: of == request }))
    };
    if let Some(known) = known(connection).await? {
        return Ok(known);
    }
    if insert(connection, by, &[row]).await? > 0 {
        return Ok(Written::Done);
    }
    // Another process was first, a moment ago.
    known(connection).await?.ok_or(Error::RowNotFound)
}

/// Begins new deliveries, in this order; how many.
pub(super) async fn replay(
    connection: &mut PgConnection,
    ids: &[TaskId],
    now: Micros,
    result: Option<&Pair<'_>>,
) -> Result<u64, Error> {
    let replayed = query_as(REPLAY).bind(now.0).bind(column(ids, |id| uuid(*id)));
    let replayed = replayed.bind(result.map(|(head, _)| bytes(head))).bind(result.map(|(_, body)| &body[..]));
    let lines: Vec<Left> = replayed.fetch_all(&mut *connection).await?;
    for id in ids {
        let Some((_, key, turn)) = lines.iter().find(|(it, ..)| *it == uuid(*id)) else { continue };
        match (key, turn) {
            (Some(key), None) => {
                let enqueue = query(ENQUEUE).bind([uuid(*id)]).bind([key]).bind(Micros::NEVER.0);
                enqueue.execute(&mut *connection).await?;
            }
            (Some(key), Some(_)) => {
                let queue = query(QUEUE).bind(Micros::NEVER.0).bind(uuid(*id)).bind(key);
                queue.execute(&mut *connection).await?;
            }
            (None, _) => {}
        }
    }
    Ok(lines.len() as u64)
}

/// Deletes what is kept beside rows that were deleted.
pub(super) async fn forget_attempts(connection: &mut PgConnection, ids: &[TaskId]) -> Result<(), Error> {
    query(FORGET_ATTEMPTS).bind(column(ids, |id| uuid(*id))).execute(connection).await.map(drop)
}

pub(super) async fn age(
    connection: &mut PgConnection,
    lanes: &[LaneKey],
    before: Micros,
    now: Micros,
    limit: usize,
) -> Result<Written, Error> {
    let aged = query_as(AGE).bind(now.0).bind(column(lanes, LaneKey::number)).bind(before.0).bind(count(limit));
    let aged: Vec<(Uuid, Option<Vec<u8>>, Option<bool>)> = aged.fetch_all(&mut *connection).await?;
    let left = aged.iter().filter(|(_, _, stops)| *stops != Some(true));
    release_aged(connection, left.filter_map(|(_, key, _)| key.clone()).collect(), now).await?;
    Ok(Written::Ended(aged.into_iter().map(|(id, _, _)| TaskId::from_bytes(id.into_bytes())).collect()))
}
