//! Due rows are taken into the hands of a process.

use super::bind::{column, count};
use crate::{
    lane::LaneKey,
    outbox::{
        Claim, Written,
        codec::Codec,
        postgres::{read, text::stored},
    },
    row::{Row, digest},
};
use sqlx::{Error, PgConnection, Row as _, postgres::PgRow, query, query_scalar};

/// How many due rows are looked through, oldest first, before lanes and workers are asked one by one.
pub(super) const LOOKED_THROUGH: i64 = 1_024;

/// How many rows of one lane are taken where lanes are asked one by one.
pub(super) const A_LANE: i64 = 16;

/// About how many bytes a row takes in memory, the event that it delivers, and the bytes of that. It is not read for that.
macro_rules! size {
    ($row:literal) => {
        concat!(
            "1024 + coalesce(octet_length(",
            $row,
            "work), 0)::bigint + coalesce(octet_length(",
            $row,
            "work_body), 0) \
             + coalesce(octet_length(",
            $row,
            "result), 0) + coalesce(octet_length(",
            $row,
            "result_body), 0) \
             + coalesce((SELECT octet_length(s.detail) FROM callback_subscription AS s WHERE s.id = ",
            $row,
            "subscription), 0) AS own, ",
            $row,
            "payload, \
             coalesce((SELECT octet_length(p.head)::bigint + octet_length(p.body) FROM callback_payload AS p \
                       WHERE p.id = ",
            $row,
            "payload), 0) AS shared"
        )
    };
}

/// Takes of `found` what there is room for: in its order, and the first whatever its size. An event counts with the first
/// row that delivers it: it is read once.
macro_rules! take {
    ($holder:literal, $claim:literal, $room:literal) => {
        concat!(
            "numbered AS MATERIALIZED (SELECT *, row_number() OVER () AS place FROM found), \
             sized AS MATERIALIZED ( \
                SELECT seq, place, CASE WHEN payload IS NULL THEN own \
                    WHEN array_position((SELECT array_agg(payload) FROM numbered), payload) < place THEN own \
                    ELSE own + shared END AS size FROM numbered), \
             taken AS MATERIALIZED ( \
                SELECT seq, size \
                FROM (SELECT seq, size, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before FROM sized) AS counted \
                WHERE before < ", $room, "::bigint) \
             UPDATE callback_outbox AS o SET holder = ", $holder, ", claim = ", $claim, ", token = token + 1 \
             FROM taken WHERE o.seq = taken.seq RETURNING o.*, taken.size"
        )
    };
}

/// Rows that another process is about to take are passed over.
pub(super) const CLAIM: &str = concat!(
    "WITH found AS MATERIALIZED ( \
        SELECT o.seq, ",
    size!("o."),
    " FROM (SELECT seq, due FROM callback_outbox \
              WHERE stage < 10 AND holder IS NULL AND due <= $1 ORDER BY due, seq LIMIT $5) AS looked \
        JOIN callback_outbox AS o ON o.seq = looked.seq AND o.stage < 10 AND o.holder IS NULL \
        WHERE CASE WHEN o.stage <= 1 THEN o.worker = ANY ($2::text[]) ELSE NOT o.lane = ANY ($3::bigint[]) END \
        ORDER BY looked.due, looked.seq LIMIT $4 FOR UPDATE OF o SKIP LOCKED), ",
    take!("$6", "$7", "$8"),
);

pub(super) const MORE: &str = "\
    SELECT EXISTS (SELECT 1 FROM callback_outbox WHERE stage < 10 AND holder IS NULL AND due <= $1 \
                   ORDER BY due, seq LIMIT 1 OFFSET $2)";

/// Steps from lane to lane on the index, so that a lane costs the same with one row as with a million.
pub(super) const CLAIM_LANES: &str = concat!(
    "WITH RECURSIVE lanes (lane) AS ( \
        SELECT min(lane) FROM callback_outbox WHERE stage = 3 AND holder IS NULL AND lane > $4 \
        UNION ALL \
        SELECT (SELECT min(o.lane) FROM callback_outbox AS o \
                WHERE o.stage = 3 AND o.holder IS NULL AND o.lane > l.lane) \
        FROM lanes AS l WHERE l.lane <= $5), \
    found AS MATERIALIZED ( \
        SELECT i.seq, i.own, i.payload, i.shared FROM lanes AS l CROSS JOIN LATERAL ( \
            SELECT seq, ",
    size!(""),
    " FROM callback_outbox \
            WHERE lane = l.lane AND stage = 3 AND holder IS NULL AND due <= $1 \
            ORDER BY due LIMIT $6 FOR UPDATE SKIP LOCKED) AS i \
        WHERE l.lane <= $5 AND NOT l.lane = ANY ($2::bigint[]) LIMIT $3), ",
    take!("$7", "$8", "$9"),
);

pub(super) const CLAIM_WORKER: &str = concat!(
    "WITH found AS MATERIALIZED ( \
        SELECT seq, ",
    size!(""),
    " FROM callback_outbox WHERE worker = $1 AND stage <= 1 AND holder IS NULL AND due <= $2 \
        ORDER BY due LIMIT $3 FOR UPDATE SKIP LOCKED), ",
    take!("$4", "$5", "$6"),
);

/// Held to the end of the claim's transaction: who gives back what it took finds out whether that is over.
const LOCK_CLAIM: &str = "SELECT pg_advisory_xact_lock($1)";

const IS_CLAIM_OVER: &str = "SELECT pg_try_advisory_xact_lock($1)";

pub(super) const GIVE_BACK: &str = "UPDATE callback_outbox SET holder = NULL, token = token + 1 \
    WHERE stage < 10 AND holder = $1 AND claim = $2";

/// What a claim is locked by.
fn key(holder: i64, claim: i64) -> i64 {
    let digest = digest([&b"claim"[..], &holder.to_be_bytes(), &claim.to_be_bytes()]);
    i64::from_be_bytes(*digest.first_chunk().expect("it has sixteen bytes"))
}

/// Gives back what a claim took, once its transaction is over.
pub(super) async fn give_back(connection: &mut PgConnection, holder: i64, claim: u32) -> Result<Written, Error> {
    let claim = i64::from(claim);
    if !query_scalar(IS_CLAIM_OVER).bind(key(holder, claim)).fetch_one(&mut *connection).await? {
        return Ok(Written::NotYet);
    }
    query(GIVE_BACK).bind(holder).bind(claim).execute(connection).await?;
    Ok(Written::Done)
}

pub(super) async fn claim(
    connection: &mut PgConnection,
    codec: &Codec,
    holder: i64,
    claim: &Claim,
) -> Result<Vec<Row>, Error> {
    let Claim { number, now, limit, bytes, workers, left_out, found: _ } = claim;
    let number = i64::from(*number);
    query(LOCK_CLAIM).bind(key(holder, number)).execute(&mut *connection).await?;
    let left_out = column(left_out, LaneKey::number);
    let mut lines = query(CLAIM)
        .bind(now.0)
        .bind(column(workers, |name| stored(name)))
        .bind(&left_out)
        .bind(count(*limit))
        .bind(LOOKED_THROUGH)
        .bind(holder)
        .bind(number)
        .bind(count(*bytes))
        .fetch_all(&mut *connection)
        .await?;
    let passed_over = LOOKED_THROUGH.saturating_sub(count(lines.len()));
    let is_room = lines.len() < *limit && room(*bytes, &lines) > 0;
    if is_room && query_scalar(MORE).bind(now.0).bind(passed_over).fetch_one(&mut *connection).await? {
        for worker in workers {
            let left = count(limit.saturating_sub(lines.len()));
            let claimed = query(CLAIM_WORKER)
                .bind(stored(worker))
                .bind(now.0)
                .bind(left)
                .bind(holder)
                .bind(number)
                .bind(room(*bytes, &lines));
            lines.extend(claimed.fetch_all(&mut *connection).await?);
        }
        // Each time from another lane on, so that all have their turn.
        let start = now.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed());
        for (above, to) in [(start, i64::MAX), (i64::MIN, start)] {
            let left = count(limit.saturating_sub(lines.len()));
            let claimed = query(CLAIM_LANES).bind(now.0).bind(&left_out).bind(left).bind(above).bind(to);
            lines.extend(
                claimed
                    .bind(A_LANE)
                    .bind(holder)
                    .bind(number)
                    .bind(room(*bytes, &lines))
                    .fetch_all(&mut *connection)
                    .await?,
            );
        }
    }
    let shared = read::Shared::of(connection, codec, &lines).await?;
    let mut rows = lines
        .iter()
        // One unreadable row, of a newer version perhaps, must not keep the others back. It stays held.
        .filter_map(|line| read::row(codec, line, &shared).inspect_err(|error| read::tell_unreadable(line, error)).ok())
        .collect::<Vec<Row>>();
    rows.sort_by_key(|row| (row.due, row.id));
    Ok(rows)
}

/// How many bytes are left.
fn room(bytes: usize, taken: &[PgRow]) -> i64 {
    let size = |line: &PgRow| line.try_get("size").ok().and_then(|size: i64| usize::try_from(size).ok());
    count(
        bytes.saturating_sub(taken.iter().map(|line| size(line).unwrap_or(usize::MAX)).fold(0, usize::saturating_add)),
    )
}
