//! Due rows are taken into the hands of a dispatcher.

use super::{
    Rows,
    bind::{count, numbers},
};
use crate::{
    outbox::{Claim, sqlite::read},
    row::Row,
};
use sqlx::{Error, Row as _, SqliteConnection, query, query_scalar, sqlite::SqliteRow};

/// How many due rows are looked through, oldest first, before lanes and workers are asked one by one.
pub(super) const LOOKED_THROUGH: i64 = 256;

/// How many rows of one lane are taken where lanes are asked one by one.
pub(super) const A_LANE: i64 = 16;

/// About how many bytes a row takes in memory. It is not read for that.
macro_rules! size {
    ($row:literal) => {
        concat!(
            "1024 + coalesce(octet_length(",
            $row,
            "work), 0) + coalesce(octet_length(",
            $row,
            "work_body), 0) \
             + coalesce(octet_length(",
            $row,
            "result), 0) + coalesce(octet_length(",
            $row,
            "result_body), 0) AS size"
        )
    };
}

/// What is found, as long as there is room: in its order, and the first whatever its size.
macro_rules! as_it_fits {
    ($found:expr, $room:literal) => {
        concat!(
            "SELECT seq FROM (SELECT seq, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before FROM (",
            $found,
            ")) WHERE before < ",
            $room
        )
    };
}

pub(super) const CLAIM: &str = concat!(
    "UPDATE callback_outbox SET held = 1, claim = ?6, token = token + 1 WHERE seq IN (",
    as_it_fits!(
        concat!(
            "SELECT o.seq, ",
            size!("o."),
            " FROM (SELECT seq, due FROM (SELECT seq, stage, worker, lane, due FROM callback_outbox \
                                         WHERE stage < 10 AND held = 0 AND due <= ?1 ORDER BY due, seq LIMIT ?5) \
                   WHERE CASE WHEN stage <= 1 THEN worker IN (SELECT value FROM json_each(?2)) \
                         ELSE lane NOT IN (SELECT value FROM json_each(?3)) END \
                   ORDER BY due, seq LIMIT ?4) AS f CROSS JOIN callback_outbox AS o ON o.seq = f.seq"
        ),
        "?7"
    ),
    ") RETURNING *"
);

pub(super) const MORE: &str = "SELECT EXISTS (SELECT 1 FROM callback_outbox \
    WHERE stage < 10 AND held = 0 AND due <= ? ORDER BY due, seq LIMIT 1 OFFSET ?)";

/// Steps from lane to lane on the index, so that a lane costs the same with one row as with a million.
pub(super) const CLAIM_LANES: &str = concat!(
    "WITH RECURSIVE lanes (lane) AS ( \
        SELECT min(lane) FROM callback_outbox WHERE stage = 3 AND held = 0 AND lane > ?4 \
        UNION ALL \
        SELECT (SELECT min(o.lane) FROM callback_outbox AS o WHERE o.stage = 3 AND o.held = 0 AND o.lane > l.lane) \
        FROM lanes AS l WHERE l.lane <= ?5) \
    UPDATE callback_outbox SET held = 1, claim = ?7, token = token + 1 WHERE seq IN (",
    as_it_fits!(
        concat!(
            "SELECT o.seq, ",
            size!("o."),
            " FROM lanes AS l CROSS JOIN callback_outbox AS o \
             WHERE l.lane <= ?5 AND l.lane NOT IN (SELECT value FROM json_each(?2)) \
               AND o.seq IN (SELECT i.seq FROM callback_outbox AS i \
                             WHERE i.lane = l.lane AND i.stage = 3 AND i.held = 0 AND i.due <= ?1 ORDER BY i.due LIMIT ?6) \
             LIMIT ?3"
        ),
        "?8"
    ),
    ") RETURNING *"
);

pub(super) const CLAIM_WORKER: &str = concat!(
    "UPDATE callback_outbox SET held = 1, claim = ?4, token = token + 1 WHERE seq IN (",
    as_it_fits!(
        concat!(
            "SELECT seq, ",
            size!(""),
            " FROM callback_outbox WHERE worker = ?1 AND stage <= 1 AND held = 0 AND due <= ?2 ORDER BY due LIMIT ?3"
        ),
        "?5"
    ),
    ") RETURNING *"
);

pub(super) const GIVE_BACK: &str =
    "UPDATE callback_outbox SET held = 0, token = token + 1 WHERE held = 1 AND stage < 10 AND claim = ?";

impl Rows {
    pub(super) async fn claim(&self, connection: &mut SqliteConnection, claim: &Claim) -> Result<Vec<Row>, Error> {
        let Claim { number, now, limit, bytes, workers, left_out } = claim;
        let names = serde_json::json!(workers.iter().map(|name| &**name).collect::<Vec<&str>>()).to_string();
        let left_out = numbers(left_out);
        let mut lines = query(CLAIM)
            .bind(now.0)
            .bind(names)
            .bind(&left_out)
            .bind(count(*limit))
            .bind(LOOKED_THROUGH)
            .bind(number)
            .bind(count(*bytes))
            .fetch_all(&mut *connection)
            .await?;
        let passed_over = LOOKED_THROUGH.saturating_sub(count(lines.len()));
        let is_room = lines.len() < *limit && room(*bytes, &lines) > 0;
        if is_room && query_scalar(MORE).bind(now.0).bind(passed_over).fetch_one(&mut *connection).await? {
            for worker in workers {
                let left = count(limit.saturating_sub(lines.len()));
                let claimed =
                    query(CLAIM_WORKER).bind(&**worker).bind(now.0).bind(left).bind(number).bind(room(*bytes, &lines));
                lines.extend(claimed.fetch_all(&mut *connection).await?);
            }
            // Each time from another lane on, so that all have their turn.
            let start = now.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed());
            for (above, to) in [(start, i64::MAX), (i64::MIN, start)] {
                let left = count(limit.saturating_sub(lines.len()));
                let claimed = query(CLAIM_LANES).bind(now.0).bind(&left_out).bind(left);
                lines.extend(
                    claimed
                        .bind(above)
                        .bind(to)
                        .bind(A_LANE)
                        .bind(number)
                        .bind(room(*bytes, &lines))
                        .fetch_all(&mut *connection)
                        .await?,
                );
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

/// How many bytes are left.
fn room(bytes: usize, taken: &[SqliteRow]) -> i64 {
    let length =
        |line: &SqliteRow, column| line.try_get::<Option<&[u8]>, _>(column).ok().flatten().map_or(0, <[u8]>::len);
    let size =
        |line| 1_024 + ["work", "work_body", "result", "result_body"].map(|it| length(line, it)).iter().sum::<usize>();
    count(bytes.saturating_sub(taken.iter().map(size).sum()))
}
