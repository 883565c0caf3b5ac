//! What an operator can set.

use crate::shop::{Marked, Methods, Opening, SEED_REQUEST, Shop, Tenant};
use bytes::Bytes;
use callback_core::{Keys, RpcResponse, Signer};
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, Task};
use callback_http::server::{RpcHandler, RpcLayer, RpcLayerBuilder};
use futures_util::stream;
use http::{HeaderName, Request, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::{Value, json};
use std::{convert::Infallible, time::SystemTime};
use tower::{Layer, ServiceExt};

async fn with(layer: impl FnOnce(RpcLayerBuilder) -> RpcLayerBuilder + Send + 'static) -> Shop {
    Opening::on(MemoryOutbox::new()).layer(layer).open().await
}

#[tokio::test]
async fn an_acknowledgment_may_have_another_status() {
    let mut shop = with(|layer| layer.status(StatusCode::ACCEPTED)).await;
    let reply = shop.post(SEED_REQUEST).await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    assert_eq!(reply.json()["result"]["callback"]["status"], true);
    shop.next().await;
    let refused = shop.post(r#"{"id":1,"method":"echo","params":{"$rpc.callback":"redis://a/"}}"#).await;
    assert_eq!(refused.status, StatusCode::OK);
    assert_eq!(shop.post(r#"{"id":1,"method":"echo"}"#).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_acknowledgment_may_have_another_shape() {
    let mut shop = with(|layer| {
        layer.acknowledgment(|acknowledgment, id| {
            RpcResponse::success(
                id,
                json!({ "task": acknowledgment.id().to_string(), "to": acknowledgment.dsn().map(ToString::to_string) }),
            )
        })
    })
    .await;
    let result = shop.post(SEED_REQUEST).await.result();
    let received = shop.next().await;
    let expected = json!({ "task": received.header("webhook-id"), "to": shop.callback() });
    assert_eq!(result, expected);

    let batch = SEED_REQUEST.replace("example_order", "b");
    let answers = shop.post(&format!("[{batch}]")).await.json();
    assert!(answers[0]["result"]["task"].is_string(), "{answers}");
}

/// On whose behalf the last call was made.
#[track_caller]
fn owned_by(shop: &Shop, owner: Option<&str>) {
    let task = shop.methods.seen().pop().expect("a call").task.expect("a task");
    assert_eq!(task.owner.as_deref(), owner);
}

#[tokio::test]
async fn the_owner_chooses_the_key() {
    let key: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("valid");
    let keys = Keys::new().caller("acme", key.clone());
    let mut shop = Opening::on(MemoryOutbox::new())
        .dispatcher(|dispatcher| dispatcher.signer(keys))
        .layer(|layer| layer.owner(|parts| parts.headers.get("x-user")?.to_str().ok().map(str::to_owned)))
        .open()
        .await;
    let body = SEED_REQUEST.replace("%CALLBACK%", &shop.callback());
    for (user, signed) in [("acme", true), ("other", false)] {
        shop.send(&[("content-type", "application/json"), ("x-user", user)], body.clone()).await.task();
        let received = shop.next().await;
        owned_by(&shop, Some(user));
        let header = |name| received.header(name).unwrap_or_default();
        let (id, time, signature) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
        let verified = key.verifier().verify_headers(id, time, signature, &received.body, SystemTime::now());
        assert_eq!((verified.is_ok(), !signature.is_empty()), (signed, signed), "{user}");
    }
    shop.post(SEED_REQUEST).await.task();
    shop.next().await;
    owned_by(&shop, None);
}

#[tokio::test]
async fn a_kept_header_reaches_the_method_with_all_its_values() {
    let mut shop = with(|layer| layer.keep_header(HeaderName::from_static("accept-language"))).await;
    let body = SEED_REQUEST.replace("%CALLBACK%", &shop.callback());
    let headers =
        [("content-type", "application/json"), ("accept-language", "de"), ("accept-language", "en"), ("x-other", "1")];
    shop.send(&headers, body).await.task();
    let received = shop.next().await;
    let seen = shop.methods.only();
    let kept: Vec<&http::HeaderValue> = seen.headers.get_all("accept-language").iter().collect();
    assert_eq!(kept, ["de", "en"]);
    assert_eq!(seen.headers.get("x-other"), None);
    assert_eq!(received.header("accept-language"), None, "what is kept does not leave");
}

#[tokio::test]
async fn a_kept_extension_reaches_the_method_and_no_other_does() {
    let mut shop = Opening::on(MemoryOutbox::new())
        .layer(|layer| layer.keep_extension::<Tenant>("tenant"))
        .outer(|router| router.layer(axum::Extension(Tenant("acme".to_owned()))).layer(axum::Extension(Marked)))
        .open()
        .await;
    shop.post(SEED_REQUEST).await.task();
    shop.next().await;
    let seen = shop.methods.only();
    assert_eq!((seen.tenant, seen.marked), (Some(Tenant("acme".to_owned())), None));

    // A call without callback has both.
    shop.post(r#"{"id":1,"method":"echo"}"#).await.result();
    let seen = shop.methods.seen().remove(1);
    assert_eq!((seen.tenant, seen.marked), (Some(Tenant("acme".to_owned())), Some(Marked)));
}

#[tokio::test]
async fn a_body_limit_is_exact() {
    let shop = with(|layer| layer.body_limit(100)).await;
    let body = |length: usize| format!(r#"{{"id":1,"method":"echo","params":{{}}{}}}"#, " ".repeat(length - 36));
    let lengths = [body(100).len(), body(101).len()];
    assert_eq!(lengths, [100, 101]);
    shop.post(&body(100)).await.result();
    let reply = shop.post(&body(101)).await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(reply.json()["error"]["data"]["reason"], "the request is larger than 100 bytes");
    assert_eq!(shop.methods.seen().len(), 1);
}

#[tokio::test]
async fn what_is_oversized_may_pass_through_whole() {
    let mut shop = with(|layer| layer.pass_oversized()).await;
    let padding = "x".repeat(2 << 20);
    let body =
        format!(r#"{{"id":1,"method":"echo","params":{{"$rpc.callback":"{}","a":"{padding}"}}}}"#, shop.callback());
    let reply = shop.send(&[("content-type", "application/json")], body.clone()).await;
    // Nobody has looked for `$rpc` in it: the service has it all, and answers at once.
    assert_eq!(reply.result()["a"].as_str().map(str::len), Some(2 << 20));
    let seen = shop.methods.only();
    assert!(seen.body == body, "{} bytes pass as {}", body.len(), seen.body.len());
    assert!(shop.receiver.is_empty());

    shop.post(SEED_REQUEST).await.task();
    assert_eq!(shop.next().await.json()["id"], "example_order");
}

#[tokio::test]
async fn what_is_oversized_passes_through_whole_without_an_announced_length() {
    let methods = Methods::default();
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).start().await.expect("started");
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain);
    let worker = worker.run(RpcHandler::new(methods.router())).expect("registered");
    let layer = RpcLayer::builder(worker).body_limit(100).pass_oversized().build().expect("no topic");
    let text = format!(r#"{{"id":1,"method":"echo","params":["{}"]}}"#, "x".repeat(1_000));
    let frames: Vec<Result<Frame<Bytes>, Infallible>> =
        text.as_bytes().chunks(60).map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
    let request = Request::post("/").header("content-type", "application/json");
    let request = request.body(StreamBody::new(stream::iter(frames))).expect("a request");
    let answer = layer.layer(methods.router()).oneshot(request).await.expect("infallible");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(methods.only().text(), text);
}

#[tokio::test]
async fn a_topic_that_nobody_serves_makes_no_layer() {
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).start().await.expect("started");
    let worker = dispatcher.worker("rpc", Interrupted::RunAgain);
    let worker = worker.run(|_: Task| async { Ok::<Value, Value>(json!(1)) }).expect("registered");
    let layer = RpcLayer::builder(worker).topic("kafka:///orders".parse().expect("valid"));
    let error = layer.build().expect_err("no sink serves kafka");
    assert!(error.to_string().contains("`callback-kafka`"), "{error}");
}
