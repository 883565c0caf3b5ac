//! Orders over plain HTTP, and who hears of them.

use crate::service::{Config, Receiver, call, send_to};
use serde_json::{Value, json};

/// What came that is no JSON-RPC response: notifications of a subscription, which name it, and results of tasks.
fn plain(arrived: &std::collections::HashMap<String, Vec<Value>>) -> (Vec<&Value>, Vec<&Value>) {
    arrived.get("").into_iter().flatten().partition(|body| body["UUID"].is_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_that_is_finished_is_told_to_who_has_subscribed() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let service = Config::new(folder.path()).start();
    let post = async |path: &str, body: Value| {
        let (status, body) = send_to(service.address, path, &body.to_string()).await.expect("answered");
        (status, serde_json::from_str::<Value>(&body).expect("JSON"))
    };
    let wish = json!({ "callbackUrl": receiver.url(), "events": ["order.completed"] });
    let (status, created) = post("/subscriptions", wish).await;
    assert_eq!(status, 201, "{created}");

    let (status, order) = post("/orders", json!({ "orderId": "at once" })).await;
    assert_eq!((status, &order["orderId"], &order["status"]), (200, &json!("at once"), &json!("completed")));
    let (status, task) = post("/orders", json!({ "orderId": "later", "callbackUrl": receiver.url() })).await;
    assert_eq!((status, &task["status"]), (202, &json!("accepted")), "{task}");
    service.post(&call("called", "OrderService.processOrder", &receiver.url())).await;
    let alone = json!({ "id": 1, "method": "OrderService.processOrder", "params": { "orderId": "alone" } });
    service.post(&alone.to_string()).await;

    receiver.until(|arrived| plain(arrived).0.len() >= 4 && !plain(arrived).1.is_empty()).await;
    receiver.callback("called").await;
    let arrived = receiver.all();
    let (told, results) = plain(&arrived);
    assert!(told.iter().all(|body| body["UUID"] == created["UUID"]), "{told:?}");
    let mut told: Vec<&str> = told.iter().filter_map(|body| body["data"]["orderId"].as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, ["alone", "at once", "called", "later"]);
    assert_eq!(results.len(), 1);
    assert_eq!(results[0]["orderId"], "later");
}
