//! What writes do to the tables.

use super::codec;
use crate::{
    HandleId, InboxError, ReceiveError,
    inbox::{Expectation, Micros, Write, Written},
    listener::Position,
};
use callback_core::Message;
use callback_store::Apply;
use sqlx::{Error, Row as _, SqliteConnection};

/// What the writer is given.
pub(super) enum Job {
    /// The key of a new inbox; one that has a key keeps it.
    Key([u8; 32]),
    Write(Box<Write>),
}

/// Applies writes one after the other, in the transaction of their batch.
pub(super) struct Rows;

impl Apply for Rows {
    type Write = Job;
    type Written = Written;

    async fn apply<'a>(
        &'a mut self,
        connection: &'a mut SqliteConnection,
        jobs: &'a [Job],
    ) -> Result<Vec<Written>, Error> {
        let mut written = Vec::with_capacity(jobs.len());
        for job in jobs {
            written.push(match job {
                Job::Key(key) => {
                    let sql = "INSERT INTO callback_inbox_key (key) \
                         SELECT ? WHERE NOT EXISTS (SELECT 1 FROM callback_inbox_key)";
                    changed(sqlx::query(sql).bind(&key[..]).execute(&mut *connection).await?.rows_affected())
                }
                Job::Write(write) => apply(connection, write).await?,
            });
        }
        Ok(written)
    }
}

async fn apply(connection: &mut SqliteConnection, write: &Write) -> Result<Written, Error> {
    let rows = match write {
        Write::Expect { name, handle, expires, own_key } => {
            return expect(connection, name, handle, *expires, *own_key).await;
        }
        Write::Store { handle, message, position, now } => {
            return store(connection, handle, message, position.as_ref(), *now).await;
        }
        Write::Pass { positions } => {
            for position in positions {
                pass(connection, position).await?;
            }
            return Ok(Written::Changed(true));
        }
        Write::Change { handle, expires, own_key } => {
            sqlx::query("UPDATE callback_expectation SET expires = ?, own_key = ? WHERE handle = ?")
                .bind(expires.map(|expires| expires.0))
                .bind(own_key)
                .bind(handle.as_bytes())
        }
        Write::Accept { seq, now } => {
            sqlx::query("UPDATE callback_inbox SET state = 1, since = ?, reason = NULL, head = NULL, body = NULL WHERE seq = ? AND state <> 1")
                .bind(now.0)
                .bind(seq)
        }
        Write::Later { seq, due } => {
            sqlx::query("UPDATE callback_inbox SET due = ? WHERE seq = ? AND state = 0").bind(due.0).bind(seq)
        }
        Write::Refuse { seq, reason, now } => {
            sqlx::query("UPDATE callback_inbox SET state = 2, since = ?, reason = ? WHERE seq = ? AND state = 0")
                .bind(now.0)
                .bind(reason)
                .bind(seq)
        }
        Write::Recheck { seq } => {
            let sql = "SELECT EXISTS (SELECT 1 FROM callback_inbox WHERE seq = ? AND state = 0)";
            return Ok(Written::Changed(sqlx::query_scalar(sql).bind(seq).fetch_one(connection).await?));
        }
        Write::End { handle, reason, now } => {
            sqlx::query("UPDATE callback_inbox SET state = 2, since = ?, reason = ? WHERE handle = ? AND state = 0")
                .bind(now.0)
                .bind(reason)
                .bind(handle.as_bytes())
                .execute(&mut *connection)
                .await?;
            sqlx::query("DELETE FROM callback_expectation WHERE handle = ?").bind(handle.as_bytes())
        }
        Write::Replay { seq } => {
            let sql = "UPDATE callback_inbox SET state = 0, due = 0, reason = NULL WHERE seq = ? AND state = 2 \
                 AND handle IN (SELECT handle FROM callback_expectation) RETURNING handle";
            let handle: Option<Vec<u8>> = sqlx::query_scalar(sql).bind(seq).fetch_optional(connection).await?;
            return Ok(Written::Replayed(handle.as_deref().map(codec::handle).transpose()?));
        }
        Write::Purge { until } => {
            let sql = "UPDATE callback_inbox SET state = 1, reason = NULL, head = NULL, body = NULL \
                 WHERE state = 2 AND since < ?";
            let purged = sqlx::query(sql).bind(until.0).execute(connection).await?;
            return Ok(Written::Count(purged.rows_affected()));
        }
        Write::Forget { before, most } => return forget(connection, *before, *most).await,
    };
    Ok(changed(rows.execute(connection).await?.rows_affected()))
}

async fn expect(
    connection: &mut SqliteConnection,
    name: &str,
    handle: &HandleId,
    expires: Option<Micros>,
    own_key: bool,
) -> Result<Written, Error> {
    let sql = "SELECT handle, expires, own_key, \
         (SELECT count(*) FROM callback_inbox AS i WHERE i.handle = e.handle AND i.state = 0) AS waiting \
         FROM callback_expectation AS e WHERE name = ?";
    if let Some(row) = sqlx::query(sql).bind(name).fetch_optional(&mut *connection).await? {
        let known = Expectation {
            name: name.to_owned(),
            handle: codec::handle(row.try_get("handle")?)?,
            expires: row.try_get::<Option<i64>, _>("expires")?.map(Micros),
            own_key: row.try_get("own_key")?,
            waiting: usize::try_from(row.try_get::<i64, _>("waiting")?).unwrap_or(0),
        };
        return Ok(Written::Expected(known, true));
    }
    sqlx::query("INSERT INTO callback_expectation (handle, name, expires, own_key) VALUES (?, ?, ?, ?)")
        .bind(handle.as_bytes())
        .bind(name)
        .bind(expires.map(|expires| expires.0))
        .bind(own_key)
        .execute(connection)
        .await?;
    let expectation = Expectation { name: name.to_owned(), handle: *handle, expires, own_key, waiting: 0 };
    Ok(Written::Expected(expectation, false))
}

async fn store(
    connection: &mut SqliteConnection,
    handle: &HandleId,
    message: &Message,
    position: Option<&Position>,
    now: Micros,
) -> Result<Written, Error> {
    if let Some(position) = position {
        pass(connection, position).await?;
    }
    let sql = "INSERT INTO callback_inbox (handle, name, id, state, due, since, head, body) \
         SELECT handle, name, ?, 0, 0, ?, ?, ? FROM callback_expectation WHERE handle = ? \
         ON CONFLICT (handle, id) DO NOTHING RETURNING seq";
    let query = sqlx::query_scalar(sql)
        .bind(message.id().as_str())
        .bind(now.0)
        .bind(codec::head(message)?)
        .bind(&message.body()[..])
        .bind(handle.as_bytes());
    if let Some(seq) = query.fetch_optional(&mut *connection).await? {
        return Ok(Written::Stored(seq));
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM callback_inbox WHERE handle = ? AND id = ?)";
    let query = sqlx::query_scalar(sql).bind(handle.as_bytes()).bind(message.id().as_str());
    Ok(if query.fetch_one(connection).await? { Written::Duplicate } else { Written::Ended })
}

async fn pass(connection: &mut SqliteConnection, (log, offset): &Position) -> Result<(), Error> {
    let sql = "INSERT INTO callback_inbox_position (log, offset) VALUES (?, ?) \
         ON CONFLICT (log) DO UPDATE SET offset = max(offset, excluded.offset)";
    sqlx::query(sql).bind(log).bind(offset).execute(connection).await?;
    Ok(())
}

async fn forget(connection: &mut SqliteConnection, before: Micros, most: usize) -> Result<Written, Error> {
    let old = "DELETE FROM callback_inbox WHERE state = 1 AND since < ?";
    sqlx::query(old).bind(before.0).execute(&mut *connection).await?;
    let evicted = "DELETE FROM callback_inbox WHERE seq IN \
         (SELECT seq FROM callback_inbox WHERE state = 1 ORDER BY since DESC, seq DESC LIMIT -1 OFFSET ?)";
    let evicted = sqlx::query(evicted).bind(codec::count(most)).execute(connection).await?;
    Ok(Written::Count(evicted.rows_affected()))
}

/// Accepts in a transaction of the user's own; whether it was to be accepted.
pub(super) async fn accept_in(
    connection: &mut SqliteConnection,
    handle: &HandleId,
    seq: i64,
    now: Micros,
) -> Result<bool, ReceiveError> {
    let sql = "UPDATE callback_inbox SET state = 1, since = ?, reason = NULL, head = NULL, body = NULL \
         WHERE seq = ? AND handle = ? AND state <> 1";
    let query = sqlx::query(sql).bind(now.0).bind(seq).bind(handle.as_bytes());
    match query.execute(&mut *connection).await {
        Ok(done) if done.rows_affected() > 0 => return Ok(true),
        Ok(_) => {}
        Err(error) if is_no_table(&error) => return Err(ReceiveError::NotTransactional),
        Err(error) => return Err(InboxError::from(error).into()),
    }
    // Handles have no twins: an inbox that does not know this one is another.
    let sql = "SELECT EXISTS (SELECT 1 FROM callback_inbox WHERE handle = ?)";
    let query = sqlx::query_scalar::<_, bool>(sql).bind(handle.as_bytes());
    match query.fetch_one(connection).await.map_err(InboxError::from)? {
        true => Ok(false),
        false => Err(ReceiveError::NotTransactional),
    }
}

fn is_no_table(error: &Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().starts_with("no such table"))
}

const fn changed(rows: u64) -> Written {
    Written::Changed(rows > 0)
}
