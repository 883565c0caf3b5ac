//! Delivers to clients that have connected to us.

mod converse;
mod greeting;
mod sessions;

#[cfg(test)]
mod tests;

use crate::{
    connection::Job,
    outcome::{is_over, too_late, unwritten},
};
use async_trait::async_trait;
use axum::{Router, routing::any};
use callback_core::{Attempt, Dsn, DsnError, ErrorKind, Message, Phase, Receipt, Sink, SinkError};
use callback_dispatch::Dispatcher;
use sessions::Sessions;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, oneshot},
    time::{timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SCHEMES: [&str; 1] = ["session"];

/// How long the sockets may take to end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How long a client may take from its request to its first frame.
const HELLO: Duration = Duration::from_secs(10);

/// Delivers messages to clients that have connected to us, browsers for example: the sink of the scheme `session`.
///
/// A client opens a WebSocket at the [router](Self::router) with the subprotocol `callback.v1` and is told its Dsn,
/// `session://…`, and a secret with which it comes back after it lost the connection. Delivered is what the client
/// acknowledged.
///
/// It is a *local* sink of its dispatcher: what goes to a client that is away waits in the outbox, unattempted, until the
/// client is back, for [`session_time`](HubBuilder::session_time) at the longest; then it is dead as
/// [`Gone`](ErrorKind::Gone).
///
/// ```no_run
/// use callback_dispatch::{Dispatcher, SqliteOutbox};
/// use callback_ws::Hub;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let hub = Hub::builder().origin("https://app.example").build()?;
/// let outbox = SqliteOutbox::open("callbacks.sqlite").await?;
/// let dispatcher = Dispatcher::builder(outbox).local_sink(hub.clone()).start().await?;
/// let app = axum::Router::new().nest("/session", hub.router(&dispatcher));
/// # let _: axum::Router = app;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    in_flight: TaskTracker,
    conversations: TaskTracker,
}

/// What conversations have of a hub; it may be gone before them.
struct Shared {
    origins: Vec<String>,
    keep: Duration,
    hello: Duration,
    /// A permit for each connection.
    room: Arc<Semaphore>,
    sessions: Arc<Sessions>,
    /// Cancelled at the end.
    over: CancellationToken,
}

impl Hub {
    /// A hub for pages of its own host, that keeps sessions for ten minutes, and has 10,000 at most.
    #[must_use]
    pub fn new() -> Self {
        Self::with(HubBuilder::default(), HELLO)
    }

    /// Begins a hub that is set up otherwise.
    pub fn builder() -> HubBuilder {
        HubBuilder::default()
    }

    fn with(builder: HubBuilder, hello: Duration) -> Self {
        let HubBuilder { origins, keep, connections } = builder;
        let shared = Shared {
            origins,
            keep,
            hello,
            room: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            sessions: Arc::new(Sessions::new(keep)),
            over: CancellationToken::new(),
        };
        Self(Arc::new(Inner {
            shared: Arc::new(shared),
            in_flight: TaskTracker::new(),
            conversations: TaskTracker::new(),
        }))
    }

    /// The endpoint for clients: `GET` at `/`, to be nested where they connect.
    ///
    /// The dispatcher is the one that this hub was given to by `DispatcherBuilder::local_sink`. What is no request for a
    /// WebSocket of `callback.v1` is answered with 400, 405 or 426; a page of another origin, with 403; a client beyond the
    /// limit, or of a hub that is closed, with 503. A request without `Origin` comes from no browser, and is let in.
    ///
    /// A client that says nothing for ten seconds is closed with 1008, and so is one that says anything else than
    /// `{"resume":null}`, which begins a session, or `{"resume":"…"}`, with the secret that it was told last. A session that
    /// is over, or is not the secret's, is closed with 4410; a connection whose session another one has resumed, with 4409;
    /// all of them with 1001 when the hub closes; and with 1013 where the outbox cannot be written.
    ///
    /// How many sessions one client may begin is not limited: that is for a proxy in front, or a layer around the router.
    pub fn router(&self, dispatcher: &Dispatcher) -> Router {
        let state = (self.clone(), dispatcher.clone());
        Router::new().route("/", any(converse::open)).with_state(state)
    }

    /// How many sessions have their client connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.0.shared.sessions.len()
    }

    async fn send(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let sessions = &self.0.shared.sessions;
        let Some((seat, jobs)) = sessions.to(dsn.authority()) else { return Err(away()) };
        let (reply, ended) = oneshot::channel();
        let job = Job { message: message.clone(), attempt: attempt.clone(), reply };
        jobs.send(Box::new(job)).await.map_err(|_closed| away())?;
        match ended.await {
            Ok(Ok(receipt)) => Ok(receipt),
            Ok(Err(failure)) => {
                if failure.kind == ErrorKind::Gone {
                    sessions.gone(dsn.authority(), seat);
                }
                Err(failure.into())
            }
            Err(_dropped) => Err(unwritten(attempt)),
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.over.cancel();
    }
}

/// The engine waits for the client, and counts no attempt.
fn away() -> SinkError {
    SinkError::unavailable("the client is away").with_phase(Phase::Connect)
}

#[async_trait]
impl Sink for Hub {
    fn schemes(&self) -> &[&str] {
        &SCHEMES
    }

    /// Judges the form alone: whether there is such a session is known when something is delivered to it.
    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        if !SCHEMES.contains(&dsn.scheme()) {
            return Err(DsnError::unknown_scheme(dsn.scheme(), &SCHEMES));
        }
        if !greeting::is_address(dsn.authority()) {
            return Err(DsnError::invalid("this is no address of a session that was begun here"));
        }
        Ok(())
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
        self.0.shared.over.cancel();
        self.0.conversations.close();
        // Those that are slower end by themselves.
        let _ = timeout(LAST_WORDS, self.0.conversations.wait()).await;
        Ok(())
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("origins", &self.0.shared.origins)
            .field("connected", &self.connected())
            .finish_non_exhaustive()
    }
}

/// Builds a [`Hub`].
#[derive(Clone, Debug)]
#[must_use]
pub struct HubBuilder {
    origins: Vec<String>,
    keep: Duration,
    connections: usize,
}

impl Default for HubBuilder {
    fn default() -> Self {
        Self { origins: Vec::new(), keep: Duration::from_secs(600), connections: 10_000 }
    }
}

impl HubBuilder {
    /// Also lets pages of this origin in (RFC 6454 §6.2): `https://app.example`, as a browser writes it.
    ///
    /// Default: only those of the host that the request names in `Host`, over TLS or not. Where a proxy changes `Host`, its
    /// origin is to be listed.
    pub fn origin(mut self, origin: impl Into<String>) -> Self {
        self.origins.push(origin.into());
        self
    }

    /// Sets how long a session is kept while its client is away. Default ten minutes; a second at least, a year at most.
    ///
    /// What its process leaves of it when it is killed is two thirds at least.
    pub fn session_time(mut self, time: Duration) -> Self {
        self.keep = time.clamp(Duration::from_secs(1), Duration::from_secs(366 * 24 * 60 * 60));
        self
    }

    /// Sets how many clients are connected at most. Default 10,000; a further one is answered with 503.
    pub const fn sessions(mut self, limit: usize) -> Self {
        self.connections = limit;
        self
    }

    /// Makes the hub.
    ///
    /// # Errors
    /// When no browser sends one of the origins: it is scheme, host and a port that is not the scheme's own, in lower case.
    pub fn build(self) -> Result<Hub, HubError> {
        if self.origins.iter().all(|origin| greeting::is_origin(origin)) {
            Ok(Hub::with(self, HELLO))
        } else {
            Err(HubError::Origin)
        }
    }
}

/// Why a hub could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// No browser sends such an origin.
    #[error("an origin is scheme, host and, where it is not the scheme's own, port: `https://app.example`")]
    Origin,
}
