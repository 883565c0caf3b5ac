//! Servers that do as a test says.

use callback_core::{Attempt, Dsn, Message, MessageId, Policy, Receipt, Rule, Sink, SinkError};
use callback_ws::{WsSink, WsSinkBuilder};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message as Frame,
        handshake::server::{Request, Response},
        http::HeaderMap,
        protocol::CloseFrame,
    },
};

pub(crate) type Socket = WebSocketStream<TcpStream>;

/// A server, and what it has seen.
pub(crate) struct Peer {
    pub(crate) dsn: Dsn,
    requests: Arc<Mutex<Vec<HeaderMap>>>,
    connections: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Peer {
    /// A server that does this with each TCP connection.
    pub(crate) async fn on_tcp<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let (mut serving, counted) = (JoinSet::new(), Arc::clone(&connections));
        serving.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                open.spawn(serve(stream));
            }
        });
        let dsn = format!("ws://{address}/hook").parse().expect("a Dsn");
        Self { dsn, requests: Arc::default(), connections, _serving: serving }
    }

    /// A server that picks this subprotocol, and does this with each socket.
    pub(crate) async fn start<F, Fut>(picks: Option<&'static str>, serve: F) -> Self
    where
        F: Fn(Socket) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (serve, requests) = (Arc::new(serve), Arc::<Mutex<Vec<HeaderMap>>>::default());
        let seen = Arc::clone(&requests);
        let peer = Self::on_tcp(move |stream| {
            let (serve, seen) = (Arc::clone(&serve), Arc::clone(&seen));
            async move {
                if let Some(socket) = accept(stream, picks, &seen).await {
                    serve(socket).await;
                }
            }
        });
        Self { requests, ..peer.await }
    }

    /// A server of `callback.v1` that acknowledges each frame.
    pub(crate) async fn acknowledging() -> Self {
        Self::start(Some("callback.v1"), acknowledge).await
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The headers of the handshakes.
    pub(crate) fn requests(&self) -> Vec<HeaderMap> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
async fn accept(stream: TcpStream, picks: Option<&str>, seen: &Mutex<Vec<HeaderMap>>) -> Option<Socket> {
    let pick = |request: &Request, mut response: Response| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.headers().clone());
        if let Some(name) = picks {
            response.headers_mut().insert("sec-websocket-protocol", name.parse().expect("a header"));
        }
        Ok(response)
    };
    accept_hdr_async(stream, pick).await.ok()
}

/// Acknowledges until the other side has enough.
pub(crate) async fn acknowledge(mut socket: Socket) {
    while let Some(Ok(frame)) = socket.next().await {
        if frame.is_text() {
            let _ = socket.send(ack(&frame)).await;
        }
    }
}

/// Reads until the other side has enough, and says nothing but pongs.
pub(crate) async fn only_read(mut socket: Socket) {
    while let Some(Ok(_)) = socket.next().await {}
}

pub(crate) fn ack(frame: &Frame) -> Frame {
    Frame::text(serde_json::json!({ "ack": member(frame, "id") }).to_string())
}

/// A text in a frame of `callback.v1`.
pub(crate) fn member(frame: &Frame, name: &str) -> String {
    let frame: Value = serde_json::from_str(frame.to_text().expect("a text")).expect("an object");
    frame[name].as_str().expect("a text").to_owned()
}

pub(crate) fn close(code: u16) -> Frame {
    Frame::Close(Some(CloseFrame { code: code.into(), reason: "".into() }))
}

pub(crate) fn builder() -> WsSinkBuilder {
    WsSink::builder().policy(Policy::default().allow(Rule::loopback()))
}

pub(crate) fn sink() -> WsSink {
    builder().build().expect("a sink")
}

pub(crate) fn message(body: &str) -> Message {
    Message::builder("a.b").id(MessageId::new()).payload(body).build().expect("valid")
}

/// An attempt that has so many seconds.
pub(crate) fn within(seconds: u64) -> Attempt {
    Attempt::new(1, SystemTime::now(), Instant::now() + Duration::from_secs(seconds))
}

pub(crate) async fn deliver(sink: &WsSink, dsn: &Dsn, body: &str) -> Result<Receipt, SinkError> {
    sink.deliver(dsn, &message(body), &within(20)).await
}

/// Delivers as the engine does, again after each failure that may be one of the moment.
pub(crate) async fn deliver_at_last(sink: &WsSink, dsn: &Dsn, body: &str) -> Result<Receipt, SinkError> {
    let message = message(body);
    loop {
        match sink.deliver(dsn, &message, &within(20)).await {
            Err(error) if error.is_temporary() => tokio::time::sleep(Duration::from_millis(5)).await,
            ended => return ended,
        }
    }
}
