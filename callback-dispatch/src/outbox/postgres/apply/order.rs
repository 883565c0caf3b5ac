//! One of an ordering key is due at a time.

use super::{
    bind::{column, uuid},
    fan_out, to_one,
};
use crate::{
    clock::Micros,
    outbox::{Settle, Write},
    row::{Order, OrderKey, Row},
};
use callback_core::TaskId;
use sqlx::{
    Error, PgConnection, Postgres, postgres::PgArguments, query, query::QueryAs, query_as, query_scalar, types::Uuid,
};
use std::collections::{BTreeMap, HashMap};

/// Held to the end of the transaction: else who joins a key and who leaves it, at once, would not see each other.
const LOCK_KEYS: &str = "SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS key";

/// The same, but for the keys that another transaction has: these.
const TRY_LOCK_KEYS: &str = "SELECT key FROM unnest($1::bigint[]) AS key WHERE NOT pg_try_advisory_xact_lock(key)";

/// A condition on a row that a statement chooses: its key is locked with it, or it is passed over.
macro_rules! locks_its_key {
    () => {
        "(order_key IS NULL \
          OR pg_try_advisory_xact_lock(('x' || encode(substr(order_key, 1, 8), 'hex'))::bit(64)::bigint))"
    };
}
pub(super) use locks_its_key;

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

/// Its age counts from here, since it could not be attempted before; or stays, where its lane is to blame as well.
pub(super) const RELEASE_NEXT: &str = "\
    WITH next AS MATERIALIZED ( \
        SELECT due, (SELECT seq FROM callback_outbox WHERE order_key = key AND turn IS NOT NULL \
                     ORDER BY turn LIMIT 1) AS seq \
        FROM unnest($1::bytea[], $2::bigint[]) AS v (key, due)) \
    UPDATE callback_outbox AS o \
    SET (due, first_due) = (SELECT next.due, CASE WHEN $4 THEN o.first_due ELSE next.due END \
                            FROM next WHERE next.seq = o.seq LIMIT 1) \
    WHERE o.seq = ANY (ARRAY(SELECT seq FROM next WHERE seq IS NOT NULL)) AND o.stage = 3 AND o.due = $3";

/// What has its turn still, and is not the first of its key, waits.
pub(super) const QUEUE: &str = "\
    UPDATE callback_outbox SET due = $1 WHERE id = $2 \
    AND turn > (SELECT min(turn) FROM callback_outbox WHERE order_key = $3 AND turn IS NOT NULL)";

/// A row that was changed: its id, its ordering key, and the turn that it still has.
pub(super) type Left = (Uuid, Option<Vec<u8>>, Option<i64>);

/// Ends rows whose keys are locked, and lets the next of their keys go, unless they hold them back; their ids.
pub(super) async fn left(
    connection: &mut PgConnection,
    end: QueryAs<'_, Postgres, Left, PgArguments>,
    now: Micros,
) -> Result<Vec<TaskId>, Error> {
    let lines = end.fetch_all(&mut *connection).await?;
    let keys = lines.iter().filter(|(_, _, turn)| turn.is_none()).filter_map(|(_, key, _)| key.clone());
    release_next(connection, keys.collect(), now).await?;
    let mut ids = column(&lines, |(id, ..)| TaskId::from_bytes(id.into_bytes()));
    ids.sort_unstable();
    Ok(ids)
}

/// What an ordering key, or an idempotency key, is locked by.
fn number(key: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(*key.first_chunk()?))
}

fn keys_of_row(row: &Row) -> impl Iterator<Item = i64> {
    let idempotency = row.idempotency.as_ref().and_then(|it| number(&it.key));
    row.order.and_then(|order| number(&order.key.0)).into_iter().chain(idempotency)
}

/// The keys that a write locks, as far as it says so itself.
pub(in crate::outbox::postgres) fn keys_of(write: &Write) -> Vec<i64> {
    let of_order = |order: &Option<Order>| order.and_then(|order| number(&order.key.0));
    match write {
        Write::Insert(row) => keys_of_row(row).collect(),
        Write::Settle(Settle { order, .. }) => Vec::from_iter(of_order(order)),
        Write::Result { order, events, .. } => to_one(events).flat_map(keys_of_row).chain(of_order(order)).collect(),
        Write::Defer { events, .. } => to_one(events).flat_map(keys_of_row).collect(),
        _ => Vec::new(),
    }
}

/// Which writes of a batch cannot be carried out now, the keys that another transaction has, and those that this one has.
pub(super) struct KeptBack {
    pub(super) writes: Vec<bool>,
    pub(super) keys: Vec<i64>,
    pub(super) held: Vec<i64>,
}

/// Locks the keys of all that a batch may change, but for those that another transaction has.
///
/// Nobody waits here: a user's transaction may be open for long.
pub(super) async fn lock_keys_of(connection: &mut PgConnection, writes: &[Write]) -> Result<KeptBack, Error> {
    let mut keys: Vec<Vec<i64>> = writes.iter().map(keys_of).collect();
    let mut looked_up: Vec<(Uuid, usize)> = Vec::new();
    for (place, write) in writes.iter().enumerate() {
        match write {
            Write::Cancel { id, .. } | Write::ReplayAsNew { id, .. } => looked_up.push((uuid(*id), place)),
            Write::Replay { ids, .. } | Write::Purge { ids, .. } => {
                looked_up.extend(ids.iter().map(|id| (uuid(*id), place)));
            }
            _ => {}
        }
    }
    for (place, write) in writes.iter().enumerate() {
        for event in fan_out::of_write(write) {
            keys[place].append(&mut fan_out::locks(connection, event).await?);
        }
    }
    if !looked_up.is_empty() {
        let sql = "SELECT id, order_key FROM callback_outbox WHERE id = ANY ($1) AND order_key IS NOT NULL";
        let found = query_as(sql).bind(column(&looked_up, |(id, _)| *id)).fetch_all(&mut *connection).await?;
        let found: HashMap<Uuid, Vec<u8>> = found.into_iter().collect();
        for (id, place) in looked_up {
            keys[place].extend(found.get(&id).and_then(|key| number(key)));
        }
    }
    let taken = try_lock(connection, keys.iter().flatten().copied().collect()).await?;
    let writes = keys.iter().map(|keys| keys.iter().any(|key| taken.contains(key))).collect();
    let held = keys.into_iter().flatten().filter(|key| !taken.contains(key)).collect();
    Ok(KeptBack { writes, keys: taken, held })
}

async fn try_lock(connection: &mut PgConnection, mut numbers: Vec<i64>) -> Result<Vec<i64>, Error> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    numbers.sort_unstable();
    numbers.dedup();
    query_scalar(TRY_LOCK_KEYS).bind(numbers).fetch_all(connection).await
}

/// Locks the keys of a row, however long another transaction has them.
pub(super) async fn lock_keys(connection: &mut PgConnection, row: &Row) -> Result<(), Error> {
    lock(connection, keys_of_row(row).collect()).await
}

/// The same for these locks.
pub(super) async fn lock(connection: &mut PgConnection, mut numbers: Vec<i64>) -> Result<(), Error> {
    if numbers.is_empty() {
        return Ok(());
    }
    numbers.sort_unstable();
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
    release(connection, keys, dues, false).await
}

pub(super) async fn release_next(connection: &mut PgConnection, keys: Vec<Vec<u8>>, now: Micros) -> Result<(), Error> {
    let dues = vec![now.0; keys.len()];
    release(connection, keys, dues, false).await
}

/// The same, but for their age.
pub(super) async fn release_aged(connection: &mut PgConnection, keys: Vec<Vec<u8>>, now: Micros) -> Result<(), Error> {
    let dues = vec![now.0; keys.len()];
    release(connection, keys, dues, true).await
}

async fn release(
    connection: &mut PgConnection,
    keys: Vec<Vec<u8>>,
    dues: Vec<i64>,
    keeps_age: bool,
) -> Result<(), Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let release = query(RELEASE_NEXT).bind(keys).bind(dues).bind(Micros::NEVER.0).bind(keeps_age);
    release.execute(connection).await.map(drop)
}
