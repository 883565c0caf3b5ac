use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Executor, SqliteConnection};

use super::checkpoint::copy;
use crate::WriteError;
use crate::database::connect;
use crate::error::{Cause, StoreError};

/// The writer's connection, opened again after it could no longer be trusted.
#[derive(Debug)]
pub(crate) struct Session {
    options: SqliteConnectOptions,
    connection: Option<SqliteConnection>,
    /// `PRAGMA data_version` at the last question; comparable within one connection only.
    data_version: Option<i64>,
}

impl Session {
    pub(crate) async fn open(options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let mut connection = connect(&options).await?;
        let data_version = data_version(&mut connection)
            .await
            .map_err(|source| StoreError::Database { path: options.get_filename().to_owned(), source })?;
        Ok(Self { options, connection: Some(connection), data_version: Some(data_version) })
    }

    pub(super) const fn options(&self) -> &SqliteConnectOptions {
        &self.options
    }

    /// Begins a transaction that holds the write lock.
    pub(super) async fn begin(&mut self) -> Result<&mut SqliteConnection, WriteError> {
        let connection = self.connection().await?;
        finish(connection, "BEGIN IMMEDIATE").await.map_err(WriteError::not_stored)?;
        Ok(connection)
    }

    /// Commits, and rolls back if that fails.
    pub(super) async fn commit(&mut self) -> Result<(), WriteError> {
        let connection = self.connection().await?;
        let Err(error) = finish(connection, "COMMIT").await else {
            return Ok(());
        };
        let cause = Cause::from(error);
        if self.roll_back(&cause).await && cause.commits_nothing() {
            Err(WriteError::not_stored(cause))
        } else {
            Err(WriteError::unknown(cause))
        }
    }

    /// Ends the transaction that failed; returns whether SQLite confirmed the end.
    ///
    /// Without that confirmation the connection ends, and the transaction with it.
    pub(super) async fn roll_back(&mut self, cause: &Cause) -> bool {
        // A command that reaches a worker while it dies is never answered, so a dead one gets none.
        if !cause.is_worker_crashed()
            && let Some(connection) = &mut self.connection
        {
            match finish(connection, "ROLLBACK").await.map_err(Cause::from) {
                Ok(()) => return true,
                // SQLite rolls back by itself after some errors, among them a full disk.
                Err(cause) if cause.is_no_transaction() => return true,
                Err(cause) => tracing::debug!(error = %cause, "a rollback failed"),
            }
        }
        if self.connection.take().is_some() {
            tracing::warn!(error = %cause, "the writer's database connection is lost");
        }
        self.data_version = None;
        false
    }

    /// Whether another connection has committed since this was last asked.
    pub(super) async fn others_wrote(&mut self) -> Result<bool, WriteError> {
        match data_version(self.connection().await?).await {
            Ok(version) => Ok(self.data_version.replace(version) != Some(version)),
            Err(error) => {
                let cause = Cause::from(error);
                self.roll_back(&cause).await;
                Err(WriteError::not_stored(cause))
            }
        }
    }

    /// Copies the rest of the log into the file; without it the log grows until it is too long.
    pub(super) async fn checkpoint(&mut self) {
        let copied = match self.connection().await {
            Ok(connection) => copy(connection).await.map_err(Cause::from),
            Err(_) => return,
        };
        if let Err(cause) = copied {
            tracing::debug!(error = %cause, "the rest of the log was not copied");
            self.roll_back(&cause).await;
        }
    }

    pub(super) async fn close(self) {
        if let Some(connection) = self.connection
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the writer's database connection did not close cleanly");
        }
    }

    async fn connection(&mut self) -> Result<&mut SqliteConnection, WriteError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.options).await.map_err(WriteError::not_stored)?,
        };
        Ok(self.connection.insert(connection))
    }
}

/// Runs a statement without rows, prepared once, and makes sure that it ran to its end.
///
/// `Executor::execute` takes a worker that dies in the middle for a statement that changed no rows.
async fn finish(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    let mut results = connection.fetch_many(sqlx::query(sql));
    let mut finished = false;
    while let Some(result) = results.try_next().await? {
        finished |= result.is_left();
    }
    if finished { Ok(()) } else { Err(sqlx::Error::WorkerCrashed) }
}

async fn data_version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await
}
