//! The suite `ws`: what `WsSink` costs beside a bare tungstenite writer that waits for the same acknowledgments.

use crate::{
    Setting,
    bare::take_one,
    report::{Bar, Report, median},
    system::{self, Processors},
};
use bytes::Bytes;
use callback_core::{Attempt, BoxError, Dsn, Message, MessageId, Payload, Policy, Rule, Signer, Sink};
use callback_ws::WsSink;
use futures_util::{FutureExt, SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
    thread,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    task::JoinSet,
};
use tokio_tungstenite::{
    accept_hdr_async, client_async,
    tungstenite::{
        Message as Frame,
        client::IntoClientRequest,
        handshake::server::{Request, Response},
    },
};

/// How many frames are unacknowledged at once, whoever sends them.
const IN_FLIGHT: usize = 256;

/// How many messages go before what is measured.
const WARM_UP: usize = 10_000;

const SUBJECT: &str = "0198c7e8-2f4b-7d7a-9a41-1b1c3c8d9e0f";
const DEADLINE: Duration = Duration::from_secs(20);

/// Measures the suite, against a server in this process.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let address = serve()?;
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let processors = Processors::now();
        let bench = Bench::new(address)?;
        bench.compare(setting, report).await?;
        bench.sink.close().await?;
        let others = processors.and_then(|processors| processors.used_by_others());
        report.figure("others_cpu", others.unwrap_or(f64::NAN), "%", Bar::None);
        Ok(())
    })
}

/// A server on a thread of its own, which acknowledges every frame.
fn serve() -> Result<SocketAddr, BoxError> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        runtime.block_on(async {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(acknowledge(stream));
            }
        });
    });
    Ok(address)
}

#[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
async fn acknowledge(stream: TcpStream) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let pick = |_: &Request, mut response: Response| {
        response.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static("callback.v1"));
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, pick).await?;
    while let Some(frame) = socket.next().await {
        let mut frame = Some(frame);
        // What has come in by now is answered at once.
        while let Some(read) = frame {
            let read = read?;
            if let Frame::Text(text) = &read {
                let Id { id } = serde_json::from_str(text)?;
                socket.feed(Frame::text(format!(r#"{{"ack":"{id}"}}"#))).await?;
            }
            frame = socket.next().now_or_never().flatten();
        }
        socket.flush().await?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Id<'a> {
    id: &'a str,
}

#[derive(Deserialize)]
struct Ack<'a> {
    ack: &'a str,
}

/// The members of a frame of `callback.v1`.
#[derive(Serialize)]
struct Sent<'a> {
    id: &'a str,
    specversion: &'a str,
    eventid: &'a str,
    timestamp: u64,
    signature: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    source: &'a str,
    time: &'a str,
    subject: &'a str,
    datacontenttype: &'a str,
    attempt: u32,
    body: &'a str,
}

/// What both contenders share.
#[derive(Clone)]
struct Bench {
    sink: WsSink,
    dsn: Dsn,
    address: SocketAddr,
    signer: Signer,
    body: Bytes,
}

/// What a round came to.
struct Sample {
    /// Messages a second.
    rate: f64,
    /// Processor time a message, in microseconds, the server's included.
    cost: f64,
}

impl Bench {
    fn new(address: SocketAddr) -> Result<Self, BoxError> {
        let head = r#"{"orderId":"12345","status":"completed","note":""#;
        Ok(Self {
            sink: WsSink::builder().policy(Policy::default().allow(Rule::loopback())).build()?,
            dsn: format!("ws://{address}/").parse()?,
            address,
            signer: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?,
            body: format!("{head}{}\"}}", "x".repeat(512 - head.len() - 2)).into(),
        })
    }

    /// Measures the sink against the bare writer, round by round.
    async fn compare(&self, setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
        let rate = self.bare(WARM_UP).await?.rate;
        self.own(WARM_UP).await?;
        let messages = (rate * setting.seconds) as usize + 1;
        let (mut bares, mut owns) = (Vec::new(), Vec::new());
        for round in 1..=setting.rounds {
            let (bare, own) = (self.bare(messages).await?, self.own(messages).await?);
            report.progress(format_args!(
                "round {round} of {}: bare {:.0}/s, own {:.0}/s, ratio {:.3}",
                setting.rounds,
                bare.rate,
                own.rate,
                own.rate / bare.rate
            ));
            bares.push(bare);
            owns.push(own);
        }
        let of = |samples: &[Sample], value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        let ratio = median(owns.iter().zip(&bares).map(|(own, bare)| own.rate / bare.rate).collect());
        report.figure("ratio", ratio, "ratio", Bar::AtLeast(0.85));
        report.figure("rate", of(&owns, |own| own.rate), "msg/s", Bar::None);
        report.figure("bare_rate", of(&bares, |bare| bare.rate), "msg/s", Bar::None);
        report.figure("cpu", of(&owns, |own| own.cost), "us", Bar::None);
        report.figure("bare_cpu", of(&bares, |bare| bare.cost), "us", Bar::None);
        Ok(())
    }

    async fn own(&self, messages: usize) -> Result<Sample, BoxError> {
        let (began, left, mut senders) = (Began::now(), Arc::new(AtomicUsize::new(messages)), JoinSet::new());
        for _ in 0..IN_FLIGHT {
            let (bench, left) = (self.clone(), Arc::clone(&left));
            senders.spawn(async move {
                while take_one(&left) {
                    bench.deliver().await?;
                }
                Ok::<_, BoxError>(())
            });
        }
        began.end(senders, messages).await
    }

    /// One task that keeps the window full, flushes once a batch, and reads what has come in at once.
    async fn bare(&self, messages: usize) -> Result<Sample, BoxError> {
        let (began, mut senders, bench) = (Began::now(), JoinSet::new(), self.clone());
        senders.spawn(async move {
            let stream = TcpStream::connect(bench.address).await?;
            stream.set_nodelay(true)?;
            let mut request = format!("ws://{}/", bench.address).into_client_request()?;
            request.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static("callback.v1"));
            let (mut socket, _) = client_async(request, stream).await?;
            let (mut left, mut unacknowledged) = (messages, HashSet::with_capacity(IN_FLIGHT));
            while left > 0 || !unacknowledged.is_empty() {
                while left > 0 && unacknowledged.len() < IN_FLIGHT {
                    let id = MessageId::new();
                    socket.feed(bench.frame(&id)?).await?;
                    unacknowledged.insert(id.as_str().to_owned());
                    left -= 1;
                }
                socket.flush().await?;
                let mut read = socket.next().await;
                while let Some(frame) = read {
                    let frame = frame?;
                    let Ack { ack } = serde_json::from_str(frame.to_text()?)?;
                    unacknowledged.remove(ack);
                    read = socket.next().now_or_never().flatten();
                }
            }
            socket.close(None).await?;
            Ok::<_, BoxError>(())
        });
        began.end(senders, messages).await
    }

    async fn deliver(&self) -> Result<(), BoxError> {
        let payload = Payload::new("application/json", self.body.clone());
        let message = Message::builder("callback.task.completed").payload(payload).subject(SUBJECT).build()?;
        let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + DEADLINE).sign(&self.signer, &message);
        self.sink.deliver(&self.dsn, &message, &attempt).await?;
        Ok(())
    }

    /// A frame with the sink's members.
    fn frame(&self, id: &MessageId) -> Result<Frame, BoxError> {
        let now = SystemTime::now();
        let frame = Sent {
            id: id.as_str(),
            specversion: "1.0",
            eventid: id.as_str(),
            timestamp: now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
            signature: &self.signer.sign(id, now, &self.body),
            event_type: "callback.task.completed",
            source: "/",
            time: "2026-01-01T00:00:00.123456Z",
            subject: SUBJECT,
            datacontenttype: "application/json",
            attempt: 1,
            body: std::str::from_utf8(&self.body)?,
        };
        Ok(Frame::text(serde_json::to_string(&frame)?))
    }
}

/// When a round began.
struct Began {
    time: Instant,
    worked: Duration,
}

impl Began {
    fn now() -> Self {
        Self { time: Instant::now(), worked: system::processor_time().unwrap_or_default() }
    }

    async fn end(self, mut senders: JoinSet<Result<(), BoxError>>, messages: usize) -> Result<Sample, BoxError> {
        while let Some(sender) = senders.join_next().await {
            sender??;
        }
        let worked = system::processor_time().unwrap_or_default().saturating_sub(self.worked);
        let messages = messages as f64;
        Ok(Sample { rate: messages / self.time.elapsed().as_secs_f64(), cost: worked.as_secs_f64() * 1e6 / messages })
    }
}
