//! Values under another key than the first, and plain ones, are sealed by the first.

use super::super::{
    PostgresOutbox,
    apply::{bytes, not_sealed, uuid},
    read::{number, task_id, unreadable},
};
use crate::{
    clock::Micros,
    outbox::{OutboxError, SealStep, Write, Written, codec::Codec, write},
};
use callback_core::TaskId;
use sqlx::{Error, PgConnection, Row as _, postgres::PgRow, query};

/// So that what is written meanwhile does not wait long.
const ROWS: i64 = 32;

/// Goes through the tables from beginning to end, in transactions that let others in between.
pub(in super::super) async fn reseal(outbox: &PostgresOutbox) -> Result<u64, OutboxError> {
    let mut changed = 0;
    for step in [
        |after| SealStep::Rows { after },
        |after| SealStep::Attempts { after },
        |after| SealStep::Payloads { after },
        |after| SealStep::Subscriptions { after },
    ] {
        let mut after = 0;
        while let Written::Resealed { last: Some(last), changed: now } = write(outbox, Write::Seal(step(after))).await?
        {
            (after, changed) = (last, changed + now);
        }
    }
    write(outbox, Write::Seal(SealStep::Forget)).await?;
    Ok(changed)
}

pub(in super::super) async fn step(
    connection: &mut PgConnection,
    codec: &Codec,
    step: &SealStep,
) -> Result<Written, Error> {
    match step {
        SealStep::Learn { key, proof } => {
            let sql = "INSERT INTO callback_seal (key, proof) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            query(sql).bind(key).bind(proof).execute(connection).await?;
            Ok(Written::Done)
        }
        SealStep::Rows { after } => {
            let sql = "SELECT * FROM callback_outbox WHERE seq > $1 ORDER BY seq LIMIT $2 FOR UPDATE";
            let lines = query(sql).bind(after).bind(ROWS).fetch_all(&mut *connection).await?;
            let mut changed = 0;
            for line in &lines {
                changed += reseal_row(connection, codec, line).await?;
            }
            Ok(Written::Resealed { last: last(&lines)?, changed })
        }
        SealStep::Attempts { after } => {
            let sql = "SELECT * FROM callback_attempt WHERE seq > $1 ORDER BY seq LIMIT $2";
            let lines = query(sql).bind(after).bind(ROWS).fetch_all(&mut *connection).await?;
            let mut changed = 0;
            for line in &lines {
                changed += reseal_attempt(connection, codec, line).await?;
            }
            Ok(Written::Resealed { last: last(&lines)?, changed })
        }
        SealStep::Payloads { after } => {
            let sql = "SELECT * FROM callback_payload WHERE seq > $1 ORDER BY seq LIMIT $2 FOR UPDATE";
            let lines = query(sql).bind(after).bind(ROWS).fetch_all(&mut *connection).await?;
            let mut changed = 0;
            for line in &lines {
                changed += reseal_payload(connection, codec, line).await?;
            }
            Ok(Written::Resealed { last: last(&lines)?, changed })
        }
        SealStep::Subscriptions { after } => {
            let sql = "SELECT * FROM callback_subscription WHERE seq > $1 ORDER BY seq LIMIT $2 FOR UPDATE";
            let lines = query(sql).bind(after).bind(ROWS).fetch_all(&mut *connection).await?;
            let mut changed = 0;
            for line in &lines {
                changed += reseal_subscription(connection, codec, line).await?;
            }
            Ok(Written::Resealed { last: last(&lines)?, changed })
        }
        SealStep::Forget => {
            let first = codec.first().map_err(not_sealed)?;
            query("DELETE FROM callback_seal WHERE key <> $1").bind(first).execute(connection).await?;
            Ok(Written::Done)
        }
    }
}

fn last(lines: &[PgRow]) -> Result<Option<i64>, Error> {
    lines.last().map(|line| line.try_get("seq")).transpose()
}

async fn reseal_row(connection: &mut PgConnection, codec: &Codec, line: &PgRow) -> Result<u64, Error> {
    let id = task_id(line)?;
    let kept = |column: &str| line.try_get::<Option<&[u8]>, _>(column);
    let pair = |head: &str, body: &str| {
        let body = kept(body)?.unwrap_or_default();
        Ok::<_, Error>(kept(head)?.map(|head| (head, body)))
    };
    let (work, result) = (pair("work", "work_body")?, pair("result", "result_body")?);
    let resealed = codec.reseal(id, kept("dsn")?, work, result).map_err(|reason| of_row(id, &reason))?;
    let Some(columns) = resealed else { return Ok(0) };
    let mut update = query(
        "UPDATE callback_outbox SET dsn = $1, work = $2, work_body = $3, result = $4, result_body = $5 WHERE id = $6",
    )
    .bind(columns.dsn.as_ref().map(bytes));
    for column in [&columns.work, &columns.result] {
        update = update.bind(column.as_ref().map(|(head, _)| bytes(head)));
        update = update.bind(column.as_ref().map(|(_, body)| &body[..]));
    }
    update.bind(uuid(id)).execute(connection).await?;
    Ok(1)
}

async fn reseal_attempt(connection: &mut PgConnection, codec: &Codec, line: &PgRow) -> Result<u64, Error> {
    let (id, number, time) = (task_id(line)?, number(line, "number")?, Micros(line.try_get("time")?));
    let reason = codec.reseal_reason(id, number, time, line.try_get("reason")?);
    let Some(reason) = reason.map_err(|reason| of_row(id, &reason))? else { return Ok(0) };
    let update = query("UPDATE callback_attempt SET reason = $1 WHERE seq = $2");
    update.bind(bytes(&reason)).bind(line.try_get::<i64, _>("seq")?).execute(connection).await?;
    Ok(1)
}

async fn reseal_payload(connection: &mut PgConnection, codec: &Codec, line: &PgRow) -> Result<u64, Error> {
    let id = task_id(line)?;
    let resealed = codec.reseal_payload(id, line.try_get("head")?, line.try_get("body")?);
    let Some((head, body)) = resealed.map_err(|reason| of_row(id, &reason))? else { return Ok(0) };
    let update = query("UPDATE callback_payload SET head = $1, body = $2 WHERE id = $3").bind(bytes(&head));
    update.bind(&body[..]).bind(uuid(id)).execute(connection).await?;
    Ok(1)
}

async fn reseal_subscription(connection: &mut PgConnection, codec: &Codec, line: &PgRow) -> Result<u64, Error> {
    let id = task_id(line)?;
    let resealed = codec.reseal_subscription(id, line.try_get("detail")?).map_err(|reason| of_row(id, &reason))?;
    let Some(detail) = resealed else { return Ok(0) };
    let update = query("UPDATE callback_subscription SET detail = $1 WHERE id = $2").bind(bytes(&detail));
    update.bind(uuid(id)).execute(connection).await?;
    Ok(1)
}

fn of_row(id: TaskId, reason: &str) -> Error {
    unreadable("row")(format!("{id}: {reason}"))
}
