//! Opening a socket: what is said, and what an answer means.

use crate::peer::{Peer, builder, deliver, message, sink, within};
use callback_core::{ErrorKind, Phase, Sink};
use std::{future::pending, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Reads the head of a request.
async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
}

/// A server that answers each request with these bytes.
async fn answering(answer: String) -> Peer {
    Peer::on_tcp(move |mut stream| {
        let answer = answer.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_handshake_offers_the_subprotocols_and_says_who_we_are() {
    let peer = Peer::acknowledging().await;
    let sink = builder().origin("https://orders.example").build().expect("a sink");
    let dsn = peer.dsn.expose().replace("ws://", "ws://me:pa%20ss@").parse().expect("a Dsn");
    deliver(&sink, &dsn, "hello").await.expect("delivered");
    deliver(&sink, &peer.dsn, "hello").await.expect("delivered");
    let requests = peer.requests();
    let header =
        |at: usize, name: &str| requests[at].get(name).map(|value| value.to_str().expect("visible").to_owned());
    assert_eq!(header(0, "sec-websocket-protocol").as_deref(), Some("callback.v1, cloudevents.json"));
    assert_eq!(header(0, "origin").as_deref(), Some("https://orders.example"));
    assert_eq!(header(0, "authorization").as_deref(), Some("Basic bWU6cGEgc3M="));
    assert_eq!(header(1, "authorization"), None, "another Dsn has a connection of its own");
}

#[tokio::test]
async fn a_status_is_judged_as_over_http() {
    for (answer, kind, wait) in [
        ("200 OK", ErrorKind::Unroutable, None),
        ("302 Found\r\nLocation: ws://127.0.0.1:1/", ErrorKind::Refused, None),
        ("400 Bad", ErrorKind::Refused, None),
        ("401 No", ErrorKind::Unauthorized, None),
        ("403 No", ErrorKind::Unauthorized, None),
        ("404 No", ErrorKind::Unroutable, None),
        ("410 Gone", ErrorKind::Gone, None),
        ("429 Slow\r\nRetry-After: 7", ErrorKind::Throttled, Some(7)),
        ("503 Slow\r\nRetry-After: 7", ErrorKind::Throttled, Some(7)),
        ("500 No", ErrorKind::Unavailable, None),
    ] {
        let peer = answering(format!("HTTP/1.1 {answer}\r\nContent-Length: 7\r\n\r\nplanted")).await;
        let error = deliver(&sink(), &peer.dsn, "hello").await.expect_err("no socket");
        assert_eq!((error.kind(), error.retry_after()), (kind, wait.map(Duration::from_secs)), "{}", error.chain());
        assert_eq!(error.status().map(|status| status.to_string()).as_deref(), answer.get(..3));
        assert_eq!(peer.connections(), 1, "a redirect is not followed, and nothing is tried twice");
    }
}

#[tokio::test]
async fn an_interim_answer_is_passed_over() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let peer = answering(format!("{interim}HTTP/1.1 404 No\r\n\r\n")).await;
    let error = deliver(&sink(), &peer.dsn, "hello").await.expect_err("no socket");
    assert_eq!((error.kind(), error.status()), (ErrorKind::Unroutable, Some(404)), "{}", error.chain());

    let peer = answering(interim.repeat(1_000)).await;
    let error = deliver(&sink(), &peer.dsn, "hello").await.expect_err("no answer proper");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
}

#[tokio::test]
async fn what_is_no_answer_to_a_handshake_is_unavailable() {
    for answer in [
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned(),
        format!("HTTP/1.1 101 Switching Protocols\r\nX: {}", "x".repeat(1 << 20)),
        format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n", "X: y\r\n".repeat(1_000)),
        String::new(),
    ] {
        let peer = answering(answer.clone()).await;
        let error = deliver(&sink(), &peer.dsn, "hello").await.expect_err("no socket");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{answer:.40}: {}", error.chain());
    }
}

#[tokio::test]
async fn a_server_that_never_answers_costs_a_delivery_its_deadline_at_most() {
    let peer = Peer::on_tcp(|stream| async move {
        pending::<()>().await;
        drop(stream);
    })
    .await;
    let sink = sink();
    let error = sink.deliver(&peer.dsn, &message("hello"), &within(1)).await.expect_err("no socket");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::TimedOut, Some(Phase::Answer)));
    sink.close().await.expect("closed");
}
