//! An event becomes a delivery to each subscription that wants it, by one statement.

use super::{
    By,
    bind::{bytes, column, not_sealed, uuid},
};
use crate::{
    outbox::{Write, postgres::text::stored},
    row::Published,
    subscription::{FanOut, LOCKS, LOW, ORDER, VARIANT},
};
use callback_core::TaskId;
use sqlx::{Error, PgConnection, query, query_scalar, types::Uuid};

/// The subscriptions that want an event of this type and service, from this owner's, now.
macro_rules! wanting {
    ($event:literal, $service:literal, $owner:literal, $now:literal) => {
        concat!(
            "callback_interest AS i JOIN callback_subscription AS s ON s.id = i.subscription \
             WHERE i.event = ANY (ARRAY['', ",
            $event,
            "::text]) AND i.service = ANY (ARRAY['', ",
            $service,
            "::text]) AND s.active AND NOT s.spent AND s.ended IS NULL AND s.expires > ",
            $now,
            " AND (",
            $owner,
            "::text IS NULL OR s.owner = ",
            $owner,
            ")"
        )
    };
}

/// Those of which two events must not be stored at once: each would get the number, the turn or the place of the other.
pub(super) const LOCK_WANTING: &str = concat!(
    "SELECT 1 FROM ",
    wanting!("$1", "$2", "$3", "$4"),
    " AND (s.once OR s.ordered OR $5) ORDER BY s.id FOR NO KEY UPDATE OF s"
);

/// By what their ordering keys are locked: the first half of each key.
pub(super) const LOCKS_OF_WANTING: &str =
    concat!("SELECT DISTINCT ($6 | (s.number & $7)) FROM ", wanting!("$1", "$2", "$3", "$4"), " AND (s.ordered OR $5)");

/// Ids and ordering keys are those of `FanOut::delivery` and `FanOut::order_key`; the last of its key is due only if it is
/// the first, too.
///
/// Who began to want it in order since the keys were locked is passed over: what leaves a key that is not locked would not see
/// what joins it. No subscription that gets it is deleted before this is committed.
pub(super) const FAN_OUT: &str = concat!(
    "INSERT INTO callback_outbox (id, stage, token, due, attempts, starts, accepted_at, first_due, expires, owner, \
                                  destination, lane, address, order_key, turn, stops, payload, subscription, sequence) \
     SELECT ($5 || to_hex((($6 + number) & $7) | $8))::uuid, 3, 0, CASE WHEN last IS NULL THEN $4 ELSE $9 END, 0, 0, \
            $4, $4, $10, owner, destination, lane, address, order_key, \
            CASE WHEN order_key IS NOT NULL THEN coalesce(last, 0) + 1 END, CASE WHEN order_key IS NOT NULL THEN stops END, \
            $11, id, CASE WHEN ordered THEN sequence % 2147483647 + 1 END \
     FROM (SELECT w.*, CASE WHEN w.order_key IS NOT NULL THEN ( \
                           SELECT max(turn) FROM callback_outbox AS o \
                           WHERE o.order_key = w.order_key AND o.turn IS NOT NULL) END AS last \
           FROM (SELECT s.*, CASE WHEN s.ordered OR $12::bigint IS NOT NULL THEN decode( \
                                 lpad(to_hex($13 | (s.number & $14)), 16, '0') \
                                 || lpad(to_hex((s.number + CASE WHEN s.ordered THEN 0 ELSE $12 END) & $7), 16, '0'), \
                                 'hex') END AS order_key \
                 FROM ",
    wanting!("$1", "$2", "$3", "$4"),
    " AND (NOT s.ordered AND $12::bigint IS NULL OR ($13 | (s.number & $14)) = ANY ($15::bigint[])) \
      FOR KEY SHARE OF s) AS w) AS placed ORDER BY id"
);

/// Those in order have a next number; those for one event have it.
pub(super) const GOT_IT: &str = "\
    UPDATE callback_subscription SET sequence = CASE WHEN ordered THEN sequence % 2147483647 + 1 ELSE sequence END, \
                                     spent = once \
    WHERE (ordered OR once) AND id IN (SELECT subscription FROM callback_outbox WHERE payload = $1)";

/// The events that these rows deliver.
pub(super) const PAYLOADS: &str =
    "SELECT DISTINCT payload FROM callback_outbox WHERE stage = 12 AND id = ANY ($1) AND payload IS NOT NULL";

/// Of two who delete the last rows of an event at once, the second sees what the first deleted.
const LOCK_PAYLOADS: &str = "SELECT 1 FROM callback_payload WHERE id = ANY ($1) ORDER BY id FOR UPDATE";

/// Those of them that no row delivers any more.
pub(super) const FORGET_PAYLOADS: &str = "DELETE FROM callback_payload AS p \
    WHERE p.id = ANY ($1) AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.payload = p.id)";

/// What the ordering keys of subscriptions begin with, as the number that a key is locked by.
fn prefix() -> i64 {
    let mut prefix = [0; 8];
    prefix[..ORDER.len()].copy_from_slice(ORDER);
    i64::from_be_bytes(prefix)
}

/// The locks of all ordering keys that this event joins.
pub(super) async fn locks(connection: &mut PgConnection, event: &FanOut) -> Result<Vec<i64>, Error> {
    query_scalar(LOCKS_OF_WANTING)
        .bind(event.event_type())
        .bind(event.service())
        .bind(event.owner.as_deref().map(stored))
        .bind(event.now.0)
        .bind(event.key.is_some())
        .bind(prefix())
        .bind(LOCKS - 1)
        .fetch_all(connection)
        .await
}

/// The events of a write that go to all who want them.
pub(super) fn of_write(write: &Write) -> Vec<&FanOut> {
    match write {
        Write::Publish(event) => vec![event],
        Write::Result { events, .. } | Write::Defer { events, .. } => events.iter().filter_map(to_all).collect(),
        _ => Vec::new(),
    }
}

fn to_all(event: &Published) -> Option<&FanOut> {
    match event {
        Published::All(event) => Some(event),
        Published::To(_) => None,
    }
}

/// Stores an event, and a delivery to each subscription that wants it; how many. If nobody does, nothing is stored.
///
/// The ordering keys are locked: those that `by` names.
pub(super) async fn fan_out(connection: &mut PgConnection, by: By<'_>, event: &FanOut) -> Result<u64, Error> {
    let owner = event.owner.as_deref().map(stored);
    query(LOCK_WANTING)
        .bind(event.event_type())
        .bind(event.service())
        .bind(&owner)
        .bind(event.now.0)
        .bind(event.key.is_some())
        .execute(&mut *connection)
        .await?;
    let deliveries = query(FAN_OUT)
        .bind(event.event_type())
        .bind(event.service())
        .bind(&owner)
        .bind(event.now.0)
        .bind(hex(&event.head()))
        .bind(event.low())
        .bind(LOW)
        .bind(VARIANT)
        .bind(i64::MAX)
        .bind(event.expires.0)
        .bind(uuid(event.id))
        .bind(event.key)
        .bind(prefix())
        .bind(LOCKS - 1)
        .bind(by.locks);
    let count = deliveries.execute(&mut *connection).await?.rows_affected();
    if count == 0 {
        return Ok(0);
    }
    query(GOT_IT).bind(uuid(event.id)).execute(&mut *connection).await?;
    let (head, body) = by.codec.encode_payload(event).map_err(not_sealed)?;
    let insert = query("INSERT INTO callback_payload (id, head, body) VALUES ($1, $2, $3)").bind(uuid(event.id));
    insert.bind(bytes(&head)).bind(&body[..]).execute(connection).await?;
    Ok(count)
}

/// The events that these dead rows deliver.
pub(super) async fn payloads(connection: &mut PgConnection, ids: &[TaskId]) -> Result<Vec<Uuid>, Error> {
    query_scalar(PAYLOADS).bind(column(ids, |id| uuid(*id))).fetch_all(connection).await
}

/// Deletes those of these events that no row delivers any more.
pub(super) async fn forget_payloads(connection: &mut PgConnection, payloads: &[Uuid]) -> Result<(), Error> {
    if payloads.is_empty() {
        return Ok(());
    }
    query(LOCK_PAYLOADS).bind(payloads).execute(&mut *connection).await?;
    query(FORGET_PAYLOADS).bind(payloads).execute(connection).await.map(drop)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
