//! Many writes in few statements.

use super::{lease, read, text::stored};
use crate::{
    clock::Micros,
    lane::{LaneKey, OpenBreaker},
    outbox::{
        Claim, PullIn, Settle, Write, Written,
        codec::{Codec, Columns, Pair, Text},
    },
    row::{FailedRow, Idempotency, Order, OrderKey, Row, Stage, digest},
};
use callback_core::{Dsn, ErrorKind, TaskId};
use sqlx::{
    Error, PgConnection, Postgres, postgres::PgArguments, query, query::QueryAs, query_as, query_scalar, types::Uuid,
};
use std::{collections::BTreeMap, sync::Arc};

/// Rows are looked up by index, whatever the statistics of a young table say, and planned for the size that it has by then.
/// Who waits for a lock of another for 5 s fails, alone.
pub(super) const BEGIN: &str = "BEGIN; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = off; \
                                SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; \
                                SET LOCAL enable_mergejoin = off; SET LOCAL lock_timeout = 5000";

/// Of those with one idempotency key the first is stored.
const INSERT: &str = "\
    INSERT INTO callback_outbox (id, stage, holder, token, due, attempts, starts, accepted_at, first_due, expires, \
                                 worker, owner, dsn, destination, lane, address, order_key, stops, idempotency, \
                                 request, work, work_body, result, result_body) \
    SELECT * FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], \
                         $8::bigint[], $9::bigint[], $10::bigint[], $11::text[], $12::text[], $13::bytea[], \
                         $14::text[], $15::bigint[], $16::bytea[], $17::bytea[], $18::bool[], $19::bytea[], \
                         $20::bytea[], $21::bytea[], $22::bytea[], $23::bytea[], $24::bytea[]) \
    ON CONFLICT (idempotency) WHERE idempotency IS NOT NULL DO NOTHING";

const SETTLE: &str = "\
    UPDATE callback_outbox AS o \
    SET stage = v.to_stage, holder = v.holder, due = v.due, attempts = v.attempts, ended_at = v.ended_at, \
        kind = coalesce(v.kind, o.kind) \
    FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::int[], $5::bigint[], $6::bigint[], $7::bigint[], \
                $8::bigint[], $9::text[]) \
         WITH ORDINALITY AS v (id, token, from_stage, to_stage, holder, due, attempts, ended_at, kind, place) \
    WHERE o.id = v.id AND o.token = v.token AND o.stage = v.from_stage RETURNING v.place";

const RESULT: &str = "\
    UPDATE callback_outbox AS o \
    SET stage = v.to_stage, holder = v.holder, due = v.due, first_due = v.due, ended_at = v.ended_at, \
        result = v.result, result_body = v.result_body \
    FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], \
                $8::bytea[]) \
         WITH ORDINALITY AS v (id, token, to_stage, holder, due, ended_at, result, result_body, place) \
    WHERE o.id = v.id AND o.token = v.token AND o.stage <= 2 RETURNING v.place";

const ATTEMPT: &str = "\
    INSERT INTO callback_attempt (id, number, time, took, kind, phase, status, reason) \
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], \
                         $8::bytea[])";

/// How many due rows are looked through, oldest first, before lanes and workers are asked one by one.
const LOOKED_THROUGH: i64 = 1_024;

/// How many rows of one lane are taken where lanes are asked one by one.
const A_LANE: i64 = 16;

/// Rows that another process is about to take are passed over.
const CLAIM: &str = "\
    WITH taken AS MATERIALIZED ( \
        SELECT o.seq FROM (SELECT seq, due FROM callback_outbox \
                           WHERE stage < 10 AND holder IS NULL AND due <= $1 ORDER BY due, seq LIMIT $5) AS looked \
        JOIN callback_outbox AS o ON o.seq = looked.seq AND o.stage < 10 AND o.holder IS NULL \
        WHERE CASE WHEN o.stage <= 1 THEN o.worker = ANY ($2::text[]) ELSE NOT o.lane = ANY ($3::bigint[]) END \
        ORDER BY looked.due, looked.seq LIMIT $4 FOR UPDATE OF o SKIP LOCKED) \
    UPDATE callback_outbox AS o SET holder = $6, token = token + 1 FROM taken WHERE o.seq = taken.seq RETURNING o.*";

const MORE: &str = "\
    SELECT EXISTS (SELECT 1 FROM callback_outbox WHERE stage < 10 AND holder IS NULL AND due <= $1 \
                   ORDER BY due, seq LIMIT 1 OFFSET $2)";

/// Steps from lane to lane on the index, so that a lane costs the same with one row as with a million.
const CLAIM_LANES: &str = "\
    WITH RECURSIVE lanes (lane) AS ( \
        SELECT min(lane) FROM callback_outbox WHERE stage = 3 AND holder IS NULL AND lane > $4 \
        UNION ALL \
        SELECT (SELECT min(o.lane) FROM callback_outbox AS o \
                WHERE o.stage = 3 AND o.holder IS NULL AND o.lane > l.lane) \
        FROM lanes AS l WHERE l.lane <= $5), \
    taken AS MATERIALIZED ( \
        SELECT i.seq FROM lanes AS l CROSS JOIN LATERAL ( \
            SELECT seq FROM callback_outbox \
            WHERE lane = l.lane AND stage = 3 AND holder IS NULL AND due <= $1 \
            ORDER BY due LIMIT $6 FOR UPDATE SKIP LOCKED) AS i \
        WHERE l.lane <= $5 AND NOT l.lane = ANY ($2::bigint[]) LIMIT $3) \
    UPDATE callback_outbox AS o SET holder = $7, token = token + 1 FROM taken WHERE o.seq = taken.seq RETURNING o.*";

const CLAIM_WORKER: &str = "\
    WITH taken AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE worker = $1 AND stage <= 1 AND holder IS NULL AND due <= $2 \
        ORDER BY due LIMIT $3 FOR UPDATE SKIP LOCKED) \
    UPDATE callback_outbox AS o SET holder = $4, token = token + 1 FROM taken WHERE o.seq = taken.seq RETURNING o.*";

const AGE: &str = "\
    WITH aged AS MATERIALIZED ( \
        SELECT i.seq FROM unnest($2::bigint[]) AS l (lane) CROSS JOIN LATERAL ( \
            SELECT seq FROM callback_outbox \
            WHERE lane = l.lane AND stage = 3 AND holder IS NULL AND due <= $1 AND first_due < $3 \
            ORDER BY due LIMIT $4 FOR UPDATE SKIP LOCKED) AS i LIMIT $4) \
    UPDATE callback_outbox AS o SET stage = 12, ended_at = $1, kind = coalesce(kind, 'timed out'), \
                                    turn = CASE WHEN stops THEN turn END \
    FROM aged WHERE o.seq = aged.seq RETURNING o.id, o.order_key, o.stops";

/// Whether the last row, or the last failed attempt, is of a time that is still to come.
const FROM_THE_FUTURE: &str = "\
    SELECT coalesce((SELECT accepted_at FROM callback_outbox ORDER BY seq DESC LIMIT 1) > $1, false) \
        OR coalesce((SELECT time FROM callback_attempt ORDER BY seq DESC LIMIT 1) > $1, false)";

const WAIT_FROM_NOW: &str = "\
    WITH waiting AS MATERIALIZED ( \
        SELECT o.seq, greatest(o.first_due, (SELECT max(a.time) FROM callback_attempt AS a WHERE a.id = o.id)) AS since \
        FROM callback_outbox AS o WHERE o.stage < 10 AND o.holder IS NULL AND o.due > $1 AND o.due < $2 \
        FOR UPDATE OF o SKIP LOCKED) \
    UPDATE callback_outbox AS o SET due = o.due - (waiting.since - $1) FROM waiting \
    WHERE o.seq = waiting.seq AND waiting.since > $1";

const NOT_BEYOND: &str = "\
    WITH beyond AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE stage < 10 AND holder IS NULL AND due > $1 AND due < $2 \
        FOR UPDATE SKIP LOCKED) \
    UPDATE callback_outbox AS o SET due = $1 FROM beyond WHERE o.seq = beyond.seq";

/// Held to the end of the transaction: else who joins a key and who leaves it, at once, would not see each other.
const LOCK_KEYS: &str = "SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS key";

/// The last of their keys, and due only if they are the first, too.
const ENQUEUE: &str = "\
    WITH new AS (SELECT id, key, row_number() OVER (PARTITION BY key ORDER BY place) AS nth \
                 FROM unnest($1::uuid[], $2::bytea[]) WITH ORDINALITY AS v (id, key, place)), \
    placed AS MATERIALIZED ( \
        SELECT id, nth, (SELECT max(turn) FROM callback_outbox WHERE order_key = key AND turn IS NOT NULL) AS last \
        FROM new) \
    UPDATE callback_outbox AS o \
    SET turn = coalesce(last, 0) + nth, due = CASE WHEN last IS NULL AND nth = 1 THEN due ELSE $3 END \
    FROM placed WHERE o.id = placed.id";

const RELEASE_NEXT: &str = "\
    WITH next AS MATERIALIZED ( \
        SELECT due, (SELECT seq FROM callback_outbox WHERE order_key = key AND turn IS NOT NULL \
                     ORDER BY turn LIMIT 1) AS seq \
        FROM unnest($1::bytea[], $2::bigint[]) AS v (key, due)) \
    UPDATE callback_outbox AS o SET due = (SELECT next.due FROM next WHERE next.seq = o.seq LIMIT 1) \
    WHERE o.seq = ANY (ARRAY(SELECT seq FROM next WHERE seq IS NOT NULL)) AND o.stage = 3 AND o.due = $3";

const REPLAY: &str = "\
    UPDATE callback_outbox SET stage = 3, holder = NULL, token = token + 1, due = $1, first_due = $1, attempts = 0, \
                               ended_at = NULL, expires = 9223372036854775807, result = coalesce($3, result), \
                               result_body = coalesce($4, result_body) \
    WHERE stage = 12 AND id = ANY ($2::uuid[]) RETURNING id, order_key, turn";

/// What has its turn still, and is not the first of its key, waits.
const QUEUE: &str = "\
    UPDATE callback_outbox SET due = $1 WHERE id = $2 \
    AND turn > (SELECT min(turn) FROM callback_outbox WHERE order_key = $3 AND turn IS NOT NULL)";

const BURY: &str = "\
    WITH buried AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE address = $3 AND stage = 3 AND holder IS NULL \
        ORDER BY seq LIMIT $4 FOR UPDATE SKIP LOCKED) \
    UPDATE callback_outbox AS o SET stage = 12, due = $1, ended_at = $1, kind = $2, turn = CASE WHEN stops THEN turn END \
    FROM buried WHERE o.seq = buried.seq RETURNING o.id, o.order_key, o.turn";

const EXPIRE: &str = "\
    WITH over AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE stage < 10 AND expires < 9223372036854775807 AND expires <= $1 \
        ORDER BY expires LIMIT $2 FOR UPDATE SKIP LOCKED) \
    UPDATE callback_outbox AS o SET stage = 14, holder = NULL, due = $1, ended_at = $1, turn = NULL \
    FROM over WHERE o.seq = over.seq RETURNING o.id, o.order_key, o.turn";

const CLEAN: &str = "\
    WITH old AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE stage >= 10 AND stage <> 12 AND idempotency IS NULL AND ended_at < $1 \
        ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
    DELETE FROM callback_outbox AS o USING old WHERE o.seq = old.seq RETURNING o.id";

const CLEAN_KEYED: &str = "\
    WITH old AS MATERIALIZED ( \
        SELECT seq FROM callback_outbox WHERE stage >= 10 AND stage <> 12 AND idempotency IS NOT NULL AND ended_at < $1 \
        ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
    DELETE FROM callback_outbox AS o USING old WHERE o.seq = old.seq RETURNING o.id";

const KNOWN: &str = "SELECT id, request FROM callback_outbox WHERE idempotency = $1";

const PURGE: &str = "DELETE FROM callback_outbox WHERE stage = 12 AND id = ANY ($1::uuid[]) \
                     RETURNING id, order_key, NULL::bigint AS turn";

const FORGET_ATTEMPTS: &str = "DELETE FROM callback_attempt WHERE id = ANY ($1::uuid[])";

/// No array that is bound comes near the limit of one value, 1 GB.
const STATEMENT_BYTES: usize = 64 << 20;

struct ResultStep<'a> {
    id: TaskId,
    token: u32,
    to: Stage,
    held: bool,
    now: Micros,
    result: Pair<'a>,
    order: Option<Order>,
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct By<'a> {
    pub(super) codec: &'a Codec,
    /// The process that has in hand what is claimed; with none, nothing is.
    pub(super) holder: Option<i64>,
}

/// Applies writes inside of a transaction; one answer a write, in order.
///
/// New rows and steps come in numbers, and share statements; the rest is rare, and comes one by one.
pub(super) async fn apply(connection: &mut PgConnection, by: By<'_>, writes: &[Write]) -> Result<Vec<Written>, Error> {
    lock_keys_of(connection, writes).await?;
    let mut written: Vec<Option<Written>> = writes.iter().map(|_| None).collect();
    let mut inserts: Vec<&Row> = Vec::new();
    let mut settles: Vec<(usize, &Settle)> = Vec::new();
    let mut results: Vec<(usize, ResultStep<'_>)> = Vec::new();
    for (place, write) in writes.iter().enumerate() {
        match write {
            Write::Insert(row) if row.idempotency.is_none() => {
                inserts.push(row);
                written[place] = Some(Written::Done);
            }
            Write::Settle(step) => settles.push((place, step)),
            Write::Result { id, token, to, held, now, result, order, .. } => {
                let result = by.codec.encode_result(*id, result).map_err(not_sealed)?;
                let (id, token, to, held, now, order) = (*id, *token, *to, *held, *now, *order);
                let step = ResultStep { id, token, to, held, now, result, order };
                results.push((place, step));
            }
            _ => {}
        }
    }
    let (places, steps): (Vec<usize>, Vec<ResultStep<'_>>) = results.into_iter().unzip();
    for (place, current) in places.into_iter().zip(store_results(connection, by, &steps).await?) {
        written[place] = Some(if current { Written::Done } else { Written::Superseded });
        if let (true, Write::Result { events, .. }) = (current, &writes[place]) {
            inserts.extend(events.iter().map(|event| &**event));
        }
    }
    insert(connection, by, &inserts).await?;
    let (places, steps): (Vec<usize>, Vec<&Settle>) = settles.into_iter().unzip();
    for (place, current) in places.into_iter().zip(settle(connection, by, &steps).await?) {
        written[place] = Some(if current { Written::Done } else { Written::Superseded });
    }
    for (place, write) in writes.iter().enumerate() {
        if written[place].is_none() {
            written[place] = Some(single(connection, by, write).await?);
        }
    }
    Ok(written.into_iter().flatten().collect())
}

/// Stores a new row in a transaction of the user's own.
pub(super) async fn insert_in(connection: &mut PgConnection, codec: &Codec, row: &Row) -> Result<Written, Error> {
    lock_keys(connection, row.order.iter().map(|order| &order.key.0[..])).await?;
    insert_once(connection, By { codec, holder: None }, row).await
}

/// Stores new rows, in their order; how many are new.
async fn insert(connection: &mut PgConnection, by: By<'_>, rows: &[&Row]) -> Result<u64, Error> {
    let mut inserted = 0;
    for rows in parts(rows, |row| row.size()) {
        let kept = rows.iter().map(|row| by.codec.encode(row).map_err(not_sealed));
        let kept = kept.collect::<Result<Vec<Columns<'_>>, Error>>()?;
        let insert = query(INSERT)
            .bind(column(rows, |row| uuid(row.id)))
            .bind(column(rows, |row| row.stage.number() as i32))
            .bind(column(rows, |row| by.holder.filter(|_| row.held)))
            .bind(column(rows, |row| i64::from(row.token)))
            .bind(column(rows, |row| row.due.0))
            .bind(column(rows, |row| i64::from(row.attempts)))
            .bind(column(rows, |row| i64::from(row.starts)))
            .bind(column(rows, |row| row.accepted_at.0))
            .bind(column(rows, |row| row.first_due.0))
            .bind(column(rows, |row| row.expires.0))
            .bind(column(rows, |row| row.worker.as_deref().map(stored)))
            .bind(column(rows, |row| row.owner.as_deref().map(stored)))
            .bind(column(&kept, |kept| kept.dsn.as_ref().map(bytes)))
            .bind(column(rows, |row| row.dsn.as_ref().map(Dsn::destination).map(|it| it.to_string())))
            .bind(column(rows, |row| row.lane().as_ref().map(LaneKey::number)))
            .bind(column(rows, |row| row.dsn.as_ref().map(address)))
            .bind(column(rows, |row| row.order.as_ref().map(|order| &order.key.0[..])))
            .bind(column(rows, |row| row.order.map(|order| order.stops)))
            .bind(column(rows, |row| row.idempotency.as_ref().map(|it| &it.key[..])))
            .bind(column(rows, |row| row.idempotency.as_ref().map(|it| &it.request[..])))
            .bind(column(&kept, |kept| kept.work.as_ref().map(|(head, _)| bytes(head))))
            .bind(column(&kept, |kept| kept.work.as_ref().map(|(_, body)| &body[..])))
            .bind(column(&kept, |kept| kept.result.as_ref().map(|(head, _)| bytes(head))))
            .bind(column(&kept, |kept| kept.result.as_ref().map(|(_, body)| &body[..])))
            .execute(&mut *connection)
            .await?;
        inserted += insert.rows_affected();
    }
    let ordered = rows.iter().filter(|row| row.stage == Stage::Delivering);
    enqueue(connection, ordered.filter_map(|row| Some((row.id, row.order?.key))).collect()).await?;
    Ok(inserted)
}

/// Whether each step was current, in order.
async fn settle(connection: &mut PgConnection, by: By<'_>, steps: &[&Settle]) -> Result<Vec<bool>, Error> {
    if steps.is_empty() {
        return Ok(Vec::new());
    }
    let places = query_scalar(SETTLE)
        .bind(column(steps, |step| uuid(step.id)))
        .bind(column(steps, |step| i64::from(step.token)))
        .bind(column(steps, |step| step.from.number() as i32))
        .bind(column(steps, |step| step.to.number() as i32))
        .bind(column(steps, |step| by.holder.filter(|_| step.held)))
        .bind(column(steps, |step| step.due.0))
        .bind(column(steps, |step| i64::from(step.attempts)))
        .bind(column(steps, |step| ended_at(step.to, step.now)))
        .bind(column(steps, |step| step.kind.map(ErrorKind::as_str)))
        .fetch_all(&mut *connection)
        .await?;
    let current = marked(steps.len(), places);
    let failed: Vec<(TaskId, &FailedRow)> = steps
        .iter()
        .zip(&current)
        .filter(|(_, current)| **current)
        .filter_map(|(step, _)| Some((step.id, step.failed.as_ref()?)))
        .collect();
    if !failed.is_empty() {
        let reasons = failed.iter().map(|(id, failed)| by.codec.encode_reason(*id, failed).map_err(not_sealed));
        let reasons = reasons.collect::<Result<Vec<Text<'_>>, Error>>()?;
        query(ATTEMPT)
            .bind(column(&failed, |(id, _)| uuid(*id)))
            .bind(column(&failed, |(_, it)| i64::from(it.number)))
            .bind(column(&failed, |(_, it)| it.time.0))
            .bind(column(&failed, |(_, it)| i64::try_from(it.took.as_micros()).unwrap_or(i64::MAX)))
            .bind(column(&failed, |(_, it)| it.kind.as_str()))
            .bind(column(&failed, |(_, it)| it.phase.map(|phase| phase.as_str())))
            .bind(column(&failed, |(_, it)| it.status.map(i64::from)))
            .bind(column(&reasons, bytes))
            .execute(&mut *connection)
            .await?;
    }
    // What is dead may hold back the others still.
    let leaves =
        |step: &Settle| step.to.is_ended().then_some(step.order?).filter(|it| step.to != Stage::Dead || !it.stops);
    let left = steps.iter().zip(&current).filter(|(_, current)| **current);
    leave(connection, left.filter_map(|(step, _)| Some((step.id, leaves(step)?.key, step.now))).collect()).await?;
    Ok(current)
}

/// Whether each step was current, in order.
async fn store_results(
    connection: &mut PgConnection,
    by: By<'_>,
    steps: &[ResultStep<'_>],
) -> Result<Vec<bool>, Error> {
    let mut current = Vec::with_capacity(steps.len());
    for steps in parts(steps, |step| step.result.1.len()) {
        let places = query_scalar(RESULT)
            .bind(column(steps, |step| uuid(step.id)))
            .bind(column(steps, |step| i64::from(step.token)))
            .bind(column(steps, |step| step.to.number() as i32))
            .bind(column(steps, |step| by.holder.filter(|_| step.held)))
            .bind(column(steps, |step| step.now.0))
            .bind(column(steps, |step| ended_at(step.to, step.now)))
            .bind(column(steps, |step| bytes(&step.result.0)))
            .bind(column(steps, |step| &step.result.1[..]))
            .fetch_all(&mut *connection)
            .await?;
        current.extend(marked(steps.len(), places));
    }
    let ordered = steps.iter().zip(&current).filter(|(_, current)| **current);
    enqueue(connection, ordered.filter_map(|(step, _)| Some((step.id, step.order?.key))).collect()).await?;
    Ok(current)
}

/// What comes one by one.
async fn single(connection: &mut PgConnection, by: By<'_>, write: &Write) -> Result<Written, Error> {
    match write {
        Write::Result { .. } | Write::Settle(_) => unreachable!("comes in numbers"),
        Write::Insert(row) => insert_once(connection, by, row).await,
        Write::Defer { id, token, events } => {
            let sql = "UPDATE callback_outbox SET stage = 2, holder = NULL, due = $1 \
                       WHERE id = $2 AND token = $3 AND stage <= 1";
            let done = query(sql).bind(Micros::NEVER.0).bind(uuid(*id)).bind(i64::from(*token));
            if done.execute(&mut *connection).await?.rows_affected() == 0 {
                return Ok(Written::Superseded);
            }
            insert(connection, by, &events.iter().map(Arc::as_ref).collect::<Vec<_>>()).await?;
            Ok(Written::Done)
        }
        Write::Cancel { id, now } => {
            if is_cancelled(connection, *id, *now).await? {
                return Ok(Written::Done);
            }
            // The transaction of a row that nobody sees may be open still, its connection lost in the commit. After this
            // it is over, and its row is seen, or will never be.
            let wait = "INSERT INTO callback_outbox \
                        (id, stage, token, due, attempts, starts, accepted_at, first_due, expires) \
                        VALUES ($1, 13, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT (id) DO NOTHING";
            if query(wait).bind(uuid(*id)).execute(&mut *connection).await?.rows_affected() > 0 {
                let nothing = query("DELETE FROM callback_outbox WHERE id = $1").bind(uuid(*id));
                nothing.execute(connection).await?;
                return Ok(Written::Unknown);
            }
            Ok(if is_cancelled(connection, *id, *now).await? { Written::Done } else { Written::Superseded })
        }
        Write::Replay { ids, now } => Ok(Written::Count(replay(connection, ids, *now, None).await?)),
        Write::ReplayAsNew { id, now, result } => {
            let result = by.codec.encode_result(*id, result).map_err(not_sealed)?;
            let done = replay(connection, &[*id], *now, Some(&result)).await? > 0;
            Ok(if done { Written::Done } else { Written::Superseded })
        }
        Write::Purge { ids, now } => {
            let ended = left(connection, query_as(PURGE).bind(column(ids, |id| uuid(*id))), *now).await?;
            forget_attempts(connection, &ended).await?;
            Ok(Written::Count(ended.len() as u64))
        }
        Write::Bury { dsn, now, limit } => {
            let bury = query_as(BURY).bind(now.0).bind(ErrorKind::Gone.as_str()).bind(address(dsn));
            Ok(Written::Ended(left(connection, bury.bind(count(*limit)), *now).await?))
        }
        Write::Expire { now, limit } => {
            Ok(Written::Ended(left(connection, query_as(EXPIRE).bind(now.0).bind(count(*limit)), *now).await?))
        }
        Write::Clean { before, keyed_before, limit } => {
            let clean = query_scalar(CLEAN).bind(before.0).bind(count(*limit));
            let mut old: Vec<Uuid> = clean.fetch_all(&mut *connection).await?;
            let clean = query_scalar(CLEAN_KEYED).bind(keyed_before.0).bind(count(limit.saturating_sub(old.len())));
            old.append(&mut clean.fetch_all(&mut *connection).await?);
            forget_attempts(connection, &column(&old, |id| TaskId::from_bytes(id.into_bytes()))).await?;
            Ok(Written::Count(old.len() as u64))
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
        Write::Claim(asked) => Ok(Written::Claimed(match by.holder {
            Some(holder) => claim(connection, by.codec, holder, asked).await?,
            None => Vec::new(),
        })),
        Write::Recover => {
            lease::recover(connection).await?;
            Ok(Written::Done)
        }
        #[cfg(feature = "seal")]
        Write::Seal(step) => super::seals::step(connection, by.codec, step).await,
    }
}

async fn is_cancelled(connection: &mut PgConnection, id: TaskId, now: Micros) -> Result<bool, Error> {
    let sql = "UPDATE callback_outbox SET stage = 13, holder = NULL, ended_at = $1, turn = NULL \
               WHERE id = $2 AND stage < 10 RETURNING order_key";
    let cancelled: Option<Option<Vec<u8>>> =
        query_scalar(sql).bind(now.0).bind(uuid(id)).fetch_optional(&mut *connection).await?;
    let Some(key) = cancelled else { return Ok(false) };
    release_next(connection, Vec::from_iter(key), now).await?;
    Ok(true)
}

async fn insert_once(connection: &mut PgConnection, by: By<'_>, row: &Row) -> Result<Written, Error> {
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
async fn replay(
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
async fn forget_attempts(connection: &mut PgConnection, ids: &[TaskId]) -> Result<(), Error> {
    query(FORGET_ATTEMPTS).bind(column(ids, |id| uuid(*id))).execute(connection).await.map(drop)
}

/// A row that was changed: its id, its ordering key, and the turn that it still has.
type Left = (Uuid, Option<Vec<u8>>, Option<i64>);

/// Ends rows, and lets the next of their keys go, unless they hold them back; their ids.
async fn left(
    connection: &mut PgConnection,
    end: QueryAs<'_, Postgres, Left, PgArguments>,
    now: Micros,
) -> Result<Vec<TaskId>, Error> {
    let lines = end.fetch_all(&mut *connection).await?;
    let keys = lines.iter().filter(|(_, _, turn)| turn.is_none()).filter_map(|(_, key, _)| key.clone());
    let keys: Vec<Vec<u8>> = keys.collect();
    lock_keys(connection, keys.iter().map(|key| &**key)).await?;
    release_next(connection, keys, now).await?;
    let mut ids = column(&lines, |(id, ..)| TaskId::from_bytes(id.into_bytes()));
    ids.sort_unstable();
    Ok(ids)
}

async fn age(
    connection: &mut PgConnection,
    lanes: &[LaneKey],
    before: Micros,
    now: Micros,
    limit: usize,
) -> Result<Written, Error> {
    let aged = query_as(AGE).bind(now.0).bind(column(lanes, LaneKey::number)).bind(before.0).bind(count(limit));
    let aged: Vec<(Uuid, Option<Vec<u8>>, Option<bool>)> = aged.fetch_all(&mut *connection).await?;
    let left = aged.iter().filter(|(_, _, stops)| *stops != Some(true));
    let left: Vec<Vec<u8>> = left.filter_map(|(_, key, _)| key.clone()).collect();
    lock_keys(connection, left.iter().map(|key| &**key)).await?;
    release_next(connection, left, now).await?;
    Ok(Written::Ended(aged.into_iter().map(|(id, _, _)| TaskId::from_bytes(id.into_bytes())).collect()))
}

async fn claim(connection: &mut PgConnection, codec: &Codec, holder: i64, claim: &Claim) -> Result<Vec<Row>, Error> {
    let Claim { now, limit, workers, left_out } = claim;
    let left_out = column(left_out, LaneKey::number);
    let mut lines = query(CLAIM)
        .bind(now.0)
        .bind(column(workers, |name| stored(name)))
        .bind(&left_out)
        .bind(count(*limit))
        .bind(LOOKED_THROUGH)
        .bind(holder)
        .fetch_all(&mut *connection)
        .await?;
    let passed_over = LOOKED_THROUGH.saturating_sub(count(lines.len()));
    if lines.len() < *limit && query_scalar(MORE).bind(now.0).bind(passed_over).fetch_one(&mut *connection).await? {
        for worker in workers {
            let left = count(limit.saturating_sub(lines.len()));
            let claimed = query(CLAIM_WORKER).bind(stored(worker)).bind(now.0).bind(left).bind(holder);
            lines.extend(claimed.fetch_all(&mut *connection).await?);
        }
        // Each time from another lane on, so that all have their turn.
        let start = now.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed());
        for (above, to) in [(start, i64::MAX), (i64::MIN, start)] {
            let left = count(limit.saturating_sub(lines.len()));
            let claimed = query(CLAIM_LANES).bind(now.0).bind(&left_out).bind(left).bind(above).bind(to);
            lines.extend(claimed.bind(A_LANE).bind(holder).fetch_all(&mut *connection).await?);
        }
    }
    let mut rows = lines
        .iter()
        // One unreadable row, of a newer version perhaps, must not keep the others back. It stays held.
        .filter_map(|line| read::row(codec, line).inspect_err(|error| read::tell_unreadable(line, error)).ok())
        .collect::<Vec<Row>>();
    rows.sort_by_key(|row| (row.due, row.id));
    Ok(rows)
}

/// Locks the ordering keys of all that a batch may change, in an order that all batches share.
async fn lock_keys_of(connection: &mut PgConnection, writes: &[Write]) -> Result<(), Error> {
    let mut keys: Vec<OrderKey> = Vec::new();
    let mut looked_up: Vec<Uuid> = Vec::new();
    for write in writes {
        match write {
            Write::Insert(row) => keys.extend(row.order.map(|order| order.key)),
            Write::Settle(Settle { order, .. }) => keys.extend(order.map(|order| order.key)),
            Write::Result { order, events, .. } => {
                let orders = events.iter().filter_map(|event| event.order).chain(*order);
                keys.extend(orders.map(|order| order.key));
            }
            Write::Defer { events, .. } => keys.extend(events.iter().filter_map(|event| Some(event.order?.key))),
            Write::Cancel { id, .. } | Write::ReplayAsNew { id, .. } => looked_up.push(uuid(*id)),
            Write::Replay { ids, .. } | Write::Purge { ids, .. } => looked_up.extend(ids.iter().copied().map(uuid)),
            _ => {}
        }
    }
    let mut found: Vec<Vec<u8>> = Vec::new();
    if !looked_up.is_empty() {
        let sql = "SELECT order_key FROM callback_outbox WHERE id = ANY ($1) AND order_key IS NOT NULL";
        found = query_scalar(sql).bind(looked_up).fetch_all(&mut *connection).await?;
    }
    lock_keys(connection, keys.iter().map(|key| &key.0[..]).chain(found.iter().map(|key| &**key))).await
}

async fn lock_keys(connection: &mut PgConnection, keys: impl Iterator<Item = &[u8]>) -> Result<(), Error> {
    let mut numbers: Vec<i64> = keys.filter_map(|key| Some(i64::from_be_bytes(*key.first_chunk()?))).collect();
    if numbers.is_empty() {
        return Ok(());
    }
    numbers.sort_unstable();
    numbers.dedup();
    query(LOCK_KEYS).bind(numbers).execute(connection).await.map(drop)
}

async fn enqueue(connection: &mut PgConnection, rows: Vec<(TaskId, OrderKey)>) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let (ids, keys) = (column(&rows, |(id, _)| uuid(*id)), column(&rows, |(_, key)| &key.0[..]));
    query(ENQUEUE).bind(ids).bind(keys).bind(Micros::NEVER.0).execute(connection).await.map(drop)
}

/// Lets the next of their keys go.
async fn leave(connection: &mut PgConnection, rows: Vec<(TaskId, OrderKey, Micros)>) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let left = query("UPDATE callback_outbox SET turn = NULL WHERE id = ANY ($1)");
    left.bind(column(&rows, |(id, ..)| uuid(*id))).execute(&mut *connection).await?;
    // Of several that leave one key, the last lets go.
    let last: BTreeMap<OrderKey, Micros> = rows.into_iter().map(|(_, key, now)| (key, now)).collect();
    let (keys, dues): (Vec<Vec<u8>>, Vec<i64>) = last.into_iter().map(|(key, now)| (key.0.to_vec(), now.0)).unzip();
    query(RELEASE_NEXT).bind(keys).bind(dues).bind(Micros::NEVER.0).execute(connection).await.map(drop)
}

async fn release_next(connection: &mut PgConnection, keys: Vec<Vec<u8>>, now: Micros) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let dues = vec![now.0; keys.len()];
    query(RELEASE_NEXT).bind(keys).bind(dues).bind(Micros::NEVER.0).execute(connection).await.map(drop)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Splits what is bound at once into parts of bounded size, none of them empty.
fn parts<T>(mut items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = items.iter().take_while(|item| {
            bytes += size(item);
            bytes <= STATEMENT_BYTES
        });
        let (part, rest) = items.split_at_checked(fits.count().max(1))?;
        items = rest;
        Some(part)
    })
}

/// What is bound as one array: a value of each item.
fn column<'a, I, T>(items: &'a [I], value: impl Fn(&'a I) -> T) -> Vec<T> {
    items.iter().map(value).collect()
}

/// Which of so many have their place, from 1, in the list.
fn marked(count: usize, places: Vec<i64>) -> Vec<bool> {
    let mut marked = vec![false; count];
    for place in places {
        if let Some(mark) = usize::try_from(place - 1).ok().and_then(|place| marked.get_mut(place)) {
            *mark = true;
        }
    }
    marked
}

/// What a Dsn is found by: it may be sealed itself.
fn address(dsn: &Dsn) -> Vec<u8> {
    digest([dsn.expose()]).to_vec()
}

/// What is kept of a text: a column of bytes takes both its forms.
pub(super) fn bytes<'a>(text: &'a Text<'_>) -> &'a [u8] {
    match text {
        Text::Plain(text) => text.as_bytes(),
        Text::Sealed(bytes) => bytes,
    }
}

pub(super) fn not_sealed(reason: String) -> Error {
    Error::Encode(reason.into())
}

pub(super) fn uuid(id: TaskId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

fn ended_at(stage: Stage, now: Micros) -> Option<i64> {
    stage.is_ended().then_some(now.0)
}

#[cfg(test)]
mod tests;
