//! Receivers that mean harm: each costs one attempt until its deadline, a bounded memory, and nobody else anything.
//!
//! What the sink says of those that drip, never end or never answer is in `answers.rs`, of names that are bound anew in
//! `policy.rs`.

#[cfg(all(feature = "server", target_os = "linux"))]
mod memory;

use crate::{
    receiver::{Raw, Receiver, status},
    sink::{deliver, failed, sink},
    tls::{acceptor_of_a_ca, trusting},
};
use callback_core::{Dsn, ErrorKind, Phase};
use http::{HeaderValue, StatusCode, header};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

#[tokio::test]
async fn a_redirect_to_a_clouds_metadata_is_refused() {
    for code in [301, 302, 303, 307, 308] {
        let receiver = Receiver::answering(move |_| {
            let mut answer = status(StatusCode::from_u16(code).expect("a status"));
            let target = HeaderValue::from_static("http://169.254.169.254/latest/meta-data/");
            answer.headers_mut().insert(header::LOCATION, target);
            answer
        })
        .await;
        let error = failed(deliver(&sink(), &receiver.dsn("/")).await, ErrorKind::Refused, Some(Phase::Answer));
        assert_eq!(error.status(), Some(code));
    }
}

/// What is no gzip at all would be an error if anybody unpacked it: a bomb stays as small as it is sent.
#[tokio::test]
async fn an_answer_is_never_unpacked() {
    for encoding in ["gzip", "br", "zstd", "deflate"] {
        let mut receiver = Receiver::answering(move |_| {
            let mut answer = status(StatusCode::OK);
            answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
            *answer.body_mut() = "no archive".into();
            answer
        })
        .await;
        assert_eq!(deliver(&sink(), &receiver.dsn("/")).await.expect("delivered").status(), Some(200));
        assert_eq!(receiver.next().await.header("accept-encoding"), None);
    }
}

/// Resets each connection once so many bytes came.
async fn resetting_after(bytes: usize) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut read = vec![0; bytes];
            if stream.read_exact(&mut read).await.is_ok() {
                stream.set_zero_linger().expect("set");
            }
        }
    });
    (address, serving)
}

#[tokio::test]
async fn a_reset_is_a_failure_of_the_receiver_in_each_phase() {
    let (root, _acceptor) = acceptor_of_a_ca("127.0.0.1", &[]);
    // Before and within the handshake or the request.
    for bytes in [0, 1, 20] {
        let (address, _serving) = resetting_after(bytes).await;
        for scheme in ["http", "https"] {
            let dsn: Dsn = format!("{scheme}://{address}/").parse().expect("a Dsn");
            let error = deliver(&trusting(&root), &dsn).await.expect_err("no receipt");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{scheme}, {bytes}: {error:?}");
        }
    }
    // Within the answer.
    for said in [
        "",
        "HTTP/1.1 200 OK\r\nx: ",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
    ] {
        let server = Raw::start(move |mut stream: TcpStream| async move {
            let _ = stream.write_all(said.as_bytes()).await;
            stream.set_zero_linger().expect("set");
        })
        .await;
        let error = deliver(&sink(), &server.dsn()).await.expect_err("no receipt");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{said:?}: {error:?}");
    }
}

/// What a client says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames (RFC 9113 §6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

/// Frames of HTTP/2 that answer a request: the first once, then the others until nobody takes them.
type Frames = fn(stream: [u8; 4]) -> (Vec<u8>, Vec<u8>);

/// A server of HTTP/2 that answers each request with these frames, whatever the protocol says.
struct Framing {
    dsn: Dsn,
    answered: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

impl Framing {
    async fn start(acceptor: TlsAcceptor, frames: Frames) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let dsn = format!("https://{}/", listener.local_addr().expect("bound")).parse().expect("a Dsn");
        let answered = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&answered);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                serving.spawn(answer_in_frames(stream, acceptor.clone(), frames, Arc::clone(&counter)));
            }
        });
        Self { dsn, answered, _accepting: accepting }
    }

    /// How many requests were answered.
    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }
}

/// Ends when the client leaves.
async fn answer_in_frames(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    frames: Frames,
    answered: Arc<AtomicUsize>,
) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    assert_eq!(preface, PREFACE);
    stream.write_all(&frame(SETTINGS, 0, [0; 4], &[])).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] == HEADERS {
            answered.fetch_add(1, Ordering::SeqCst);
            let (once, repeated) = frames([head[5], head[6], head[7], head[8]]);
            stream.write_all(&once).await?;
            while !repeated.is_empty() {
                stream.write_all(&repeated).await?;
            }
        }
    }
}

/// One frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// Resets the stream with CANCEL, many times over.
fn resets(stream: [u8; 4]) -> (Vec<u8>, Vec<u8>) {
    (frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]).repeat(5_000), Vec::new())
}

#[tokio::test]
async fn a_server_that_resets_every_stream_is_a_failure_of_the_receiver() {
    let (root, acceptor) = acceptor_of_a_ca("127.0.0.1", &[b"h2"]);
    let server = Framing::start(acceptor, resets).await;
    let sink = trusting(&root);
    for _ in 0..20 {
        let error = deliver(&sink, &server.dsn).await.expect_err("no receipt");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    assert_eq!(server.answered(), 20);
    // The sink is as good as before.
    let receiver = Receiver::start().await;
    deliver(&sink, &receiver.dsn("/")).await.expect("delivered");
}

/// A setting of HTTP/2 that says how much may be sent of one answer (RFC 9113 §6.5.2).
const INITIAL_WINDOW_SIZE: u16 = 4;

#[tokio::test]
async fn an_answer_in_http_2_fills_no_more_memory_than_is_read_of_it() {
    let (root, acceptor) = acceptor_of_a_ca("127.0.0.1", &[b"h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let dsn: Dsn = format!("https://{}/", listener.local_addr().expect("bound")).parse().expect("a Dsn");
    let window = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = acceptor.accept(stream).await.expect("TLS");
        let mut begin = [0; PREFACE.len() + 9];
        stream.read_exact(&mut begin).await.expect("the preface, and the head of a frame");
        let [.., high, low, kind, _, _, _, _, _] = begin;
        assert_eq!(kind, SETTINGS);
        let mut settings = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        stream.read_exact(&mut settings).await.expect("settings");
        let mut settings = settings.chunks(6);
        let window = settings.find(|setting| setting[..2] == INITIAL_WINDOW_SIZE.to_be_bytes()).expect("it is set");
        u32::from_be_bytes([window[2], window[3], window[4], window[5]])
    };
    let sink = trusting(&root);
    let (window, _) = tokio::join!(window, deliver(&sink, &dsn));
    assert_eq!(window, 64 << 10);
}

/// Attempts at the hostile ones last for as long as the test: no deadline helps.
#[cfg(feature = "server")]
#[tokio::test]
async fn a_subscriber_whose_receiver_is_hostile_delays_no_other() {
    use callback_dispatch::{Dispatcher, Event, MemoryOutbox, NewSubscription};
    use std::time::Duration;
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink()).deadline(Duration::from_secs(3600));
    let dispatcher = dispatcher.start().await.expect("started");
    let mut hostile = Vec::new();
    for answer in ["", "HTTP/1.1 200 OK\r\nx: ", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"] {
        let server = Raw::start(move |mut stream: TcpStream| async move {
            let _ = stream.write_all(answer.as_bytes()).await;
            std::future::pending::<()>().await;
        })
        .await;
        let subscription = NewSubscription::new(server.dsn());
        dispatcher.subscriptions().create(subscription).await.expect("created");
        hostile.push(server);
    }
    let mut receiver = Receiver::start().await;
    dispatcher.subscriptions().create(NewSubscription::new(receiver.dsn("/"))).await.expect("created");
    for number in 0..50 {
        dispatcher.publish(Event::new("a", serde_json::json!(number))).await.expect("published");
    }
    let mut received = Vec::new();
    for _ in 0..50 {
        received.push(receiver.next().await.json().as_u64().expect("a number"));
    }
    received.sort_unstable();
    assert!(received.into_iter().eq(0..50));
    dispatcher.close(Duration::ZERO).await;
}
