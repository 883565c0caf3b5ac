//! The service, a client and a receiver in one process: what goes over the wire, with times.

use async_trait::async_trait;
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use base64::{Engine, prelude::BASE64_STANDARD};
use callback_core::{
    Attempt, BoxError, Dsn, DsnError, Keys, Message, Policy, Receipt, Rule, Signer, Sink, SinkError, Verifier,
};
use callback_dispatch::TaskState;
use callback_examples::{OrderService, Server, Settings, Store};
use callback_http::HttpSink;
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

const REQUEST: &str = include_str!("../../../data/seed-request.json");
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const WORK: Duration = Duration::from_millis(500);

pub(crate) async fn run() -> Result<(), BoxError> {
    let folder = tempfile::Builder::new().prefix("order-service-").tempdir()?;
    let store = Store::Sqlite(folder.path().join("orders.db"));
    let signer: Signer = secret()?.parse()?;

    let (received, mut callbacks) = mpsc::channel(1);
    let receiver = Receiver { verifier: signer.verifier(), received };
    let webhook = Router::new().route("/order/callback", post(receive)).with_state(receiver);
    let webhook = Server::start(LOOPBACK, webhook).await?;

    let settings =
        Settings { listen: LOOPBACK, store: store.clone(), keys: Keys::from(signer), work: WORK, topic: None };
    let sink = StandIn {
        inner: HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build()?,
        receiver: webhook.address(),
    };
    let service = OrderService::start(settings, vec![Arc::new(sink)]).await?;
    println!("service   http://{}/rpc", service.address());
    println!("receiver  http://{}/order/callback, which stands in for https://example.com here", webhook.address());

    let begun = Instant::now();
    let at = || format!("{:>8.1} ms", begun.elapsed().as_secs_f64() * 1_000.0);
    println!("\n{}  request\n{}", at(), REQUEST.trim_end());

    let (status, answer) = call(service.address()).await?;
    let acknowledgment: Value = serde_json::from_str(&answer)?;
    let acknowledged = begun.elapsed();
    println!("\n{}  acknowledgment, {status}\n{acknowledgment:#}", at());
    let id = acknowledgment["result"]["callback"]["id"].as_str().unwrap_or_default().to_owned();
    expect(
        "the acknowledgment",
        &acknowledgment,
        &json!({ "jsonrpc": "2.0", "id": "example_order", "result": { "callback": {
            "id": id, "url": "https://example.com/order/callback", "status": true, "data": [],
        }}}),
    )?;
    if acknowledged >= WORK {
        return Err("the acknowledgment came after the work".into());
    }

    let callback = timeout(Duration::from_secs(10), callbacks.recv()).await.map_err(|_| "no callback came")?;
    let callback = callback.ok_or("no callback came")?;
    println!("\n{}  callback, its signature {}", at(), if callback.verified { "verified" } else { "WRONG" });
    for (name, value) in &callback.headers {
        println!("{name}: {value}");
    }
    println!("\n{}", callback.body);
    if !callback.verified {
        return Err("the signature is wrong".into());
    }
    expect(
        "the callback",
        &serde_json::from_str(&callback.body)?,
        &json!({ "jsonrpc": "2.0", "id": "example_order", "result": {
            "orderId": "12345", "status": "completed", "totalAmount": 99.99,
            "message": "Your order has been processed successfully.",
        }}),
    )?;

    let task = service.dispatcher().wait(id.parse()?).await?.ok_or("the task is not stored")?;
    println!("\n{}  task {id}: {:?}, stored in {store} (removed at the end)", at(), task.state());
    if task.state() != TaskState::Delivered {
        return Err("the task was not delivered".into());
    }
    service.stop(Duration::from_secs(5)).await;
    webhook.stop().await;
    println!("\n`order-service serve` goes on serving, and has a page for browsers.");
    Ok(())
}

/// Sends the request as it stands; status line and body of the answer.
async fn call(service: SocketAddr) -> Result<(String, String), BoxError> {
    let mut connection = TcpStream::connect(service).await?;
    let head = format!(
        "POST /rpc HTTP/1.1\r\nhost: {service}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        REQUEST.len()
    );
    connection.write_all(format!("{head}{REQUEST}").as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("the service gave no HTTP answer")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

fn expect(what: &str, found: &Value, expected: &Value) -> Result<(), BoxError> {
    if found == expected { Ok(()) } else { Err(format!("{what} should be {expected}, and is {found}").into()) }
}

/// A secret of this run's own.
fn secret() -> Result<String, BoxError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("whsec_{}", BASE64_STANDARD.encode(bytes)))
}

/// Delivers what is meant for `example.com` to the receiver of this process; policy and delivery are the HTTP sink's.
#[derive(Debug)]
struct StandIn {
    inner: HttpSink,
    receiver: SocketAddr,
}

#[async_trait]
impl Sink for StandIn {
    fn schemes(&self) -> &[&str] {
        self.inner.schemes()
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        self.inner.check(dsn)
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let here: Dsn = format!("http://{}{}", self.receiver, dsn.path()).parse()?;
        self.inner.deliver(&here, message, attempt).await
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.inner.close().await
    }
}

#[derive(Clone)]
struct Receiver {
    verifier: Verifier,
    received: mpsc::Sender<Callback>,
}

struct Callback {
    headers: Vec<(String, String)>,
    body: String,
    verified: bool,
}

/// The receiver: checks who speaks, and takes the callback.
async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (id, timestamp, signatures) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
    let verified = receiver.verifier.verify_headers(id, timestamp, signatures, &body, SystemTime::now()).is_ok();
    let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("…").to_owned()));
    let callback = Callback { headers: headers.collect(), body: String::from_utf8_lossy(&body).into_owned(), verified };
    match receiver.received.send(callback).await {
        Ok(()) if verified => StatusCode::NO_CONTENT,
        Ok(()) => StatusCode::UNAUTHORIZED,
        Err(_) => StatusCode::GONE,
    }
}
