//! `order-service` for any client and receiver.

use crate::service::{Config, Receiver, call, send_to};
use serde_json::json;
use std::process::Command;

#[test]
fn the_demo_ends_by_itself_with_status_0() {
    let output = Command::new(env!("CARGO_BIN_EXE_order-service")).output().expect("the program was built");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let places: Vec<Option<usize>> = [
        "  request",
        "  acknowledgment",
        "  callback, its signature verified",
        "webhook-signature: v1,",
        ": Delivered",
    ]
    .iter()
    .map(|part| text.find(part))
    .collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_acknowledgment_it_calls_back_without_any_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let mut slow = Config::new(folder.path());
    slow.arguments[3] = "600000";
    let service = slow.start();
    let (status, acknowledgment) = service.post(&call("order-1", "OrderService.processOrder", &receiver.url())).await;
    assert_eq!((status, &acknowledgment["result"]["callback"]["status"]), (200, &json!(true)));
    service.kill();

    let _service = Config::new(folder.path()).start();
    assert_eq!(receiver.callback("order-1").await["result"]["orderId"], "order-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_what_is_in_flight_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let service = Config::new(folder.path()).start();
    service.post(&call("order-1", "OrderService.processOrder", &receiver.url())).await;
    assert!(service.terminate().success());
    assert!(receiver.all().contains_key("order-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_within_the_grace_is_left_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let mut config = Config::new(folder.path()).argument("--grace", "0");
    config.arguments[3] = "600000";
    let service = config.start();
    service.post(&call("order-1", "OrderService.processOrder", &receiver.url())).await;
    assert!(service.terminate().success());
    assert!(receiver.all().is_empty());

    let _service = Config::new(folder.path()).start();
    receiver.callback("order-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_order_is_called_back_as_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let service = Config::new(folder.path()).start();
    service.post(&call("order-1", "OrderService.failOrder", &receiver.url())).await;
    assert_eq!(receiver.callback("order-1").await["error"]["message"], "Out of stock");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_callback_the_answer_comes_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Config::new(folder.path()).start();
    let call = |method: &str| json!({ "id": 1, "method": method, "params": { "orderId": "7" } }).to_string();
    let (_, answer) = service.post(&call("OrderService.processOrder")).await;
    assert_eq!(answer["result"]["status"], "completed");
    let (_, answer) = service.post(&call("OrderService.failOrder")).await;
    assert_eq!(answer["error"]["message"], "Out of stock");
    let (_, answer) = service.post(&call("OrderService.noOrder")).await;
    assert_eq!(answer["error"]["code"], -32601);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_allow_loopback_is_closed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::new(folder.path());
    config.arguments.drain(..2);
    let service = config.start();
    for callback in ["http://127.0.0.1:1/", "https://127.0.0.1/", "https://[::1]/", "https://2130706433/"] {
        let (status, answer) = service.post(&call("order-1", "OrderService.processOrder", callback)).await;
        assert_eq!((status, &answer["error"]["code"]), (200, &json!(-32602)), "{callback}: {answer}");
        assert_eq!(answer["error"]["data"]["pointer"], "/params/$rpc.callback");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_service_on_the_store_is_told_why_it_cannot_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let _service = Config::new(folder.path()).start();
    let (status, said) = Config::new(folder.path()).fail();
    assert!(!status.success() && said.contains("another dispatcher has this outbox"), "{said}");
}

#[test]
fn a_wrong_setting_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, value) in [("--allow", "10.0.0.0/99"), ("--secret", "planted"), ("--store", "redis:x")] {
        let (status, said) = Config::new(folder.path()).argument(name, value).fail();
        assert!(!status.success() && said.contains(name), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_path_is_no_call() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Config::new(folder.path()).start();
    let body = call("order-1", "OrderService.processOrder", "http://127.0.0.1:1/");
    let (status, _) = send_to(service.address, "/nope", &body).await.expect("answered");
    assert_eq!(status, 404);
}
