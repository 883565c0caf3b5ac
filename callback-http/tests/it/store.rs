//! What a client is told when nothing can be stored.

use crate::{
    receiver::PATIENCE,
    shop::{Opening, Reply, SEED_REQUEST, SOON, Shop},
};
use callback_core::RpcError;
use callback_dispatch::SqliteOutbox;
use http::StatusCode;
use serde_json::{Value, json};
use std::process::Command;
use tokio::task::spawn_blocking;

#[track_caller]
fn unavailable(reply: &Reply, id: &Value, code: i64, data: &Value) {
    assert_eq!(
        (reply.status, &reply.headers["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().expect("valid"))
    );
    let answer = reply.json();
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), id));
    assert_eq!((&answer["error"]["code"], &answer["error"]["data"]), (&json!(code), data), "{answer}");
}

#[tokio::test]
async fn a_closed_dispatcher_asks_to_come_again() {
    let shop = Shop::open().await;
    shop.dispatcher.close(PATIENCE).await;
    let reply = shop.post(SEED_REQUEST).await;
    unavailable(&reply, &json!("example_order"), RpcError::OVERLOADED, &json!({ "retryAfter": 1 }));
    assert!(shop.methods.seen().is_empty());

    // In a batch, the batch is answered, and the item says so.
    let reply = shop.post(&format!("[{SEED_REQUEST},{{\"id\":2,\"method\":\"echo\",\"params\":[]}}]")).await;
    assert_eq!(reply.status, StatusCode::OK);
    let codes: Vec<Value> =
        reply.json().as_array().into_iter().flatten().map(|answer| answer["error"]["code"].clone()).collect();
    assert!(codes.contains(&json!(RpcError::OVERLOADED)) && codes.contains(&Value::Null), "{codes:?}");
}

#[tokio::test]
async fn a_request_beyond_the_dispatchers_limit_is_too_large() {
    let opening =
        Opening::on(callback_dispatch::MemoryOutbox::new()).dispatcher(|dispatcher| dispatcher.body_limit(40));
    let shop = opening.open().await;
    let reply = shop.post(SEED_REQUEST).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    let answer = reply.json();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("example_order"), &json!(RpcError::INVALID_REQUEST)));
    assert_eq!(answer["error"]["data"]["reason"], "the request is larger than 40 bytes");
    assert!(shop.methods.seen().is_empty());
}

/// Runs itself again as a child whose files may not grow: to SQLite, a full disk.
#[tokio::test]
async fn a_full_disk_is_an_internal_error_and_the_service_lives() {
    const CHILD: &str = "CALLBACK_HTTP_TEST_FULL_DISK";
    if std::env::var_os(CHILD).is_some() {
        full_disk().await;
        return;
    }
    let output = spawn_blocking(|| {
        // The signal is ignored, so that a write fails instead of ending the process.
        let script = "trap '' XFSZ; ulimit -f 2000; exec \"$0\" --exact store::a_full_disk_is_an_internal_error_and_the_service_lives";
        Command::new("sh").args(["-c", script]).arg(std::env::current_exe().expect("a path")).env(CHILD, "1").output()
    });
    let output = output.await.expect("no panic").expect("started");
    assert!(output.status.success(), "{output:?}");
}

async fn full_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = SqliteOutbox::open(folder.path().join("outbox.sqlite")).await.expect("opened");
    let mut shop = Opening::on(outbox).open().await;
    let padding = "x".repeat(100_000);
    let call = |id: usize| {
        format!(r#"{{"id":{id},"method":"echo","params":{{"a":"{padding}","$rpc.callback":"%CALLBACK%"}}}}"#)
    };
    let mut accepted = 0;
    let refused = loop {
        let reply = shop.post(&call(accepted)).await;
        if reply.status != StatusCode::OK {
            break reply;
        }
        reply.task();
        accepted += 1;
        assert!(accepted < 1_000, "the disk is never full");
    };
    assert!(accepted > 0, "{refused:?}");
    unavailable(
        &refused,
        &json!(accepted),
        RpcError::INTERNAL,
        &json!({ "reason": "the request could not be stored" }),
    );
    // Calls without callback go on.
    assert_eq!(shop.post(r#"{"id":1,"method":"echo","params":["alive"]}"#).await.result(), json!(["alive"]));
    shop.dispatcher.close(SOON).await;
    let ran = format!(r#"{{"id":{accepted},"#);
    assert!(!shop.methods.seen().iter().any(|seen| seen.text().starts_with(&ran)), "it was refused, and ran");
    while !shop.receiver.is_empty() {
        assert_ne!(shop.next().await.json()["id"], json!(accepted));
    }
}
