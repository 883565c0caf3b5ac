//! Calls that are sent again under an `Idempotency-Key`.

use crate::shop::{Reply, Shop};
use callback_core::RpcError;
use http::StatusCode;
use serde_json::{Value, json};

async fn post(shop: &Shop, key: &str, body: &str) -> Reply {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    shop.send(&headers, body.replace("%CALLBACK%", &shop.callback())).await
}

const CALL: &str = r#"{"id":1,"method":"echo","params":{"a":1,"$rpc.callback":"%CALLBACK%"}}"#;

#[tokio::test]
async fn a_call_that_is_sent_again_runs_once_and_gets_the_same_acknowledgment() {
    let mut shop = Shop::open().await;
    let first = post(&shop, r#""key""#, CALL).await;
    let task = first.task();
    assert_eq!(shop.next().await.header("webhook-id"), Some(&*task));
    for key in [r#""key""#, "key"] {
        assert_eq!(post(&shop, key, CALL).await.body, first.body, "{key}");
    }
    // Without a callback the key is the service's.
    post(&shop, "key", r#"{"id":1,"method":"echo","params":{"a":1}}"#).await.result();
    assert_ne!(post(&shop, "another", CALL).await.task(), task);
    shop.next().await;
    assert_ne!(shop.post(CALL).await.task(), task);
    shop.next().await;
    assert_eq!(shop.methods.seen().iter().filter(|seen| seen.task.is_some()).count(), 3);
}

#[tokio::test]
async fn another_call_under_the_key_is_a_conflict() {
    let shop = Shop::open().await;
    post(&shop, "key", CALL).await.task();
    for other in [
        CALL.replace("echo", "blocked"),
        CALL.replace(r#""a":1"#, r#""a":2"#),
        CALL.replace("%CALLBACK%", "%CALLBACK%/2"),
    ] {
        let reply = post(&shop, "key", &other).await;
        assert_eq!(reply.status, StatusCode::UNPROCESSABLE_ENTITY, "{reply:?}");
        let answer = reply.json();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(1), &json!(RpcError::INVALID_PARAMS)));
        assert_eq!(answer["error"]["data"]["reason"], "another request was accepted under this idempotency key");
    }
}

#[tokio::test]
async fn in_a_batch_each_call_has_the_key_at_its_place() {
    let shop = Shop::open().await;
    let ids = |reply: Reply| -> Vec<Value> {
        let answers = reply.json();
        answers.as_array().expect("a batch").iter().map(|answer| answer["result"]["callback"]["id"].clone()).collect()
    };
    let batch = format!("[{CALL},{CALL}]");
    let first = ids(post(&shop, "key", &batch).await);
    assert!(first[0].is_string() && first[0] != first[1], "{first:?}");
    assert_eq!(ids(post(&shop, "key", &batch).await), first);
    assert!(!first.contains(&json!(post(&shop, "key", CALL).await.task())));
    let reply = post(&shop, "key", &format!("[{CALL},{}]", CALL.replace("echo", "blocked"))).await;
    assert_eq!(reply.status, StatusCode::OK);
    let answers = reply.json();
    assert_eq!(answers[0]["result"]["callback"]["id"], first[0]);
    assert_eq!(answers[1]["error"]["code"], RpcError::INVALID_PARAMS);
}

#[tokio::test]
async fn a_malformed_key_is_refused() {
    let shop = Shop::open().await;
    for key in ["", r#"""#, "a b", "a, b", r#""a";b"#] {
        let reply = post(&shop, key, CALL).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{key}: {reply:?}");
        let answer = reply.json();
        assert_eq!(answer["error"]["code"], RpcError::INVALID_REQUEST);
        assert!(
            answer["error"]["data"]["reason"].as_str().is_some_and(|it| it.contains("Idempotency-Key")),
            "{answer}"
        );
    }
    let headers = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "b")];
    let reply = shop.send(&headers, CALL.replace("%CALLBACK%", &shop.callback())).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(shop.methods.seen().is_empty());
}
