//! An event becomes a delivery to each subscription that wants it, by one statement.

use super::{
    Rows,
    bind::{add_text, list, not_sealed},
};
use crate::subscription::{FanOut, LOCKS, LOW, ORDER, VARIANT};
use callback_core::TaskId;
use sqlx::{
    Arguments, Error, Row as _, SqliteConnection, query, query_with,
    sqlite::{SqliteArguments, SqliteRow},
};

/// Ids and ordering keys are those of `FanOut::delivery` and `FanOut::order_key`; the last of its key is due only if it is
/// the first, too.
pub(super) const FAN_OUT: &str = "\
    INSERT INTO callback_outbox (id, stage, held, token, due, attempts, starts, accepted_at, first_due, expires, owner, \
                                 destination, lane, address, order_key, turn, stops, payload, subscription, sequence) \
    SELECT unhex(?1 || printf('%016X', ((?2 + number) & ?3) | ?4)), 3, 0, 0, iif(last IS NULL, ?5, ?6), 0, 0, ?5, ?5, ?7, \
           owner, destination, lane, address, order_key, iif(order_key IS NULL, NULL, coalesce(last, 0) + 1), \
           iif(order_key IS NULL, NULL, stops), ?8, id, iif(ordered, sequence % 2147483647 + 1, NULL) \
    FROM (SELECT *, iif(order_key IS NULL, NULL, (SELECT max(turn) FROM callback_outbox AS o \
                                                  WHERE o.order_key = wanting.order_key AND o.turn IS NOT NULL)) AS last \
          FROM (SELECT s.*, iif(s.ordered OR ?12 IS NOT NULL, \
                                unhex(?13 || printf('%04X%016X', s.number & ?14, \
                                                    (s.number + iif(s.ordered, 0, ?12)) & ?3)), NULL) AS order_key \
                FROM callback_interest AS i CROSS JOIN callback_subscription AS s ON s.id = i.subscription \
                WHERE i.event IN ('', ?9) AND i.service IN ('', ?10) AND s.active AND NOT s.spent AND s.ended IS NULL \
                      AND s.expires > ?5 AND (?11 IS NULL OR s.owner IS ?11)) AS wanting) \
    ORDER BY id";

/// Those in order have a next number; those for one event have it.
pub(super) const GOT_IT: &str = "\
    UPDATE callback_subscription SET sequence = iif(ordered, sequence % 2147483647 + 1, sequence), spent = once \
    WHERE (ordered OR once) AND id IN (SELECT subscription FROM callback_outbox WHERE payload = ?)";

/// The events that these rows deliver.
pub(super) const PAYLOADS: &str = "SELECT DISTINCT payload FROM callback_outbox \
    WHERE stage = 12 AND id IN (SELECT unhex(value) FROM json_each(?)) AND payload IS NOT NULL";

/// Those of them that no row delivers any more.
pub(super) const FORGET_PAYLOADS: &str = "DELETE FROM callback_payload \
    WHERE id IN (SELECT unhex(value) FROM json_each(?)) \
    AND NOT EXISTS (SELECT 1 FROM callback_outbox AS o WHERE o.payload = callback_payload.id)";

impl Rows {
    /// Stores an event, and a delivery to each subscription that wants it; how many. If nobody does, nothing is stored.
    pub(in crate::outbox::sqlite) async fn fan_out(
        &self,
        connection: &mut SqliteConnection,
        event: &FanOut,
    ) -> Result<u64, Error> {
        let id = &event.id.as_bytes()[..];
        let deliveries = query(FAN_OUT)
            .bind(hex(&event.head()))
            .bind(event.low())
            .bind(LOW)
            .bind(VARIANT)
            .bind(event.now.0)
            .bind(i64::MAX)
            .bind(event.expires.0)
            .bind(id)
            .bind(event.event_type())
            .bind(event.service())
            .bind(event.owner.as_deref())
            .bind(event.key)
            .bind(hex(ORDER))
            .bind(LOCKS - 1);
        let count = deliveries.execute(&mut *connection).await?.rows_affected();
        if count == 0 {
            return Ok(0);
        }
        query(GOT_IT).bind(id).execute(&mut *connection).await?;
        let (head, body) = self.codec.encode_payload(event).map_err(not_sealed)?;
        let mut arguments = SqliteArguments::default();
        let bind = |arguments: &mut SqliteArguments| {
            arguments.add(id)?;
            add_text(arguments, Some(&head))?;
            arguments.add(&body[..])
        };
        bind(&mut arguments).map_err(Error::Encode)?;
        query_with("INSERT INTO callback_payload (id, head, body) VALUES (?, ?, ?)", arguments)
            .execute(connection)
            .await?;
        Ok(count)
    }
}

/// The events that deleted rows delivered.
pub(super) fn payloads(lines: &[SqliteRow]) -> Result<Vec<TaskId>, Error> {
    let mut payloads = Vec::new();
    for line in lines {
        let payload: Option<&[u8]> = line.try_get("payload")?;
        payloads.extend(payload.and_then(|id| id.try_into().ok()).map(TaskId::from_bytes));
    }
    payloads.sort_unstable();
    payloads.dedup();
    Ok(payloads)
}

/// Deletes those of these events that no row delivers any more.
pub(super) async fn forget_payloads(connection: &mut SqliteConnection, payloads: &[TaskId]) -> Result<(), Error> {
    if payloads.is_empty() {
        return Ok(());
    }
    query(FORGET_PAYLOADS).bind(list(payloads)).execute(connection).await.map(drop)
}

fn hex(bytes: &[u8]) -> String {
    crate::outbox::sqlite::read::hex(bytes).to_uppercase()
}
