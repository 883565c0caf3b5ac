//! Many writes in few statements.

mod attachment;
mod bind;
mod claim;
mod fan_out;
mod order;
mod single;
mod subscription;

pub(super) use bind::{bytes, not_sealed, uuid};
pub(super) use order::keys_of;

use super::text::stored;
use crate::{
    clock::Micros,
    lane::LaneKey,
    outbox::{
        Settle, Write, Written,
        codec::{Codec, Columns, Pair, Text},
    },
    row::{FailedRow, Order, Published, Row, Stage},
    subscription::FanOut,
};
use bind::{address, column, ended_at, marked, parts};
use callback_core::{Dsn, ErrorKind, TaskId};
use fan_out::fan_out;
use order::{enqueue, leave, lock, lock_keys, lock_keys_of};
use single::{insert_once, single};
use sqlx::{Error, PgConnection, query, query_scalar};

/// Rows are looked up by index, whatever the statistics of a young table say, and planned for the size that it has by then.
///
/// Each statement sees what is committed, whatever the database's default: who joins an ordering key looks at it once it
/// is locked. Who waits for a lock of another fails after so many milliseconds.
macro_rules! begin {
    ($lock_timeout:literal) => {
        concat!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL plan_cache_mode = force_custom_plan; \
             SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; \
             SET LOCAL enable_mergejoin = off; SET LOCAL lock_timeout = ",
            $lock_timeout
        )
    };
}

pub(super) const BEGIN: &str = begin!(5_000);

/// A batch: all that is written waits with it.
pub(super) const BEGIN_BATCH: &str = begin!(100);

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
    SET stage = v.to_stage, holder = v.holder, claim = NULL, due = v.due, attempts = v.attempts, ended_at = v.ended_at, \
        kind = coalesce(v.kind, o.kind) \
    FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::int[], $5::bigint[], $6::bigint[], $7::bigint[], \
                $8::bigint[], $9::text[]) \
         WITH ORDINALITY AS v (id, token, from_stage, to_stage, holder, due, attempts, ended_at, kind, place) \
    WHERE o.id = v.id AND o.token = v.token AND o.stage = v.from_stage RETURNING v.place";

const RESULT: &str = "\
    UPDATE callback_outbox AS o \
    SET stage = v.to_stage, holder = v.holder, claim = NULL, due = v.due, first_due = v.due, ended_at = v.ended_at, \
        result = v.result, result_body = v.result_body \
    FROM unnest($1::uuid[], $2::bigint[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], \
                $8::bytea[]) \
         WITH ORDINALITY AS v (id, token, to_stage, holder, due, ended_at, result, result_body, place) \
    WHERE o.id = v.id AND o.token = v.token AND o.stage <= 2 RETURNING v.place";

const ATTEMPT: &str = "\
    INSERT INTO callback_attempt (id, number, time, took, kind, phase, status, reason) \
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], \
                         $8::bytea[])";

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
    /// What this transaction has locked of ordering keys.
    pub(super) locks: &'a [i64],
}

/// What became of a batch.
#[derive(Debug)]
pub(super) struct Applied {
    /// One answer a write, in order; none where another transaction has a key of it.
    pub(super) written: Vec<Option<Written>>,
    /// The keys that another transaction has.
    pub(super) taken: Vec<i64>,
}

/// Applies writes inside of a transaction.
///
/// New rows and steps come in numbers, and share statements; the rest is rare, and comes one by one.
pub(super) async fn apply(connection: &mut PgConnection, by: By<'_>, writes: &[Write]) -> Result<Applied, Error> {
    let kept_back = lock_keys_of(connection, writes).await?;
    let by = By { locks: &kept_back.held, ..by };
    let is_free = |place: &usize| !kept_back.writes[*place];
    let mut written: Vec<Option<Written>> = writes.iter().map(|_| None).collect();
    let mut inserts: Vec<&Row> = Vec::new();
    let mut settles: Vec<(usize, &Settle)> = Vec::new();
    let mut results: Vec<(usize, ResultStep<'_>)> = Vec::new();
    for (place, write) in writes.iter().enumerate().filter(|(place, _)| is_free(place)) {
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
            inserts.extend(to_one(events));
        }
    }
    insert(connection, by, &inserts).await?;
    for (place, write) in writes.iter().enumerate() {
        if let (Some(Written::Done), Write::Result { events, .. }) = (&written[place], write) {
            fan_out_all(connection, by, events).await?;
        }
    }
    let (places, steps): (Vec<usize>, Vec<&Settle>) = settles.into_iter().unzip();
    for (place, current) in places.into_iter().zip(settle(connection, by, &steps).await?) {
        written[place] = Some(if current { Written::Done } else { Written::Superseded });
    }
    for (place, write) in writes.iter().enumerate().filter(|(place, _)| is_free(place)) {
        if written[place].is_none() {
            written[place] = Some(single(connection, by, write).await?);
        }
    }
    Ok(Applied { written, taken: kept_back.keys })
}

/// What goes to one Dsn.
fn to_one(events: &[Published]) -> impl Iterator<Item = &Row> {
    events.iter().filter_map(|event| match event {
        Published::To(row) => Some(&**row),
        Published::All(_) => None,
    })
}

/// Stores what goes to all who want it.
async fn fan_out_all(connection: &mut PgConnection, by: By<'_>, events: &[Published]) -> Result<(), Error> {
    for event in events {
        if let Published::All(event) = event {
            fan_out(connection, by, event).await?;
        }
    }
    Ok(())
}

/// Stores an event for all who want it in a transaction of the user's own.
pub(super) async fn publish_in(connection: &mut PgConnection, codec: &Codec, event: &FanOut) -> Result<u64, Error> {
    let locks = fan_out::locks(connection, event).await?;
    lock(connection, locks.clone()).await?;
    fan_out(connection, By { codec, holder: None, locks: &locks }, event).await
}

/// Whether each statement of this transaction sees what others have committed by then.
///
/// Who joins an ordering key must: by an older snapshot it would wait behind a message that has left.
pub(super) async fn sees_others(connection: &mut PgConnection) -> Result<bool, Error> {
    let isolation: String =
        query_scalar("SELECT current_setting('transaction_isolation')").fetch_one(connection).await?;
    Ok(matches!(&*isolation, "read committed" | "read uncommitted"))
}

/// Stores a new row in a transaction of the user's own.
pub(super) async fn insert_in(connection: &mut PgConnection, codec: &Codec, row: &Row) -> Result<Written, Error> {
    lock_keys(connection, row).await?;
    insert_once(connection, By { codec, holder: None, locks: &[] }, row).await
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

#[cfg(test)]
mod tests;
