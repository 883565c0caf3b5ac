//! What is said of subscriptions (protocol §3.3).

use super::answered;
use crate::subscriptions::{ACME, Api, created};
use callback_core::MemorySink;
use http::Method;
use serde_json::json;

#[tokio::test]
async fn a_subscription_from_its_beginning_to_its_end() {
    let api = Api::open().await;
    let body = json!({
        "callbackUrl": api.callback(),
        "kind": "continuous",
        "service": "container",
        "events": ["container.created"],
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "meta": { "batch": 7 },
        "lease": 3600,
    });
    let reply = api.post(&body).await;
    answered("subscriptions/201", &reply);
    let href = created(&reply);
    answered("subscriptions/200", &api.get(&href).await);
    answered("subscriptions/200-changed", &api.patch(&href, &json!({ "active": false, "secret": null })).await);
    created(&api.post(&json!({ "callbackUrl": api.callback(), "kind": "once" })).await);
    answered("subscriptions/200-list", &api.get("/subscriptions").await);
    answered("subscriptions/200-page", &api.get("/subscriptions?limit=1").await);
    answered("subscriptions/202-cancelled", &api.send(Method::PUT, &href, &[ACME], "").await);
    answered("subscriptions/200-cancelled", &api.get(&href).await);
}

#[tokio::test]
async fn a_subscription_to_the_topic() {
    let api = Api::with(
        |dispatcher| dispatcher.sink(MemorySink::new()),
        |router| router.topic("memory://orders.completed".parse().expect("a Dsn")),
    )
    .await;
    let reply = api.post(&json!({ "events": ["a"] })).await;
    answered("subscriptions/201-topic", &reply);
    answered("subscriptions/200-topic", &api.get(&created(&reply)).await);
}
