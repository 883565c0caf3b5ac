//! Methods that fail: the callback says so, under the request's id.

use crate::{
    receiver::Received,
    shop::{Opening, SOON, Shop},
};
use callback_core::RpcError;
use callback_dispatch::MemoryOutbox;
use serde_json::{Value, json};

async fn fragile() -> Shop {
    Opening::on(MemoryOutbox::new())
        .dispatcher(|dispatcher| dispatcher.body_limit(50_000))
        .worker(|worker| worker.time_limit(SOON))
        .open()
        .await
}

async fn called(shop: &mut Shop, method: &str) -> Received {
    let body = format!(r#"{{"id":"{method} 1","method":"{method}","params":{{"$rpc.callback":"%CALLBACK%"}}}}"#);
    let task = shop.post(&body).await.task();
    let received = shop.next().await;
    assert_eq!(received.header("webhook-id"), Some(&*task));
    received
}

async fn check(shop: &mut Shop, method: &str, code: i64, data: &Value) {
    let received = called(shop, method).await;
    assert_eq!(received.header("ce-type"), Some("callback.rpc.failed"), "{method}");
    assert_eq!(received.header("content-type"), Some("application/json"), "{method}");
    let answer = received.json();
    let message = answer["error"]["message"].clone();
    assert!(message.is_string(), "{method}: {answer}");
    let error = json!({ "code": code, "message": message, "data": data });
    assert_eq!(answer, json!({ "jsonrpc": "2.0", "id": format!("{method} 1"), "error": error }), "{method}");
}

#[tokio::test]
async fn each_way_to_fail_has_its_code() {
    let mut shop = fragile().await;
    let internal = |reason: &str| json!({ "reason": reason });
    check(&mut shop, "panics", RpcError::INTERNAL, &internal("the handler panicked")).await;
    check(&mut shop, "page", RpcError::INTERNAL, &internal("the method answered no JSON (HTTP status 200)")).await;
    check(&mut shop, "broken page", RpcError::INTERNAL, &internal("the method answered no JSON (HTTP status 500)"))
        .await;
    check(&mut shop, "empty", RpcError::INTERNAL, &internal("the method answered no JSON (HTTP status 200)")).await;
    check(
        &mut shop,
        "another id",
        RpcError::INTERNAL,
        &internal("the method answered with another id (HTTP status 200)"),
    )
    .await;
    check(&mut shop, "never", RpcError::TIMED_OUT, &json!({ "seconds": 0.05 })).await;
    check(&mut shop, "large", RpcError::RESULT_TOO_LARGE, &json!({ "limit": 50_000 })).await;
    // The shop is alive.
    assert_eq!(called(&mut shop, "echo").await.json()["result"], json!({}));
}

#[tokio::test]
async fn an_answer_without_end_is_not_kept_in_memory() {
    let mut shop = Shop::open().await;
    check(&mut shop, "huge", RpcError::RESULT_TOO_LARGE, &json!({ "limit": 16_777_216 })).await;
}

#[tokio::test]
async fn a_request_without_an_id_of_its_own_is_answered_under_null() {
    let mut shop = fragile().await;
    shop.post(r#"{"id":null,"method":"panics","params":{"$rpc.callback":"%CALLBACK%"}}"#).await.task();
    let answer = shop.next().await.json();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(RpcError::INTERNAL)));
}
