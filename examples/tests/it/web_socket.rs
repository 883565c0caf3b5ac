//! `order-service` for a client that serves a WebSocket.

use crate::service::{Config, SECRET, call};
use callback_core::Verifier;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use tokio::{net::TcpListener, time::timeout};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message as Frame,
        handshake::server::{Request, Response},
    },
};

/// Takes one frame of `callback.v1` on a connection of its own, and acknowledges it if it is to.
#[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
async fn take_one(listener: &TcpListener, acknowledge: bool) -> Value {
    let (stream, _) = listener.accept().await.expect("a connection");
    let pick = |_: &Request, mut response: Response| {
        response.headers_mut().insert("sec-websocket-protocol", "callback.v1".parse().expect("a header"));
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, pick).await.expect("a handshake");
    let frame = socket.next().await.expect("open").expect("a frame");
    let frame: Value = serde_json::from_str(frame.to_text().expect("a text")).expect("JSON");
    if acknowledge {
        socket.send(Frame::text(json!({ "ack": frame["id"] }).to_string())).await.expect("sent");
        // The service may say goodbye.
        let _ = timeout(Duration::from_millis(100), socket.next()).await;
    }
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_comes_signed_over_a_socket_and_again_until_it_is_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dsn = format!("ws://{}/results?token=planted", listener.local_addr().expect("an address"));
    let service = Config::new(folder.path()).start();
    let (status, answer) = service.post(&call("order-1", "OrderService.processOrder", &dsn)).await;
    assert_eq!(status, 200, "{answer}");
    let patience = Duration::from_secs(60);
    let first = timeout(patience, take_one(&listener, false)).await.expect("it comes");
    let second = timeout(patience, take_one(&listener, true)).await.expect("it comes again");
    assert_eq!((&first["id"], &first["body"]), (&second["id"], &second["body"]));
    assert_eq!((&first["attempt"], &second["attempt"]), (&json!(1), &json!(2)));

    let text = |name: &str| second[name].as_str().expect("a text").to_owned();
    let (id, body, timestamp) = (text("id"), text("body"), second["timestamp"].to_string());
    let verifier: Verifier = SECRET.parse().expect("a key");
    let verified = verifier.verify_headers(&id, &timestamp, &text("signature"), body.as_bytes(), SystemTime::now());
    assert_eq!(verified, Ok(()));
    let response: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(response["result"]["orderId"], "order-1");
    assert_eq!(text("subject"), answer["result"]["callback"]["id"].as_str().expect("an id"));
}
