//! Messages that come in, from our sink and from others, and what their senders are told.

use crate::{
    peer::{deliver, message, sink, within},
    sender::{KEY, PATIENCE, Sender, delivery, frame, nothing_came, open, place, request, soon},
};
use callback_core::{Attempt, ErrorKind, Evidence, Message, Payload, Signer, Sink};
use callback_receive::{MemoryInbox, Receiver};
use callback_ws::{WsReceiver, WsReceiverError};
use serde_json::json;
use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message as Frame;

fn full(body: &[u8]) -> Message {
    Message::builder("callback.rpc.completed")
        .event_id("event-1".parse().expect("valid"))
        .source("/orders")
        .subject("Bestellung für 😀")
        .correlation_id("ray 7")
        .time(SystemTime::UNIX_EPOCH + Duration::from_millis(1_614_265_330_250))
        .header("x-request-id", "r-1")
        .payload(Payload::new("application/json; charset=utf-8", body.to_vec()))
        .build()
        .expect("valid")
}

#[track_caller]
fn same(found: &Message, sent: &Message) {
    assert_eq!(found.id(), sent.id());
    assert_eq!(found.content_type(), sent.content_type());
    assert_eq!(found.body(), sent.body());
    assert_eq!(found.attributes().collect::<Vec<_>>(), sent.attributes().collect::<Vec<_>>());
    assert_eq!(found.headers().collect::<Vec<_>>(), sent.headers().collect::<Vec<_>>());
}

#[tokio::test]
async fn what_our_sink_sends_arrives_as_it_was() {
    let receiver = open(Receiver::builder().verifier(KEY.parse().expect("a key"))).await;
    let mut callback = receiver.spawn();
    let (sink, dsn, signer): (_, _, Signer) = (sink(), callback.dsn(), KEY.parse().expect("a key"));
    for body in [&b"{\"test\": 2432232314}"[..], "größer \0 😀".as_bytes(), &[0, 159, 146, 150], b""] {
        let sent = full(body);
        let attempt = within(20).sign(&signer, &sent);
        let (told, ()) = tokio::join!(sink.deliver(&dsn, &sent, &attempt), async {
            same(&delivery(&mut callback).await.accept().await.expect("direct"), &sent);
        });
        assert!(matches!(told.expect("delivered").evidence(), Evidence::Acknowledged), "{body:?}");
    }
}

#[tokio::test]
async fn the_golden_frames_are_read() {
    let receiver = open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    for (subprotocol, text, has_header) in [
        ("callback.v1", include_str!("../golden/callback-v1.json"), true),
        ("cloudevents.json", include_str!("../golden/cloudevents.json"), false),
    ] {
        let mut sender = Sender::offering(&callback.url(), &[subprotocol]).await.expect("it opens");
        sender.send(text).await;
        // It is in hand: a ping tells nothing of it before its verdict.
        let delivery = delivery(&mut callback).await;
        let found = delivery.message();
        assert_eq!((found.id().as_str(), found.event_id().as_str()), ("msg_p5jXN8AQM9LWM0D4loKWxJek", "event-1"));
        assert_eq!((found.event_type(), found.source()), ("callback.rpc.completed", "/orders"));
        assert_eq!((found.subject(), found.correlation_id()), (Some("Bestellung für 😀"), Some("ray 7")));
        assert_eq!((found.content_type(), &found.body()[..]), ("application/json", &br#"{"test": 2432232314}"#[..]));
        assert!(found.attributes().any(|attribute| attribute == ("time", "2021-02-25T15:02:10.25Z".into())));
        assert_eq!(found.header("x-request-id").is_some(), has_header);
        // The other one has the same id, and is to be handed over too.
        delivery.retry_later(Duration::from_secs(1)).await.expect("direct");
    }
}

#[tokio::test]
async fn our_sink_understands_each_verdict() {
    let receiver = open(Receiver::builder().body_limit(1_000)).await;
    let (sink, mut callback) = (sink(), receiver.spawn());
    let dsn = callback.dsn();
    let (told, ()) = tokio::join!(deliver(&sink, &dsn, "a"), async {
        delivery(&mut callback).await.refuse("no").await.expect("direct");
    });
    assert_eq!(told.expect_err("refused").kind(), ErrorKind::Refused);
    let (told, ()) = tokio::join!(deliver(&sink, &dsn, "b"), async {
        delivery(&mut callback).await.retry_later(Duration::from_secs(7)).await.expect("direct");
    });
    let error = told.expect_err("later");
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Throttled, Some(Duration::from_secs(7))));
    let error = deliver(&sink, &dsn, &"x".repeat(1_001)).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    drop(callback);
    assert_eq!(deliver(&sink, &dsn, "c").await.expect_err("it has ended").kind(), ErrorKind::Gone);
    let strange = dsn.expose().replace("/in/", "/in/A").parse().expect("a Dsn");
    assert_eq!(deliver(&sink, &strange, "d").await.expect_err("unknown").kind(), ErrorKind::Unroutable);
}

#[tokio::test]
async fn many_messages_are_under_way_and_answered_in_any_order() {
    let receiver = open(Receiver::builder().queue(1_000)).await;
    let (sink, mut callback) = (sink(), receiver.spawn());
    let mut sending = Vec::new();
    for number in 0..1_000 {
        let (sink, dsn) = (sink.clone(), callback.dsn());
        sending.push(tokio::spawn(async move { deliver(&sink, &dsn, &number.to_string()).await }));
    }
    let mut bodies = HashSet::new();
    for _ in 0..4 {
        let mut open = Vec::new();
        for _ in 0..250 {
            open.push(delivery(&mut callback).await);
        }
        while let Some(delivery) = open.pop() {
            let message = delivery.accept().await.expect("direct");
            assert!(bodies.insert(message.body().clone()), "handed over twice");
        }
    }
    for sending in sending {
        soon(sending).await.expect("no panic").expect("delivered");
    }
    assert_eq!(bodies.len(), 1_000);
}

#[tokio::test]
async fn a_known_id_is_acknowledged_and_not_handed_over_again() {
    let receiver = open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let mut sender = Sender::open(&callback.url()).await;
    sender.send(frame("a", "x")).await;
    let first = delivery(&mut callback).await;
    let mut other = Sender::open(&callback.url()).await;
    other.send(frame("a", "x")).await;
    first.accept().await.expect("direct");
    assert_eq!(sender.answer().await, json!({ "ack": "a" }));
    assert_eq!(other.answer().await, json!({ "ack": "a" }), "it has joined the first");
    assert_eq!(sender.tell(frame("a", "x")).await, json!({ "ack": "a" }));
    nothing_came(&mut callback);
    drop(callback);
    assert_eq!(sender.tell(frame("a", "x")).await, json!({ "ack": "a" }), "it was taken before the end");
    let gone = json!({ "nack": "b", "kind": "gone", "reason": "the callback has ended" });
    assert_eq!(sender.tell(frame("b", "x")).await, gone);
}

#[tokio::test]
async fn a_named_handle_acknowledges_what_is_stored() {
    let receiver = open(Receiver::builder().inbox(MemoryInbox::new())).await;
    let url = receiver.expect("order-42").await.expect("a name").url();
    // Nobody waits.
    let mut sender = Sender::open(&url).await;
    assert_eq!(sender.tell(frame("a", "x")).await, json!({ "ack": "a" }));
    let mut callback = receiver.expect("order-42").await.expect("a name");
    assert_eq!(delivery(&mut callback).await.message().id().as_str(), "a");
    callback.finish().await.expect("ended");
    let gone = json!({ "nack": "b", "kind": "gone", "reason": "the callback has ended" });
    assert_eq!(sender.tell(frame("b", "x")).await, gone);
}

#[tokio::test]
async fn of_what_a_sender_offers_the_best_is_picked() {
    let receiver = open(Receiver::builder()).await;
    let callback = receiver.spawn();
    for (offered, expected) in [
        (&["callback.v1", "cloudevents.json"][..], Ok("callback.v1")),
        (&["cloudevents.json", "x", "callback.v1"], Ok("callback.v1")),
        (&["cloudevents.json"], Ok("cloudevents.json")),
        (&["cloudevents.avro"], Err(400)),
        (&[], Err(400)),
    ] {
        let found = Sender::offering(&callback.url(), offered).await.map(|sender| sender.subprotocol);
        assert_eq!(found.as_deref().map_err(|status| *status), expected, "{offered:?}");
    }
}

#[tokio::test]
async fn only_a_handle_of_this_receiver_has_a_socket() {
    let (receiver, other) = (open(Receiver::builder()).await, open(Receiver::builder()).await);
    let url = receiver.spawn().url();
    let foreign = other.spawn().url();
    let base = url.rsplit_once('/').expect("a path").0;
    let foreign = format!("{base}/{}", foreign.rsplit_once('/').expect("a path").1);
    for bad in
        [foreign, base.to_owned(), format!("{base}/"), format!("{url}x"), format!("{url}/"), format!("{base}/%00")]
    {
        let found = Sender::offering(&bad, &["callback.v1"]).await.map(|sender| sender.subprotocol);
        assert_eq!(found, Err(404), "{bad}");
    }
    // The handle was dropped: it has ended, and each message is told so.
    let mut sender = Sender::open(&url).await;
    assert_eq!(sender.tell(frame("a", "x")).await["kind"], "gone");
}

#[tokio::test]
async fn what_opens_no_socket_is_told_why() {
    let receiver = open(Receiver::builder()).await;
    let callback = receiver.spawn();
    let (address, path) = place(&callback.url());
    for (method, headers, status, word) in [
        ("GET", "", 426, "upgrade: websocket"),
        ("POST", "content-length: 0\r\n", 405, "allow: get"),
        (
            "GET",
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 8\r\n",
            426,
            "sec-websocket-version: 13",
        ),
    ] {
        let bytes = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let (found, head) = request(address, bytes.as_bytes()).await.expect("it answers");
        assert_eq!(found, status, "{head}");
        assert!(head.contains(word) && head.contains("connection: close"), "{head}");
    }
}

#[tokio::test]
async fn where_a_pong_is_the_evidence_it_comes_after_the_verdict() {
    let receiver = open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let mut sender = Sender::offering(&callback.url(), &["cloudevents.json"]).await.expect("it opens");
    let event = |id: &str| json!({ "specversion": "1.0", "id": id, "source": "/a", "type": "a.b", "data": [1, 2.50] });
    sender.send(event("1").to_string()).await;
    sender.send_frame(Frame::Ping(b"1"[..].into())).await;
    let message = delivery(&mut callback).await.accept().await.expect("direct");
    assert_eq!((message.event_id().as_str(), message.content_type()), ("1", "application/json"));
    assert_eq!(sender.next().await, Some(Frame::Pong(b"1"[..].into())));
    sender.send(event("1").to_string()).await;
    sender.send_frame(Frame::Ping(b"2"[..].into())).await;
    assert_eq!(sender.next().await, Some(Frame::Pong(b"2"[..].into())), "it is known by source and id");
    sender.send(event("2").to_string()).await;
    sender.send_frame(Frame::Ping(b"3"[..].into())).await;
    delivery(&mut callback).await.refuse("no").await.expect("direct");
    assert_eq!(sender.closed().await, 1008);
    let mut sender = Sender::offering(&callback.url(), &["cloudevents.json"]).await.expect("it opens");
    sender.send(event("3").to_string()).await;
    delivery(&mut callback).await.retry_later(Duration::from_secs(1)).await.expect("direct");
    assert_eq!(sender.closed().await, 1013);
    nothing_came(&mut callback);
}

#[tokio::test]
async fn a_base_url_is_what_senders_are_told_and_a_proxy_may_change_the_path() {
    let ws = WsReceiver::builder().path("/").bind("127.0.0.1:0", "wss://broker.example/in/").await.expect("a port");
    let address = ws.local_addr().expect("it listens");
    assert!(format!("{ws:?}").contains("WsReceiver"));
    let receiver = Receiver::builder().open(ws).await.expect("it opens");
    let mut callback = receiver.spawn();
    let handle = callback.url().strip_prefix("wss://broker.example/in/").expect("the base").to_owned();
    let mut sender = Sender::open(&format!("ws://{address}/{handle}")).await;
    sender.send(frame("a", "x")).await;
    delivery(&mut callback).await.accept().await.expect("direct");
    assert_eq!(sender.answer().await, json!({ "ack": "a" }));
}

#[tokio::test]
async fn what_cannot_be_bound_is_an_error() {
    let bound = WsReceiver::bind("127.0.0.1:0", "https://broker.example").await;
    assert!(matches!(bound, Err(WsReceiverError::BaseUrl(_))));
    let taken = WsReceiver::bind("127.0.0.1:0", "ws://127.0.0.1:0").await.expect("a free port");
    let address = taken.local_addr().expect("it listens").to_string();
    assert!(matches!(WsReceiver::bind(&address, "ws://127.0.0.1:0").await, Err(WsReceiverError::Bind(_))));
}

#[tokio::test]
async fn close_answers_what_is_under_way_and_says_goodbye() {
    let receiver = open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let url = callback.url();
    let (mut busy, mut idle) = (Sender::open(&url).await, Sender::open(&url).await);
    busy.send(frame("a", "x")).await;
    let delivery = delivery(&mut callback).await;
    let closing = receiver.clone();
    let closing = tokio::spawn(async move { closing.close(PATIENCE).await });
    assert_eq!(idle.closed().await, 1001);
    delivery.accept().await.expect("there is time");
    assert_eq!(busy.answer().await, json!({ "ack": "a" }));
    assert_eq!(busy.closed().await, 1001);
    soon(closing).await.expect("no panic").expect("nothing is in hand");
    assert!(TcpStream::connect(place(&url).0).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn a_receiver_that_is_dropped_listens_no_more() {
    let receiver = open(Receiver::builder()).await;
    let url = receiver.spawn().url();
    let mut silent = TcpStream::connect(place(&url).0).await.expect("it listens");
    drop(receiver);
    soon(async { while TcpStream::connect(place(&url).0).await.is_ok() {} }).await;
    assert!(soon(silent.read(&mut [0; 1])).await.map_or(true, |bytes| bytes == 0), "it is closed");
}

#[tokio::test]
async fn many_parts_are_one_message() {
    let receiver = open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let mut stream = Sender::open(&callback.url()).await.into_stream();
    let text = frame("a", &"x".repeat(100));
    // A first part, further ones with a ping between them, and a last one; each with a mask of zeros.
    let parts: Vec<&[u8]> = text.as_bytes().chunks(40).collect();
    for (number, part) in parts.iter().enumerate() {
        let opcode = u8::from(number == 0) | if number + 1 == parts.len() { 0x80 } else { 0 };
        let length = 0x80 | u8::try_from(part.len()).expect("short");
        stream.write_all(&[opcode, length, 0, 0, 0, 0]).await.expect("it reads");
        stream.write_all(part).await.expect("it reads");
        stream.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.expect("it reads");
    }
    assert_eq!(delivery(&mut callback).await.message().body().len(), 100);
}

#[tokio::test]
async fn an_attempt_that_is_too_late_is_told_come_again() {
    let receiver = open(Receiver::builder().answer_within(Duration::from_millis(50))).await;
    let callback = receiver.spawn();
    let attempt: Attempt = within(20);
    let error = sink().deliver(&callback.dsn(), &message("a"), &attempt).await.expect_err("nobody answers");
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Throttled, Some(Duration::from_secs(5))));
}
