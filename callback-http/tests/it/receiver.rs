//! Webhook receivers on ports of their own: one that records and answers, one that does what a test says.

use bytes::Bytes;
use callback_core::Dsn;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One request, as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("visible ASCII"))
    }

    #[cfg(feature = "server")]
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

pub(crate) type Answer = Response<Full<Bytes>>;
type Answering = Arc<dyn Fn(&Received) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// Records what comes, and counts the connections.
pub(crate) struct Receiver {
    address: SocketAddr,
    received: mpsc::UnboundedReceiver<Received>,
    connections: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        Self::answering(|_| Response::default()).await
    }

    pub(crate) async fn answering(answer: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        Self::open(None, Arc::new(move |received| Box::pin(std::future::ready(answer(received))))).await
    }

    /// Answers only when the future is done that is made for each request.
    pub(crate) async fn answering_after<F>(answer: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::open(None, Arc::new(move |_| Box::pin(answer()))).await
    }

    pub(crate) async fn tls(acceptor: TlsAcceptor) -> Self {
        Self::open(Some(acceptor), Arc::new(|_| Box::pin(std::future::ready(Response::default())))).await
    }

    async fn open(tls: Option<TlsAcceptor>, answer: Answering) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (sender, received) = mpsc::unbounded_channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                counter.fetch_add(1, Ordering::SeqCst);
                let (tls, answer, sender) = (tls.clone(), Arc::clone(&answer), sender.clone());
                serving.spawn(async move {
                    match tls {
                        None => serve(stream, answer, sender).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, answer, sender).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, received, connections, _accepting: accepting }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// A DSN of this receiver: with path, query, or neither.
    pub(crate) fn dsn(&self, rest: &str) -> Dsn {
        self.url(rest).parse().expect("a valid DSN")
    }

    pub(crate) fn url(&self, rest: &str) -> String {
        format!("http://{}{rest}", self.address)
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) async fn next(&mut self) -> Received {
        let received = timeout(PATIENCE, self.received.recv()).await.expect("a request comes in time");
        received.expect("the receiver lives")
    }

    /// Whether nothing more has come.
    pub(crate) fn is_empty(&self) -> bool {
        self.received.is_empty()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    answer: Answering,
    sender: mpsc::UnboundedSender<Received>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, sender) = (Arc::clone(&answer), sender.clone());
        async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await else {
                return Ok::<_, Infallible>(status(StatusCode::BAD_REQUEST));
            };
            let received = Received {
                method: parts.method,
                uri: parts.uri,
                version: parts.version,
                headers: parts.headers,
                body: body.to_bytes(),
            };
            let answer = answer(&received);
            let _ = sender.send(received);
            Ok(answer.await)
        }
    });
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

pub(crate) fn status(status: StatusCode) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    answer
}

/// A server below HTTP.
pub(crate) struct Raw {
    address: SocketAddr,
    _accepting: JoinSet<()>,
}

impl Raw {
    /// Does this with each connection, once the head of a request was read.
    pub(crate) async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let serve = Arc::new(serve);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let serve = Arc::clone(&serve);
                serving.spawn(async move {
                    let mut read = Vec::new();
                    while !read.windows(4).any(|window| window == b"\r\n\r\n") {
                        if stream.read_buf(&mut read).await.is_ok_and(|read| read > 0) {
                            continue;
                        }
                        return;
                    }
                    serve(stream).await;
                });
            }
        });
        Self { address, _accepting: accepting }
    }

    pub(crate) fn dsn(&self) -> Dsn {
        format!("http://{}/", self.address).parse().expect("a valid DSN")
    }
}
