//! A receiver under an existing application.

use crate::{
    peer::{deliver, sink},
    sender::{PATIENCE, Sender, delivery, frame, soon},
};
use axum::{Router, routing::get};
use callback_receive::Receiver;
use callback_ws::WsReceiver;
use tokio::net::TcpListener;

#[tokio::test]
async fn a_router_is_nested_at_the_path_of_its_base_url() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let base = format!("ws://{address}/app/callbacks");
    let (ws, callbacks) = WsReceiver::builder().connections(1).router(&base).expect("a base URL");
    assert_eq!(ws.local_addr(), None);
    let app = Router::new().route("/health", get(async || "ok")).nest("/app/callbacks", callbacks);
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let offering = async |url: &str| Sender::offering(url, &["callback.v1"]).await.map(|sender| sender.subprotocol);

    assert_eq!(offering(&format!("{base}/{}", "A".repeat(32))).await, Err(503), "there is no receiver yet");
    let receiver = Receiver::builder().open(ws).await.expect("it opens");
    let mut callback = receiver.spawn();
    assert!(callback.url().starts_with(&base));
    assert_eq!(offering(&format!("{base}/{}", "A".repeat(32))).await, Err(404));
    let (sink, dsn) = (sink(), callback.dsn());
    let (told, ()) = tokio::join!(deliver(&sink, &dsn, "x"), async {
        delivery(&mut callback).await.accept().await.expect("direct");
    });
    told.expect("delivered");

    // There is one seat: the sink's is free, and is given away until it has work.
    let mut sender = Sender::open(&callback.url()).await;
    sender.send(frame("a", "x")).await;
    let delivery = delivery(&mut callback).await;
    assert_eq!(offering(&callback.url()).await, Err(503), "the one that has a seat has work");
    delivery.accept().await.expect("direct");
    assert_eq!(sender.answer().await["ack"], "a");

    soon(receiver.close(PATIENCE)).await.expect("nothing is in hand");
    assert_eq!(sender.closed().await, 1001);
    assert_eq!(offering(&callback.url()).await, Err(503));
    serving.abort();
}
