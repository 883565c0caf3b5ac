//! Takes callbacks in over WebSocket.

mod answer;
mod conversation;
mod metered;
mod seats;
mod serve;
mod watch;
mod wire;

use async_trait::async_trait;
use callback_core::Dsn;
use callback_receive::{HandleId, Intake, Listener};
use seats::Seats;
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

/// Takes callbacks in over WebSockets that senders open at `{base URL}/{handle}`: on a listener of its own, or, with the
/// feature `axum`, by a router that is nested under an existing application. The [`Listener`] of a
/// [`Receiver`](callback_receive::Receiver).
///
/// It speaks `callback.v1`, whose messages are acknowledged by their ids, and `cloudevents.json`, where the pong to a ping is
/// held back until everything before it was taken. HTTP/1.1, without TLS: that is the proxy's in front, whose address the
/// base URL has.
///
/// ```no_run
/// use callback_receive::Receiver;
/// use callback_ws::WsReceiver;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let ws = WsReceiver::bind("0.0.0.0:8081", "wss://broker.example/callbacks").await?;
/// let receiver = Receiver::builder().open(ws).await?;
/// println!("{}", receiver.spawn().url());
/// # Ok(())
/// # }
/// ```
pub struct WsReceiver(Arc<Inner>);

struct Inner {
    base: Base,
    socket: Mutex<Option<TcpListener>>,
    address: Option<SocketAddr>,
    limits: Limits,
    /// A permit a byte.
    memory: Arc<Semaphore>,
    seats: Arc<Seats>,
    intake: OnceLock<Intake>,
    closing: CancellationToken,
    connections: TaskTracker,
}

/// What the world calls it, and what a request's path begins with.
#[derive(Debug)]
struct Base {
    url: String,
    path: String,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    connections: usize,
    head: Duration,
    message: Duration,
}

impl WsReceiver {
    /// Listens on this address. The base URL (`ws` or `wss`) is what senders are told: that of a proxy in front, or its own.
    ///
    /// Port 0 takes a free one; where the base URL has port 0, it is that one too. Requests come with the base URL's path; see
    /// [`WsReceiverBuilder::path`] for a proxy that takes it off.
    ///
    /// # Errors
    /// When the base URL is none, or the address cannot be listened on.
    pub async fn bind(address: &str, base_url: &str) -> Result<Self, WsReceiverError> {
        Self::builder().bind(address, base_url).await
    }

    /// A receiver without a listener, and the router that serves it, to be nested at the base URL's path.
    ///
    /// The application's own limits come first: time to read a head is its server's. It must serve HTTP/1.1 with upgrades, as
    /// `axum::serve` does.
    ///
    /// # Errors
    /// When the base URL is none.
    #[cfg(feature = "axum")]
    pub fn router(base_url: &str) -> Result<(Self, axum::Router), WsReceiverError> {
        Self::builder().router(base_url)
    }

    /// Begins a receiver that is set up otherwise.
    pub fn builder() -> WsReceiverBuilder {
        WsReceiverBuilder::default()
    }

    /// Where it listens; `None` for a router.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.address
    }
}

/// Builds a [`WsReceiver`].
#[derive(Clone, Debug)]
#[must_use]
pub struct WsReceiverBuilder {
    limits: Limits,
    message_bytes: usize,
    path: Option<String>,
}

impl Default for WsReceiverBuilder {
    fn default() -> Self {
        let limits = Limits { connections: 1_024, head: Duration::from_secs(10), message: Duration::from_secs(30) };
        Self { limits, message_bytes: 256 << 20, path: None }
    }
}

impl WsReceiverBuilder {
    /// Sets how many connections it has at most. Default 1,024; 0 counts as 1.
    ///
    /// Beyond that, a new one takes the place of another: first of one that has opened no socket, then of the one that has
    /// been without a message for longest. One whose message has no verdict stays.
    pub fn connections(mut self, most: usize) -> Self {
        self.limits.connections = most.max(1);
        self
    }

    /// Sets how long a connection may take for the head of its request. Default 10 s.
    pub fn head_timeout(mut self, time: Duration) -> Self {
        self.limits.head = time;
        self
    }

    /// Sets how long a message may take, from its first byte to its last. Default 30 s; the connection is closed with 1001
    /// after that.
    pub fn message_timeout(mut self, time: Duration) -> Self {
        self.limits.message = time;
        self
    }

    /// Sets how many bytes of messages are in memory, those that are being read and those whose verdict is awaited.
    ///
    /// Default 256 MiB; a connection that needs more is closed with 1013.
    pub fn message_memory(mut self, bytes: usize) -> Self {
        self.message_bytes = bytes;
        self
    }

    /// Sets the path that requests come with, where a proxy changes it: `/` if it takes the base URL's off.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Listens, like [`WsReceiver::bind`].
    ///
    /// # Errors
    /// Those of [`WsReceiver::bind`].
    pub async fn bind(self, address: &str, base_url: &str) -> Result<WsReceiver, WsReceiverError> {
        let listener = TcpListener::bind(address).await.map_err(WsReceiverError::Bind)?;
        let address = listener.local_addr().map_err(WsReceiverError::Bind)?;
        self.build(base_url, Some((listener, address)))
    }

    /// Makes a router, like [`WsReceiver::router`].
    ///
    /// # Errors
    /// Those of [`WsReceiver::router`].
    #[cfg(feature = "axum")]
    pub fn router(self, base_url: &str) -> Result<(WsReceiver, axum::Router), WsReceiverError> {
        let receiver = self.build(base_url, None)?;
        let inner = Arc::clone(&receiver.0);
        let open = move |request: axum::extract::Request| {
            let inner = Arc::clone(&inner);
            async move {
                let handle = request.uri().path().rsplit('/').next().and_then(|name| name.parse().ok());
                let seat = async { tokio::time::timeout(SEAT, inner.seats.enter()).await.ok() };
                inner.shake_hands(handle, request, seat).await.map(axum::body::Body::from)
            }
        };
        Ok((receiver, axum::Router::new().route("/{handle}", axum::routing::any(open))))
    }

    fn build(self, base_url: &str, listener: Option<(TcpListener, SocketAddr)>) -> Result<WsReceiver, WsReceiverError> {
        let Self { limits, message_bytes, path } = self;
        let (socket, address) = listener.unzip();
        let base = Base::new(base_url, path, address.map(|address| address.port()))?;
        let closing = CancellationToken::new();
        Ok(WsReceiver(Arc::new(Inner {
            base,
            socket: Mutex::new(socket),
            address,
            limits,
            memory: Arc::new(Semaphore::new(message_bytes.min(Semaphore::MAX_PERMITS))),
            seats: Arc::new(Seats::new(limits.connections, closing.clone())),
            intake: OnceLock::new(),
            closing,
            connections: TaskTracker::new(),
        })))
    }
}

/// How long a request of a router waits for a seat; after that it is told to come again.
#[cfg(feature = "axum")]
const SEAT: Duration = Duration::from_secs(1);

impl Base {
    fn new(text: &str, path: Option<String>, port: Option<u16>) -> Result<Self, WsReceiverError> {
        let invalid = |reason: &str| WsReceiverError::BaseUrl(reason.to_owned());
        let mut url = Url::parse(text).map_err(|error| WsReceiverError::BaseUrl(error.to_string()))?;
        if !matches!(url.scheme(), "ws" | "wss") {
            return Err(invalid("its scheme must be ws or wss"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("it must have no query and no fragment"));
        }
        if let (Some(0), Some(port)) = (url.port(), port) {
            url.set_port(Some(port)).map_err(|()| invalid("it must have a host"))?;
        }
        let path = path.unwrap_or_else(|| url.path().to_owned());
        let base =
            Self { url: url.as_str().trim_end_matches('/').to_owned(), path: path.trim_end_matches('/').to_owned() };
        match base.dsn(&"A".repeat(HandleId::LEN)) {
            Ok(_) => Ok(base),
            Err(error) => Err(WsReceiverError::BaseUrl(error.to_string())),
        }
    }

    fn dsn(&self, handle: &str) -> Result<Dsn, callback_core::DsnError> {
        format!("{}/{handle}", self.url).parse()
    }

    /// The name of the handle that a path has.
    fn name<'a>(&self, path: &'a str) -> &'a str {
        path.strip_prefix(&self.path).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default()
    }
}

#[async_trait]
impl Listener for WsReceiver {
    fn dsn(&self, handle: &HandleId) -> Dsn {
        self.0.base.dsn(&handle.expose()).expect("a base URL was tried with a handle of this length")
    }

    async fn listen(&self, intake: Intake) {
        // It is opened once.
        let _ = self.0.intake.set(intake);
        let socket = self.0.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        match socket {
            Some(socket) => serve::serve(Arc::clone(&self.0), socket).await,
            None => self.0.closing.cancelled().await,
        }
    }

    async fn close(&self) {
        self.0.closing.cancel();
        self.0.connections.close();
        self.0.connections.wait().await;
    }
}

impl Drop for WsReceiver {
    fn drop(&mut self) {
        self.0.closing.cancel();
    }
}

impl fmt::Debug for WsReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsReceiver")
            .field("address", &self.0.address)
            .field("path", &self.0.base.path)
            .field("limits", &self.0.limits)
            .finish_non_exhaustive()
    }
}

/// Why a receiver could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WsReceiverError {
    /// The base URL cannot be used.
    #[error("the base URL cannot be used: {0}")]
    BaseUrl(String),
    /// The address cannot be listened on.
    #[error("the address cannot be listened on")]
    Bind(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(base: &str, path: Option<&str>, request: &str, expected: &str) {
        let base = Base::new(base, path.map(str::to_owned), Some(8081)).expect("valid");
        assert_eq!(base.name(request), expected);
    }

    #[test]
    fn a_handle_stands_below_the_path() {
        check("wss://x.example", None, "/h", "h");
        check("wss://x.example/", None, "/h", "h");
        check("wss://x.example/in/", None, "/in/h", "h");
        check("wss://x.example/in", None, "/h", "");
        check("wss://x.example/in", Some("/"), "/h", "h");
        check("wss://x.example/in", Some("/other"), "/other/h", "h");
        check("wss://x.example/in", None, "/inh", "");
        check("wss://x.example/in", None, "/in/h/more", "h/more");
    }

    #[test]
    fn a_base_url_is_checked() {
        for bad in ["", "x.example", "https://x.example", "wss://x.example/?a=b", "wss://x.example/#a"] {
            assert!(matches!(Base::new(bad, None, None), Err(WsReceiverError::BaseUrl(_))), "{bad:?}");
        }
        let base = Base::new("ws://127.0.0.1:0/in", None, Some(4711)).expect("valid");
        assert_eq!(base.dsn("h").expect("valid").expose(), "ws://127.0.0.1:4711/in/h");
    }
}
