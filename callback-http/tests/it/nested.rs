//! A receiver under an existing application.

use crate::{client::posting, receiver::PATIENCE};
use axum::{Router, routing::get};
use callback_http::HttpReceiver;
use callback_receive::Receiver;
use tokio::{net::TcpListener, time::timeout};

#[tokio::test]
async fn a_router_is_nested_at_the_path_of_its_base_url() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let base = format!("http://{address}/app/callbacks");
    let (http, callbacks) = HttpReceiver::router(&base).expect("a base URL");
    assert_eq!(http.local_addr(), None);
    let app = Router::new().route("/health", get(async || "ok")).nest("/app/callbacks", callbacks);
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });

    let before = posting(&format!("{base}/{}", "A".repeat(32)), "a", "x").await.expect("no panic");
    assert_eq!(before.status, 503, "there is no receiver yet");
    let receiver = Receiver::builder().open(http).await.expect("it opens");
    let mut handle = receiver.spawn();
    assert!(handle.url().starts_with(&base));
    let told = posting(&handle.url(), "a", "x");
    let delivery = timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
    delivery.accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic").status, 200);

    let health = crate::client::send("GET", &format!("http://{address}/health"), &[], "").await;
    assert_eq!((health.status, health.body.as_str()), (200, "ok"));
    receiver.close(PATIENCE).await.expect("nothing is in hand");
    assert_eq!(posting(&handle.url(), "b", "x").await.expect("no panic").status, 503);
    serving.abort();
}
