//! Rows as they are read back.

mod subscribed;

#[cfg(test)]
pub(super) use subscribed::{PAGE, PAGE_OF_OWNER, PAYLOADS, SUBSCRIPTIONS};
pub(super) use subscribed::{Shared, subscription, subscriptions};

use super::{apply::uuid, text};
use crate::{
    clock::Micros,
    dead_letter::{Cursor, DeadLetter, DeadLetterQuery, Page},
    lane::{LaneKey, OpenBreaker, StoredConsent},
    outbox::codec::Codec,
    row::{FailedRow, Idempotency, Order, OrderKey, Row, Stage},
};
use callback_core::{Destination, ErrorKind, Phase, TaskId};
use sqlx::{Error, PgPool, Row as _, postgres::PgRow, query, query_scalar, types::Uuid};
use std::{collections::HashMap, num::NonZeroU32, sync::Arc, time::Duration};

pub(super) const NEXT_DUE: &str =
    "SELECT min(due) FROM callback_outbox WHERE stage < 10 AND holder IS NULL AND due > $1 AND due < $2";

/// The names are few, the rows that wait may be many: the index is asked for one name after the other.
pub(super) const WAITING_WORKERS: &str = "\
    WITH RECURSIVE names (name) AS ( \
        SELECT min(worker) FROM callback_outbox WHERE stage <= 1 AND holder IS NULL \
        UNION ALL \
        SELECT (SELECT min(worker) FROM callback_outbox WHERE stage <= 1 AND holder IS NULL AND worker > name) \
        FROM names WHERE name IS NOT NULL) \
    SELECT name FROM names WHERE name IS NOT NULL";

/// The bound is written out, as it is in the index: none but rows that expire are in it.
pub(super) const NEXT_EXPIRY: &str = "SELECT min(expires) FROM callback_outbox WHERE stage < 10 AND expires < 9223372036854775807 \
     AND (holder IS NULL OR holder = $1)";

/// What a query asks for, after the columns.
macro_rules! dead {
    ($columns:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM callback_outbox WHERE stage = 12 AND ($1::text IS NULL OR destination = $1) \
              AND ($2::text IS NULL OR kind = $2) AND (ended_at, id) > ($3, $4) AND ended_at < $5 \
              ORDER BY ended_at, id LIMIT $6"
        )
    };
}

pub(super) const DEAD_LETTERS: &str = dead!("*");

pub(super) const DEAD_PLACES: &str = dead!("ended_at, id");

pub(super) const ATTEMPTS: &str = "SELECT * FROM callback_attempt WHERE id = ANY ($1) ORDER BY seq";

pub(super) async fn next_due(pool: &PgPool, after: Micros) -> Result<Option<Micros>, Error> {
    let due: Option<i64> = query_scalar(NEXT_DUE).bind(after.0).bind(Micros::NEVER.0).fetch_one(pool).await?;
    Ok(due.map(Micros))
}

const DEPTH: &str = "SELECT count(*) FROM callback_outbox WHERE stage < 10 AND holder IS NULL";

pub(super) async fn depth(pool: &PgPool, now: Micros) -> Result<(u64, Option<Micros>), Error> {
    let count: i64 = query_scalar(DEPTH).fetch_one(pool).await?;
    let first = next_due(pool, Micros(i64::MIN)).await?.filter(|due| *due <= now);
    Ok((u64::try_from(count).unwrap_or(0), first))
}

pub(super) async fn breakers(pool: &PgPool) -> Result<Vec<OpenBreaker>, Error> {
    let lines = query("SELECT * FROM callback_breaker").fetch_all(pool).await?;
    // One unreadable line, of a newer version perhaps, must not keep a dispatcher from starting.
    let tell = |error: &Error| tracing::error!(%error, "a stored breaker cannot be read");
    Ok(lines.iter().filter_map(|line| breaker(line).inspect_err(tell).ok()).collect())
}

fn breaker(line: &PgRow) -> Result<OpenBreaker, Error> {
    let destination: String = line.try_get("destination")?;
    let destination =
        destination.parse::<Destination>().map_err(|error| unreadable("destination")(error.to_string()))?;
    let owner = line.try_get::<Option<String>, _>("owner")?.map(|owner| text::read(owner).into());
    let lane = LaneKey { owner, destination };
    Ok(OpenBreaker { lane, times: number(line, "times")?, until: Micros(line.try_get("until")?) })
}

const CONSENT: &str = "SELECT per_minute, until FROM callback_consent WHERE destination = $1";

pub(super) async fn consent(pool: &PgPool, destination: &Destination) -> Result<Option<StoredConsent>, Error> {
    let Some(line) = query(CONSENT).bind(destination.as_str()).fetch_optional(pool).await? else { return Ok(None) };
    let per_minute = match line.try_get::<Option<i64>, _>("per_minute")? {
        Some(_) => {
            let requests = NonZeroU32::new(number(&line, "per_minute")?);
            Some(requests.ok_or_else(|| unreadable("per_minute")("it is 0".to_owned()))?)
        }
        None => None,
    };
    Ok(Some(StoredConsent { destination: destination.clone(), per_minute, until: Micros(line.try_get("until")?) }))
}

pub(super) async fn find(pool: &PgPool, codec: &Codec, id: TaskId) -> Result<Option<Row>, Error> {
    let found = query("SELECT * FROM callback_outbox WHERE id = $1").bind(uuid(id));
    let lines = Vec::from_iter(found.fetch_optional(pool).await?);
    let shared = Shared::of_read(pool, codec, &lines).await?;
    lines.first().map(|line| row(codec, line, &shared)).transpose()
}

pub(super) async fn waiting_workers(pool: &PgPool) -> Result<Vec<String>, Error> {
    let names: Vec<String> = query_scalar(WAITING_WORKERS).fetch_all(pool).await?;
    Ok(names.into_iter().map(text::read).collect())
}

/// Of what this process may end.
pub(super) async fn next_expiry(pool: &PgPool, holder: Option<i64>) -> Result<Option<Micros>, Error> {
    let expires: Option<i64> = query_scalar(NEXT_EXPIRY).bind(holder).fetch_one(pool).await?;
    Ok(expires.map(Micros))
}

pub(super) async fn dead_letters(
    pool: &PgPool,
    codec: &Codec,
    asked: &DeadLetterQuery,
) -> Result<Page<DeadLetter>, Error> {
    let rows = dead(pool, DEAD_LETTERS, asked).await?;
    // A letter that cannot be read is passed over, and the page after it is there all the same.
    let last = rows.last().filter(|_| rows.len() == asked.limit);
    let next = last.map(place).transpose()?;
    Ok(Page { items: letters(pool, codec, &rows).await?, next })
}

pub(super) async fn dead_places(pool: &PgPool, asked: &DeadLetterQuery) -> Result<Vec<Cursor>, Error> {
    dead(pool, DEAD_PLACES, asked).await?.iter().map(place).collect()
}

async fn dead(pool: &PgPool, sql: &'static str, asked: &DeadLetterQuery) -> Result<Vec<PgRow>, Error> {
    // No id is nil: the earliest place of a time is before all that ended then.
    let start = (asked.since.map_or(i64::MIN, |since| since.0), Uuid::nil());
    let after = asked.after.map(|cursor| (cursor.since.0, uuid(cursor.id)));
    let (since, id) = after.map_or(start, |after| after.max(start));
    query(sql)
        .bind(asked.destination.as_ref().map(ToString::to_string))
        .bind(asked.kind.map(ErrorKind::as_str))
        .bind(since)
        .bind(id)
        .bind(asked.until.unwrap_or(Micros::NEVER).0)
        .bind(i64::try_from(asked.limit).unwrap_or(i64::MAX))
        .fetch_all(pool)
        .await
}

fn place(line: &PgRow) -> Result<Cursor, Error> {
    Ok(Cursor { since: Micros(line.try_get("ended_at")?), id: task_id(line)? })
}

pub(super) async fn dead_letter(pool: &PgPool, codec: &Codec, id: TaskId) -> Result<Option<DeadLetter>, Error> {
    let sql = "SELECT * FROM callback_outbox WHERE stage = 12 AND id = $1";
    let rows = query(sql).bind(uuid(id)).fetch_all(pool).await?;
    Ok(letters(pool, codec, &rows).await?.pop())
}

async fn letters(pool: &PgPool, codec: &Codec, rows: &[PgRow]) -> Result<Vec<DeadLetter>, Error> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.try_get("id")).collect::<Result<_, Error>>()?;
    let mut attempts: HashMap<TaskId, Vec<FailedRow>> = HashMap::new();
    for row in query(ATTEMPTS).bind(ids).fetch_all(pool).await? {
        match attempt(codec, &row) {
            Ok(attempt) => attempts.entry(task_id(&row)?).or_default().push(attempt),
            Err(error) => tracing::error!(id = %task_id(&row)?, %error, "a stored attempt cannot be read"),
        }
    }
    let shared = Shared::of_read(pool, codec, rows).await?;
    let mut letters = Vec::with_capacity(rows.len());
    for line in rows {
        // One unreadable letter, of a newer version perhaps, must not hide the others.
        let letter = letter(codec, line, &shared).inspect_err(|error| tell_unreadable(line, error));
        letters.extend(letter.map(|mut letter| {
            let attempts = attempts.remove(&letter.id).unwrap_or_default();
            letter.attempts = attempts.into_iter().map(Into::into).collect();
            letter
        }));
    }
    Ok(letters)
}

/// A dead letter, but for its attempts.
fn letter(codec: &Codec, line: &PgRow, shared: &Shared) -> Result<DeadLetter, Error> {
    let kind: String = line.try_get("kind")?;
    let kind = ErrorKind::from_name(&kind).ok_or_else(|| unreadable("kind")("no such kind".into()))?;
    let since = Micros(line.try_get("ended_at")?).to_system();
    let Row { id, dsn, result, .. } = row(codec, line, shared)?;
    let dsn = dsn.ok_or_else(|| unreadable("dsn")("no Dsn".into()))?;
    let result = result.ok_or_else(|| unreadable("result")("no message".into()))?;
    Ok(DeadLetter { id, dsn, kind, message: result.message.clone(), since, attempts: Vec::new() })
}

pub(super) fn tell_unreadable(line: &PgRow, error: &Error) {
    let id = task_id(line).map(|id| id.to_string()).unwrap_or_default();
    tracing::error!(id, %error, "a stored row cannot be read");
}

/// A line of `callback_outbox`, all columns.
pub(super) fn row(codec: &Codec, line: &PgRow, shared: &Shared) -> Result<Row, Error> {
    let id = task_id(line)?;
    let text = |column: &str| line.try_get::<Option<String>, _>(column);
    let kept = |column: &str| line.try_get::<Option<&[u8]>, _>(column);
    let body = |column: &str| line.try_get::<Option<Vec<u8>>, _>(column).map(Option::unwrap_or_default);
    let half = |column: &'static str| {
        let bytes = kept(column)?;
        bytes.map(|bytes| bytes.try_into().map_err(|_| unreadable(column)("not sixteen bytes".into()))).transpose()
    };
    let dsn = kept("dsn")?.map(|dsn| codec.decode_dsn(id, dsn).map_err(unreadable("dsn")));
    let work = kept("work")?.map(|head| codec.decode_work(id, head, body("work_body")?).map_err(unreadable("work")));
    let result =
        kept("result")?.map(|head| codec.decode_result(id, head, body("result_body")?).map_err(unreadable("result")));
    let stage = i64::from(line.try_get::<i32, _>("stage")?);
    let (dsn, result) = (dsn.transpose()?, result.transpose()?);
    let (event, subscribed) = shared.delivery(line)?.unzip();
    let dsn = dsn.or_else(|| subscribed.as_ref().map(|it| it.to.dsn.clone()));
    Ok(Row {
        id,
        token: number(line, "token")?,
        stage: Stage::from_number(stage).ok_or_else(|| unreadable("stage")("no such stage".into()))?,
        held: line.try_get::<Option<i64>, _>("holder")?.is_some(),
        due: Micros(line.try_get("due")?),
        worker: text("worker")?.map(|worker| text::read(worker).into()),
        owner: text("owner")?.map(|owner| text::read(owner).into()),
        dsn,
        starts: number(line, "starts")?,
        attempts: number(line, "attempts")?,
        accepted_at: Micros(line.try_get("accepted_at")?),
        first_due: Micros(line.try_get("first_due")?),
        expires: Micros(line.try_get("expires")?),
        order: half("order_key")?.map(OrderKey).zip(line.try_get("stops")?).map(|(key, stops)| Order { key, stops }),
        idempotency: half("idempotency")?.zip(half("request")?).map(|(key, request)| Idempotency { key, request }),
        work: work.transpose()?.map(Arc::new),
        // A message of its own has who was replayed under another id.
        result: result.or(event).map(Arc::new),
        subscribed,
    })
}

fn attempt(codec: &Codec, line: &PgRow) -> Result<FailedRow, Error> {
    let took: i64 = line.try_get("took")?;
    let kind: String = line.try_get("kind")?;
    let phase: Option<String> = line.try_get("phase")?;
    let status: Option<i64> = line.try_get("status")?;
    let (number, time) = (number(line, "number")?, Micros(line.try_get("time")?));
    let reason = codec.decode_reason(task_id(line)?, number, time, line.try_get("reason")?);
    Ok(FailedRow {
        number,
        time,
        took: Duration::from_micros(u64::try_from(took).unwrap_or(0)),
        kind: ErrorKind::from_name(&kind).ok_or_else(|| unreadable("kind")("no such kind".into()))?,
        phase: phase.as_deref().and_then(Phase::from_name),
        status: status.and_then(|status| u16::try_from(status).ok()),
        reason: reason.map_err(unreadable("reason"))?,
    })
}

pub(super) fn task_id(line: &PgRow) -> Result<TaskId, Error> {
    Ok(TaskId::from_bytes(line.try_get::<Uuid, _>("id")?.into_bytes()))
}

pub(super) fn number(line: &PgRow, column: &'static str) -> Result<u32, Error> {
    u32::try_from(line.try_get::<i64, _>(column)?).map_err(|error| unreadable(column)(error.to_string()))
}

pub(super) fn unreadable(column: &'static str) -> impl Fn(String) -> Error {
    move |reason| Error::ColumnDecode { index: column.into(), source: reason.into() }
}
