//! Values under another key than the first, and plain ones, are sealed by the first.

use super::super::{
    apply::{Rows, add_text, not_sealed},
    read::{hex, number, task_id, unreadable},
};
use crate::{
    clock::Micros,
    outbox::{OutboxError, SealStep, Write, Written, codec::Codec},
};
use callback_core::TaskId;
use callback_store::Writer;
use sqlx::{
    Arguments, Error, Row as _, SqliteConnection, query, query_with, sqlite::SqliteArguments, sqlite::SqliteRow,
};

/// So that what is written meanwhile does not wait long.
const ROWS: i64 = 32;

/// Goes through the file from its beginning to its end, in transactions that let others in between.
pub(in super::super) async fn reseal(writer: &Writer<Rows>) -> Result<u64, OutboxError> {
    let mut changed = 0;
    for step in [
        |after| SealStep::Rows { after },
        |after| SealStep::Attempts { after },
        |after| SealStep::Payloads { after },
        |after| SealStep::Subscriptions { after },
    ] {
        let mut after = 0;
        while let Written::Resealed { last: Some(last), changed: now } = writer.write(Write::Seal(step(after))).await? {
            (after, changed) = (last, changed + now);
        }
    }
    writer.write(Write::Seal(SealStep::Forget)).await?;
    Ok(changed)
}

pub(in super::super) async fn step(
    connection: &mut SqliteConnection,
    codec: &Codec,
    step: &SealStep,
) -> Result<Written, Error> {
    match step {
        SealStep::Learn { key, proof } => {
            let sql = "INSERT INTO callback_seal (key, proof) VALUES (?, ?) ON CONFLICT DO NOTHING";
            query(sql).bind(key).bind(proof).execute(connection).await?;
            Ok(Written::Done)
        }
        SealStep::Rows { after } => {
            let sql = "SELECT * FROM callback_outbox WHERE seq > ? ORDER BY seq LIMIT ?";
            let lines = page(connection, sql, *after).await?;
            let mut changed = 0;
            for line in &lines {
                changed += reseal_row(connection, codec, line).await?;
            }
            Ok(Written::Resealed { last: last(&lines, "seq")?, changed })
        }
        SealStep::Attempts { after } => {
            let sql = "SELECT rowid, * FROM callback_attempt WHERE rowid > ? ORDER BY rowid LIMIT ?";
            let lines = page(connection, sql, *after).await?;
            let mut changed = 0;
            for line in &lines {
                changed += reseal_attempt(connection, codec, line).await?;
            }
            Ok(Written::Resealed { last: last(&lines, "rowid")?, changed })
        }
        SealStep::Payloads { after } => {
            let sql = "SELECT * FROM callback_payload WHERE seq > ? ORDER BY seq LIMIT ?";
            let lines = page(connection, sql, *after).await?;
            let mut changed = 0;
            for line in &lines {
                changed += reseal_payload(connection, codec, line).await?;
            }
            Ok(Written::Resealed { last: last(&lines, "seq")?, changed })
        }
        SealStep::Subscriptions { after } => {
            let sql = "SELECT * FROM callback_subscription WHERE seq > ? ORDER BY seq LIMIT ?";
            let lines = page(connection, sql, *after).await?;
            let mut changed = 0;
            for line in &lines {
                changed += reseal_subscription(connection, codec, line).await?;
            }
            Ok(Written::Resealed { last: last(&lines, "seq")?, changed })
        }
        SealStep::Forget => {
            let first = codec.first().map_err(not_sealed)?;
            query("DELETE FROM callback_seal WHERE key <> ?").bind(first).execute(connection).await?;
            Ok(Written::Done)
        }
    }
}

async fn page(connection: &mut SqliteConnection, sql: &'static str, after: i64) -> Result<Vec<SqliteRow>, Error> {
    query(sql).bind(after).bind(ROWS).fetch_all(connection).await
}

fn last(lines: &[SqliteRow], column: &'static str) -> Result<Option<i64>, Error> {
    lines.last().map(|line| line.try_get(column)).transpose()
}

async fn reseal_row(connection: &mut SqliteConnection, codec: &Codec, line: &SqliteRow) -> Result<u64, Error> {
    let id = task_id(line)?;
    let kept = |column: &str| line.try_get::<Option<&[u8]>, _>(column);
    let pair = |head: &str, body: &str| {
        let body = kept(body)?.unwrap_or_default();
        Ok::<_, Error>(kept(head)?.map(|head| (head, body)))
    };
    let (work, result) = (pair("work", "work_body")?, pair("result", "result_body")?);
    let resealed = codec.reseal(id, kept("dsn")?, work, result).map_err(|reason| of_row(id, &reason))?;
    let Some(columns) = resealed else { return Ok(0) };
    let mut arguments = SqliteArguments::default();
    let bind = |arguments: &mut SqliteArguments| {
        add_text(arguments, columns.dsn.as_ref())?;
        for column in [&columns.work, &columns.result] {
            add_text(arguments, column.as_ref().map(|(head, _)| head))?;
            arguments.add(column.as_ref().map(|(_, body)| &body[..]))?;
        }
        arguments.add(&id.as_bytes()[..])
    };
    bind(&mut arguments).map_err(Error::Encode)?;
    let sql = "UPDATE callback_outbox SET dsn = ?, work = ?, work_body = ?, result = ?, result_body = ? WHERE id = ?";
    query_with(sql, arguments).execute(connection).await?;
    Ok(1)
}

async fn reseal_attempt(connection: &mut SqliteConnection, codec: &Codec, line: &SqliteRow) -> Result<u64, Error> {
    let (id, number, time) = (task_id(line)?, number(line, "number")?, Micros(line.try_get("time")?));
    let reason = codec.reseal_reason(id, number, time, line.try_get("reason")?);
    let Some(reason) = reason.map_err(|reason| of_row(id, &reason))? else { return Ok(0) };
    let mut arguments = SqliteArguments::default();
    let bind = |arguments: &mut SqliteArguments| {
        add_text(arguments, Some(&reason))?;
        arguments.add(line.try_get::<i64, _>("rowid")?)
    };
    bind(&mut arguments).map_err(Error::Encode)?;
    query_with("UPDATE callback_attempt SET reason = ? WHERE rowid = ?", arguments).execute(connection).await?;
    Ok(1)
}

async fn reseal_payload(connection: &mut SqliteConnection, codec: &Codec, line: &SqliteRow) -> Result<u64, Error> {
    let id = task_id(line)?;
    let resealed = codec.reseal_payload(id, line.try_get("head")?, line.try_get("body")?);
    let Some((head, body)) = resealed.map_err(|reason| of_row(id, &reason))? else { return Ok(0) };
    let mut arguments = SqliteArguments::default();
    let bind = |arguments: &mut SqliteArguments| {
        add_text(arguments, Some(&head))?;
        arguments.add(&body[..])?;
        arguments.add(&id.as_bytes()[..])
    };
    bind(&mut arguments).map_err(Error::Encode)?;
    query_with("UPDATE callback_payload SET head = ?, body = ? WHERE id = ?", arguments).execute(connection).await?;
    Ok(1)
}

async fn reseal_subscription(connection: &mut SqliteConnection, codec: &Codec, line: &SqliteRow) -> Result<u64, Error> {
    let id = task_id(line)?;
    let resealed = codec.reseal_subscription(id, line.try_get("detail")?).map_err(|reason| of_row(id, &reason))?;
    let Some(detail) = resealed else { return Ok(0) };
    let mut arguments = SqliteArguments::default();
    let bind = |arguments: &mut SqliteArguments| {
        add_text(arguments, Some(&detail))?;
        arguments.add(&id.as_bytes()[..])
    };
    bind(&mut arguments).map_err(Error::Encode)?;
    query_with("UPDATE callback_subscription SET detail = ? WHERE id = ?", arguments).execute(connection).await?;
    Ok(1)
}

fn of_row(id: TaskId, reason: &str) -> Error {
    unreadable("row")(format!("{}: {reason}", hex(id.as_bytes())))
}
