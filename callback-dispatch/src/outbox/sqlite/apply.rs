//! Many writes in few statements.

use super::read;
use crate::{
    clock::Micros,
    failpoint,
    lane::{LaneKey, OpenBreaker},
    outbox::{
        Claim, PullIn, Settle, Write, Written,
        codec::{Codec, Pair, Text},
    },
    row::{FailedRow, Idempotency, Order, Row, Stage, digest},
};
use callback_core::{Destination, Dsn, ErrorKind, TaskId};
use callback_store::{Apply, Batched};
use sqlx::{
    Arguments, Error, Row as _, Sqlite, SqliteConnection, query,
    query::Query,
    query_scalar, query_with,
    sqlite::{SqliteArguments, SqliteRow},
};
use std::sync::Arc;

/// How many due rows are looked through, oldest first, before lanes and workers are asked one by one.
pub(super) const LOOKED_THROUGH: i64 = 1_024;

/// How many rows of one lane are taken where lanes are asked one by one.
const A_LANE: i64 = 16;

pub(super) const CLAIM: &str = "UPDATE callback_outbox SET held = 1, token = token + 1 WHERE seq IN ( \
    SELECT seq FROM (SELECT seq, stage, worker, lane, due FROM callback_outbox \
                     WHERE stage < 10 AND held = 0 AND due <= ?1 ORDER BY due, seq LIMIT ?5) \
    WHERE CASE WHEN stage <= 1 THEN worker IN (SELECT value FROM json_each(?2)) \
          ELSE lane NOT IN (SELECT value FROM json_each(?3)) END \
    ORDER BY due, seq LIMIT ?4) RETURNING *";

pub(super) const MORE: &str = "SELECT EXISTS (SELECT 1 FROM callback_outbox \
    WHERE stage < 10 AND held = 0 AND due <= ? ORDER BY due, seq LIMIT 1 OFFSET ?)";

/// Steps from lane to lane on the index, so that a lane costs the same with one row as with a million.
pub(super) const CLAIM_LANES: &str = "WITH RECURSIVE lanes (lane) AS ( \
        SELECT min(lane) FROM callback_outbox WHERE stage = 3 AND held = 0 AND lane > ?4 \
        UNION ALL \
        SELECT (SELECT min(o.lane) FROM callback_outbox AS o WHERE o.stage = 3 AND o.held = 0 AND o.lane > l.lane) \
        FROM lanes AS l WHERE l.lane <= ?5) \
    UPDATE callback_outbox SET held = 1, token = token + 1 WHERE seq IN ( \
        SELECT o.seq FROM lanes AS l CROSS JOIN callback_outbox AS o \
        WHERE l.lane <= ?5 AND l.lane NOT IN (SELECT value FROM json_each(?2)) \
          AND o.seq IN (SELECT i.seq FROM callback_outbox AS i \
                        WHERE i.lane = l.lane AND i.stage = 3 AND i.held = 0 AND i.due <= ?1 ORDER BY i.due LIMIT ?6) \
        LIMIT ?3) RETURNING *";

pub(super) const CLAIM_WORKER: &str = "UPDATE callback_outbox SET held = 1, token = token + 1 WHERE seq IN ( \
    SELECT seq FROM callback_outbox WHERE worker = ? AND stage <= 1 AND held = 0 AND due <= ? ORDER BY due LIMIT ?) \
    RETURNING *";

pub(super) const AGE: &str = "UPDATE callback_outbox SET stage = 12, ended_at = ?1, kind = coalesce(kind, 'timed out'), \
    turn = iif(stops, turn, NULL) WHERE seq IN ( \
    SELECT o.seq FROM json_each(?2) AS l CROSS JOIN callback_outbox AS o \
    WHERE o.lane = l.value AND o.stage = 3 AND o.held = 0 AND o.due <= ?1 AND o.first_due < ?3 LIMIT ?4) \
    RETURNING id, order_key, stops";

/// Whether the last row, or the last failed attempt, is of a time that is still to come.
const FROM_THE_FUTURE: &str = "SELECT EXISTS (SELECT 1 FROM callback_outbox \
        WHERE seq = (SELECT max(seq) FROM callback_outbox) AND accepted_at > ?1) \
    OR EXISTS (SELECT 1 FROM callback_attempt \
        WHERE rowid = (SELECT max(rowid) FROM callback_attempt) AND time > ?1)";

const WAIT_FROM_NOW: &str = "UPDATE callback_outbox SET due = due - (v.since - ?1) FROM ( \
        SELECT o.seq AS waiting, max(o.first_due, coalesce( \
            (SELECT max(a.time) FROM callback_attempt AS a WHERE a.id = o.id), o.first_due)) AS since \
        FROM callback_outbox AS o WHERE o.stage < 10 AND o.held = 0 AND o.due > ?1 AND o.due < ?2) AS v \
    WHERE seq = v.waiting AND v.since > ?1";

pub(super) const NOT_BEYOND: &str =
    "UPDATE callback_outbox SET due = ?1 WHERE stage < 10 AND held = 0 AND due > ?1 AND due < ?2";

/// The last of its key, and due only if it is the first, too.
const ENQUEUE: &str = "UPDATE callback_outbox SET \
    turn = 1 + (SELECT coalesce(max(turn), 0) FROM callback_outbox WHERE order_key = ?1 AND turn IS NOT NULL), \
    due = iif(EXISTS (SELECT 1 FROM callback_outbox WHERE order_key = ?1 AND turn IS NOT NULL), ?2, due) WHERE id = ?3";

pub(super) const RELEASE_NEXT: &str = "UPDATE callback_outbox SET due = ?1 WHERE order_key = ?2 AND stage = 3 AND due = ?3 \
    AND turn = (SELECT min(turn) FROM callback_outbox WHERE order_key = ?2 AND turn IS NOT NULL)";

const REPLAY: &str = "UPDATE callback_outbox SET stage = 3, held = 0, token = token + 1, due = ?1, first_due = ?1, \
                      attempts = 0, ended_at = NULL, expires = 9223372036854775807, \
                      result = coalesce(?3, result), result_body = coalesce(?4, result_body) \
                      WHERE stage = 12 AND id IN (SELECT unhex(value) FROM json_each(?2)) \
                      RETURNING id, order_key, turn";

/// What has its turn still, and is not the first of its key, waits.
const QUEUE: &str = "UPDATE callback_outbox SET due = ?1 WHERE id = ?2 \
    AND turn > (SELECT min(turn) FROM callback_outbox WHERE order_key = ?3 AND turn IS NOT NULL)";

const BURY: &str = "UPDATE callback_outbox SET stage = 12, due = ?1, ended_at = ?1, kind = ?2, \
                      turn = iif(stops, turn, NULL) WHERE seq IN ( \
                      SELECT seq FROM callback_outbox WHERE address = ?3 AND stage = 3 AND held = 0 \
                      ORDER BY seq LIMIT ?4) RETURNING id, order_key, turn";

const EXPIRE: &str = "UPDATE callback_outbox SET stage = 14, held = 0, due = ?1, ended_at = ?1, turn = NULL WHERE seq IN ( \
                        SELECT seq FROM callback_outbox \
                        WHERE stage < 10 AND expires < 9223372036854775807 AND expires <= ?1 \
                        ORDER BY expires LIMIT ?2) RETURNING id, order_key, turn";

const CLEAN: &str = "DELETE FROM callback_outbox WHERE seq IN ( \
                       SELECT seq FROM callback_outbox \
                       WHERE stage >= 10 AND stage <> 12 AND idempotency IS NULL AND ended_at < ?1 \
                       ORDER BY ended_at LIMIT ?2) RETURNING id";

const CLEAN_KEYED: &str = "DELETE FROM callback_outbox WHERE seq IN ( \
                             SELECT seq FROM callback_outbox \
                             WHERE stage >= 10 AND stage <> 12 AND idempotency IS NOT NULL AND ended_at < ?1 \
                             ORDER BY ended_at LIMIT ?2) RETURNING id";

const KNOWN: &str = "SELECT id, request FROM callback_outbox WHERE idempotency = ?";

const PURGE: &str = "DELETE FROM callback_outbox \
                     WHERE stage = 12 AND id IN (SELECT unhex(value) FROM json_each(?)) \
                     RETURNING id, order_key, NULL AS turn";

const FORGET_ATTEMPTS: &str = "DELETE FROM callback_attempt WHERE id IN (SELECT unhex(value) FROM json_each(?))";

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
                "UPDATE callback_outbox SET stage = v.column4, held = v.column5, due = v.column6, attempts = v.column7, \
                 ended_at = v.column8, kind = coalesce(v.column9, kind) FROM (VALUES ",
                "(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ") AS v WHERE id = v.column1 AND token = v.column2 AND stage = v.column3",
            ),
            result: Batched::new(
                "UPDATE callback_outbox SET stage = v.column3, held = v.column4, due = v.column5, \
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

    /// What comes one by one.
    async fn single(&self, connection: &mut SqliteConnection, write: &Write) -> Result<Written, Error> {
        match write {
            Write::Result { .. } | Write::Settle(_) => unreachable!("comes in numbers"),
            Write::Insert(row) => self.insert_once(connection, row).await,
            Write::Defer { id, token, events } => {
                let sql = "UPDATE callback_outbox SET stage = 2, held = 0, due = ? \
                           WHERE id = ? AND token = ? AND stage <= 1";
                let done = query(sql).bind(Micros::NEVER.0).bind(&id.as_bytes()[..]).bind(i64::from(*token));
                if done.execute(&mut *connection).await?.rows_affected() == 0 {
                    return Ok(Written::Superseded);
                }
                self.insert(connection, &events.iter().collect::<Vec<_>>()).await?;
                Ok(Written::Done)
            }
            Write::Cancel { id, now } => {
                let sql = "UPDATE callback_outbox SET stage = 13, held = 0, ended_at = ?, turn = NULL \
                           WHERE id = ? AND stage < 10 RETURNING order_key";
                let done = query_scalar(sql).bind(now.0).bind(&id.as_bytes()[..]).fetch_optional(&mut *connection);
                if let Some(key) = done.await? {
                    release_next(connection, key, *now).await?;
                    return Ok(Written::Done);
                }
                let known = query("SELECT 1 FROM callback_outbox WHERE id = ?").bind(&id.as_bytes()[..]);
                let known = known.fetch_optional(connection).await?.is_some();
                Ok(if known { Written::Superseded } else { Written::Unknown })
            }
            Write::Replay { ids, now } => Ok(Written::Count(self.replay(connection, ids, *now, None).await?)),
            Write::ReplayAsNew { id, now, result } => {
                let result = self.codec.encode_result(*id, result).map_err(not_sealed)?;
                let done = self.replay(connection, &[*id], *now, Some(&result)).await? > 0;
                Ok(if done { Written::Done } else { Written::Superseded })
            }
            Write::Purge { ids, now } => {
                let ended = left(connection, query(PURGE).bind(list(ids)), *now).await?;
                self.forget_attempts(connection, &ended).await?;
                Ok(Written::Count(ended.len() as u64))
            }
            Write::Age { lanes, before, now, limit } => self.age(connection, lanes, *before, *now, *limit).await,
            Write::PullIn(PullIn { now, latest, leapt }) => {
                if *leapt || query_scalar(FROM_THE_FUTURE).bind(now.0).fetch_one(&mut *connection).await? {
                    query(WAIT_FROM_NOW).bind(now.0).bind(Micros::NEVER.0).execute(&mut *connection).await?;
                }
                query(NOT_BEYOND).bind(latest.0).bind(Micros::NEVER.0).execute(connection).await?;
                Ok(Written::Done)
            }
            Write::OpenBreaker(open) => {
                let sql = "INSERT INTO callback_breaker (lane, owner, destination, times, until) VALUES (?, ?, ?, ?, ?) \
                           ON CONFLICT (lane) DO UPDATE SET times = excluded.times, until = excluded.until";
                let OpenBreaker { lane, times, until } = open;
                let insert = query(sql).bind(lane.number()).bind(lane.owner.as_deref()).bind(lane.destination.as_str());
                insert.bind(i64::from(*times)).bind(until.0).execute(connection).await?;
                Ok(Written::Done)
            }
            Write::CloseBreaker(lane) => {
                query("DELETE FROM callback_breaker WHERE lane = ?").bind(lane.number()).execute(connection).await?;
                Ok(Written::Done)
            }
            Write::Bury { dsn, now, limit } => {
                let bury = query(BURY).bind(now.0).bind(ErrorKind::Gone.as_str()).bind(address(dsn));
                Ok(Written::Ended(left(connection, bury.bind(count(*limit)), *now).await?))
            }
            Write::Expire { now, limit } => {
                let expire = query(EXPIRE).bind(now.0).bind(count(*limit));
                Ok(Written::Ended(left(connection, expire, *now).await?))
            }
            Write::Clean { before, keyed_before, limit } => {
                let clean = query(CLEAN).bind(before.0).bind(count(*limit));
                let mut old = ids(&clean.fetch_all(&mut *connection).await?)?;
                let clean = query(CLEAN_KEYED).bind(keyed_before.0).bind(count(limit.saturating_sub(old.len())));
                old.append(&mut ids(&clean.fetch_all(&mut *connection).await?)?);
                self.forget_attempts(connection, &old).await?;
                Ok(Written::Count(old.len() as u64))
            }
            Write::Claim(claim) => Ok(Written::Claimed(self.claim(connection, claim).await?)),
            Write::Recover => {
                let sql = "UPDATE callback_outbox SET held = 0, token = token + 1, starts = starts + (stage <= 1) \
                           WHERE held = 1 AND stage < 10";
                query(sql).execute(connection).await?;
                Ok(Written::Done)
            }
            #[cfg(feature = "seal")]
            Write::Seal(step) => super::seals::step(connection, &self.codec, step).await,
        }
    }

    async fn age(
        &self,
        connection: &mut SqliteConnection,
        lanes: &[LaneKey],
        before: Micros,
        now: Micros,
        limit: usize,
    ) -> Result<Written, Error> {
        let mut ended = Vec::new();
        let aged = query(AGE).bind(now.0).bind(numbers(lanes)).bind(before.0).bind(count(limit));
        for line in aged.fetch_all(&mut *connection).await? {
            let stops: Option<bool> = line.try_get("stops")?;
            if stops != Some(true) {
                release_next(connection, line.try_get("order_key")?, now).await?;
            }
            ended.push(read::task_id(&line)?);
        }
        Ok(Written::Ended(ended))
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

    /// Begins new deliveries, in this order; how many.
    async fn replay(
        &self,
        connection: &mut SqliteConnection,
        ids: &[TaskId],
        now: Micros,
        result: Option<&Pair<'_>>,
    ) -> Result<u64, Error> {
        let mut arguments = SqliteArguments::default();
        bind_replay(&mut arguments, ids, now, result).map_err(Error::Encode)?;
        let replayed = query_with(REPLAY, arguments);
        let lines = replayed.fetch_all(&mut *connection).await?;
        for id in ids {
            let is_it = |line: &&SqliteRow| read::task_id(line).is_ok_and(|it| it == *id);
            let Some(line) = lines.iter().find(is_it) else { continue };
            let (key, turn): (Option<Vec<u8>>, Option<i64>) = (line.try_get("order_key")?, line.try_get("turn")?);
            match (key, turn) {
                (Some(key), None) => enqueue(connection, *id, &key).await?,
                (Some(key), Some(_)) => {
                    let queue = query(QUEUE).bind(Micros::NEVER.0).bind(&id.as_bytes()[..]).bind(key);
                    queue.execute(&mut *connection).await?;
                }
                (None, _) => {}
            }
        }
        Ok(lines.len() as u64)
    }

    /// Deletes what is kept beside rows that were deleted.
    async fn forget_attempts(&self, connection: &mut SqliteConnection, ids: &[TaskId]) -> Result<(), Error> {
        query(FORGET_ATTEMPTS).bind(list(ids)).execute(connection).await.map(drop)
    }

    async fn claim(&self, connection: &mut SqliteConnection, claim: &Claim) -> Result<Vec<Row>, Error> {
        let Claim { now, limit, workers, left_out } = claim;
        let names = serde_json::json!(workers.iter().map(|name| &**name).collect::<Vec<&str>>()).to_string();
        let left_out = numbers(left_out);
        let mut lines = query(CLAIM)
            .bind(now.0)
            .bind(names)
            .bind(&left_out)
            .bind(count(*limit))
            .bind(LOOKED_THROUGH)
            .fetch_all(&mut *connection)
            .await?;
        let passed_over = LOOKED_THROUGH.saturating_sub(count(lines.len()));
        if lines.len() < *limit && query_scalar(MORE).bind(now.0).bind(passed_over).fetch_one(&mut *connection).await? {
            for worker in workers {
                let left = count(limit.saturating_sub(lines.len()));
                let claimed = query(CLAIM_WORKER).bind(&**worker).bind(now.0).bind(left);
                lines.extend(claimed.fetch_all(&mut *connection).await?);
            }
            // Each time from another lane on, so that all have their turn.
            let start = now.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed());
            for (above, to) in [(start, i64::MAX), (i64::MIN, start)] {
                let left = count(limit.saturating_sub(lines.len()));
                let claimed = query(CLAIM_LANES).bind(now.0).bind(&left_out).bind(left);
                lines.extend(claimed.bind(above).bind(to).bind(A_LANE).fetch_all(&mut *connection).await?);
            }
        }
        let mut rows = lines
            .iter()
            .filter_map(|line| {
                // One unreadable row, of a newer version perhaps, must not keep the others back. It stays held.
                let unreadable = |error: &Error| {
                    let id = line.try_get("id").map(read::hex).unwrap_or_default();
                    tracing::error!(id, %error, "a stored row cannot be read");
                };
                read::row(&self.codec, line).inspect_err(unreadable).ok()
            })
            .collect::<Vec<Row>>();
        rows.sort_by_key(|row| (row.due, row.id));
        Ok(rows)
    }
}

/// Ends rows, and lets the next of their keys go, unless they hold them back; their ids.
async fn left(
    connection: &mut SqliteConnection,
    end: Query<'_, Sqlite, SqliteArguments>,
    now: Micros,
) -> Result<Vec<TaskId>, Error> {
    let lines = end.fetch_all(&mut *connection).await?;
    for line in &lines {
        if line.try_get::<Option<i64>, _>("turn")?.is_none() {
            release_next(connection, line.try_get("order_key")?, now).await?;
        }
    }
    ids(&lines)
}

fn ids(lines: &[SqliteRow]) -> Result<Vec<TaskId>, Error> {
    let mut ids: Vec<TaskId> = lines.iter().map(read::task_id).collect::<Result<_, _>>()?;
    ids.sort_unstable();
    Ok(ids)
}

async fn enqueue(connection: &mut SqliteConnection, id: TaskId, key: &[u8]) -> Result<(), Error> {
    let enqueued = query(ENQUEUE).bind(key).bind(Micros::NEVER.0).bind(&id.as_bytes()[..]);
    enqueued.execute(connection).await.map(drop)
}

/// Lets the next of its key go, unless it holds it back.
async fn leave(
    connection: &mut SqliteConnection,
    id: TaskId,
    order: Order,
    to: Stage,
    now: Micros,
) -> Result<(), Error> {
    if to == Stage::Dead && order.stops {
        return Ok(());
    }
    let left = query("UPDATE callback_outbox SET turn = NULL WHERE id = ?").bind(&id.as_bytes()[..]);
    left.execute(&mut *connection).await?;
    release_next(connection, Some(order.key.0.to_vec()), now).await
}

async fn release_next(connection: &mut SqliteConnection, key: Option<Vec<u8>>, now: Micros) -> Result<(), Error> {
    let Some(key) = key else { return Ok(()) };
    let released = query(RELEASE_NEXT).bind(now.0).bind(key).bind(Micros::NEVER.0);
    released.execute(connection).await.map(drop)
}

fn numbers(lanes: &[LaneKey]) -> String {
    serde_json::json!(lanes.iter().map(LaneKey::number).collect::<Vec<i64>>()).to_string()
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
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
                inserts.extend(events);
            }
        }
        self.insert(connection, &inserts).await?;
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

pub(super) type BindError = Box<dyn std::error::Error + Send + Sync>;

fn bind_row(arguments: &mut SqliteArguments, codec: &Codec, row: &Row) -> Result<(), Error> {
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

fn bind_settle(arguments: &mut SqliteArguments, step: &Settle) -> Result<(), Error> {
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

fn bind_result(arguments: &mut SqliteArguments, step: &ResultStep<'_>) -> Result<(), Error> {
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

fn bind_replay(
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

fn bind_attempt(arguments: &mut SqliteArguments, codec: &Codec, id: TaskId, attempt: &FailedRow) -> Result<(), Error> {
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

pub(super) fn add_text(arguments: &mut SqliteArguments, text: Option<&Text<'_>>) -> Result<(), BindError> {
    match text {
        None => arguments.add(None::<&str>),
        Some(Text::Plain(text)) => arguments.add(&**text),
        Some(Text::Sealed(bytes)) => arguments.add(&bytes[..]),
    }
}

pub(super) fn not_sealed(reason: String) -> Error {
    Error::Encode(reason.into())
}

/// What a Dsn is found by: it may be sealed itself.
fn address(dsn: &Dsn) -> Vec<u8> {
    digest([dsn.expose()]).to_vec()
}

/// Ids as one parameter: hexadecimal, in a JSON array.
fn list(ids: &[TaskId]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| read::hex(id.as_bytes())).collect();
    serde_json::json!(ids).to_string()
}

fn ended_at(stage: Stage, now: Micros) -> Option<i64> {
    stage.is_ended().then_some(now.0)
}

#[cfg(test)]
mod tests;
