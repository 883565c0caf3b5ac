//! Takes callbacks in over HTTP.

mod answer;
mod connections;
mod request;
mod serve;

use async_trait::async_trait;
use callback_core::Dsn;
use callback_receive::{HandleId, Intake, Listener};
use request::Requests;
use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

/// Takes callbacks in at `{base URL}/{handle}`: on a listener of its own, or, with the feature `axum`, by a router that is
/// nested under an existing application. The [`Listener`] of a [`Receiver`](callback_receive::Receiver).
///
/// It reads CloudEvents in binary mode, Standard Webhooks, and whatever else comes as a `POST`; it answers the handshake of
/// CloudEvents' webhooks (`OPTIONS`). HTTP/1.1, without TLS: that is the proxy's in front, whose address the base URL has.
///
/// ```no_run
/// use callback_http::HttpReceiver;
/// use callback_receive::Receiver;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let http = HttpReceiver::bind("0.0.0.0:8081", "https://broker.example/callbacks").await?;
/// let receiver = Receiver::builder().open(http).await?;
/// println!("{}", receiver.spawn().url());
/// # Ok(())
/// # }
/// ```
pub struct HttpReceiver(Arc<Inner>);

struct Inner {
    base: Base,
    socket: Mutex<Option<TcpListener>>,
    address: Option<SocketAddr>,
    limits: Limits,
    requests: Arc<Requests>,
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
}

impl HttpReceiver {
    /// Listens on this address. The base URL is what senders are told: that of a proxy in front, or its own.
    ///
    /// Port 0 takes a free one; where the base URL has port 0, it is that one too. Requests come with the base URL's path; see
    /// [`HttpReceiverBuilder::path`] for a proxy that takes it off.
    ///
    /// # Errors
    /// When the base URL is none, or the address cannot be listened on.
    pub async fn bind(address: &str, base_url: &str) -> Result<Self, HttpReceiverError> {
        Self::builder().bind(address, base_url).await
    }

    /// A receiver without a listener, and the router that serves it, to be nested at the base URL's path.
    ///
    /// The application's own limits come first: connections and time to read a head are its server's.
    ///
    /// # Errors
    /// When the base URL is none.
    #[cfg(feature = "axum")]
    pub fn router(base_url: &str) -> Result<(Self, axum::Router), HttpReceiverError> {
        Self::builder().router(base_url)
    }

    /// Begins a receiver that is set up otherwise.
    pub fn builder() -> HttpReceiverBuilder {
        HttpReceiverBuilder::default()
    }

    /// Where it listens; `None` for a router.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.address
    }
}

/// Builds an [`HttpReceiver`].
#[derive(Clone, Debug)]
#[must_use]
pub struct HttpReceiverBuilder {
    limits: Limits,
    body_time: Duration,
    body_bytes: usize,
    path: Option<String>,
}

impl Default for HttpReceiverBuilder {
    fn default() -> Self {
        let limits = Limits { connections: 1_024, head: Duration::from_secs(60) };
        Self { limits, body_time: Duration::from_secs(30), body_bytes: 256 << 20, path: None }
    }
}

impl HttpReceiverBuilder {
    /// Sets how many connections it has at most. Default 1,024; 0 counts as 1.
    ///
    /// Beyond that, a new one takes the place of the one that has been without a request for longest.
    pub fn connections(mut self, most: usize) -> Self {
        self.limits.connections = most.max(1);
        self
    }

    /// Sets how long a connection may take for the head of a request, its idle time before that included. Default 60 s,
    /// longer than a sender keeps an idle connection.
    pub fn head_timeout(mut self, time: Duration) -> Self {
        self.limits.head = time;
        self
    }

    /// Sets how long a body may take, from the end of its head. Default 30 s; 408 after that.
    pub fn body_timeout(mut self, time: Duration) -> Self {
        self.body_time = time;
        self
    }

    /// Sets how many bytes of bodies are in memory, those that are being read and those whose verdict is awaited.
    ///
    /// Default 256 MiB; what comes beyond that is answered with 503. What a handle keeps after its sender was answered, or
    /// has gone, is bounded by [`ReceiverBuilder::queue`](callback_receive::ReceiverBuilder::queue).
    pub fn body_memory(mut self, bytes: usize) -> Self {
        self.body_bytes = bytes;
        self
    }

    /// Sets the path that requests come with, where a proxy changes it: `/` if it takes the base URL's off.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Listens, like [`HttpReceiver::bind`].
    ///
    /// # Errors
    /// Those of [`HttpReceiver::bind`].
    pub async fn bind(self, address: &str, base_url: &str) -> Result<HttpReceiver, HttpReceiverError> {
        let listener = TcpListener::bind(address).await.map_err(HttpReceiverError::Bind)?;
        let address = listener.local_addr().map_err(HttpReceiverError::Bind)?;
        self.build(base_url, Some((listener, address)))
    }

    /// Makes a router, like [`HttpReceiver::router`].
    ///
    /// # Errors
    /// Those of [`HttpReceiver::router`].
    #[cfg(feature = "axum")]
    pub fn router(self, base_url: &str) -> Result<(HttpReceiver, axum::Router), HttpReceiverError> {
        let receiver = self.build(base_url, None)?;
        let requests = Arc::clone(&receiver.0.requests);
        let serve = move |request: axum::extract::Request| {
            let requests = Arc::clone(&requests);
            async move {
                let handle = request.uri().path().rsplit('/').next().and_then(|name| name.parse().ok());
                requests.serve(handle, request).await.map(axum::body::Body::new)
            }
        };
        Ok((receiver, axum::Router::new().route("/{handle}", axum::routing::any(serve))))
    }

    fn build(
        self,
        base_url: &str,
        listener: Option<(TcpListener, SocketAddr)>,
    ) -> Result<HttpReceiver, HttpReceiverError> {
        let Self { limits, body_time, body_bytes, path } = self;
        let (socket, address) = listener.unzip();
        let base = Base::new(base_url, path, address.map(|address| address.port()))?;
        let closing = CancellationToken::new();
        let requests = Arc::new(Requests::new(body_time, body_bytes, closing.clone()));
        Ok(HttpReceiver(Arc::new(Inner {
            base,
            socket: Mutex::new(socket),
            address,
            limits,
            requests,
            closing,
            connections: TaskTracker::new(),
        })))
    }
}

impl Base {
    fn new(text: &str, path: Option<String>, port: Option<u16>) -> Result<Self, HttpReceiverError> {
        let invalid = |reason: &str| HttpReceiverError::BaseUrl(reason.to_owned());
        let mut url = Url::parse(text).map_err(|error| HttpReceiverError::BaseUrl(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid("its scheme must be http or https"));
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
            Err(error) => Err(HttpReceiverError::BaseUrl(error.to_string())),
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
impl Listener for HttpReceiver {
    fn dsn(&self, handle: &HandleId) -> Dsn {
        self.0.base.dsn(&handle.expose()).expect("a base URL was tried with a handle of this length")
    }

    async fn listen(&self, intake: Intake) {
        self.0.requests.open(intake);
        let socket = self.0.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        match socket {
            Some(socket) => serve::serve(Arc::clone(&self.0), socket).await,
            None => self.0.closing.cancelled().await,
        }
    }

    async fn close(&self) {
        self.0.closing.cancel();
        self.0.requests.close().await;
        self.0.connections.close();
        self.0.connections.wait().await;
    }
}

impl Drop for HttpReceiver {
    fn drop(&mut self) {
        self.0.closing.cancel();
    }
}

impl fmt::Debug for HttpReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpReceiver")
            .field("address", &self.0.address)
            .field("path", &self.0.base.path)
            .field("limits", &self.0.limits)
            .finish_non_exhaustive()
    }
}

/// Why a receiver could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpReceiverError {
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
        check("https://x.example", None, "/h", "h");
        check("https://x.example/", None, "/h", "h");
        check("https://x.example/in/", None, "/in/h", "h");
        check("https://x.example/in", None, "/h", "");
        check("https://x.example/in", Some("/"), "/h", "h");
        check("https://x.example/in", Some("/other"), "/other/h", "h");
        check("https://x.example/in", None, "/inh", "");
        check("https://x.example/in", None, "/in/h/more", "h/more");
    }

    #[test]
    fn a_base_url_is_checked() {
        for bad in ["", "x.example", "ftp://x.example", "https://x.example/?a=b", "https://x.example/#a"] {
            assert!(matches!(Base::new(bad, None, None), Err(HttpReceiverError::BaseUrl(_))), "{bad:?}");
        }
        let base = Base::new("http://127.0.0.1:0/in", None, Some(4711)).expect("valid");
        assert_eq!(base.dsn("h").expect("valid").expose(), "http://127.0.0.1:4711/in/h");
    }
}
