//! The suite `receive`: callbacks taken in over HTTP and handed over, beside handlers of axum and hyper that only read the
//! body; what a handle costs.

use crate::{
    Setting,
    report::{Bar, Report, median},
    system,
};
use axum::{Router, extract::Path, routing::post, serve::ListenerExt};
use bytes::Bytes;
use callback_core::BoxError;
use callback_http::HttpReceiver;
use callback_receive::{Callback, Receiver, SqliteInbox};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime,
    task::JoinSet,
};

/// How many senders there are, each with a connection.
const SENDERS: usize = 64;

/// How many callbacks go before what is measured.
const WARM_UP: usize = 2_000;

/// Who takes callbacks in.
#[derive(Clone, Copy)]
enum Contender {
    /// A route of axum with a parameter.
    Axum,
    /// A service of hyper.
    Hyper,
    /// Ours, of a handle that dies with its `Callback`.
    Spawned,
    /// Ours, of one that has an inbox.
    Named,
}

/// Who is measured beside whom.
const PAIRS: [(&str, Contender, Contender, Bar); 3] = [
    ("spawned_beside_axum", Contender::Axum, Contender::Spawned, Bar::AtLeast(0.80)),
    ("spawned_beside_hyper", Contender::Hyper, Contender::Spawned, Bar::None),
    ("named_beside_axum", Contender::Axum, Contender::Named, Bar::None),
];

/// Measures the suite.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    for (name, bare, own, bar) in PAIRS {
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        let count =
            |contender| round(setting, contender, 2 * WARM_UP).map(|rate| (rate * setting.seconds) as usize + 1);
        let (bares, owns) = (count(bare)?, count(own)?);
        for number in 1..=setting.rounds {
            let bare = round(setting, bare, bares)?;
            let rate = round(setting, own, owns)?;
            report.progress(format_args!("{name} round {number}: bare {bare:.0}/s, own {rate:.0}/s"));
            ratios.push(rate / bare);
            rates.push(rate);
        }
        report.figure(&format!("{name}_ratio"), median(ratios), "ratio", bar);
        report.figure(&format!("{name}_rate"), median(rates), "msg/s", Bar::None);
    }
    handles(setting, report)
}

/// Callbacks a second, from the first one sent to the last one answered.
fn round(setting: &Setting, contender: Contender, messages: usize) -> Result<f64, BoxError> {
    let (started, address) = std::sync::mpsc::channel();
    let folder = tempfile::tempdir_in(&setting.folder)?;
    let inbox = folder.path().join("inbox.db");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = thread::spawn(move || -> Result<(), BoxError> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let serve = async {
                match contender {
                    Contender::Axum => axum(&started).await,
                    Contender::Hyper => hyper(&started).await,
                    Contender::Spawned => {
                        let receiver = Receiver::builder().open(listener().await?).await?;
                        let callback = receiver.spawn();
                        take(callback, &started).await
                    }
                    Contender::Named => {
                        let builder = Receiver::builder().inbox(SqliteInbox::open(inbox).await?).backlog(usize::MAX);
                        let receiver = builder.open(listener().await?).await?;
                        let callback = receiver.expect("bench").await?;
                        take(callback, &started).await
                    }
                }
            };
            tokio::select! {
                ended = serve => ended,
                _ = stopped => Ok(()),
            }
        })
    });
    let url = address.recv()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let rate = runtime.block_on(async {
        send(&url, WARM_UP, "w").await?;
        let begun = Instant::now();
        send(&url, messages, "m").await?;
        Ok::<_, BoxError>(messages as f64 / begun.elapsed().as_secs_f64())
    });
    let _ = stop.send(());
    server.join().map_err(|_| "the server panicked")??;
    rate
}

async fn listener() -> Result<HttpReceiver, BoxError> {
    Ok(HttpReceiver::bind("127.0.0.1:0", "http://127.0.0.1:0").await?)
}

/// The waiting code: it accepts everything.
async fn take(mut callback: Callback, started: &std::sync::mpsc::Sender<String>) -> Result<(), BoxError> {
    started.send(callback.url())?;
    while let Some(delivery) = callback.next().await {
        delivery.accept().await?;
    }
    Ok(())
}

/// Axum, which finds the route, reads each body and answers 200.
async fn axum(started: &std::sync::mpsc::Sender<String>) -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    started.send(format!("http://{}/callback/0123456789abcdef", listener.local_addr()?))?;
    let take = |Path(_handle): Path<String>, _body: Bytes| async {};
    let listener = listener.tap_io(|stream| {
        // Slower without it, and no less right.
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, Router::new().route("/callback/{handle}", post(take))).await?)
}

/// Hyper, which reads each body and answers 200.
async fn hyper(started: &std::sync::mpsc::Sender<String>) -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    started.send(format!("http://{}/callback", listener.local_addr()?))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| async move {
                let _body = request.into_body().collect().await;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            });
            // A client that goes away is no matter.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Sends callbacks over connections of its own, each with an id of its own; an error unless each is answered with 200.
async fn send(url: &str, messages: usize, prefix: &'static str) -> Result<(), BoxError> {
    let rest = url.strip_prefix("http://").ok_or("plain http")?;
    let (address, path) = rest.split_once('/').ok_or("a path")?;
    let address: SocketAddr = address.parse()?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (next, path) = (Arc::clone(&next), path.to_owned());
        senders.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let body = "x".repeat(512);
            let mut answer = Vec::with_capacity(1_024);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= messages {
                    return Ok::<_, BoxError>(());
                }
                let request = format!(
                    "POST /{path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 512\r\n\
                     webhook-id: {prefix}{number}\r\nce-specversion: 1.0\r\nce-id: {prefix}{number}\r\n\
                     ce-type: callback.task.completed\r\nce-source: /\r\nce-time: 2026-01-01T00:00:00.123456Z\r\n\
                     ce-subject: {prefix}{number}\r\ncallback-attempt: 1\r\n\r\n{body}"
                );
                stream.write_all(request.as_bytes()).await?;
                answer.clear();
                while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
                    if stream.read_buf(&mut answer).await? == 0 {
                        return Err("the connection ended".into());
                    }
                }
                if !answer.starts_with(b"HTTP/1.1 200") {
                    return Err(String::from_utf8_lossy(&answer).into_owned().into());
                }
            }
        });
    }
    while let Some(sender) = senders.join_next().await {
        sender??;
    }
    Ok(())
}

/// What an open handle costs, of a million.
fn handles(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let count: usize = if setting.is_quick() { 100_000 } else { 1_000_000 };
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let receiver = Receiver::builder().open(listener().await?).await?;
        let before = system::resident().unwrap_or(f64::NAN);
        let begun = Instant::now();
        let handles: Vec<Callback> = (0..count).map(|_| receiver.spawn()).collect();
        let took = begun.elapsed();
        let after = system::resident().unwrap_or(f64::NAN);
        report.figure("open_handles", handles.len() as f64, "", Bar::None);
        report.figure("bytes_per_handle", (after - before) * 1_048_576.0 / count as f64, "B", Bar::None);
        report.figure("spawn", took.as_secs_f64() * 1e6 / count as f64, "us", Bar::None);
        drop(handles);
        receiver.close(Duration::from_secs(5)).await?;
        Ok(())
    })
}
