//! Due rows are taken into the hands of a dispatcher.

use super::{
    Rows,
    bind::{count, numbers},
};
use crate::{
    outbox::{Claim, sqlite::read},
    row::Row,
};
use sqlx::{Error, Row as _, SqliteConnection, query, query_scalar};

/// How many due rows are looked through, oldest first, before lanes and workers are asked one by one.
pub(super) const LOOKED_THROUGH: i64 = 1_024;

/// How many rows of one lane are taken where lanes are asked one by one.
pub(super) const A_LANE: i64 = 16;

pub(super) const CLAIM: &str = "UPDATE callback_outbox SET held = 1, claim = ?6, token = token + 1 WHERE seq IN ( \
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
    UPDATE callback_outbox SET held = 1, claim = ?7, token = token + 1 WHERE seq IN ( \
        SELECT o.seq FROM lanes AS l CROSS JOIN callback_outbox AS o \
        WHERE l.lane <= ?5 AND l.lane NOT IN (SELECT value FROM json_each(?2)) \
          AND o.seq IN (SELECT i.seq FROM callback_outbox AS i \
                        WHERE i.lane = l.lane AND i.stage = 3 AND i.held = 0 AND i.due <= ?1 ORDER BY i.due LIMIT ?6) \
        LIMIT ?3) RETURNING *";

pub(super) const CLAIM_WORKER: &str = "UPDATE callback_outbox SET held = 1, claim = ?4, token = token + 1 WHERE seq IN ( \
    SELECT seq FROM callback_outbox WHERE worker = ?1 AND stage <= 1 AND held = 0 AND due <= ?2 ORDER BY due LIMIT ?3) \
    RETURNING *";

pub(super) const GIVE_BACK: &str =
    "UPDATE callback_outbox SET held = 0, token = token + 1 WHERE held = 1 AND stage < 10 AND claim = ?";

impl Rows {
    pub(super) async fn claim(&self, connection: &mut SqliteConnection, claim: &Claim) -> Result<Vec<Row>, Error> {
        let Claim { number, now, limit, workers, left_out } = claim;
        let names = serde_json::json!(workers.iter().map(|name| &**name).collect::<Vec<&str>>()).to_string();
        let left_out = numbers(left_out);
        let mut lines = query(CLAIM)
            .bind(now.0)
            .bind(names)
            .bind(&left_out)
            .bind(count(*limit))
            .bind(LOOKED_THROUGH)
            .bind(number)
            .fetch_all(&mut *connection)
            .await?;
        let passed_over = LOOKED_THROUGH.saturating_sub(count(lines.len()));
        if lines.len() < *limit && query_scalar(MORE).bind(now.0).bind(passed_over).fetch_one(&mut *connection).await? {
            for worker in workers {
                let left = count(limit.saturating_sub(lines.len()));
                let claimed = query(CLAIM_WORKER).bind(&**worker).bind(now.0).bind(left).bind(number);
                lines.extend(claimed.fetch_all(&mut *connection).await?);
            }
            // Each time from another lane on, so that all have their turn.
            let start = now.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed());
            for (above, to) in [(start, i64::MAX), (i64::MIN, start)] {
                let left = count(limit.saturating_sub(lines.len()));
                let claimed = query(CLAIM_LANES).bind(now.0).bind(&left_out).bind(left);
                lines.extend(claimed.bind(above).bind(to).bind(A_LANE).bind(number).fetch_all(&mut *connection).await?);
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
