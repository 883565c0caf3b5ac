//! Senders below HTTP: bytes in, bytes out.

use callback_http::HttpReceiver;
use callback_receive::{Receiver, ReceiverBuilder};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

/// A receiver on a port of its own, and where.
pub(crate) async fn open(builder: ReceiverBuilder) -> (Receiver, SocketAddr) {
    serve(HttpReceiver::bind("127.0.0.1:0", "http://127.0.0.1:0/in").await.expect("a free port"), builder).await
}

pub(crate) async fn serve(http: HttpReceiver, builder: ReceiverBuilder) -> (Receiver, SocketAddr) {
    let address = http.local_addr().expect("it listens");
    (builder.open(http).await.expect("it opens"), address)
}

/// An answer: status, head in lower case, body.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answered {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn read(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    }
}

/// The address and path of a URL on loopback.
pub(crate) fn place(url: &str) -> (SocketAddr, String) {
    let rest = url.strip_prefix("http://").expect("plain http");
    let (address, path) = rest.split_once('/').expect("a path");
    (address.parse().expect("an address"), format!("/{path}"))
}

/// Sends bytes, and reads to the end.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> Option<Answered> {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(bytes).await.expect("it reads");
    answer(&mut stream).await
}

/// Reads until the other side has said everything.
pub(crate) async fn answer(stream: &mut TcpStream) -> Option<Answered> {
    let mut text = Vec::new();
    // A connection that is reset has said what it has said.
    let _ = stream.read_to_end(&mut text).await;
    Answered::read(&String::from_utf8_lossy(&text))
}

/// The bytes of a request with these headers.
pub(crate) fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let (address, path) = place(url);
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{lines}\r\n{body}")
        .into_bytes()
}

pub(crate) async fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Answered {
    raw(place(url).0, &request(method, url, headers, body)).await.expect("it answers")
}

/// Posts a body under a delivery id, on a task of its own.
pub(crate) fn posting(url: &str, id: &str, body: &str) -> JoinHandle<Answered> {
    let (url, id, body) = (url.to_owned(), id.to_owned(), body.to_owned());
    tokio::spawn(async move { send("POST", &url, &[("webhook-id", &id)], &body).await })
}
