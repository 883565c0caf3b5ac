//! A user's own transaction, in which a message is accepted beside his own data.

/// A transaction in the inbox's database: `sqlx::Transaction` of SQLite, of sqlx 0.9.
///
/// The trait is sealed. A message is accepted if the transaction commits, and was never accepted if it does not:
/// [`Delivery::accept_in`](crate::Delivery::accept_in).
pub trait Transaction: EraseTransaction {}

/// Takes the type off a transaction.
#[expect(unnameable_types, reason = "seals `Transaction`")]
pub trait EraseTransaction: Send {
    fn connection(&mut self) -> Connection<'_>;
}

/// The connection of a transaction; without the feature `sqlite` there is none.
#[expect(unnameable_types, reason = "seals `Transaction`")]
#[derive(Debug)]
pub enum Connection<'a> {
    #[cfg(feature = "sqlite")]
    Sqlite(&'a mut sqlx::SqliteConnection),
    #[cfg(not(feature = "sqlite"))]
    None(&'a std::convert::Infallible),
}

#[cfg(feature = "sqlite")]
impl Transaction for sqlx::Transaction<'_, sqlx::Sqlite> {}

#[cfg(feature = "sqlite")]
impl EraseTransaction for sqlx::Transaction<'_, sqlx::Sqlite> {
    fn connection(&mut self) -> Connection<'_> {
        Connection::Sqlite(self)
    }
}
