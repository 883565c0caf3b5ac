//! What is rare, and comes one by one.

use super::{
    Rows,
    attachment::{CLEAN_ATTACHMENTS, LET_GO_OF_ALL, attach, keep_attached, park, rouse},
    bind::{address, bind_replay, count, list, not_sealed, numbers},
    claim::GIVE_BACK,
    fan_out::{PAYLOADS, forget_payloads, payloads},
    order::{QUEUE, enqueue, ids, left, release_aged, release_next},
    split,
    subscription::{clean_subscriptions, end_all_to, end_spent, end_subscription},
};
use crate::{
    clock::Micros,
    lane::{LaneKey, OpenBreaker, StoredConsent},
    outbox::{PullIn, Write, Written, codec::Pair, sqlite::read},
};
use callback_core::{ErrorKind, TaskId};
use sqlx::{
    Error, Row as _, SqliteConnection, query, query_scalar, query_with,
    sqlite::{SqliteArguments, SqliteRow},
};

pub(super) const AGE: &str = "UPDATE callback_outbox SET stage = 12, ended_at = ?1, kind = coalesce(kind, 'timed out'), \
    turn = iif(stops, turn, NULL) WHERE seq IN ( \
    SELECT o.seq FROM json_each(?2) AS l CROSS JOIN callback_outbox AS o \
    WHERE o.lane = l.value AND o.stage = 3 AND o.held = 0 AND o.due <= ?1 AND o.first_due < ?3 LIMIT ?4) \
    RETURNING id, order_key, stops";

/// Whether the last row, or the last failed attempt, is of a time that is still to come.
pub(super) const FROM_THE_FUTURE: &str = "SELECT EXISTS (SELECT 1 FROM callback_outbox \
        WHERE seq = (SELECT max(seq) FROM callback_outbox) AND accepted_at > ?1) \
    OR EXISTS (SELECT 1 FROM callback_attempt \
        WHERE rowid = (SELECT max(rowid) FROM callback_attempt) AND time > ?1)";

pub(super) const WAIT_FROM_NOW: &str = "UPDATE callback_outbox SET due = due - (v.since - ?1) FROM ( \
        SELECT o.seq AS waiting, max(o.first_due, coalesce( \
            (SELECT max(a.time) FROM callback_attempt AS a WHERE a.id = o.id), o.first_due)) AS since \
        FROM callback_outbox AS o WHERE o.stage < 10 AND o.held = 0 AND o.due > ?1 AND o.due < ?2) AS v \
    WHERE seq = v.waiting AND v.since > ?1";

pub(super) const NOT_BEYOND: &str =
    "UPDATE callback_outbox SET due = ?1 WHERE stage < 10 AND held = 0 AND due > ?1 AND due < ?2";

pub(super) const REPLAY: &str = "UPDATE callback_outbox SET stage = 3, held = 0, token = token + 1, due = ?1, first_due = ?1, \
                      attempts = 0, ended_at = NULL, expires = 9223372036854775807, \
                      result = coalesce(?3, result), result_body = coalesce(?4, result_body) \
                      WHERE stage = 12 AND id IN (SELECT unhex(value) FROM json_each(?2)) \
                      RETURNING id, order_key, turn";

pub(super) const BURY: &str = "UPDATE callback_outbox SET stage = 12, due = ?1, ended_at = ?1, kind = ?2, \
                      turn = iif(stops, turn, NULL) WHERE seq IN ( \
                      SELECT seq FROM callback_outbox WHERE address = ?3 AND stage = 3 AND held = 0 \
                      ORDER BY seq LIMIT ?4) RETURNING id, order_key, turn";

pub(super) const EXPIRE: &str = "UPDATE callback_outbox SET stage = 14, held = 0, due = ?1, ended_at = ?1, turn = NULL WHERE seq IN ( \
                        SELECT seq FROM callback_outbox \
                        WHERE stage < 10 AND expires < 9223372036854775807 AND expires <= ?1 \
                        ORDER BY expires LIMIT ?2) RETURNING id, order_key, turn";

pub(super) const CLEAN: &str = "DELETE FROM callback_outbox WHERE seq IN ( \
                       SELECT seq FROM callback_outbox \
                       WHERE stage >= 10 AND stage <> 12 AND idempotency IS NULL AND ended_at < ?1 \
                       ORDER BY ended_at LIMIT ?2) RETURNING id, payload";

pub(super) const CLEAN_KEYED: &str = "DELETE FROM callback_outbox WHERE seq IN ( \
                             SELECT seq FROM callback_outbox \
                             WHERE stage >= 10 AND stage <> 12 AND idempotency IS NOT NULL AND ended_at < ?1 \
                             ORDER BY ended_at LIMIT ?2) RETURNING id";

pub(super) const CLEAN_BREAKERS: &str = "DELETE FROM callback_breaker \
    WHERE lane IN (SELECT lane FROM callback_breaker WHERE until < ?1 LIMIT ?2)";

const CONSENT: &str = "INSERT INTO callback_consent (destination, per_minute, until) VALUES (?, ?, ?) \
    ON CONFLICT (destination) DO UPDATE SET per_minute = excluded.per_minute, until = excluded.until";

pub(super) const CLEAN_CONSENTS: &str = "DELETE FROM callback_consent WHERE destination IN ( \
    SELECT destination FROM callback_consent WHERE until < ?1 LIMIT ?2)";

pub(super) const PURGE: &str = "DELETE FROM callback_outbox \
                     WHERE stage = 12 AND id IN (SELECT unhex(value) FROM json_each(?)) \
                     RETURNING id, order_key, NULL AS turn";

pub(super) const FORGET_ATTEMPTS: &str =
    "DELETE FROM callback_attempt WHERE id IN (SELECT unhex(value) FROM json_each(?))";

impl Rows {
    /// What comes one by one.
    pub(super) async fn single(&self, connection: &mut SqliteConnection, write: &Write) -> Result<Written, Error> {
        match write {
            Write::Result { .. } | Write::Settle(_) => unreachable!("comes in numbers"),
            Write::Insert(row) => self.insert_once(connection, row).await,
            Write::Publish(event) => Ok(Written::Count(self.fan_out(connection, event).await?)),
            Write::Subscribe { row, limit } => self.subscribe(connection, row, *limit).await,
            Write::ChangeSubscription(row) => self.change_subscription(connection, row).await,
            Write::EndSubscription { id, end, now } => end_subscription(connection, *id, *end, *now).await,
            Write::Confirm { id } => {
                // What a failed commit left in the log may yet be found by a recovery. Another commit takes its place there,
                // if it writes something.
                let write = "INSERT INTO callback_outbox \
                             (id, stage, held, token, due, attempts, starts, accepted_at, first_due, expires) \
                             VALUES (?, 13, 0, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT (id) DO NOTHING";
                let id = &id.as_bytes()[..];
                if query(write).bind(id).execute(&mut *connection).await?.rows_affected() == 0 {
                    return Ok(Written::Done);
                }
                query("DELETE FROM callback_outbox WHERE id = ?").bind(id).execute(connection).await?;
                Ok(Written::Unknown)
            }
            Write::ConfirmEvent(event) => {
                // As above.
                let write =
                    "INSERT INTO callback_payload (id, head, body) VALUES (?, '', x'') ON CONFLICT (id) DO NOTHING";
                let id = &event.id.as_bytes()[..];
                if query(write).bind(id).execute(&mut *connection).await?.rows_affected() == 0 {
                    return Ok(Written::Done);
                }
                query("DELETE FROM callback_payload WHERE id = ?").bind(id).execute(connection).await?;
                Ok(Written::Unknown)
            }
            Write::Defer { id, token, events } => {
                let sql = "UPDATE callback_outbox SET stage = 2, held = 0, due = ? \
                           WHERE id = ? AND token = ? AND stage <= 1";
                let done = query(sql).bind(Micros::NEVER.0).bind(&id.as_bytes()[..]).bind(i64::from(*token));
                if done.execute(&mut *connection).await?.rows_affected() == 0 {
                    return Ok(Written::Superseded);
                }
                let (mut rows, mut fan_outs) = (Vec::new(), Vec::new());
                split(events, &mut rows, &mut fan_outs);
                self.insert(connection, &rows).await?;
                for event in fan_outs {
                    self.fan_out(connection, event).await?;
                }
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
                let payloads = payloads(&query(PAYLOADS).bind(list(ids)).fetch_all(&mut *connection).await?)?;
                let ended = left(connection, query(PURGE).bind(list(ids)), *now).await?;
                self.forget_attempts(connection, &ended).await?;
                forget_payloads(connection, &payloads).await?;
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
            Write::Consent(StoredConsent { destination, per_minute, until }) => {
                let insert = query(CONSENT).bind(destination.as_str()).bind(per_minute.map(|it| i64::from(it.get())));
                insert.bind(until.0).execute(connection).await?;
                Ok(Written::Done)
            }
            Write::Bury { dsn, now, limit } => {
                end_all_to(connection, dsn, *now).await?;
                let bury = query(BURY).bind(now.0).bind(ErrorKind::Gone.as_str()).bind(address(dsn));
                Ok(Written::Ended(left(connection, bury.bind(count(*limit)), *now).await?))
            }
            Write::Expire { now, limit } => {
                let expire = query(EXPIRE).bind(now.0).bind(count(*limit));
                Ok(Written::Ended(left(connection, expire, *now).await?))
            }
            Write::Clean { now, before, keyed_before, breakers_before, limit } => {
                let clean = query(CLEAN).bind(before.0).bind(count(*limit));
                let lines = clean.fetch_all(&mut *connection).await?;
                let (mut old, payloads) = (ids(&lines)?, payloads(&lines)?);
                let clean = query(CLEAN_KEYED).bind(keyed_before.0).bind(count(limit.saturating_sub(old.len())));
                old.append(&mut ids(&clean.fetch_all(&mut *connection).await?)?);
                self.forget_attempts(connection, &old).await?;
                forget_payloads(connection, &payloads).await?;
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
            Write::Claim(claim) => Ok(Written::Claimed(self.claim(connection, claim).await?)),
            Write::GiveBack { claim } => {
                query(GIVE_BACK).bind(claim).execute(connection).await?;
                Ok(Written::Done)
            }
            Write::Recover => {
                let sql = "UPDATE callback_outbox SET held = 0, token = token + 1, starts = starts + (stage <= 1) \
                           WHERE held = 1 AND stage < 10";
                query(sql).execute(&mut *connection).await?;
                query(LET_GO_OF_ALL).execute(connection).await?;
                Ok(Written::Done)
            }
            Write::Attach(attaching) => attach(connection, attaching).await,
            Write::Rouse { dsn, now, limit } => Ok(Written::Count(rouse(connection, dsn, *now, *limit).await?)),
            Write::Park(parking) => park(connection, parking).await,
            Write::KeepAttached(keeping) => keep_attached(connection, keeping).await,
            #[cfg(feature = "seal")]
            Write::Seal(step) => crate::outbox::sqlite::seals::step(connection, &self.codec, step).await,
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
                release_aged(connection, line.try_get("order_key")?, now).await?;
            }
            ended.push(read::task_id(&line)?);
        }
        Ok(Written::Ended(ended))
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
}
