//! Many writes in few statements.

mod attachment;
mod bind;
mod claim;
mod fan_out;
mod order;
mod single;
mod subscription;

#[cfg(feature = "seal")]
pub(super) use bind::add_text;
pub(super) use bind::not_sealed;
pub(super) use claim::look;

use bind::{bind_attempt, bind_result, bind_row, bind_settle, ended_at};
use order::{enqueue, leave};

use super::read;
use crate::{
    clock::Micros,
    failpoint,
    outbox::{
        Settle, Write, Written,
        codec::{Codec, Pair, Text},
    },
    row::{FailedRow, Idempotency, Order, Published, Row, Stage},
    subscription::FanOut,
};
use callback_core::TaskId;
use callback_store::{Apply, Batched};
use sqlx::{Error, Row as _, SqliteConnection, query, query_scalar, query_with, sqlite::SqliteArguments};
use std::sync::Arc;

const KNOWN: &str = "SELECT id, request FROM callback_outbox WHERE idempotency = ?";

/// Applies batches of writes to the outbox's tables.
///
/// New rows and steps come in numbers, and share multi-row statements; the rest is rare, and comes one by one.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    codec: Codec,
    insert: Batched,
    settle: Batched,
    result: Batched,
    attempt: Batched,
}

struct ResultStep<'a> {
    id: TaskId,
    token: u32,
    to: Stage,
    held: bool,
    now: Micros,
    /// As it is kept: no two are alike once they are sealed, so it is made once.
    result: Pair<'a>,
    order: Option<Order>,
}

impl Rows {
    pub(super) fn new(codec: Codec) -> Self {
        Self {
            codec,
            insert: Batched::new(
                "INSERT INTO callback_outbox (id, stage, held, token, due, attempts, starts, accepted_at, first_due, \
                 expires, worker, owner, dsn, destination, lane, address, order_key, stops, idempotency, request, work, work_body, result, result_body) SELECT * FROM (VALUES ",
                "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ") WHERE column1 IS NOT NULL",
            ),
            settle: Batched::new(
                "UPDATE callback_outbox SET stage = v.column4, held = v.column5, claim = NULL, due = v.column6, attempts = v.column7, \
                 ended_at = v.column8, kind = coalesce(v.column9, kind) FROM (VALUES ",
                "(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ") AS v WHERE id = v.column1 AND token = v.column2 AND stage = v.column3",
            ),
            result: Batched::new(
                "UPDATE callback_outbox SET stage = v.column3, held = v.column4, claim = NULL, due = v.column5, \
                 first_due = v.column5, ended_at = v.column6, result = v.column7, result_body = v.column8 FROM (VALUES ",
                "(?, ?, ?, ?, ?, ?, ?, ?)",
                ") AS v WHERE id = v.column1 AND token = v.column2 AND stage <= 2",
            ),
            attempt: Batched::new(
                "INSERT INTO callback_attempt (id, number, time, took, kind, phase, status, reason) \
                 SELECT * FROM (VALUES ",
                "(?, ?, ?, ?, ?, ?, ?, ?)",
                ") WHERE column1 IS NOT NULL",
            ),
        }
    }

    async fn insert(&self, connection: &mut SqliteConnection, rows: &[&Arc<Row>]) -> Result<(), Error> {
        for (sql, part) in self.insert.split(rows) {
            let mut arguments = SqliteArguments::default();
            for row in part {
                bind_row(&mut arguments, &self.codec, row)?;
            }
            query_with(sql, arguments).execute(&mut *connection).await?;
        }
        for row in rows.iter().filter(|row| row.stage == Stage::Delivering) {
            if let Some(order) = row.order {
                enqueue(connection, row.id, &order.key.0).await?;
            }
        }
        Ok(())
    }

    /// One answer a step, in order.
    async fn settle(&self, connection: &mut SqliteConnection, steps: &[&Settle]) -> Result<Vec<Written>, Error> {
        let mut written = Vec::with_capacity(steps.len());
        let mut failed: Vec<(TaskId, &FailedRow)> = Vec::new();
        for (sql, part) in self.settle.split(steps) {
            let mut arguments = SqliteArguments::default();
            for step in part {
                bind_settle(&mut arguments, step)?;
            }
            let changed = query_with(sql, arguments).execute(&mut *connection).await?.rows_affected();
            let all = usize::try_from(changed) == Ok(part.len());
            for step in part {
                // Where some row was elsewhere already, each is asked for: a step names where it came from, so what is
                // at its end with its token and time is its own.
                let done = all || self.is_settled(connection, step).await?;
                if let (true, Some(attempt)) = (done, &step.failed) {
                    failed.push((step.id, attempt));
                }
                if let (true, true, Some(order)) = (done, step.to.is_ended(), step.order) {
                    leave(connection, step.id, order, step.to, step.now).await?;
                }
                written.push(if done { Written::Done } else { Written::Superseded });
            }
        }
        for (sql, part) in self.attempt.split(&failed) {
            let mut arguments = SqliteArguments::default();
            for (id, attempt) in part {
                bind_attempt(&mut arguments, &self.codec, *id, attempt)?;
            }
            query_with(sql, arguments).execute(&mut *connection).await?;
        }
        Ok(written)
    }

    async fn is_settled(&self, connection: &mut SqliteConnection, step: &Settle) -> Result<bool, Error> {
        let sql = "SELECT count(*) FROM callback_outbox WHERE id = ? AND token = ? AND stage = ? AND held = ? \
                   AND due = ? AND attempts = ? AND ended_at IS ?";
        let count: i64 = query_scalar(sql)
            .bind(&step.id.as_bytes()[..])
            .bind(i64::from(step.token))
            .bind(step.to.number())
            .bind(step.held)
            .bind(step.due.0)
            .bind(i64::from(step.attempts))
            .bind(ended_at(step.to, step.now))
            .fetch_one(connection)
            .await?;
        Ok(count > 0)
    }

    /// Whether each step was current, in order.
    async fn results(&self, connection: &mut SqliteConnection, steps: &[ResultStep<'_>]) -> Result<Vec<bool>, Error> {
        let mut current = Vec::with_capacity(steps.len());
        for (sql, part) in self.result.split(steps) {
            let mut arguments = SqliteArguments::default();
            for step in part {
                bind_result(&mut arguments, step)?;
            }
            let changed = query_with(sql, arguments).execute(&mut *connection).await?.rows_affected();
            let all = usize::try_from(changed) == Ok(part.len());
            for step in part {
                let is_current = all || self.has_result(connection, step).await?;
                if let (true, Some(order)) = (is_current, step.order) {
                    enqueue(connection, step.id, &order.key.0).await?;
                }
                current.push(is_current);
            }
        }
        Ok(current)
    }

    async fn has_result(&self, connection: &mut SqliteConnection, step: &ResultStep<'_>) -> Result<bool, Error> {
        let sql = "SELECT count(*) FROM callback_outbox \
                   WHERE id = ? AND token = ? AND stage = ? AND held = ? AND due = ? AND result = ?";
        let count = query_scalar(sql)
            .bind(&step.id.as_bytes()[..])
            .bind(i64::from(step.token))
            .bind(step.to.number())
            .bind(step.held)
            .bind(step.now.0);
        let count = match &step.result.0 {
            Text::Plain(head) => count.bind(&**head),
            Text::Sealed(head) => count.bind(&head[..]),
        };
        let count: i64 = count.fetch_one(connection).await?;
        Ok(count > 0)
    }

    pub(super) async fn insert_once(
        &self,
        connection: &mut SqliteConnection,
        row: &Arc<Row>,
    ) -> Result<Written, Error> {
        if let Some(Idempotency { key, request }) = &row.idempotency
            && let Some(known) = query(KNOWN).bind(&key[..]).fetch_optional(&mut *connection).await?
        {
            let same = known.try_get::<&[u8], _>("request")? == request;
            return Ok(Written::Known { id: read::task_id(&known)?, same });
        }
        self.insert(connection, &[row]).await?;
        Ok(Written::Done)
    }
}

/// Parts what goes to one Dsn from what goes to all who want it.
fn split<'a>(events: &'a [Published], rows: &mut Vec<&'a Arc<Row>>, fan_outs: &mut Vec<&'a FanOut>) {
    for event in events {
        match event {
            Published::To(row) => rows.push(row),
            Published::All(event) => fan_outs.push(event),
        }
    }
}

impl Apply for Rows {
    type Write = Write;
    type Written = Written;

    async fn apply<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
        writes: &'a [Write],
    ) -> Result<Vec<Written>, Error> {
        let mut written: Vec<Option<Written>> = writes.iter().map(|_| None).collect();
        let mut inserts: Vec<&Arc<Row>> = Vec::new();
        let mut settles: Vec<(usize, &Settle)> = Vec::new();
        let mut results: Vec<(usize, ResultStep<'_>)> = Vec::new();
        let mut fan_outs: Vec<&FanOut> = Vec::new();
        for (place, write) in writes.iter().enumerate() {
            match write {
                Write::Insert(row) if row.idempotency.is_none() => {
                    inserts.push(row);
                    written[place] = Some(Written::Done);
                }
                Write::Settle(step) => settles.push((place, step)),
                Write::Result { id, token, to, held, now, result, order, .. } => {
                    let result = self.codec.encode_result(*id, result).map_err(not_sealed)?;
                    let (id, token, to, held, now, order) = (*id, *token, *to, *held, *now, *order);
                    let step = ResultStep { id, token, to, held, now, result, order };
                    results.push((place, step));
                }
                _ => {}
            }
        }
        let (places, steps): (Vec<usize>, Vec<ResultStep<'_>>) = results.into_iter().unzip();
        for (place, current) in places.into_iter().zip(self.results(connection, &steps).await?) {
            written[place] = Some(if current { Written::Done } else { Written::Superseded });
            if let (true, Write::Result { events, .. }) = (current, &writes[place]) {
                split(events, &mut inserts, &mut fan_outs);
            }
        }
        self.insert(connection, &inserts).await?;
        for event in fan_outs {
            self.fan_out(connection, event).await?;
        }
        let (places, steps): (Vec<usize>, Vec<&Settle>) = settles.into_iter().unzip();
        for (place, answer) in places.into_iter().zip(self.settle(connection, &steps).await?) {
            written[place] = Some(answer);
        }
        for (place, write) in writes.iter().enumerate() {
            if written[place].is_none() {
                written[place] = Some(self.single(connection, write).await?);
            }
        }
        if !inserts.is_empty() {
            failpoint::reach("before-insert-commit");
        }
        if !steps.is_empty() {
            failpoint::reach("before-mark-commit");
        }
        Ok(written.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests;
