//! One of an ordering key is due at a time.

use crate::{
    clock::Micros,
    outbox::sqlite::read,
    row::{Order, Stage},
};
use callback_core::TaskId;
use sqlx::{
    Error, Row as _, Sqlite, SqliteConnection, query,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

/// The last of its key, and due only if it is the first, too.
pub(super) const ENQUEUE: &str = "UPDATE callback_outbox SET \
    turn = 1 + (SELECT coalesce(max(turn), 0) FROM callback_outbox WHERE order_key = ?1 AND turn IS NOT NULL), \
    due = iif(EXISTS (SELECT 1 FROM callback_outbox WHERE order_key = ?1 AND turn IS NOT NULL), ?2, due) WHERE id = ?3";

/// Its age counts from here, since it could not be attempted before; or stays, where its lane is to blame as well.
pub(super) const RELEASE_NEXT: &str = "UPDATE callback_outbox SET due = ?1, first_due = iif(?4, first_due, ?1) WHERE order_key = ?2 AND stage = 3 AND due = ?3 \
    AND turn = (SELECT min(turn) FROM callback_outbox WHERE order_key = ?2 AND turn IS NOT NULL)";

/// What has its turn still, and is not the first of its key, waits.
pub(super) const QUEUE: &str = "UPDATE callback_outbox SET due = ?1 WHERE id = ?2 \
    AND turn > (SELECT min(turn) FROM callback_outbox WHERE order_key = ?3 AND turn IS NOT NULL)";

/// Ends rows, and lets the next of their keys go, unless they hold them back; their ids.
pub(super) async fn left(
    connection: &mut SqliteConnection,
    end: Query<'_, Sqlite, SqliteArguments>,
    now: Micros,
) -> Result<Vec<TaskId>, Error> {
    let lines = end.fetch_all(&mut *connection).await?;
    for line in &lines {
        if line.try_get::<Option<i64>, _>("turn")?.is_none() {
            release_next(connection, line.try_get("order_key")?, now).await?;
        }
    }
    ids(&lines)
}

pub(super) fn ids(lines: &[SqliteRow]) -> Result<Vec<TaskId>, Error> {
    let mut ids: Vec<TaskId> = lines.iter().map(read::task_id).collect::<Result<_, _>>()?;
    ids.sort_unstable();
    Ok(ids)
}

pub(super) async fn enqueue(connection: &mut SqliteConnection, id: TaskId, key: &[u8]) -> Result<(), Error> {
    let enqueued = query(ENQUEUE).bind(key).bind(Micros::NEVER.0).bind(&id.as_bytes()[..]);
    enqueued.execute(connection).await.map(drop)
}

/// Lets the next of its key go, unless it holds it back.
pub(super) async fn leave(
    connection: &mut SqliteConnection,
    id: TaskId,
    order: Order,
    to: Stage,
    now: Micros,
) -> Result<(), Error> {
    if to == Stage::Dead && order.stops {
        return Ok(());
    }
    let left = query("UPDATE callback_outbox SET turn = NULL WHERE id = ?").bind(&id.as_bytes()[..]);
    left.execute(&mut *connection).await?;
    release_next(connection, Some(order.key.0.to_vec()), now).await
}

pub(super) async fn release_next(
    connection: &mut SqliteConnection,
    key: Option<Vec<u8>>,
    now: Micros,
) -> Result<(), Error> {
    release(connection, key, now, false).await
}

/// The same, but for its age.
pub(super) async fn release_aged(
    connection: &mut SqliteConnection,
    key: Option<Vec<u8>>,
    now: Micros,
) -> Result<(), Error> {
    release(connection, key, now, true).await
}

async fn release(
    connection: &mut SqliteConnection,
    key: Option<Vec<u8>>,
    now: Micros,
    keeps_age: bool,
) -> Result<(), Error> {
    let Some(key) = key else { return Ok(()) };
    let released = query(RELEASE_NEXT).bind(now.0).bind(key).bind(Micros::NEVER.0).bind(keeps_age);
    released.execute(connection).await.map(drop)
}
