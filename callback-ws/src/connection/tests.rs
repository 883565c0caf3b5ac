//! A connection over a pipe in memory, under a clock that jumps.

use super::*;
use crate::{dial::limits, wire::Subprotocol};
use callback_core::{ErrorKind, Evidence};
use std::time::SystemTime;
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    task::JoinHandle,
};
use tokio_tungstenite::tungstenite::protocol::Role;

type Peer = WebSocketStream<DuplexStream>;

/// A connection that is driven, with the pipe's other end, of which each direction holds so many bytes.
struct Driven {
    stop: oneshot::Sender<CloseCode>,
    jobs: mpsc::Sender<Box<Job>>,
    peer: Peer,
    driving: JoinHandle<Ended>,
}

async fn start(subprotocol: Subprotocol, buffer: usize) -> Driven {
    let (ours, theirs) = tokio::io::duplex(buffer);
    let socket = WebSocketStream::from_raw_socket(ours, Role::Client, Some(limits(4 << 10))).await;
    let peer = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let (jobs, mut queue) = mpsc::channel(64);
    let (told, stopped) = oneshot::channel();
    let session = Session::new(subprotocol, Pace::default(), Some(Duration::from_secs(120)), now());
    let driving = tokio::spawn(async move { drive(socket, session, &mut queue, None, |_| true, stop(stopped)).await });
    Driven { stop: told, jobs, peer, driving }
}

/// Ready when somebody says stop.
async fn stop(stopped: oneshot::Receiver<CloseCode>) -> CloseCode {
    match stopped.await {
        Ok(code) => code,
        Err(_) => std::future::pending().await,
    }
}

impl Driven {
    async fn send(&self, number: usize, seconds: u64) -> oneshot::Receiver<Result<Receipt, Failure>> {
        self.send_bytes(1_000, number, seconds).await
    }

    async fn send_bytes(
        &self,
        bytes: usize,
        number: usize,
        seconds: u64,
    ) -> oneshot::Receiver<Result<Receipt, Failure>> {
        let message = Message::builder("a").id(format!("m{number}").parse().expect("an id")).payload("x".repeat(bytes));
        let (reply, ended) = oneshot::channel();
        let attempt = Attempt::new(1, SystemTime::now(), now() + Duration::from_secs(seconds));
        let job = Job { message: message.build().expect("valid"), attempt, reply };
        assert!(self.jobs.send(Box::new(job)).await.is_ok(), "the connection is driven");
        ended
    }
}

#[track_caller]
fn failed(ended: Result<Result<Receipt, Failure>, oneshot::error::RecvError>) -> (ErrorKind, String) {
    let failure = ended.expect("a reply").expect_err("not delivered");
    (failure.kind, failure.text.into_owned())
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_half_open_is_found_by_the_second_ping() {
    let driven = start(Subprotocol::CallbackV1, 1 << 20).await;
    let begun = Instant::now();
    // Nobody reads from the peer's end, so nobody answers.
    let ended = driven.driving.await.expect("it ends");
    assert_eq!(begun.elapsed().as_secs(), 40);
    assert!(!ended.is_retired && !ended.was_of_use);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_pings_are_answered_on_lives_until_it_is_idle() {
    let mut driven = start(Subprotocol::CallbackV1, 1 << 20).await;
    let begun = Instant::now();
    let mut pings = 0;
    let close = loop {
        // The pong is written while the next frame is waited for.
        match driven.peer.next().await.expect("open").expect("a frame") {
            Frame::Ping(_) => pings += 1,
            Frame::Close(close) => break close,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((pings, begun.elapsed().as_secs()), (5, 120));
    assert_eq!(close.expect("a code").code, CloseCode::Normal);
    while driven.peer.next().await.is_some() {}
    drop(driven.peer);
    assert!(driven.driving.await.expect("it ends").is_retired);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_acknowledges_is_given_up_and_nobody_is_told_a_receipt() {
    let mut driven = start(Subprotocol::CallbackV1, 1 << 20).await;
    let mut replies = Vec::new();
    for number in 0..64 {
        replies.push(driven.send(number, 20).await);
    }
    let begun = Instant::now();
    let peer = tokio::spawn(async move {
        let mut frames = 0;
        // It answers pings, and nothing else.
        while let Some(Ok(frame)) = driven.peer.next().await {
            frames += usize::from(frame.is_text());
        }
        frames
    });
    for reply in replies {
        assert_eq!(failed(reply.await), (ErrorKind::Unavailable, "the peer does not acknowledge".to_owned()));
    }
    assert!(begun.elapsed() <= Duration::from_secs(81), "{:?}", begun.elapsed());
    assert!(!driven.driving.await.expect("it ends").was_of_use);
    assert_eq!(peer.await.expect("it ends"), 64);
}

#[tokio::test(start_paused = true)]
async fn a_pong_to_the_ping_after_a_frame_is_evidence() {
    for subprotocol in [Subprotocol::CloudEvents, Subprotocol::Bare] {
        let mut driven = start(subprotocol, 1 << 20).await;
        let reply = driven.send(0, 20).await;
        assert!(driven.peer.next().await.expect("open").expect("a frame").is_text());
        let ping = driven.peer.next().await.expect("open").expect("a frame");
        assert!(ping.is_ping() && ping.len() == 8);
        // Reads on, which writes the pong.
        let reading = tokio::spawn(async move { while let Some(Ok(_)) = driven.peer.next().await {} });
        let receipt = reply.await.expect("a reply").expect("delivered");
        assert_eq!(receipt.evidence(), &Evidence::Pong);
        drop(driven.jobs);
        assert!(driven.driving.await.expect("it ends").is_retired);
        reading.await.expect("it ends");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_slowly_holds_the_writing_back_and_is_heard_all_the_same() {
    // One frame fills the pipe many times over.
    let mut driven = start(Subprotocol::CallbackV1, 100).await;
    let first = driven.send(0, 200).await;
    let frame = driven.peer.next().await.expect("open").expect("a frame");
    assert!(frame.is_text());
    let second = driven.send(1, 200).await;
    // The second frame is stuck in the pipe by now; the acknowledgment of the first passes it.
    tokio::time::sleep(Duration::from_secs(10)).await;
    driven.peer.send(Frame::text(r#"{"ack":"m0"}"#)).await.expect("sent");
    assert!(first.await.expect("a reply").is_ok());
    assert!(driven.peer.next().await.expect("open").expect("a frame").is_text());
    driven.peer.send(Frame::text(r#"{"ack":"m1"}"#)).await.expect("sent");
    assert!(second.await.expect("a reply").is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_is_not_written() {
    let mut driven = start(Subprotocol::CallbackV1, 1 << 20).await;
    drop(driven.send(0, 20).await);
    let _too_late = driven.send(1, 0).await;
    let _reply = driven.send(2, 20).await;
    let frame = driven.peer.next().await.expect("open").expect("a frame").into_text().expect("a text");
    assert!(frame.contains(r#""id":"m2""#), "{frame}");
}

#[tokio::test(start_paused = true)]
async fn a_frame_of_a_peer_that_is_none_of_ours_ends_the_connection_with_its_code() {
    let too_large = Frame::text("x".repeat((64 << 10) + 1));
    for (frame, code, text) in [
        (Frame::text("hello"), 1008, "the peer sent what is no answer"),
        (Frame::text(r#"{"ack":7}"#), 1008, "the peer sent what is no answer"),
        (Frame::binary(&b"\0\x01"[..]), 1008, "the peer sent what is no answer"),
        (too_large, 1009, "the peer sent a frame that is too large"),
    ] {
        let mut driven = start(Subprotocol::CallbackV1, 1 << 20).await;
        let reply = driven.send(0, 20).await;
        driven.peer.next().await.expect("open").expect("a frame");
        driven.peer.send(frame).await.expect("sent");
        assert_eq!(failed(reply.await), (ErrorKind::Unavailable, text.to_owned()));
        let Frame::Close(Some(close)) = driven.peer.next().await.expect("open").expect("a frame") else {
            panic!("it says goodbye")
        };
        assert_eq!(u16::from(close.code), code);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_window_does_not_keep_a_connection_that_nobody_wants() {
    let mut driven = start(Subprotocol::CallbackV1, 1 << 20).await;
    let mut replies = Vec::new();
    for number in 0..256 {
        replies.push(driven.send(number, 20).await);
    }
    for _ in 0..256 {
        assert!(driven.peer.next().await.expect("open").expect("a frame").is_text());
    }
    let begun = Instant::now();
    drop((driven.jobs, replies));
    let reading = tokio::spawn(async move { while let Some(Ok(_)) = driven.peer.next().await {} });
    assert!(driven.driving.await.expect("it ends").is_retired);
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
    reading.await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_close_is_answered_and_judges_the_one_that_waits() {
    let mut driven = start(Subprotocol::CallbackV1, 1 << 20).await;
    let reply = driven.send(0, 20).await;
    driven.peer.next().await.expect("open").expect("a frame");
    let close = CloseFrame { code: CloseCode::Size, reason: "planted".into() };
    driven.peer.send(Frame::Close(Some(close))).await.expect("sent");
    let (kind, text) = failed(reply.await);
    assert_eq!((kind, &*text), (ErrorKind::TooLarge, "the peer closed the connection with 1009"));
    let answer = driven.peer.next().await.expect("an answer").expect("a frame");
    assert!(answer.is_close());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_pings_and_does_not_read_is_not_listened_to_without_end() {
    for subprotocol in [Subprotocol::CallbackV1, Subprotocol::Bare] {
        let driven = start(subprotocol, 1_000).await;
        let (mut pipe, mut pings) = (driven.peer.into_inner(), 0);
        // A ping of 125 bytes, whose pong would be of 131.
        let ping = [&[0x89, 125][..], &[0; 125]].concat();
        while pings < 20_000 && pipe.write_all(&ping).await.is_ok() {
            pings += 1;
        }
        assert!(pings < 2_000, "{pings} were taken");
        assert!(!driven.driving.await.expect("it ends").is_retired);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_pings_a_lot_and_reads_lives() {
    let mut driven = start(Subprotocol::CallbackV1, 1_000).await;
    for _ in 0..2_000 {
        driven.peer.send(Frame::Ping(vec![0; 125].into())).await.expect("sent");
        assert!(driven.peer.next().await.expect("open").expect("a frame").is_pong());
    }
    let reply = driven.send(0, 20).await;
    while !driven.peer.next().await.expect("open").expect("a frame").is_text() {}
    driven.peer.send(Frame::text(r#"{"ack":"m0"}"#)).await.expect("sent");
    assert!(reply.await.expect("a reply").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_slow_peer_is_asked_for_a_pong_before_more_is_written() {
    let mut driven = start(Subprotocol::Bare, 100).await;
    let mut replies = Vec::new();
    for number in 0..3 {
        replies.push(driven.send_bytes(100_000, number, 200).await);
    }
    for number in 0..3 {
        let frames = [driven.peer.next().await, driven.peer.next().await].map(|frame| frame.expect("open"));
        let [text, ping] = frames.map(|frame| frame.expect("a frame"));
        assert!(text.is_text() && ping.is_ping(), "{number}: a pong is wanted for what was read");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_does_not_keep_a_connection_that_nobody_wants() {
    let driven = start(Subprotocol::CallbackV1, 100).await;
    let reply = driven.send_bytes(100_000, 0, 20).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    drop((driven.jobs, reply));
    assert!(driven.driving.await.expect("it ends").is_retired);
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(driven.peer);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stopped_says_its_code_and_fails_what_it_had() {
    for buffer in [1 << 20, 100] {
        let mut driven = start(Subprotocol::CallbackV1, buffer).await;
        let reply = driven.send(0, 20).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        driven.stop.send(CloseCode::Library(4409)).expect("it is driven");
        let failure = reply.await.expect("a reply").expect_err("not delivered");
        assert_eq!((failure.kind, failure.phase), (ErrorKind::Unavailable, callback_core::Phase::Connect));
        // Also to a peer that reads again only now.
        assert!(driven.peer.next().await.expect("open").expect("a frame").is_text());
        let Frame::Close(Some(close)) = driven.peer.next().await.expect("open").expect("a frame") else {
            panic!("it says goodbye")
        };
        assert_eq!(u16::from(close.code), 4409);
        assert!(driven.peer.next().await.is_none());
        drop(driven.peer);
        assert!(!driven.driving.await.expect("it ends").is_retired);
    }
}

#[tokio::test(start_paused = true)]
async fn one_whose_queue_is_let_go_of_as_it_is_stopped_says_its_code() {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let socket = WebSocketStream::from_raw_socket(ours, Role::Client, Some(limits(4 << 10))).await;
    let mut peer = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    let (jobs, mut queue) = mpsc::channel(64);
    let session = Session::new(Subprotocol::CallbackV1, Pace::default(), None, now());
    // Another connection takes the session over between two questions of one poll.
    let mut jobs = Some(jobs);
    let stop = poll_fn(move |_| match jobs.take() {
        Some(_) => Poll::Pending,
        None => Poll::Ready(CloseCode::Library(4409)),
    });
    let driving = tokio::spawn(async move { drive(socket, session, &mut queue, None, |_| false, stop).await });
    let Frame::Close(close) = peer.next().await.expect("open").expect("a frame") else { panic!("no close") };
    assert_eq!(u16::from(close.expect("a code").code), 4409);
    while peer.next().await.is_some() {}
    drop(peer);
    assert!(!driving.await.expect("it ends").is_retired);
}
