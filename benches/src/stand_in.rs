//! A sink without a network: destinations that answer, hang or refuse, by their names.

use callback_core::{
    Attempt, BoxError, Dsn, DsnError, Evidence, Message, Phase, Receipt, Sink, SinkError, async_trait,
};
use std::{
    fmt,
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{sync::Notify, time::sleep};

/// Serves `bench://well…`, `bench://hang…` and `bench://refuse…`.
#[derive(Clone, Default)]
pub(crate) struct StandIn(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// From each message's making to its delivery, in microseconds.
    delays: Mutex<Vec<u64>>,
    arrived: Notify,
    attempts: AtomicUsize,
}

/// How long a destination that is well takes to answer.
const ANSWERS_AFTER: Duration = Duration::from_millis(1);

/// A body that says when it was made.
pub(crate) fn body(filler: &str) -> String {
    format!("{{\"made\":{},\"filler\":\"{filler}\"}}", micros())
}

fn micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

impl StandIn {
    /// The delays of what was delivered since the last call, sorted.
    pub(crate) fn take(&self) -> Vec<u64> {
        let mut delays = std::mem::take(&mut *self.delays());
        delays.sort_unstable();
        delays
    }

    /// How many attempts were made at whom that is not well.
    pub(crate) fn attempts(&self) -> usize {
        self.0.attempts.load(Ordering::Relaxed)
    }

    /// Waits until so many were delivered.
    pub(crate) async fn delivered(&self, count: usize) {
        loop {
            let arrived = self.0.arrived.notified();
            if self.delays().len() >= count {
                return;
            }
            arrived.await;
        }
    }

    fn delays(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.0.delays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, message: &Message) -> Result<(), BoxError> {
        #[derive(serde::Deserialize)]
        struct Made {
            made: u64,
        }
        let made: Made = message.json()?;
        self.delays().push(micros().saturating_sub(made.made));
        self.0.arrived.notify_waiters();
        Ok(())
    }
}

#[async_trait]
impl Sink for StandIn {
    fn schemes(&self) -> &[&str] {
        &["bench"]
    }

    fn check(&self, _: &Dsn) -> Result<(), DsnError> {
        Ok(())
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, _: &Attempt) -> Result<Receipt, SinkError> {
        if dsn.authority().starts_with("well") {
            sleep(ANSWERS_AFTER).await;
            self.note(message).map_err(SinkError::refused)?;
            return Ok(Receipt::new(Evidence::Acknowledged));
        }
        self.0.attempts.fetch_add(1, Ordering::Relaxed);
        if dsn.authority().starts_with("hang") {
            pending::<()>().await;
        }
        Err(SinkError::unavailable("connection refused").with_phase(Phase::Connect))
    }

    async fn close(&self) -> Result<(), SinkError> {
        Ok(())
    }
}

impl fmt::Debug for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandIn").finish_non_exhaustive()
    }
}
