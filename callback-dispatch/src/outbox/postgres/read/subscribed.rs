//! Subscriptions, and what rows share: an event, and the subscriptions that get it.

use super::{number, task_id, unreadable};
use crate::{
    Cursor, Page,
    clock::Micros,
    outbox::{
        codec::Codec,
        postgres::{apply::uuid, text},
    },
    row::{Stored, Subscribed},
    subscription::{SubscriptionEnd, SubscriptionId, SubscriptionQuery, SubscriptionRow, message_for},
};
use sqlx::{Error, PgConnection, PgPool, Row as _, postgres::PgRow, query, types::Uuid};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

pub(in super::super) const PAYLOADS: &str = "SELECT * FROM callback_payload WHERE id = ANY ($1)";

pub(in super::super) const SUBSCRIPTIONS: &str = "SELECT * FROM callback_subscription WHERE id = ANY ($1)";

/// As many as there is room for, and one at least: what is sized is not read.
macro_rules! page {
    ($found:literal) => {
        concat!(
            "SELECT s.* FROM (SELECT seq, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before FROM \
                              (SELECT seq, octet_length(detail) AS size FROM callback_subscription WHERE ",
            $found,
            " ORDER BY id LIMIT $2) AS page) AS f JOIN callback_subscription AS s ON s.seq = f.seq WHERE f.before < $3"
        )
    };
}

pub(in super::super) const PAGE: &str = page!("id > $1");

pub(in super::super) const PAGE_OF_OWNER: &str = page!("id > $1 AND owner = $4");

/// What several lines refer to, read once. Nothing is asked for unless a line refers to something.
#[derive(Default)]
pub(in super::super) struct Shared {
    /// With the number of lines that refer to it.
    payloads: HashMap<Uuid, (Arc<Stored>, usize)>,
    /// With the number of bytes that are kept of it beside its columns.
    subscriptions: HashMap<Uuid, (Arc<SubscriptionRow>, usize)>,
}

impl Shared {
    pub(in super::super) async fn of(
        connection: &mut PgConnection,
        codec: &Codec,
        lines: &[PgRow],
    ) -> Result<Self, Error> {
        let (mut counts, mut ids) = (HashMap::<Uuid, usize>::new(), HashSet::new());
        for line in lines {
            if let (Some(payload), Some(subscription)) = refers(line)? {
                *counts.entry(payload).or_default() += 1;
                ids.insert(subscription);
            }
        }
        let mut shared = Self::default();
        if counts.is_empty() {
            return Ok(shared);
        }
        let payloads = query(PAYLOADS).bind(counts.keys().copied().collect::<Vec<Uuid>>());
        for line in payloads.fetch_all(&mut *connection).await? {
            let id: Uuid = line.try_get("id")?;
            // Who refers to what cannot be read is told of.
            if let Ok(stored) = codec.decode_payload(task_id(&line)?, line.try_get("head")?, line.try_get("body")?) {
                shared.payloads.insert(id, (Arc::new(stored), counts.get(&id).copied().unwrap_or(1)));
            }
        }
        let subscriptions = query(SUBSCRIPTIONS).bind(ids.into_iter().collect::<Vec<Uuid>>());
        for line in subscriptions.fetch_all(connection).await? {
            if let Ok(row) = row(codec, &line) {
                let detail = line.try_get::<&[u8], _>("detail")?.len();
                shared.subscriptions.insert(uuid(row.id.0), (Arc::new(row), detail));
            }
        }
        Ok(shared)
    }

    /// The same on a connection of its own, if one is needed.
    pub(super) async fn of_read(pool: &PgPool, codec: &Codec, lines: &[PgRow]) -> Result<Self, Error> {
        if !lines.iter().any(|line| refers(line).is_ok_and(|(payload, _)| payload.is_some())) {
            return Ok(Self::default());
        }
        Self::of(&mut *pool.acquire().await?, codec, lines).await
    }

    /// What a line delivers, and for whom, if it is of an event for a subscription.
    pub(super) fn delivery(&self, line: &PgRow) -> Result<Option<(Stored, Subscribed)>, Error> {
        let (Some(payload), Some(subscription)) = refers(line)? else { return Ok(None) };
        let missing = |column: &'static str| unreadable(column)("it is missing, or cannot be read".into());
        let (event, rows) = self.payloads.get(&payload).ok_or_else(|| missing("payload"))?;
        let (to, detail) = self.subscriptions.get(&subscription).ok_or_else(|| missing("subscription"))?;
        let sequence = line.try_get::<Option<i64>, _>("sequence")?.and_then(|number| u32::try_from(number).ok());
        let stored = message_for(event, task_id(line)?, to.id, sequence);
        let stored = stored.map_err(|error| unreadable("payload")(error.to_string()))?;
        let share = event.message.body().len().div_ceil(*rows) + detail;
        Ok(Some((stored, Subscribed { to: Arc::clone(to), share })))
    }
}

fn refers(line: &PgRow) -> Result<(Option<Uuid>, Option<Uuid>), Error> {
    Ok((line.try_get("payload")?, line.try_get("subscription")?))
}

/// A line of `callback_subscription`, all columns.
fn row(codec: &Codec, line: &PgRow) -> Result<SubscriptionRow, Error> {
    let id = task_id(line)?;
    let kept = codec.decode_subscription(id, line.try_get("detail")?);
    let (dsn, detail) = kept.map_err(unreadable("detail"))?;
    let ended = line.try_get::<Option<i64>, _>("ended")?;
    let end = |number| SubscriptionEnd::from_number(number).ok_or_else(|| unreadable("ended")("no such end".into()));
    Ok(SubscriptionRow {
        id: SubscriptionId(id),
        revision: number(line, "revision")?,
        owner: line.try_get::<Option<String>, _>("owner")?.map(|owner| text::read(owner).into()),
        dsn,
        once: line.try_get("once")?,
        ordered: line.try_get("ordered")?,
        stops: line.try_get("stops")?,
        active: line.try_get("active")?,
        spent: line.try_get("spent")?,
        ended: ended.map(end).transpose()?,
        ended_at: line.try_get::<Option<i64>, _>("ended_at")?.map(Micros),
        created_at: Micros(line.try_get("created_at")?),
        expires: Micros(line.try_get("expires")?),
        sequence: number(line, "sequence")?,
        detail,
    })
}

pub(in super::super) async fn subscription(
    pool: &PgPool,
    codec: &Codec,
    id: SubscriptionId,
) -> Result<Option<SubscriptionRow>, Error> {
    let found = query("SELECT * FROM callback_subscription WHERE id = $1").bind(uuid(id.0));
    found.fetch_optional(pool).await?.as_ref().map(|line| row(codec, line)).transpose()
}

pub(in super::super) async fn subscriptions(
    pool: &PgPool,
    codec: &Codec,
    asked: &SubscriptionQuery,
) -> Result<Page<SubscriptionRow>, Error> {
    // No id is nil.
    let after = asked.after.map_or_else(Uuid::nil, |id| uuid(id.0));
    let page = query(if asked.owner.is_some() { PAGE_OF_OWNER } else { PAGE });
    let page = page.bind(after).bind(i64::try_from(asked.limit).unwrap_or(i64::MAX));
    let page = page.bind(i64::try_from(SubscriptionQuery::BYTES).unwrap_or(i64::MAX));
    let mut lines = match &asked.owner {
        Some(owner) => page.bind(text::stored(owner)).fetch_all(pool).await?,
        None => page.fetch_all(pool).await?,
    };
    // One that cannot be read is passed over, and the page after it is there all the same.
    let mut bytes = 0;
    for line in &lines {
        bytes += line.try_get::<&[u8], _>("detail")?.len();
    }
    // Those of a join come in any order.
    lines.sort_by_cached_key(|line| line.try_get::<Uuid, _>("id").ok());
    let last = lines.last().filter(|_| lines.len() == asked.limit || bytes >= SubscriptionQuery::BYTES);
    let next =
        last.map(|line| Ok::<_, Error>(Cursor { since: Micros(line.try_get("created_at")?), id: task_id(line)? }));
    let readable = |line| {
        let tell = |error: &Error| tracing::error!(%error, "a stored subscription cannot be read");
        row(codec, line).inspect_err(tell).ok()
    };
    Ok(Page { items: lines.iter().filter_map(readable).collect(), next: next.transpose()? })
}
