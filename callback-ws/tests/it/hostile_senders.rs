//! Senders who do it wrong, by accident or on purpose.

use crate::{
    peer::{deliver, sink},
    sender::{KEY, Sender, delivery, frame, nothing_came, open, open_with, place, request, serves, soon},
};
use callback_core::{ErrorKind, MessageId, Signer};
use callback_receive::{Receiver, ReceiverBuilder};
use callback_ws::{WsReceiver, WsReceiverBuilder};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message as Frame;

async fn impatient(set: impl FnOnce(WsReceiverBuilder) -> WsReceiverBuilder) -> Receiver {
    open_with(set(WsReceiver::builder()), Receiver::builder()).await
}

/// What is told of a signed message whose body is `sent`.
async fn signed(sender: &mut Sender, key: &str, id: &str, time: SystemTime, sent: &str) -> Value {
    let (id, signer): (MessageId, Signer) = (id.parse().expect("an id"), key.parse().expect("a key"));
    let signature = signer.sign(&id, time, b"{}");
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let frame = json!({ "id": id, "type": "a.b", "body": sent, "timestamp": seconds, "signature": signature });
    sender.tell(frame.to_string()).await
}

#[tokio::test]
async fn a_signature_that_does_not_count_is_refused() {
    let receiver = open(Receiver::builder().verifier(KEY.parse().expect("a key"))).await;
    let mut callback = receiver.spawn();
    let mut sender = Sender::open(&callback.url()).await;
    let now = SystemTime::now();
    let refused = json!({ "nack": "a", "kind": "refused", "reason": "the signature is missing or does not count" });
    let forged = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    assert_eq!(signed(&mut sender, forged, "a", now, "{}").await, refused);
    assert_eq!(signed(&mut sender, KEY, "a", now, "[]").await, refused, "another body");
    assert_eq!(signed(&mut sender, KEY, "a", now - Duration::from_secs(301), "{}").await, refused, "stale");
    assert_eq!(signed(&mut sender, KEY, "a", now + Duration::from_secs(400), "{}").await, refused, "ahead");
    assert_eq!(sender.tell(frame("a", "{}")).await, refused, "missing");
    let untimed = json!({ "id": "a", "type": "a.b", "body": "{}", "signature": "v1,AAAA" });
    assert_eq!(sender.tell(untimed.to_string()).await, refused, "no timestamp");
    nothing_came(&mut callback);

    let (told, ()) = tokio::join!(signed(&mut sender, KEY, "a", now, "{}"), async {
        delivery(&mut callback).await.accept().await.expect("direct");
    });
    assert_eq!(told, json!({ "ack": "a" }));
    assert_eq!(signed(&mut sender, KEY, "a", now, "{}").await, told, "a replay is known");
    nothing_came(&mut callback);
}

#[tokio::test]
async fn a_forged_event_ends_its_connection_without_a_pong() {
    let receiver = open(Receiver::builder().verifier(KEY.parse().expect("a key"))).await;
    let mut callback = receiver.spawn();
    let mut sender = Sender::offering(&callback.url(), &["cloudevents.json"]).await.expect("it opens");
    sender.send(include_str!("../golden/cloudevents.json")).await;
    sender.send_frame(Frame::Ping(b"1"[..].into())).await;
    assert_eq!(sender.closed().await, 1008, "its signature is of 2021");
    nothing_came(&mut callback);
}

#[tokio::test]
async fn what_is_no_message_ends_the_connection_and_nobody_else_s() {
    let receiver = open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    for (bad, code) in [
        (Frame::text("hello"), 1008),
        (Frame::text("{}"), 1008),
        (Frame::text(r#"{"ack":"a"}"#), 1008),
        (Frame::text("[".repeat(60_000)), 1008),
        (Frame::binary(&b"{}"[..]), 1008),
    ] {
        let mut sender = Sender::open(&callback.url()).await;
        sender.send_frame(bad).await;
        assert_eq!(sender.closed().await, code);
    }
    // A text that is not UTF-8; a frame without a mask; a reserved opcode; a control frame that is too long.
    let long = [&[0x89, 0xfe, 0, 126, 0, 0, 0, 0][..], &[0; 126]].concat();
    for (bytes, code) in [
        (&[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xff][..], 1007_u16),
        (&[0x81, 0x01, b'x'], 1002),
        (&[0x83, 0x80, 0, 0, 0, 0], 1002),
        (&long, 1002),
    ] {
        let mut stream = Sender::open(&callback.url()).await.into_stream();
        stream.write_all(bytes).await.expect("it reads");
        let mut told = Vec::new();
        soon(stream.read_to_end(&mut told)).await.expect("it says why");
        assert_eq!(told[0], 0x88, "{bytes:?}: {told:?}");
        assert_eq!(told[2..4], code.to_be_bytes(), "{bytes:?}: {told:?}");
    }
    let mut sender = Sender::open(&callback.url()).await;
    let told = sender.tell(r#"{"id":"a","type":"a b","body":"x"}"#).await;
    assert_eq!((&told["nack"], &told["kind"]), (&json!("a"), &json!("refused")));
    nothing_came(&mut callback);
    serves(&mut callback, "b").await;
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_1009_and_those_beside_it_are_answered() {
    let receiver = open(Receiver::builder().body_limit(1_000)).await;
    let mut callback = receiver.spawn();
    let mut sender = Sender::open(&callback.url()).await;
    sender.send(frame("a", &"x".repeat(1_000))).await;
    let held = delivery(&mut callback).await;
    sender.send(frame("b", &"x".repeat(1_001))).await;
    held.accept().await.expect("direct");
    assert_eq!(sender.answer().await, json!({ "ack": "a" }));
    assert_eq!(sender.closed().await, 1009);
    // What is larger than any escaping could make it is not read at all: the head of a frame of 1 GiB.
    let mut stream = Sender::open(&callback.url()).await.into_stream();
    stream.write_all(&[0x81, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0]).await.expect("it reads");
    let mut told = [0; 4];
    soon(stream.read_exact(&mut told)).await.expect("it says why");
    assert_eq!((told[0], u16::from_be_bytes([told[2], told[3]])), (0x88, 1009));
    let error = deliver(&sink(), &callback.dsn(), &"x".repeat(400_000)).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    nothing_came(&mut callback);
    serves(&mut callback, "c").await;
}

#[tokio::test]
async fn half_a_message_is_not_handed_over() {
    let receiver = open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let text = frame("a", "0123456789");
    let length = 0x80 | u8::try_from(text.len()).expect("short");
    for (first, sent) in [(0x81, text.len() - 1), (0x01, text.len())] {
        let mut stream = Sender::open(&callback.url()).await.into_stream();
        stream.write_all(&[first, length, 0, 0, 0, 0]).await.expect("it reads");
        stream.write_all(&text.as_bytes()[..sent]).await.expect("it reads");
        stream.shutdown().await.expect("half is sent");
        let mut told = Vec::new();
        // A connection that is reset has said what it has said.
        let _ = soon(stream.read_to_end(&mut told)).await;
        assert!(!String::from_utf8_lossy(&told).contains("ack"), "{told:?}");
    }
    nothing_came(&mut callback);
    serves(&mut callback, "a").await;
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let receiver = impatient(|ws| ws.head_timeout(Duration::from_millis(300))).await;
    let mut callback = receiver.spawn();
    for bytes in [&b""[..], b"GET /in/x HT", b"GET /in/x HTTP/1.1\r\nhost: x\r\nx: "] {
        let told = soon(request(place(&callback.url()).0, bytes)).await;
        assert!(told.is_none_or(|(status, _)| status == 408), "no socket");
    }
    serves(&mut callback, "a").await;
}

#[tokio::test]
async fn a_slow_message_is_cut_off() {
    let receiver = impatient(|ws| ws.message_timeout(Duration::from_millis(300))).await;
    let mut callback = receiver.spawn();
    // Its first byte, and no more.
    let mut stream = Sender::open(&callback.url()).await.into_stream();
    stream.write_all(&[0x81]).await.expect("it reads");
    let mut told = [0; 4];
    soon(stream.read_exact(&mut told)).await.expect("it says why");
    assert_eq!((told[0], u16::from_be_bytes([told[2], told[3]])), (0x88, 1001));
    nothing_came(&mut callback);
    serves(&mut callback, "a").await;
}

#[tokio::test]
async fn messages_have_a_budget_of_memory() {
    let receiver = impatient(|ws| ws.message_memory(10_000)).await;
    let mut callback = receiver.spawn();
    let mut sender = Sender::open(&callback.url()).await;
    sender.send(frame("a", &"x".repeat(6_000))).await;
    let held = delivery(&mut callback).await;
    let mut other = Sender::open(&callback.url()).await;
    other.send(frame("b", &"x".repeat(6_000))).await;
    assert_eq!(other.closed().await, 1013);
    held.accept().await.expect("direct");
    assert_eq!(sender.answer().await, json!({ "ack": "a" }));
    serves(&mut callback, "b").await;
}

#[tokio::test]
async fn connections_with_work_stay_and_make_room_once_they_have_none() {
    let receiver = impatient(|ws| ws.connections(1)).await;
    let mut callback = receiver.spawn();
    let mut busy = Sender::open(&callback.url()).await;
    busy.send(frame("a", "x")).await;
    let held = delivery(&mut callback).await;
    let url = callback.url();
    let late = tokio::spawn(async move { Sender::open(&url).await });
    tokio::task::yield_now().await;
    held.accept().await.expect("direct");
    assert_eq!(busy.answer().await, json!({ "ack": "a" }));
    assert_eq!(busy.closed().await, 1001);
    let mut late = late.await.expect("no panic");
    late.send(frame("b", "x")).await;
    delivery(&mut callback).await.accept().await.expect("direct");
    assert_eq!(late.answer().await, json!({ "ack": "b" }));
}

#[tokio::test]
async fn a_sender_that_goes_away_takes_nothing_back() {
    let receiver = open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let mut sender = Sender::open(&callback.url()).await;
    sender.send(frame("a", "x")).await;
    let held = delivery(&mut callback).await;
    drop(sender);
    held.accept().await.expect("direct");
    let mut again = Sender::open(&callback.url()).await;
    assert_eq!(again.tell(frame("a", "x")).await, json!({ "ack": "a" }));
    nothing_came(&mut callback);
}

#[test]
fn ten_thousand_connections_that_say_nothing_keep_nobody_out() {
    // A process of its own, which may have as many descriptors as the system allows.
    let run =
        "ulimit -n \"$(ulimit -Hn)\" && exec \"$0\" hostile_senders::holds_ten_thousand_connections --exact --ignored";
    let program = std::env::current_exe().expect("this test");
    let output = std::process::Command::new("sh").arg("-c").arg(run).arg(program).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `ten_thousand_connections_that_say_nothing_keep_nobody_out`"]
async fn holds_ten_thousand_connections() {
    let receiver = impatient(|ws| ws.connections(64)).await;
    let mut callback = receiver.spawn();
    let (address, path) = place(&callback.url());
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: {key}\r\nsec-websocket-protocol: callback.v1\r\n\r\n"
    );
    let mut silent = Vec::new();
    for number in 0..10_000 {
        let Ok(mut stream) = TcpStream::connect(address).await else { break };
        // Each second one asks for a socket, and says nothing on it.
        if number % 2 == 0 {
            stream.write_all(head.as_bytes()).await.expect("it reads");
        }
        silent.push(stream);
        if number % 2_500 == 2_499 {
            serves(&mut callback, &number.to_string()).await;
        }
    }
    assert_eq!(silent.len(), 10_000, "descriptors: the test needs 11,000");
    serves(&mut callback, "last").await;
    let mut open = 0;
    for stream in &mut silent {
        // Whoever was sent away finds an end behind what he was told.
        if soon(drained(stream)).await {
            open += 1;
        }
    }
    assert!(open < 5_000, "{open} are still held open");
}

/// Whether a connection is open when all that was said on it is read.
async fn drained(stream: &TcpStream) -> bool {
    let mut buffer = [0; 4_096];
    loop {
        match stream.try_read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

#[tokio::test]
async fn a_handle_has_room_for_so_many_messages_and_the_others_come_again() {
    let builder: ReceiverBuilder = Receiver::builder().queue(2);
    let receiver = open(builder).await;
    let mut callback = receiver.spawn();
    let mut sender = Sender::open(&callback.url()).await;
    for id in ["a", "b", "c"] {
        sender.send(frame(id, "x")).await;
    }
    let later = json!({ "nack": "c", "kind": "later", "reason": "not now", "retryAfter": 5 });
    assert_eq!(sender.answer().await, later);
    for id in ["a", "b"] {
        let message = delivery(&mut callback).await.accept().await.expect("direct");
        assert_eq!(message.id().as_str(), id);
        assert_eq!(sender.answer().await, json!({ "ack": id }));
    }
}
