use std::borrow::Cow;
use std::fmt;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection, SqlSafeStr, SqliteConnection};

/// The schema steps of one owner, recorded in a table of their own.
///
/// A user's `_sqlx_migrations` in the same database is neither read nor written, nor are the steps of another owner.
/// All missing steps run in one `BEGIN IMMEDIATE` transaction: either all are applied or none, and of several processes
/// that open a new database at once one applies them.
pub struct Migrations {
    migrator: Migrator,
}

impl Migrations {
    /// Lists the steps as `(version, description, sql)`, recorded in `table`.
    ///
    /// `table` becomes part of SQL statements as it stands. A step that has been released is never changed: its text is
    /// compared with what the database remembers.
    #[must_use]
    pub fn new(table: &'static str, steps: &[(i64, &'static str, &'static str)]) -> Self {
        let steps = steps.iter().map(|&(version, description, sql)| {
            let description = Cow::Borrowed(description);
            Migration::new(version, description, MigrationType::Simple, sql.into_sql_str(), false)
        });
        let mut migrator = Migrator::with_migrations(steps.collect());
        migrator.dangerous_set_table_name(table);
        Self { migrator }
    }

    pub(crate) fn table(&self) -> &str {
        &self.migrator.table_name
    }

    /// Applies what is missing.
    ///
    /// sqlx takes no lock for SQLite, so the transaction around the whole run is what keeps two openers apart; each step's
    /// own transaction becomes a savepoint in it.
    pub(crate) async fn run(&self, connection: &mut SqliteConnection) -> Result<(), MigrateError> {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        // Not `run`, whose future the compiler cannot see to be `Send`, <https://github.com/rust-lang/rust/issues/100013>.
        self.migrator.run_direct(None, &mut *transaction, false).await?;
        transaction.commit().await?;
        Ok(())
    }
}

impl fmt::Debug for Migrations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions: Vec<_> = self.migrator.iter().map(|step| step.version).collect();
        f.debug_struct("Migrations").field("table", &self.table()).field("versions", &versions).finish()
    }
}
