//! One of an ordering key is due at a time.

use super::bind::{column, uuid};
use crate::{
    clock::Micros,
    outbox::{Settle, Write},
    row::OrderKey,
};
use callback_core::TaskId;
use sqlx::{Error, PgConnection, Postgres, postgres::PgArguments, query, query::QueryAs, query_scalar, types::Uuid};
use std::collections::BTreeMap;

/// Held to the end of the transaction: else who joins a key and who leaves it, at once, would not see each other.
pub(super) const LOCK_KEYS: &str = "SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS key";

/// The last of their keys, and due only if they are the first, too.
pub(super) const ENQUEUE: &str = "\
    WITH new AS (SELECT id, key, row_number() OVER (PARTITION BY key ORDER BY place) AS nth \
                 FROM unnest($1::uuid[], $2::bytea[]) WITH ORDINALITY AS v (id, key, place)), \
    placed AS MATERIALIZED ( \
        SELECT id, nth, (SELECT max(turn) FROM callback_outbox WHERE order_key = key AND turn IS NOT NULL) AS last \
        FROM new) \
    UPDATE callback_outbox AS o \
    SET turn = coalesce(last, 0) + nth, due = CASE WHEN last IS NULL AND nth = 1 THEN due ELSE $3 END \
    FROM placed WHERE o.id = placed.id";

pub(super) const RELEASE_NEXT: &str = "\
    WITH next AS MATERIALIZED ( \
        SELECT due, (SELECT seq FROM callback_outbox WHERE order_key = key AND turn IS NOT NULL \
                     ORDER BY turn LIMIT 1) AS seq \
        FROM unnest($1::bytea[], $2::bigint[]) AS v (key, due)) \
    UPDATE callback_outbox AS o SET due = (SELECT next.due FROM next WHERE next.seq = o.seq LIMIT 1) \
    WHERE o.seq = ANY (ARRAY(SELECT seq FROM next WHERE seq IS NOT NULL)) AND o.stage = 3 AND o.due = $3";

/// What has its turn still, and is not the first of its key, waits.
pub(super) const QUEUE: &str = "\
    UPDATE callback_outbox SET due = $1 WHERE id = $2 \
    AND turn > (SELECT min(turn) FROM callback_outbox WHERE order_key = $3 AND turn IS NOT NULL)";

/// A row that was changed: its id, its ordering key, and the turn that it still has.
pub(super) type Left = (Uuid, Option<Vec<u8>>, Option<i64>);

/// Ends rows, and lets the next of their keys go, unless they hold them back; their ids.
pub(super) async fn left(
    connection: &mut PgConnection,
    end: QueryAs<'_, Postgres, Left, PgArguments>,
    now: Micros,
) -> Result<Vec<TaskId>, Error> {
    let lines = end.fetch_all(&mut *connection).await?;
    let keys = lines.iter().filter(|(_, _, turn)| turn.is_none()).filter_map(|(_, key, _)| key.clone());
    let keys: Vec<Vec<u8>> = keys.collect();
    lock_keys(connection, keys.iter().map(|key| &**key)).await?;
    release_next(connection, keys, now).await?;
    let mut ids = column(&lines, |(id, ..)| TaskId::from_bytes(id.into_bytes()));
    ids.sort_unstable();
    Ok(ids)
}

/// Locks the ordering keys of all that a batch may change, in an order that all batches share.
pub(super) async fn lock_keys_of(connection: &mut PgConnection, writes: &[Write]) -> Result<(), Error> {
    let mut keys: Vec<OrderKey> = Vec::new();
    let mut looked_up: Vec<Uuid> = Vec::new();
    for write in writes {
        match write {
            Write::Insert(row) => keys.extend(row.order.map(|order| order.key)),
            Write::Settle(Settle { order, .. }) => keys.extend(order.map(|order| order.key)),
            Write::Result { order, events, .. } => {
                let orders = events.iter().filter_map(|event| event.order).chain(*order);
                keys.extend(orders.map(|order| order.key));
            }
            Write::Defer { events, .. } => keys.extend(events.iter().filter_map(|event| Some(event.order?.key))),
            Write::Cancel { id, .. } | Write::ReplayAsNew { id, .. } => looked_up.push(uuid(*id)),
            Write::Replay { ids, .. } | Write::Purge { ids, .. } => looked_up.extend(ids.iter().copied().map(uuid)),
            _ => {}
        }
    }
    let mut found: Vec<Vec<u8>> = Vec::new();
    if !looked_up.is_empty() {
        let sql = "SELECT order_key FROM callback_outbox WHERE id = ANY ($1) AND order_key IS NOT NULL";
        found = query_scalar(sql).bind(looked_up).fetch_all(&mut *connection).await?;
    }
    lock_keys(connection, keys.iter().map(|key| &key.0[..]).chain(found.iter().map(|key| &**key))).await
}

pub(super) async fn lock_keys(connection: &mut PgConnection, keys: impl Iterator<Item = &[u8]>) -> Result<(), Error> {
    let mut numbers: Vec<i64> = keys.filter_map(|key| Some(i64::from_be_bytes(*key.first_chunk()?))).collect();
    if numbers.is_empty() {
        return Ok(());
    }
    numbers.sort_unstable();
    numbers.dedup();
    query(LOCK_KEYS).bind(numbers).execute(connection).await.map(drop)
}

pub(super) async fn enqueue(connection: &mut PgConnection, rows: Vec<(TaskId, OrderKey)>) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let (ids, keys) = (column(&rows, |(id, _)| uuid(*id)), column(&rows, |(_, key)| &key.0[..]));
    query(ENQUEUE).bind(ids).bind(keys).bind(Micros::NEVER.0).execute(connection).await.map(drop)
}

/// Lets the next of their keys go.
pub(super) async fn leave(connection: &mut PgConnection, rows: Vec<(TaskId, OrderKey, Micros)>) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let left = query("UPDATE callback_outbox SET turn = NULL WHERE id = ANY ($1)");
    left.bind(column(&rows, |(id, ..)| uuid(*id))).execute(&mut *connection).await?;
    // Of several that leave one key, the last lets go.
    let last: BTreeMap<OrderKey, Micros> = rows.into_iter().map(|(_, key, now)| (key, now)).collect();
    let (keys, dues): (Vec<Vec<u8>>, Vec<i64>) = last.into_iter().map(|(key, now)| (key.0.to_vec(), now.0)).unzip();
    query(RELEASE_NEXT).bind(keys).bind(dues).bind(Micros::NEVER.0).execute(connection).await.map(drop)
}

pub(super) async fn release_next(connection: &mut PgConnection, keys: Vec<Vec<u8>>, now: Micros) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let dues = vec![now.0; keys.len()];
    query(RELEASE_NEXT).bind(keys).bind(dues).bind(Micros::NEVER.0).execute(connection).await.map(drop)
}
