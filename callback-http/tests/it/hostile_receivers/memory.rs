//! All of them together, through a dispatcher: each attempt ends, and the process stays small.

use super::*;
use crate::{answers::saying, policy::Scripted, receiver::PATIENCE};
use callback_core::{
    ErrorKind::{Forbidden, Refused, TimedOut, Unavailable},
    Policy, Rule, Schedule,
};
use callback_dispatch::{Dispatcher, Interrupted, Lane, MemoryOutbox, Task, TaskState, Work, Worker};
use callback_http::HttpSink;
use futures_util::future::join_all;
use std::{fs, process::Command, time::Duration};
use tokio::time::timeout;

/// How many attempts are made at each; one at a time, as at all whom nothing ever reached.
const ATTEMPTS: usize = 3;

/// How much the process may grow, in KiB: what its attempts may hold, servers included, and no more.
const GROWTH: u64 = 16 << 10;

#[test]
fn hostile_receivers_cost_a_bounded_memory() {
    // A process of its own, whose memory nobody else uses.
    let run = ["hostile_receivers::memory::outlasts_hostile_receivers", "--exact", "--ignored", "--nocapture"];
    let program = std::env::current_exe().expect("this test");
    let output = Command::new(program).args(run).output().expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// What a delivery comes to: delivered, or dead for the kind of its one attempt.
type End = Option<ErrorKind>;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `hostile_receivers_cost_a_bounded_memory`"]
async fn outlasts_hostile_receivers() {
    let (root, acceptor) = acceptor_of_a_ca("127.0.0.1", &[b"h2"]);
    let resolver = Scripted::new(&[&["169.254.169.254"]]);
    let policy = Policy::default().allow(Rule::loopback()).allow("hook.example".parse().expect("a rule"));
    let sink = HttpSink::builder().policy(policy.resolver(resolver)).root_certificates(root).build().expect("a sink");
    // Who would not end in time is soon given up; for the others a busy machine has time enough.
    let (hasty, patient) = (Duration::from_secs(1), PATIENCE / 2);
    let (hasty, patient) = (Sender::start(&sink, hasty).await, Sender::start(&sink, patient).await);

    // What any delivery costs is there before it is measured.
    let (friend, tls) = (Receiver::start().await, Receiver::tls(acceptor.clone()).await);
    let secure = format!("https://127.0.0.1:{}/", tls.port()).parse().expect("a Dsn");
    for dsn in [friend.dsn("/"), secure] {
        patient.check("a friend", &dsn, &[None]).await;
    }
    let before = peak();
    let ((mut receivers, _serving), (framed, framing)) = (hostile().await, framed(&acceptor).await);
    receivers.extend(framed);
    let (slow, quick): (Vec<_>, Vec<_>) = receivers.iter().partition(|(_, _, ends)| ends.contains(&Some(TimedOut)));
    join_all(slow.iter().map(|(name, dsn, ends)| hasty.check(name, dsn, ends))).await;
    join_all(quick.iter().map(|(name, dsn, ends)| patient.check(name, dsn, ends))).await;
    assert!(framing.iter().all(|server| server.answered() > 0), "HTTP/2 was spoken to each");
    let growth = peak() - before;
    assert!(growth < GROWTH, "grown by {growth} KiB");
}

/// A dispatcher that makes one attempt for each task.
struct Sender {
    dispatcher: Dispatcher,
    worker: Worker,
}

impl Sender {
    async fn start(sink: &HttpSink, deadline: Duration) -> Self {
        let dispatcher = Dispatcher::builder(MemoryOutbox::new())
            .sink(sink.clone())
            .schedule(Schedule::new([]).expect("one attempt"))
            .lane(Lane::default().breaker(10_000, Duration::from_secs(1)))
            .deadline(deadline);
        let dispatcher = dispatcher.start().await.expect("started");
        let worker = dispatcher.worker("work", Interrupted::RunAgain);
        let worker = worker.run(async |task: Task| Ok::<_, String>(task.payload().clone())).expect("registered");
        Self { dispatcher, worker }
    }

    /// That each attempt ends, and in one of these ways.
    async fn check(&self, name: &str, dsn: &Dsn, ends: &[End]) {
        let mut tasks = Vec::new();
        for _ in 0..ATTEMPTS {
            tasks.push(self.worker.accept(Work::new("x").callback(dsn.clone())).await.expect("accepted").id());
        }
        for id in tasks {
            let task = timeout(PATIENCE, self.dispatcher.wait(id)).await;
            let task = task.unwrap_or_else(|_| panic!("{name}: it does not end")).expect("readable").expect("kept");
            let letter = self.dispatcher.dead_letters().get(id).await.expect("readable");
            let state = if letter.is_some() { TaskState::Dead } else { TaskState::Delivered };
            assert_eq!(task.state(), state, "{name}");
            assert!(ends.contains(&letter.as_ref().map(|letter| letter.kind)), "{name}: {letter:?}");
        }
    }
}

/// The most memory that this process ever had, in KiB (proc(5), `VmHWM`).
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

type Hostile = (&'static str, Dsn, &'static [End]);

/// Each with its name, and what an attempt at it may come to; and what serves them.
async fn hostile() -> (Vec<Hostile>, Vec<Raw>) {
    const BLOCK: &[u8] = &[b'x'; 16 << 10];
    const TRICKLE: Duration = Duration::from_millis(20);
    const AT_ONCE: Duration = Duration::ZERO;
    let lines: &[u8] = "x: y\r\n".repeat(1 << 12).leak().as_bytes();
    let hints: &[u8] = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(1 << 9).leak().as_bytes();
    let (mut receivers, mut serving) = (Vec::<Hostile>::new(), Vec::new());
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (name, head, tail, pause, end) in [
        ("never answers", "", &b""[..], AT_ONCE, Some(TimedOut)),
        ("answers 200 and hangs", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"", AT_ONCE, Some(TimedOut)),
        ("drips a header", "HTTP/1.1 200 OK\r\nx: ", b"x", TRICKLE, Some(TimedOut)),
        ("drips a body", "HTTP/1.1 200 OK\r\n\r\n", b"x", TRICKLE, Some(TimedOut)),
        ("drips chunks", chunked, b"1\r\nx\r\n", TRICKLE, Some(TimedOut)),
        ("has an endless header", "HTTP/1.1 200 OK\r\nx: ", BLOCK, AT_ONCE, Some(Unavailable)),
        ("has endless headers", "HTTP/1.1 200 OK\r\n", lines, AT_ONCE, Some(Unavailable)),
        ("has an endless status", "HTTP/1.1 200 ", BLOCK, AT_ONCE, Some(Unavailable)),
        ("has endless hints", "", hints, AT_ONCE, Some(TimedOut)),
        (
            "has an endless extension",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;",
            BLOCK,
            AT_ONCE,
            Some(Unavailable),
        ),
        (
            "has endless trailers",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            lines,
            AT_ONCE,
            Some(Unavailable),
        ),
        ("has an endless body", "HTTP/1.1 200 OK\r\n\r\n", BLOCK, AT_ONCE, None),
        ("has an endless archive", "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n", BLOCK, AT_ONCE, None),
        ("refuses without end", "HTTP/1.1 500 No\r\n\r\n", BLOCK, AT_ONCE, Some(Unavailable)),
        (
            "redirects",
            "HTTP/1.1 307 On\r\nlocation: http://169.254.169.254/\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            b"",
            AT_ONCE,
            Some(Refused),
        ),
    ] {
        let server = saying(head, tail, pause).await;
        receivers.push((name, server.dsn(), vec![end].leak()));
        serving.push(server);
    }
    let resetting = Raw::start(|mut stream: TcpStream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        stream.set_zero_linger().expect("set");
    })
    .await;
    receivers.push(("resets", resetting.dsn(), &[Some(Unavailable)]));
    serving.push(resetting);
    let rebound = "http://hook.example:8080/".parse().expect("a Dsn");
    receivers.push(("is bound to another address", rebound, &[Some(Forbidden)]));

    (receivers, serving)
}

/// The same of those that speak HTTP/2. One connection carries all attempts.
async fn framed(acceptor: &TlsAcceptor) -> (Vec<Hostile>, Vec<Framing>) {
    let framed: [(&str, Frames, &[End]); 4] = [
        ("resets streams", resets, &[Some(Unavailable)]),
        ("has endless headers in frames", continued, &[Some(Unavailable)]),
        // What the first attempt has of it, the others may not have.
        ("has an endless body in frames", data, &[None, Some(Unavailable), Some(TimedOut)]),
        ("pings without end", pings, &[Some(TimedOut)]),
    ];
    let (mut receivers, mut serving) = (Vec::new(), Vec::new());
    for (name, frames, ends) in framed {
        let server = Framing::start(acceptor.clone(), frames).await;
        receivers.push((name, server.dsn.clone(), ends));
        serving.push(server);
    }
    (receivers, serving)
}

// Types of frames (RFC 9113 §6).
const DATA: u8 = 0;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

/// `:status: 200` (RFC 7541 appendix A).
const OK: &[u8] = &[0x88];

/// Headers that never end.
fn continued(stream: [u8; 4]) -> (Vec<u8>, Vec<u8>) {
    // A literal field without indexing: `x`, and a value of 16,000 bytes (RFC 7541 §6.2.2).
    let field = [&[0, 1, b'x', 0x7f, 0x81, 0x7c][..], &[b'x'; 16_000]].concat();
    (frame(HEADERS, 0, stream, OK), frame(CONTINUATION, 0, stream, &field))
}

/// A body that never ends, whatever window the client opens.
fn data(stream: [u8; 4]) -> (Vec<u8>, Vec<u8>) {
    (frame(HEADERS, 4, stream, OK), frame(DATA, 0, stream, &[b'x'; 16_000]))
}

/// Pings that want to be answered, and no answer.
fn pings(_stream: [u8; 4]) -> (Vec<u8>, Vec<u8>) {
    (Vec::new(), frame(PING, 0, [0; 4], &[0; 8]).repeat(1_000))
}
