//! Clients of a hub, over sockets.

use crate::peer::{Socket, ack};
use axum::Router;
use callback_core::{Dsn, Schedule};
use callback_dispatch::{DeadLetter, DeadLetterQuery, Dispatcher, DispatcherBuilder, Event, MemoryOutbox, Outbox};
use callback_ws::{Hub, HubBuilder};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{
        Error, Message as Frame,
        client::IntoClientRequest,
        http::{Request, header::HeaderName},
    },
};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A hub with its dispatcher, and a server in front at `/session`.
pub(crate) struct Service {
    pub(crate) hub: Hub,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Service {
    pub(crate) async fn start(hub: HubBuilder) -> Self {
        Self::with(hub, MemoryOutbox::new(), |dispatcher| {
            dispatcher.schedule(Schedule::new(vec![Duration::from_millis(100)]).expect("a schedule"))
        })
        .await
    }

    pub(crate) async fn with(
        hub: HubBuilder,
        outbox: impl Outbox,
        set: impl FnOnce(DispatcherBuilder) -> DispatcherBuilder,
    ) -> Self {
        let hub = hub.build().expect("a hub");
        let dispatcher = set(Dispatcher::builder(outbox).local_sink(hub.clone())).start().await.expect("started");
        let router = Router::new().nest("/session", hub.router(&dispatcher));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("served") });
        Self { hub, dispatcher, address, _serving: serving }
    }

    /// A client that has begun a session.
    pub(crate) async fn begin(&self) -> Client {
        greet(self.address, None).await.expect("a session")
    }

    /// A client that comes back with a secret, or the code that it is closed with.
    pub(crate) async fn resume(&self, secret: &str) -> Result<Client, u16> {
        greet(self.address, Some(secret)).await
    }

    pub(crate) async fn publish(&self, dsn: &Dsn, body: &str) -> String {
        let event = Event::to(dsn.clone(), "test.happened", body);
        self.dispatcher.publish(event).await.expect("stored").to_string()
    }

    pub(crate) async fn dead(&self) -> Vec<DeadLetter> {
        self.dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("listed").items
    }

    /// Waits until so many clients are connected.
    pub(crate) async fn until_connected(&self, clients: usize) {
        until(async || self.hub.connected() == clients).await;
    }
}

/// Waits until something is so.
#[expect(clippy::future_not_send, reason = "each test waits on one thread")]
pub(crate) async fn until(is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it comes to that");
}

/// A client with a session.
pub(crate) struct Client {
    pub(crate) socket: Socket,
    pub(crate) dsn: Dsn,
    pub(crate) secret: String,
    pub(crate) welcome: Value,
}

/// The request for a socket, with more headers.
pub(crate) fn request(address: SocketAddr, more: &[(&str, &str)]) -> Request<()> {
    let mut request = format!("ws://{address}/session").into_client_request().expect("a request");
    for (name, value) in [("sec-websocket-protocol", "callback.v1")].iter().chain(more) {
        let name: HeaderName = name.parse().expect("a name");
        request.headers_mut().insert(name, value.parse().expect("a value"));
    }
    request
}

/// A socket on which nothing was said, or the status that refuses it.
pub(crate) async fn open(address: SocketAddr, request: Request<()>) -> Result<Socket, u16> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    match client_async(request, stream).await {
        Ok((socket, response)) => {
            assert_eq!(response.headers()["sec-websocket-protocol"], "callback.v1");
            Ok(socket)
        }
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

pub(crate) async fn greet(address: SocketAddr, secret: Option<&str>) -> Result<Client, u16> {
    let mut socket = open(address, request(address, &[])).await?;
    let hello = serde_json::json!({ "resume": secret });
    socket.send(Frame::text(hello.to_string())).await.expect("sent");
    match read(&mut socket).await {
        Ok(welcome) => Ok(Client {
            dsn: welcome["session"].as_str().expect("a session").parse().expect("a Dsn"),
            secret: welcome["resume"].as_str().expect("a secret").to_owned(),
            welcome,
            socket,
        }),
        Err(code) => Err(code),
    }
}

/// The next frame that is a text, or the code of the close.
pub(crate) async fn read(socket: &mut Socket) -> Result<Value, u16> {
    loop {
        let frame = timeout(PATIENCE, socket.next()).await.expect("in time").expect("it says goodbye");
        match frame.expect("a frame") {
            Frame::Text(text) => return Ok(serde_json::from_str(&text).expect("JSON")),
            Frame::Close(close) => return Err(close.map_or(1005, |close| close.code.into())),
            _ => {}
        }
    }
}

impl Client {
    /// The body of the next message, which is acknowledged.
    pub(crate) async fn next(&mut self) -> String {
        let message = self.peek().await;
        let id = message["id"].as_str().expect("an id");
        self.say(&serde_json::json!({ "ack": id }).to_string()).await;
        message["body"].as_str().expect("a body").to_owned()
    }

    /// The next message, which is not acknowledged.
    pub(crate) async fn peek(&mut self) -> Value {
        read(&mut self.socket).await.expect("a message")
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.socket.send(Frame::text(text)).await.expect("sent");
    }

    /// The code that it is closed with.
    pub(crate) async fn code(&mut self) -> u16 {
        read(&mut self.socket).await.expect_err("closed")
    }

    /// Acknowledges until it is closed.
    pub(crate) async fn acknowledge(mut self) {
        while let Some(Ok(frame)) = self.socket.next().await {
            if frame.is_text() {
                let _ = self.socket.send(ack(&frame)).await;
            }
        }
    }
}
