//! Senders below our sink, and receivers for them.

use callback_receive::{Callback, Delivery, Receiver, ReceiverBuilder};
use callback_ws::{WsReceiver, WsReceiverBuilder};
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{ClientRequestBuilder, Error, Message as Frame},
};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Waits, but not for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it comes in time")
}

/// A receiver on a port of its own.
pub(crate) async fn open(builder: ReceiverBuilder) -> Receiver {
    open_with(WsReceiver::builder(), builder).await
}

pub(crate) async fn open_with(ws: WsReceiverBuilder, builder: ReceiverBuilder) -> Receiver {
    let ws = ws.bind("127.0.0.1:0", "ws://127.0.0.1:0/in").await.expect("a free port");
    builder.open(ws).await.expect("it opens")
}

/// The address and path of a URL on loopback.
pub(crate) fn place(url: &str) -> (SocketAddr, String) {
    let rest = url.strip_prefix("ws://").expect("plain ws");
    let (address, path) = rest.split_once('/').expect("a path");
    (address.parse().expect("an address"), format!("/{path}"))
}

/// A message that waits for its verdict.
pub(crate) async fn delivery(callback: &mut Callback) -> Delivery {
    soon(callback.next()).await.expect("open")
}

#[track_caller]
pub(crate) fn nothing_came(callback: &mut Callback) {
    assert!(callback.next().now_or_never().is_none());
}

/// A frame of `callback.v1` with the least that it must have.
pub(crate) fn frame(id: &str, body: &str) -> String {
    json!({ "id": id, "type": "order.completed", "body": body }).to_string()
}

/// Sends a request without a WebSocket library, and reads status and head (in lower case) of its answer.
pub(crate) async fn request(address: SocketAddr, bytes: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(bytes).await.expect("it reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("ASCII").to_ascii_lowercase();
    Some((head.split(' ').nth(1)?.parse().expect("a status"), head))
}

/// An open socket at a handle.
pub(crate) struct Sender {
    socket: WebSocketStream<TcpStream>,
    /// What the receiver picked.
    pub(crate) subprotocol: String,
}

impl Sender {
    /// Speaks `callback.v1`.
    pub(crate) async fn open(url: &str) -> Self {
        Self::offering(url, &["callback.v1"]).await.expect("it opens")
    }

    /// Offers these; the status where no socket is opened.
    pub(crate) async fn offering(url: &str, subprotocols: &[&str]) -> Result<Self, u16> {
        let mut request = ClientRequestBuilder::new(url.parse().expect("a URL"));
        for name in subprotocols {
            request = request.with_sub_protocol(*name);
        }
        let stream = TcpStream::connect(place(url).0).await.expect("it listens");
        match soon(client_async(request, stream)).await {
            Ok((socket, answer)) => {
                let subprotocol = answer.headers()["sec-websocket-protocol"].to_str().expect("a name").to_owned();
                Ok(Self { socket, subprotocol })
            }
            Err(Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn send(&mut self, text: impl Into<String>) {
        self.send_frame(Frame::text(text.into())).await;
    }

    pub(crate) async fn send_frame(&mut self, frame: Frame) {
        soon(self.socket.send(frame)).await.expect("it is open");
    }

    /// The next frame that is no ping.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            match soon(self.socket.next()).await?.ok()? {
                Frame::Ping(_) => {}
                frame => return Some(frame),
            }
        }
    }

    pub(crate) async fn answer(&mut self) -> Value {
        let frame = self.next().await.expect("open");
        serde_json::from_str(frame.to_text().expect("a text")).expect("JSON")
    }

    /// Sends a message, and reads the answer.
    pub(crate) async fn tell(&mut self, text: impl Into<String>) -> Value {
        self.send(text).await;
        self.answer().await
    }

    /// The code of the close that comes next, perhaps after a pong that answers no ping.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await.expect("it says why") {
                Frame::Close(Some(close)) => return close.code.into(),
                Frame::Pong(payload) => assert_eq!(&payload[..], b"not taken"),
                frame => panic!("{frame:?}"),
            }
        }
    }

    /// The connection below.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.socket.into_inner()
    }
}

/// Takes and accepts one callback from an honest sender.
pub(crate) async fn serves(callback: &mut Callback, id: &str) {
    let mut sender = Sender::open(&callback.url()).await;
    sender.send(frame(id, "x")).await;
    let delivery = delivery(callback).await;
    assert_eq!(delivery.accept().await.expect("direct").id().as_str(), id);
    assert_eq!(sender.answer().await, json!({ "ack": id }));
}
