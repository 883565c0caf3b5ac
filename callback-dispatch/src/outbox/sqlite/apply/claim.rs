//! Due rows are looked for, which holds up nobody, and taken into the hands of a dispatcher.

use super::{
    Rows,
    bind::{count, numbers},
};
use crate::{
    outbox::{Claim, sqlite::read},
    row::Row,
};
use sqlx::{Error, Row as _, SqliteConnection, query, query_as, query_scalar};
use std::collections::HashSet;

/// How many due rows are looked through, oldest first, before lanes and workers are asked one by one.
pub(super) const LOOKED_THROUGH: i64 = 256;

/// How many rows of one lane are taken where lanes are asked one by one.
pub(super) const A_LANE: i64 = 16;

/// What is found, in its order, with what it has in memory, about: the row's own bytes, and those of the event that it shares
/// with others. What is sized is not read.
macro_rules! sized {
    ($found:expr) => {
        concat!(
            "SELECT o.seq, 1024 + coalesce(octet_length(o.work), 0) + coalesce(octet_length(o.work_body), 0) \
                    + coalesce(octet_length(o.result), 0) + coalesce(octet_length(o.result_body), 0) \
                    + coalesce((SELECT octet_length(s.detail) FROM callback_subscription AS s \
                                WHERE s.id = o.subscription), 0), \
                    o.payload, coalesce((SELECT octet_length(p.head) + octet_length(p.body) FROM callback_payload AS p \
                                         WHERE p.id = o.payload), 0) \
             FROM (",
            $found,
            ") AS f CROSS JOIN callback_outbox AS o ON o.seq = f.seq"
        )
    };
}

pub(super) const OLDEST: &str = sized!(
    "SELECT seq FROM (SELECT seq, stage, worker, lane, due FROM callback_outbox \
                      WHERE stage < 10 AND held = 0 AND due <= ?1 ORDER BY due, seq LIMIT ?5) \
     WHERE CASE WHEN stage <= 1 THEN worker IN (SELECT value FROM json_each(?2)) \
           ELSE lane NOT IN (SELECT value FROM json_each(?3)) END \
     ORDER BY due, seq LIMIT ?4"
);

pub(super) const MORE: &str = "SELECT EXISTS (SELECT 1 FROM callback_outbox \
    WHERE stage < 10 AND held = 0 AND due <= ? ORDER BY due, seq LIMIT 1 OFFSET ?)";

/// Steps from lane to lane on the index, so that a lane costs the same with one row as with a million.
pub(super) const OF_LANES: &str = concat!(
    "WITH RECURSIVE lanes (lane) AS ( \
        SELECT min(lane) FROM callback_outbox WHERE stage = 3 AND held = 0 AND lane > ?4 \
        UNION ALL \
        SELECT (SELECT min(o.lane) FROM callback_outbox AS o WHERE o.stage = 3 AND o.held = 0 AND o.lane > l.lane) \
        FROM lanes AS l WHERE l.lane <= ?5) ",
    sized!(
        "SELECT i.seq FROM lanes AS l CROSS JOIN callback_outbox AS i \
         WHERE l.lane <= ?5 AND l.lane NOT IN (SELECT value FROM json_each(?2)) \
           AND i.seq IN (SELECT i.seq FROM callback_outbox AS i \
                         WHERE i.lane = l.lane AND i.stage = 3 AND i.held = 0 AND i.due <= ?1 \
                           AND i.seq NOT IN (SELECT value FROM json_each(?7)) ORDER BY i.due LIMIT ?6) \
         LIMIT ?3"
    )
);

pub(super) const OF_WORKER: &str = sized!(
    "SELECT seq FROM callback_outbox WHERE worker = ?1 AND stage <= 1 AND held = 0 AND due <= ?2 \
       AND seq NOT IN (SELECT value FROM json_each(?4)) ORDER BY due LIMIT ?3"
);

/// What was found may be elsewhere since.
pub(super) const TAKE: &str = "UPDATE callback_outbox SET held = 1, claim = ?2, token = token + 1 \
    WHERE seq IN (SELECT value FROM json_each(?1)) AND +held = 0 AND +stage < 10 AND +due <= ?3 RETURNING *";

pub(super) const GIVE_BACK: &str =
    "UPDATE callback_outbox SET held = 0, token = token + 1 WHERE held = 1 AND stage < 10 AND claim = ?";

/// Looks for what a claim takes: the places of rows in the outbox.
pub(in super::super) async fn look(connection: &mut SqliteConnection, claim: &Claim) -> Result<Vec<i64>, Error> {
    let Claim { now, workers, left_out, .. } = claim;
    let names = serde_json::json!(workers.iter().map(|name| &**name).collect::<Vec<&str>>()).to_string();
    let left_out = numbers(left_out);
    let mut found = Found { seqs: Vec::new(), payloads: HashSet::new(), limit: claim.limit, bytes: claim.bytes };
    let oldest = query_as(OLDEST).bind(now.0).bind(names).bind(&left_out).bind(found.left()).bind(LOOKED_THROUGH);
    found.add(oldest.fetch_all(&mut *connection).await?);
    if found.is_full() || !query_scalar(MORE).bind(now.0).bind(LOOKED_THROUGH).fetch_one(&mut *connection).await? {
        return Ok(found.seqs);
    }
    for worker in workers {
        let of_worker = query_as(OF_WORKER).bind(&**worker).bind(now.0).bind(found.left()).bind(found.list());
        found.add(of_worker.fetch_all(&mut *connection).await?);
    }
    // Each time from another lane on, so that all have their turn.
    let start = now.0.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed());
    for (above, to) in [(start, i64::MAX), (i64::MIN, start)] {
        let of_lanes = query_as(OF_LANES).bind(now.0).bind(&left_out).bind(found.left()).bind(above).bind(to);
        found.add(of_lanes.bind(A_LANE).bind(found.list()).fetch_all(&mut *connection).await?);
    }
    Ok(found.seqs)
}

/// What a search has found so far.
struct Found {
    seqs: Vec<i64>,
    /// The events that are read for it.
    payloads: HashSet<Vec<u8>>,
    limit: usize,
    /// How many bytes are left.
    bytes: usize,
}

/// The place of a row and its own bytes, the event that it delivers and the bytes of that.
type Sized = (i64, i64, Option<Vec<u8>>, i64);

impl Found {
    /// Takes rows as long as there is room, and the first whatever its size. An event that several deliver is read once.
    fn add(&mut self, rows: Vec<Sized>) {
        for (seq, own, payload, shared) in rows {
            if self.bytes == 0 && !self.seqs.is_empty() {
                return;
            }
            let is_read = payload.is_some_and(|payload| self.payloads.insert(payload));
            let size = if is_read { own.saturating_add(shared) } else { own };
            self.seqs.push(seq);
            self.bytes = self.bytes.saturating_sub(usize::try_from(size).unwrap_or(usize::MAX));
        }
    }

    fn is_full(&self) -> bool {
        self.seqs.len() >= self.limit || self.bytes == 0
    }

    fn left(&self) -> i64 {
        if self.is_full() { 0 } else { count(self.limit - self.seqs.len()) }
    }

    fn list(&self) -> String {
        list(&self.seqs)
    }
}

fn list(seqs: &[i64]) -> String {
    serde_json::json!(seqs).to_string()
}

impl Rows {
    pub(super) async fn claim(&self, connection: &mut SqliteConnection, claim: &Claim) -> Result<Vec<Row>, Error> {
        let found = match &claim.found {
            Some(found) => list(found),
            None => list(&look(connection, claim).await?),
        };
        let taken = query(TAKE).bind(found).bind(claim.number).bind(claim.now.0).fetch_all(&mut *connection).await?;
        let shared = read::Shared::of(connection, &self.codec, &taken).await?;
        let mut rows = taken
            .iter()
            .filter_map(|line| {
                // One unreadable row, of a newer version perhaps, must not keep the others back. It stays held.
                let unreadable = |error: &Error| {
                    let id = line.try_get("id").map(read::hex).unwrap_or_default();
                    tracing::error!(id, %error, "a stored row cannot be read");
                };
                read::row(&self.codec, line, &shared).inspect_err(unreadable).ok()
            })
            .collect::<Vec<Row>>();
        rows.sort_by_key(|row| (row.due, row.id));
        Ok(rows)
    }
}
