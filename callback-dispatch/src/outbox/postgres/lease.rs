//! What a process may have in hand, and for how long.

use crate::outbox::Lease;
use sqlx::{Error, PgConnection, PgPool, query, query_scalar};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// How long a process counts as alive that has not been heard of.
pub(super) const DEFAULT: Duration = Duration::from_secs(30);

const REGISTER: &str =
    "INSERT INTO callback_process (alive_until) VALUES (now() + make_interval(secs => $1)) RETURNING id";

const RENEW: &str = "UPDATE callback_process SET alive_until = now() + make_interval(secs => $1) WHERE id = $2";

/// The holders are few, the rows in hand are many: the index is asked for one holder after the other.
pub(super) const GIVE_BACK: &str = "\
    WITH RECURSIVE holders (id) AS ( \
        SELECT min(holder) FROM callback_outbox WHERE stage < 10 AND holder IS NOT NULL \
        UNION ALL \
        SELECT (SELECT min(holder) FROM callback_outbox \
                WHERE stage < 10 AND holder IS NOT NULL AND holder > holders.id) \
        FROM holders WHERE id IS NOT NULL) \
    UPDATE callback_outbox SET holder = NULL, token = token + 1, starts = starts + (stage <= 1)::int \
    WHERE stage < 10 AND holder IS NOT NULL AND holder = ANY (ARRAY( \
        SELECT id FROM holders WHERE id IS NOT NULL AND NOT EXISTS (SELECT FROM callback_process AS p WHERE p.id = holders.id)))";

/// Gives back what processes have in hand that are not heard of any more.
///
/// Begins with those whose time has passed, so that one who renews late finds itself gone, or is left alone.
pub(super) async fn recover(connection: &mut PgConnection) -> Result<(), Error> {
    query("DELETE FROM callback_process WHERE alive_until < now()").execute(&mut *connection).await?;
    let given_back = query(GIVE_BACK).execute(connection).await?.rows_affected();
    if given_back > 0 {
        tracing::info!(rows = given_back, "what dead processes had in hand is given back");
    }
    Ok(())
}

/// This process, as the database knows it.
#[derive(Debug)]
pub(super) struct Process {
    /// How long it counts as alive that is not heard of.
    length: Duration,
    registered: Mutex<Option<Registered>>,
}

#[derive(Clone, Copy, Debug)]
struct Registered {
    id: i64,
    /// Grows when it is registered, and when it is renewed too late: what was stored in between has no holder.
    lease: Lease,
    /// Judged from before the last renewal was sent, so that it is over no later than by the database's clock.
    until: Instant,
}

impl Process {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, registered: Mutex::default() }
    }

    /// Its id; none before its start, and after its end.
    pub(super) fn id(&self) -> Option<i64> {
        self.registered().map(|it| it.id)
    }

    /// Its id while its lease is not over: what it takes without one would be given to another meanwhile.
    pub(super) fn holder(&self) -> Option<i64> {
        let registered = self.lock();
        registered.filter(|it| Instant::now() < it.until).map(|it| it.id)
    }

    /// The lease that it has, or had last.
    pub(super) fn lease(&self) -> Lease {
        self.registered().map_or_else(Lease::default, |it| it.lease)
    }

    /// Whether nobody else can have been given what it took under this lease.
    pub(super) fn is_leased(&self, lease: Lease) -> bool {
        self.registered().is_some_and(|it| it.lease == lease && Instant::now() < it.until)
    }

    /// Registers it under a new id.
    pub(super) async fn register(&self, pool: &PgPool) -> Result<(), Error> {
        let sent = Instant::now();
        let id = query_scalar(REGISTER).bind(self.length.as_secs_f64()).fetch_one(pool).await?;
        self.lives(id, sent);
        Ok(())
    }

    /// Notes that the database heard of it under this id, after that time.
    fn lives(&self, id: i64, sent: Instant) {
        let mut registered = self.lock();
        let lease = match *registered {
            Some(last) if last.id == id && Instant::now() < last.until => last.lease,
            Some(last) => Lease(last.lease.0 + 1),
            None => Lease(1),
        };
        *registered = Some(Registered { id, lease, until: sent + self.length });
    }

    /// Says that it lives on; under a new id, where it was thought dead.
    pub(super) async fn renew(&self, pool: &PgPool) -> Result<(), Error> {
        let Some(id) = self.id() else { return Ok(()) };
        let sent = Instant::now();
        let renewed = query(RENEW).bind(self.length.as_secs_f64()).bind(id).execute(pool).await?;
        if renewed.rows_affected() > 0 {
            self.lives(id, sent);
            return Ok(());
        }
        tracing::warn!("this process was not heard of for longer than its lease: others have what it had in hand");
        self.register(pool).await
    }

    /// Takes its leave, and gives back what it still has in hand.
    async fn leave(&self, pool: &PgPool) -> Result<(), Error> {
        let Some(id) = self.id() else { return Ok(()) };
        *self.lock() = None;
        let mut transaction = pool.begin_with(super::apply::BEGIN).await?;
        query("DELETE FROM callback_process WHERE id = $1").bind(id).execute(&mut *transaction).await?;
        recover(&mut transaction).await?;
        transaction.commit().await
    }

    /// Renews its lease and gives back what the dead had, until it is closed or dropped; leaves when all is written.
    pub(super) async fn live(&self, pool: PgPool, mut closing: watch::Receiver<()>, written: impl Future<Output = ()>) {
        let mut wait = self.length / 3;
        loop {
            tokio::select! {
                _ = closing.changed() => break,
                () = sleep(wait) => {}
            }
            wait = match timeout(self.length / 3, self.go_on(&pool)).await {
                Ok(Ok(())) => self.length / 3,
                Ok(Err(error)) => {
                    tracing::warn!(error = %super::Told(&error), leased = self.holder().is_some(), "a lease was not renewed");
                    self.length / 10
                }
                Err(_elapsed) => {
                    tracing::warn!(leased = self.holder().is_some(), "a lease was not renewed in time");
                    self.length / 10
                }
            };
        }
        written.await;
        if !matches!(timeout(self.length, self.leave(&pool)).await, Ok(Ok(()))) {
            tracing::warn!("what this process had in hand is given back when its lease is over");
        }
    }

    async fn go_on(&self, pool: &PgPool) -> Result<(), Error> {
        self.renew(pool).await?;
        let mut transaction = pool.begin_with(super::apply::BEGIN).await?;
        recover(&mut transaction).await?;
        transaction.commit().await
    }

    fn registered(&self) -> Option<Registered> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Registered>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
