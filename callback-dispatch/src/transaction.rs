//! A user's own transaction, in which work and events are stored beside his own data.

/// A transaction in the outbox's database: `sqlx::Transaction` of SQLite or of PostgreSQL, of sqlx 0.9.
///
/// The trait is sealed. What is stored in a transaction is there if it commits, and was never there if it does not:
/// [`Dispatcher::publish_in`](crate::Dispatcher::publish_in), [`Worker::accept_in`](crate::Worker::accept_in).
pub trait Transaction: EraseTransaction {}

/// Takes the type off a transaction.
#[expect(unnameable_types, reason = "seals `Transaction`")]
pub trait EraseTransaction: Send {
    fn connection(&mut self) -> Connection<'_>;
}

/// The connection of a transaction.
#[expect(unnameable_types, reason = "seals `Transaction`")]
#[derive(Debug)]
pub enum Connection<'a> {
    #[cfg(feature = "sqlite")]
    Sqlite(&'a mut sqlx::SqliteConnection),
    #[cfg(feature = "postgres")]
    Postgres(&'a mut sqlx::PgConnection),
}

impl Connection<'_> {
    /// The database's name.
    pub(crate) fn database(&self) -> &'static str {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => "SQLite",
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => "PostgreSQL",
        }
    }
}

#[cfg(feature = "sqlite")]
impl Transaction for sqlx::Transaction<'_, sqlx::Sqlite> {}

#[cfg(feature = "sqlite")]
impl EraseTransaction for sqlx::Transaction<'_, sqlx::Sqlite> {
    fn connection(&mut self) -> Connection<'_> {
        Connection::Sqlite(self)
    }
}

#[cfg(feature = "postgres")]
impl Transaction for sqlx::Transaction<'_, sqlx::Postgres> {}

#[cfg(feature = "postgres")]
impl EraseTransaction for sqlx::Transaction<'_, sqlx::Postgres> {
    fn connection(&mut self) -> Connection<'_> {
        Connection::Postgres(self)
    }
}
