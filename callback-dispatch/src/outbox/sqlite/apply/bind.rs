//! What the columns hold.

use super::ResultStep;
use crate::{
    clock::Micros,
    lane::LaneKey,
    outbox::{
        Settle,
        codec::{Codec, Pair, Text},
        sqlite::read,
    },
    row::{FailedRow, Row, Stage, digest},
};
use callback_core::{Destination, Dsn, ErrorKind, TaskId};
use sqlx::{Arguments, Error, sqlite::SqliteArguments};

pub(in super::super) type BindError = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn bind_row(arguments: &mut SqliteArguments, codec: &Codec, row: &Row) -> Result<(), Error> {
    let columns = codec.encode(row).map_err(not_sealed)?;
    let bind = |arguments: &mut SqliteArguments| -> Result<(), BindError> {
        arguments.reserve(24, 0);
        arguments.add(&row.id.as_bytes()[..])?;
        arguments.add(row.stage.number())?;
        arguments.add(row.held)?;
        arguments.add(i64::from(row.token))?;
        arguments.add(row.due.0)?;
        arguments.add(i64::from(row.attempts))?;
        arguments.add(i64::from(row.starts))?;
        arguments.add(row.accepted_at.0)?;
        arguments.add(row.first_due.0)?;
        arguments.add(row.expires.0)?;
        arguments.add(row.worker.as_deref())?;
        arguments.add(row.owner.as_deref())?;
        add_text(arguments, columns.dsn.as_ref())?;
        arguments.add(row.dsn.as_ref().map(Dsn::destination).as_ref().map(Destination::as_str))?;
        arguments.add(row.lane().as_ref().map(LaneKey::number))?;
        arguments.add(row.dsn.as_ref().map(address))?;
        arguments.add(row.order.as_ref().map(|order| &order.key.0[..]))?;
        arguments.add(row.order.map(|order| order.stops))?;
        arguments.add(row.idempotency.as_ref().map(|it| &it.key[..]))?;
        arguments.add(row.idempotency.as_ref().map(|it| &it.request[..]))?;
        for column in [&columns.work, &columns.result] {
            add_text(arguments, column.as_ref().map(|(head, _)| head))?;
            arguments.add(column.as_ref().map(|(_, body)| &body[..]))?;
        }
        Ok(())
    };
    bind(arguments).map_err(Error::Encode)
}

pub(super) fn bind_settle(arguments: &mut SqliteArguments, step: &Settle) -> Result<(), Error> {
    let bind = |arguments: &mut SqliteArguments| -> Result<(), BindError> {
        arguments.add(&step.id.as_bytes()[..])?;
        arguments.add(i64::from(step.token))?;
        arguments.add(step.from.number())?;
        arguments.add(step.to.number())?;
        arguments.add(step.held)?;
        arguments.add(step.due.0)?;
        arguments.add(i64::from(step.attempts))?;
        arguments.add(ended_at(step.to, step.now))?;
        arguments.add(step.kind.map(ErrorKind::as_str))
    };
    bind(arguments).map_err(Error::Encode)
}

pub(super) fn bind_result(arguments: &mut SqliteArguments, step: &ResultStep<'_>) -> Result<(), Error> {
    let bind = |arguments: &mut SqliteArguments| -> Result<(), BindError> {
        arguments.add(&step.id.as_bytes()[..])?;
        arguments.add(i64::from(step.token))?;
        arguments.add(step.to.number())?;
        arguments.add(step.held)?;
        arguments.add(step.now.0)?;
        arguments.add(ended_at(step.to, step.now))?;
        add_text(arguments, Some(&step.result.0))?;
        arguments.add(&step.result.1[..])
    };
    bind(arguments).map_err(Error::Encode)
}

pub(super) fn bind_replay(
    arguments: &mut SqliteArguments,
    ids: &[TaskId],
    now: Micros,
    result: Option<&Pair<'_>>,
) -> Result<(), BindError> {
    arguments.add(now.0)?;
    arguments.add(list(ids))?;
    add_text(arguments, result.map(|(head, _)| head))?;
    arguments.add(result.map(|(_, body)| &body[..]))
}

pub(super) fn bind_attempt(
    arguments: &mut SqliteArguments,
    codec: &Codec,
    id: TaskId,
    attempt: &FailedRow,
) -> Result<(), Error> {
    let reason = codec.encode_reason(id, attempt).map_err(not_sealed)?;
    let bind = |arguments: &mut SqliteArguments| -> Result<(), BindError> {
        arguments.add(&id.as_bytes()[..])?;
        arguments.add(i64::from(attempt.number))?;
        arguments.add(attempt.time.0)?;
        arguments.add(i64::try_from(attempt.took.as_micros()).unwrap_or(i64::MAX))?;
        arguments.add(attempt.kind.as_str())?;
        arguments.add(attempt.phase.map(|phase| phase.as_str()))?;
        arguments.add(attempt.status.map(i64::from))?;
        add_text(arguments, Some(&reason))
    };
    bind(arguments).map_err(Error::Encode)
}

pub(in super::super) fn add_text(arguments: &mut SqliteArguments, text: Option<&Text<'_>>) -> Result<(), BindError> {
    match text {
        None => arguments.add(None::<&str>),
        Some(Text::Plain(text)) => arguments.add(&**text),
        Some(Text::Sealed(bytes)) => arguments.add(&bytes[..]),
    }
}

pub(in super::super) fn not_sealed(reason: String) -> Error {
    Error::Encode(reason.into())
}

/// What a Dsn is found by: it may be sealed itself.
pub(super) fn address(dsn: &Dsn) -> Vec<u8> {
    digest([dsn.expose()]).to_vec()
}

/// Ids as one parameter: hexadecimal, in a JSON array.
pub(super) fn list(ids: &[TaskId]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| read::hex(id.as_bytes())).collect();
    serde_json::json!(ids).to_string()
}

pub(super) fn ended_at(stage: Stage, now: Micros) -> Option<i64> {
    stage.is_ended().then_some(now.0)
}

pub(super) fn numbers(lanes: &[LaneKey]) -> String {
    serde_json::json!(lanes.iter().map(LaneKey::number).collect::<Vec<i64>>()).to_string()
}

pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
