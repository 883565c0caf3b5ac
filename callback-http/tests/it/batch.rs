//! Batches: what names a callback is accepted, the rest is one smaller batch.

use crate::shop::{Opening, Shop};
use axum::{Router, response::Html};
use callback_core::RpcError;
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox};
use callback_http::server::{RpcHandler, RpcLayer};
use http::StatusCode;
use serde_json::{Value, json};
use tower::Layer;

#[track_caller]
fn answer<'a>(answers: &'a Value, id: &Value) -> &'a Value {
    let found: Vec<&Value> = answers.as_array().expect("a batch").iter().filter(|answer| answer["id"] == *id).collect();
    assert_eq!(found.len(), 1, "{id}: {answers}");
    found[0]
}

#[tokio::test]
async fn a_batch_is_taken_apart_and_its_answers_joined() {
    let mut shop = Shop::open().await;
    let reply = shop
        .post(
            r#"[ {"id":1, "method":"echo","params":{"a" : 1.0}},
            {"id":"two","method":"echo","params":{"b":2,"$rpc.callback":"%CALLBACK%"}},
            {"method":"echo","params":["notification"]},
            {"method":"echo","params":{"c":3,"$rpc.callback":"%CALLBACK%"}},
            7,
            {"id":3,"method":"echo","params":{"$rpc.ignoreCache":true,"d":4}} ]"#,
        )
        .await;
    assert_eq!(
        (reply.status, &reply.headers["content-type"]),
        (StatusCode::OK, &"application/json".parse().expect("valid"))
    );
    let answers = reply.json();
    assert_eq!(answers.as_array().map(Vec::len), Some(4), "{answers}");
    assert_eq!(answer(&answers, &json!(1))["result"], json!({ "a": 1.0 }));
    assert_eq!(answer(&answers, &json!(3))["result"], json!({ "d": 4 }));
    assert_eq!(answer(&answers, &json!("two"))["result"]["callback"]["status"], true);
    assert_eq!(answer(&answers, &Value::Null)["error"]["data"]["pointer"], "/4");

    let callback = shop.next().await.json();
    assert_eq!(callback, json!({ "jsonrpc": "2.0", "id": "two", "result": { "b": 2 } }));
    let seen = shop.methods.seen();
    let (tasks, batches): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.task.is_some());
    assert_eq!((tasks.len(), batches.len()), (1, 1), "the rest is one batch");
    let expected = concat!(
        r#"[{"id":1, "method":"echo","params":{"a" : 1.0}},"#,
        r#"{"method":"echo","params":["notification"]},"#,
        r#"{"method":"echo","params":{"c":3}},"#,
        r#"{"id":3,"method":"echo","params":{"d":4}}]"#
    );
    assert_eq!(batches[0].text(), expected);
    assert_eq!(batches[0].headers["content-length"], *expected.len().to_string());
    assert_eq!(batches[0].uri, "/rpc?v=1");
    assert!(shop.receiver.is_empty());
}

#[tokio::test]
async fn a_batch_of_callbacks_does_not_reach_the_service() {
    let mut shop = Shop::open().await;
    let calls: Vec<Value> = (0..20)
        .map(|id| json!({ "id": id, "method": "echo", "params": { "n": id, "$rpc.callback": "%CALLBACK%" } }))
        .collect();
    let answers = shop.post(&Value::from(calls).to_string()).await.json();
    assert_eq!(answers.as_array().map(Vec::len), Some(20));
    let mut tasks: Vec<&str> =
        (0..20).map(|id| answer(&answers, &json!(id))["result"]["callback"]["id"].as_str().expect("an id")).collect();
    let mut delivered = Vec::new();
    for _ in 0..20 {
        let received = shop.next().await;
        let callback = received.json();
        assert_eq!(callback["result"]["n"], callback["id"]);
        delivered.push(received.header("webhook-id").expect("an id").to_owned());
    }
    tasks.sort_unstable();
    delivered.sort_unstable();
    assert_eq!(tasks, delivered);
    assert!(shop.methods.seen().iter().all(|seen| seen.task.is_some()));
}

#[tokio::test]
async fn a_batch_of_notifications_has_no_answer() {
    let shop = Shop::open().await;
    let reply = shop
        .post(r#"[{"method":"echo","params":{"$rpc.callback":"%CALLBACK%"}},{"method":"echo"},{"method":"echo","params":{"$rpc.x":1}}]"#)
        .await;
    assert_eq!((reply.status, reply.body.len()), (StatusCode::NO_CONTENT, 0));
    assert_eq!(shop.methods.only().text(), r#"[{"method":"echo","params":{}},{"method":"echo"}]"#);
    assert!(shop.receiver.is_empty());
}

#[tokio::test]
async fn a_service_that_answers_no_batch_is_an_error_for_each_call() {
    let page = Router::new().fallback(async || Html("<h1>It works!</h1>"));
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).start().await.expect("started");
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain);
    let worker = worker.run(RpcHandler::new(page.clone())).expect("registered");
    let server = crate::shop::Server::start(Router::new().fallback_service(RpcLayer::new(worker).layer(page))).await;
    // The item that is none makes the batch ours: its answers are joined.
    let body = r#"[{"id":1,"method":"a"},{"id":"two","method":"a"},{"method":"a"},0]"#;
    let reply = crate::shop::post(server.address, &[("content-type", "application/json")], body).await;
    assert_eq!(reply.status, StatusCode::OK);
    let answers = reply.json();
    assert_eq!(answers.as_array().map(Vec::len), Some(3));
    for id in [json!(1), json!("two")] {
        let error = &answer(&answers, &id)["error"];
        assert_eq!(error["code"], RpcError::INTERNAL);
        assert!(
            error["data"]["reason"].as_str().is_some_and(|reason| reason.contains("no JSON-RPC answer")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_batch_that_is_all_the_services_gets_the_services_own_answer() {
    let busy = Router::new().fallback(async || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "7")], "busy"));
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).start().await.expect("started");
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain);
    let worker = worker.run(RpcHandler::new(busy.clone())).expect("registered");
    let server = crate::shop::Server::start(Router::new().fallback_service(RpcLayer::new(worker).layer(busy))).await;
    let body = r#"[{"id":1,"method":"a"},{"id":"two","method":"a","params":{"$rpc.rayId":"r"}}]"#;
    let reply = crate::shop::post(server.address, &[("content-type", "application/json")], body).await;
    assert_eq!((reply.status, &*reply.body), (StatusCode::TOO_MANY_REQUESTS, &b"busy"[..]));
    assert_eq!(reply.headers["retry-after"], "7");
}

#[tokio::test]
async fn the_options_of_a_batch_reach_the_service_in_order() {
    use axum::{Extension, Json};
    use callback_core::RpcOptions;
    let told = async |Extension(options): Extension<Vec<RpcOptions>>| {
        let told = options.iter().map(|options| json!([options.ray_id, options.ignore_cache]));
        Json(told.collect::<Value>())
    };
    let service = Router::new().fallback(told);
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).start().await.expect("started");
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain);
    let worker = worker.run(RpcHandler::new(service.clone())).expect("registered");
    let layered = Router::new().fallback_service(RpcLayer::new(worker).layer(service));
    let server = crate::shop::Server::start(layered).await;
    let body = r#"[{"id":1,"method":"a","params":{"$rpc.rayId":"r"}},{"id":2,"method":"a","params":{"$rpc":{"ignoreCache":true}}}]"#;
    let reply = crate::shop::post(server.address, &[("content-type", "application/json")], body).await;
    assert_eq!(reply.json(), json!([["r", false], [null, true]]));
}

#[tokio::test]
async fn one_item_that_cannot_be_stored_does_not_hinder_the_others() {
    let opening = Opening::on(MemoryOutbox::new()).dispatcher(|dispatcher| dispatcher.body_limit(1_000));
    let mut shop = opening.open().await;
    let large = "x".repeat(2_000);
    let answers = shop
        .post(&format!(
            r#"[{{"id":1,"method":"echo","params":{{"a":"{large}","$rpc.callback":"%CALLBACK%"}}}},
            {{"id":2,"method":"echo","params":{{"$rpc.callback":"%CALLBACK%"}}}}]"#
        ))
        .await
        .json();
    assert_eq!(answer(&answers, &json!(1))["error"]["code"], RpcError::INVALID_REQUEST);
    assert_eq!(answer(&answers, &json!(2))["result"]["callback"]["status"], true);
    assert_eq!(shop.next().await.json()["id"], 2);
}
