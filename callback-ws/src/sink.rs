//! Delivers to WebSocket servers.

use crate::{
    config::{WsSinkBuilder, WsSinkError},
    connection::Job,
    dial::Dialler,
    link::{Links, Place},
    outcome::{is_over, too_late, unwritten},
};
use async_trait::async_trait;
use callback_core::{Attempt, Dsn, DsnError, Message, Receipt, Sink, SinkError};
use std::{fmt, sync::Arc};
use tokio::{sync::oneshot, time::timeout_at};
use tokio_util::task::TaskTracker;

/// Delivers messages to WebSocket servers, over `ws` and `wss`.
///
/// Delivered is what the server acknowledged under `callback.v1`; under `cloudevents.json`, and without a subprotocol, what
/// it read: it answered a ping that was sent after the frame. There is one connection a Dsn, opened when it is first needed
/// and again when it was lost, and closed after two minutes without work; concurrent deliveries share it.
///
/// At most 256 frames a connection are unacknowledged; a further delivery waits, until its deadline at the longest.
///
/// ```
/// use callback_core::Policy;
/// use callback_ws::WsSink;
///
/// let sink = WsSink::builder().policy(Policy::default().allow("10.0.0.0/8".parse()?)).build()?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct WsSink(Arc<Inner>);

struct Inner {
    links: Arc<Links>,
    in_flight: TaskTracker,
}

const SCHEMES: [&str; 2] = ["ws", "wss"];

impl WsSink {
    /// A sink with the default policy and the system's certificates.
    ///
    /// # Errors
    /// When the system has no root certificates.
    pub fn new() -> Result<Self, WsSinkError> {
        Self::builder().build()
    }

    /// Begins a sink that is set up otherwise.
    pub fn builder() -> WsSinkBuilder {
        WsSinkBuilder::default()
    }

    pub(crate) fn with(dialler: Dialler, connections: usize) -> Self {
        Self(Arc::new(Inner { links: Links::new(dialler, connections), in_flight: TaskTracker::new() }))
    }

    async fn send(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        loop {
            let jobs = match self.0.links.to(dsn)? {
                Place::Open(jobs) => jobs,
                Place::Leaving(gone) => {
                    gone.cancelled().await;
                    continue;
                }
            };
            let (reply, ended) = oneshot::channel();
            let job = Job { message: message.clone(), attempt: attempt.clone(), reply };
            if jobs.send(Box::new(job)).await.is_err() {
                // The link has ended in between: there will be another.
                continue;
            }
            return match ended.await {
                Ok(result) => Ok(result?),
                Err(_dropped) => Err(unwritten(attempt)),
            };
        }
    }
}

#[async_trait]
impl Sink for WsSink {
    fn schemes(&self) -> &[&str] {
        &SCHEMES
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        if !SCHEMES.contains(&dsn.scheme()) {
            return Err(DsnError::unknown_scheme(dsn.scheme(), &SCHEMES));
        }
        Ok(self.0.links.dialler().policy.judge(dsn)?)
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let _in_flight = self.0.in_flight.token();
        if self.0.in_flight.is_closed() {
            return Err(SinkError::unavailable("the sink is closed"));
        }
        self.check(dsn)?;
        if is_over(attempt) {
            return Err(too_late());
        }
        timeout_at(attempt.deadline().into(), self.send(dsn, message, attempt)).await.map_err(|_elapsed| too_late())?
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.0.in_flight.close();
        // Each delivery ends by its own deadline.
        self.0.in_flight.wait().await;
        self.0.links.close().await;
        Ok(())
    }
}

impl fmt::Debug for WsSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsSink").field("policy", &self.0.links.dialler().policy).finish_non_exhaustive()
    }
}
