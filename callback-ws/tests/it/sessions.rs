//! Sessions of clients that come, go away, and come back.

use crate::browser::{Client, Service, open, read, request, until};
use callback_core::{ErrorKind, Message, MessageId, Phase, Sink};
use callback_ws::Hub;
use futures_util::SinkExt;
use std::{collections::BTreeSet, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;

async fn start() -> Service {
    Service::start(Hub::builder()).await
}

/// The client's connection breaks, without a word.
async fn lose(service: &Service, client: Client) -> (callback_core::Dsn, String) {
    let Client { socket, dsn, secret, .. } = client;
    drop(socket);
    service.until_connected(0).await;
    (dsn, secret)
}

#[tokio::test]
async fn a_client_begins_a_session_and_is_delivered_to() {
    let service = start().await;
    let mut client = service.begin().await;
    assert_eq!((&client.welcome["resumed"], &client.welcome["keep"]), (&false.into(), &600.into()));
    service.publish(&client.dsn, "hello").await;
    let message = client.peek().await;
    assert_eq!((&message["body"], &message["type"]), (&"hello".into(), &"test.happened".into()));
    assert_eq!(service.hub.connected(), 1);
}

#[tokio::test]
async fn a_receipt_is_the_client_s_acknowledgment() {
    let service = start().await;
    let client = service.begin().await;
    let dsn = client.dsn.clone();
    let acknowledging = tokio::spawn(client.acknowledge());
    let message = Message::builder("a.b").id(MessageId::new()).payload("hello").build().expect("valid");
    let receipt = service.hub.deliver(&dsn, &message, &crate::peer::within(20)).await.expect("delivered");
    assert_eq!(receipt.evidence(), &callback_core::Evidence::Acknowledged);
    drop(service);
    acknowledging.abort();
}

#[tokio::test]
async fn a_hundred_messages_that_came_while_it_was_away_arrive_when_it_is_back_and_then_no_more() {
    let service = start().await;
    let client = service.begin().await;
    let (dsn, secret) = lose(&service, client).await;
    let mut sent = BTreeSet::new();
    for number in 0..100 {
        service.publish(&dsn, &number.to_string()).await;
        sent.insert(number.to_string());
    }
    let mut client = service.resume(&secret).await.expect("a session");
    assert_eq!((&client.welcome["resumed"], &client.dsn), (&true.into(), &dsn));
    let mut arrived = BTreeSet::new();
    for _ in 0..100 {
        let message = client.peek().await;
        assert_eq!(message["attempt"], 1, "being away uses up no attempt");
        let id = message["id"].as_str().expect("an id");
        client.say(&format!(r#"{{"ack":"{id}"}}"#)).await;
        assert!(arrived.insert(message["body"].as_str().expect("a body").to_owned()), "{message}");
    }
    assert_eq!(arrived, sent);

    // What was acknowledged does not come again.
    service.publish(&dsn, "settled").await;
    assert_eq!(client.next().await, "settled");
    let (dsn, secret) = lose(&service, client).await;
    service.publish(&dsn, "last").await;
    let mut client = service.resume(&secret).await.expect("a session");
    assert_eq!(client.next().await, "last");
    assert!(service.dead().await.is_empty());
}

#[tokio::test]
async fn what_was_not_acknowledged_arrives_again_under_the_same_id() {
    let service = start().await;
    let mut client = service.begin().await;
    service.publish(&client.dsn, "hello").await;
    let first = client.peek().await;
    let (_, secret) = lose(&service, client).await;
    let mut client = service.resume(&secret).await.expect("a session");
    let second = client.peek().await;
    assert_eq!((&second["id"], &second["body"]), (&first["id"], &first["body"]));
    assert_eq!(second["attempt"], 2);
}

#[tokio::test]
async fn a_wrong_secret_is_told_so_and_disturbs_nobody() {
    let service = start().await;
    let mut client = service.begin().await;
    let address = client.secret.split_once('.').expect("two parts").0.to_owned();
    let other = service.begin().await;
    let bits = other.secret.split_once('.').expect("two parts").1;
    for secret in [format!("{address}.{bits}"), address, String::new(), "a.b".to_owned(), "ä".repeat(30)] {
        assert_eq!(service.resume(&secret).await.err(), Some(4410), "{secret}");
    }
    service.publish(&client.dsn, "hello").await;
    assert_eq!(client.next().await, "hello");
}

#[tokio::test]
async fn the_former_secret_is_good_until_the_new_one_was_used() {
    let service = start().await;
    let first = service.begin().await;
    let second = service.resume(&first.secret).await.expect("the current one");
    // The answer to that was lost, say.
    let third = service.resume(&first.secret).await.expect("the former one");
    assert_ne!(second.secret, third.secret);
    let fourth = service.resume(&third.secret).await.expect("the current one");
    for secret in [&first.secret, &second.secret] {
        assert_eq!(service.resume(secret).await.err(), Some(4410));
    }
    let _fifth = service.resume(&fourth.secret).await.expect("the current one");
}

#[tokio::test]
async fn a_session_that_is_resumed_elsewhere_leaves_the_old_connection_and_nothing_is_lost() {
    let service = start().await;
    let mut old = service.begin().await;
    service.publish(&old.dsn, "hello").await;
    let message = old.peek().await;
    let mut new = service.resume(&old.secret).await.expect("a session");
    assert_eq!(old.code().await, 4409);
    // It was the connection's end, and no attempt that counts.
    let again = new.peek().await;
    assert_eq!((&again["id"], &again["attempt"]), (&message["id"], &1.into()));
    new.say(&format!(r#"{{"ack":{}}}"#, message["id"])).await;
    service.publish(&new.dsn, "bye").await;
    assert_eq!(new.next().await, "bye");
    service.until_connected(1).await;
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused() {
    let service = Service::start(Hub::builder().origin("https://app.example")).await;
    let own = format!("http://{}", service.address);
    for (origin, expected) in
        [("https://app.example", None), (&*own, None), ("https://evil.example", Some(403)), ("null", Some(403))]
    {
        let opened = open(service.address, request(service.address, &[("origin", origin)])).await;
        assert_eq!(opened.err(), expected, "{origin}");
    }
    assert!(open(service.address, request(service.address, &[])).await.is_ok(), "no browser asks");
}

/// The status of an answer to a request that is written by hand.
async fn status(service: &Service, method: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(service.address).await.expect("a connection");
    let request = format!("{method} /session HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}

#[tokio::test]
async fn what_is_no_request_for_a_socket_is_told_so() {
    let service = start().await;
    assert_eq!(status(&service, "GET", "").await, 426);
    assert_eq!(status(&service, "POST", "Content-Length: 0\r\n").await, 405);
    assert_eq!(status(&service, "GET", "Upgrade: websocket\r\nConnection: upgrade\r\n").await, 426);
    let other = open(service.address, request(service.address, &[("sec-websocket-protocol", "chat")])).await;
    assert_eq!(other.err(), Some(400));
    assert_eq!(service.hub.connected(), 0);
}

#[tokio::test]
async fn a_first_frame_that_says_nothing_we_know_ends_the_connection() {
    let service = start().await;
    for (frame, code) in [
        (Frame::text("hello"), 1008),
        (Frame::text(r#"{"ack":"a"}"#), 1008),
        (Frame::text(r#"{"resume":7}"#), 1008),
        (Frame::text("["), 1008),
        (Frame::binary(&br#"{"resume":null}"#[..]), 1008),
        (Frame::text("x".repeat((64 << 10) + 1)), 1009),
    ] {
        let mut socket = open(service.address, request(service.address, &[])).await.expect("a socket");
        socket.send(frame).await.expect("sent");
        assert_eq!(read(&mut socket).await, Err(code));
    }
    assert_eq!(service.hub.connected(), 0);
}

#[tokio::test]
async fn a_client_that_sends_what_is_no_answer_loses_its_connection_and_not_its_session() {
    let service = start().await;
    for text in ["hello", r#"{"resume":null}"#, r#"{"ack":7}"#] {
        let mut client = service.begin().await;
        service.publish(&client.dsn, "hello").await;
        client.peek().await;
        client.say(text).await;
        assert_eq!(client.code().await, 1008, "{text}");
        let mut client = service.resume(&client.secret).await.expect("a session");
        assert_eq!(client.next().await, "hello");
    }
}

#[tokio::test]
async fn a_client_that_never_acknowledges_has_dead_letters_and_costs_nobody_else_any() {
    let service = Service::with(Hub::builder(), callback_dispatch::MemoryOutbox::new(), |dispatcher| {
        let schedule = callback_core::Schedule::new(vec![Duration::from_millis(10)]).expect("a schedule");
        dispatcher.schedule(schedule).deadline(Duration::from_secs(1))
    })
    .await;
    let mut silent = service.begin().await;
    let mut other = service.begin().await;
    for _ in 0..3 {
        service.publish(&silent.dsn, "hello").await;
    }
    for number in 0..20 {
        service.publish(&other.dsn, &number.to_string()).await;
    }
    let mut arrived = BTreeSet::new();
    while arrived.len() < 20 {
        arrived.insert(other.next().await);
    }
    // It reads, as a client does that has forgotten to answer.
    let reading = tokio::spawn(async move { while read(&mut silent.socket).await.is_ok() {} });
    until(async || service.dead().await.len() == 3).await;
    for letter in service.dead().await {
        assert!(letter.attempts.iter().all(|attempt| attempt.kind == ErrorKind::TimedOut), "{:?}", letter.attempts);
    }
    reading.abort();
}

#[tokio::test]
async fn a_client_that_says_it_is_gone_has_no_session_any_more() {
    let service = start().await;
    let mut client = service.begin().await;
    let id = service.publish(&client.dsn, "hello").await;
    client.peek().await;
    client.say(&format!(r#"{{"nack":"{id}","kind":"gone"}}"#)).await;
    assert_eq!(client.code().await, 4410);
    until(async || service.dead().await.len() == 1).await;
    assert_eq!(service.dead().await[0].attempts.last().expect("an attempt").kind, ErrorKind::Gone);
    assert_eq!(service.resume(&client.secret).await.err(), Some(4410));
    service.publish(&client.dsn, "too late").await;
    until(async || service.dead().await.len() == 2).await;
}

#[tokio::test]
async fn a_session_whose_time_is_over_is_gone_with_what_waited_for_it() {
    let service = Service::start(Hub::builder().session_time(Duration::from_secs(1))).await;
    let client = service.begin().await;
    assert_eq!(client.welcome["keep"], 1);
    let (dsn, secret) = lose(&service, client).await;
    service.publish(&dsn, "hello").await;
    until(async || service.dead().await.len() == 1).await;
    assert_eq!(service.resume(&secret).await.err(), Some(4410));
}

#[tokio::test]
async fn a_session_that_nobody_has_begun_is_gone() {
    let service = start().await;
    service.publish(&"session://AAAAAAAAAAAAAAAAAAAAAA".parse().expect("a Dsn"), "hello").await;
    until(async || service.dead().await.len() == 1).await;
}

#[tokio::test]
async fn to_a_client_that_is_away_there_is_no_connection() {
    let service = start().await;
    let client = service.begin().await;
    let (dsn, _) = lose(&service, client).await;
    let message = Message::builder("a.b").payload("hello").build().expect("valid");
    let error = service.hub.deliver(&dsn, &message, &crate::peer::within(20)).await.expect_err("away");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Connect)));
}

#[tokio::test]
async fn one_client_more_than_there_is_room_for_is_told_to_come_later() {
    let service = Service::start(Hub::builder().sessions(1)).await;
    let client = service.begin().await;
    assert_eq!(open(service.address, request(service.address, &[])).await.err(), Some(503));
    drop(client);
    until(async || open(service.address, request(service.address, &[])).await.is_ok()).await;
}

#[tokio::test]
async fn a_hub_that_closes_says_so_and_takes_nobody_any_more() {
    let service = start().await;
    let mut client = service.begin().await;
    let mut silent = open(service.address, request(service.address, &[])).await.expect("a socket");
    let (closed, code, other) =
        tokio::join!(service.dispatcher.close(Duration::from_secs(5)), client.code(), read(&mut silent));
    assert_eq!(((), 1001, Err(1001)), (closed, code, other));
    assert_eq!(open(service.address, request(service.address, &[])).await.err(), Some(503));
}
