//! Time limits, in paused time and without sockets.

use crate::shop::Methods;
use axum::Router;
use callback_core::{MemorySink, RpcError};
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, TokioClock};
use callback_http::server::{Body, RpcHandler, RpcLayer, RpcService};
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

pub(crate) fn request(body: &str) -> Request<Body> {
    Request::post("/rpc?v=1")
        .header("content-type", "application/json")
        .body(Body::from(bytes::Bytes::copy_from_slice(body.as_bytes())))
        .expect("a request")
}

pub(crate) async fn json_of(response: Response<Body>) -> Value {
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    serde_json::from_slice(&body).expect("JSON")
}

async fn service(sink: &MemorySink) -> (Dispatcher, RpcService<Router>) {
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink.clone()).clock(TokioClock::default());
    let dispatcher = dispatcher.start().await.expect("started");
    let methods = Methods::default().router();
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain);
    let worker = worker.run(RpcHandler::new(methods.clone())).expect("registered");
    (dispatcher, RpcLayer::new(worker).layer(methods))
}

async fn answered(body: &str) -> (Value, Duration) {
    let (_dispatcher, service) = service(&MemorySink::new()).await;
    let begun = Instant::now();
    let response = service.oneshot(request(body)).await.expect("infallible");
    assert_eq!(response.status(), 200);
    (json_of(response).await, begun.elapsed())
}

#[track_caller]
fn timed_out(answer: &Value, id: i64, seconds: f64) {
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(id), &json!(RpcError::TIMED_OUT)), "{answer}");
    assert_eq!(answer["error"]["data"], json!({ "seconds": seconds }));
}

#[tokio::test(start_paused = true)]
async fn a_clients_timeout_limits_a_method_with_a_callback() {
    let sink = MemorySink::new();
    let (_dispatcher, service) = service(&sink).await;
    let begun = Instant::now();
    let body = r#"{"id":1,"method":"never","params":{"$rpc.callback":"memory://results","$rpc.timeout":12.5}}"#;
    let response = service.oneshot(request(body)).await.expect("infallible");
    assert_eq!(json_of(response).await["result"]["callback"]["url"], "memory://results");
    let delivered = sink.next("results").await;
    assert_eq!(delivered.message.event_type(), "callback.rpc.failed");
    timed_out(&delivered.message.json().expect("JSON"), 1, 12.5);
    assert!((12.5..13.5).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_clients_timeout_limits_a_call_without_callback() {
    let (answer, took) = answered(r#"{"id":7,"method":"never","params":{"$rpc.timeout":10}}"#).await;
    timed_out(&answer, 7, 10.0);
    assert!((10.0..11.0).contains(&took.as_secs_f64()), "{took:?}");
    let (answer, _) = answered(r#"{"id":7,"method":"echo","params":{"$rpc.timeout":10}}"#).await;
    assert_eq!(answer["result"], json!({}));
}

#[tokio::test(start_paused = true)]
async fn the_longest_timeout_limits_a_batch_whose_calls_all_name_one() {
    let all = r#"[{"id":1,"method":"echo","params":{"$rpc.timeout":10}},{"id":2,"method":"echo","params":{"$rpc.timeout":20}}]"#;
    let (answers, _) = answered(all).await;
    assert_eq!(answers.as_array().map(Vec::len), Some(2), "{answers}");

    let (answers, took) = answered(&all.replacen("echo", "never", 1)).await;
    timed_out(&answers[0], 1, 20.0);
    timed_out(&answers[1], 2, 20.0);
    assert!((20.0..21.0).contains(&took.as_secs_f64()), "{took:?}");
}
