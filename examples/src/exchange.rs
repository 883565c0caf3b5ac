//! Both ends of an HTTP exchange, as text, for programs that show what goes over the wire.
#![expect(clippy::print_stdout, reason = "programs for people print with it")]

use crate::Server;
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use std::{
    error::Error,
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Sends a request line, headers and a body; prints both ends of the exchange.
///
/// The head ends without a line break; `host`, `content-length` and `connection` are added to it. The answer: its status, its
/// head, and its body.
///
/// # Errors
/// When there is no HTTP answer.
pub async fn exchange(server: SocketAddr, head: &str, body: &str) -> Result<(u16, String, String), BoxError> {
    println!("\n> {}\n{body}", head.replace('\n', "\n> "));
    let mut connection = TcpStream::connect(server).await?;
    let head = head.replace('\n', "\r\n");
    let length = body.len();
    let request = format!("{head}\r\nhost: {server}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the service gave no HTTP answer")?;
    println!("\n< {}\n{body}", head.replace("\r\n", "\n< "));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("the answer has no status")?;
    Ok((status, head.to_owned(), body.to_owned()))
}

/// A webhook on a free port of this machine, which answers everything with one status.
#[derive(Debug)]
pub struct Hook {
    server: Server,
    received: mpsc::Receiver<(HeaderMap, Bytes)>,
}

impl Hook {
    /// Listens at this path.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(path: &str, status: StatusCode) -> io::Result<Self> {
        let (sender, received) = mpsc::channel(16);
        let take = async move |State(sender): State<mpsc::Sender<_>>, headers: HeaderMap, body: Bytes| {
            if sender.send((headers, body)).await.is_ok() { status } else { StatusCode::GONE }
        };
        let server =
            Server::start((Ipv4Addr::LOCALHOST, 0).into(), Router::new().route(path, post(take)).with_state(sender));
        Ok(Self { server: server.await?, received })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The next request; prints it.
    ///
    /// # Errors
    /// When none comes within 10 s.
    pub async fn next(&mut self) -> Result<(HeaderMap, Bytes), BoxError> {
        let next = timeout(Duration::from_secs(10), self.received.recv()).await.map_err(|_| "no callback came")?;
        let (headers, body) = next.ok_or("no callback came")?;
        println!("\n> POST, to the receiver");
        for (name, value) in &headers {
            println!("> {name}: {}", value.to_str().unwrap_or("…"));
        }
        println!("{}", String::from_utf8_lossy(&body));
        Ok((headers, body))
    }
}
