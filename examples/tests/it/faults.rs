//! A store that fails while the service runs.

use crate::service::{Config, Receiver, call};
use serde_json::json;
use sqlx::{Connection, Executor, SqliteConnection};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_database_is_an_error_and_nothing_is_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let config = Config::new(folder.path());
    let service = config.start();

    let url = format!("sqlite:{}", config.store.display());
    let mut other = SqliteConnection::connect(&url).await.expect("opened");
    other.execute("BEGIN IMMEDIATE").await.expect("locked");
    let (status, answer) = service.post(&call("refused", "OrderService.processOrder", &receiver.url())).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!(-32603)), "{answer}");
    assert_eq!(answer["id"], "refused");
    other.execute("ROLLBACK").await.expect("unlocked");

    let (status, _) = service.post(&call("accepted", "OrderService.processOrder", &receiver.url())).await;
    assert_eq!(status, 200);
    receiver.callback("accepted").await;
    assert!(!receiver.all().contains_key("refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_and_nothing_is_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let config = Config::new(folder.path());
    let service = config.start();
    let limit = |bytes: &str| {
        let process = service.id().to_string();
        let limited = Command::new("prlimit").args(["--pid", &process, &format!("--fsize={bytes}:unlimited")]).status();
        assert!(limited.expect("util-linux is there").success());
    };

    // What is in the log already may be written again; a larger file may not.
    limit("65536");
    let padding = "x".repeat(200_000);
    let large = json!({ "id": "refused", "method": "OrderService.processOrder",
        "params": { "orderId": "7", "padding": padding, "$rpc.callback": receiver.url() } });
    let (status, answer) = service.post(&large.to_string()).await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!(-32603)), "{answer}");
    let call_without_callback = json!({ "id": 1, "method": "OrderService.processOrder", "params": { "orderId": "7" } });
    let (status, answer) = service.post(&call_without_callback.to_string()).await;
    assert_eq!((status, &answer["result"]["status"]), (200, &json!("completed")), "the service lives");

    limit("unlimited");
    let (status, answer) = service.post(&call("accepted", "OrderService.processOrder", &receiver.url())).await;
    assert_eq!(status, 200, "{answer}");
    receiver.callback("accepted").await;
    assert!(!receiver.all().contains_key("refused"));
}
