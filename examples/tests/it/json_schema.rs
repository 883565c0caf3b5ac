//! Requests that are no good are refused with all that is wrong, before anything runs.

use callback_core::MemorySink;
use callback_dispatch::{AcceptError, Dispatcher, Interrupted, MemoryOutbox, Task, Work};
use callback_examples::JsonSchema;
use serde_json::{Value, json};

fn schema() -> Value {
    json!({
        "type": "object",
        "required": ["orderId", "customer"],
        "properties": {
            "orderId": { "type": "string", "minLength": 1 },
            "lines": { "type": "array", "items": { "type": "object", "required": ["count"] } },
        },
    })
}

#[tokio::test]
async fn a_request_is_judged_by_its_operations_schema_before_it_is_acknowledged() {
    let sink = MemorySink::new();
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink.clone()).start().await.expect("started");
    let schemas = JsonSchema::new().operation("order", &schema()).expect("a schema");
    let worker = dispatcher.worker("orders", Interrupted::RunAgain).validator(schemas);
    let worker = worker.run(|task: Task| async move { Ok::<_, String>(task.payload().clone()) }).expect("registered");
    let work = |content: Value| Work::new(content).operation("order").callback("memory://a".parse().expect("a Dsn"));

    let refused = worker.accept(work(json!({ "orderId": 7, "lines": [{}], "card": "planted-secret" }))).await;
    let Err(AcceptError::Invalid(violations)) = refused else { panic!("{refused:?}") };
    let mut pointers: Vec<&str> = violations.iter().map(|it| it.pointer.as_str()).collect();
    pointers.sort_unstable();
    assert_eq!(pointers, ["", "/lines/0", "/orderId"], "{violations}");
    assert!(!violations.to_string().contains("planted"), "{violations}");

    let good = json!({ "orderId": "7", "customer": 1 });
    worker.accept(work(good.clone())).await.expect("accepted");
    assert_eq!(sink.next("a").await.message.json::<Value>().expect("JSON"), good);
    worker.accept(Work::new(json!(1)).operation("another")).await.expect("it has no schema");
}

#[test]
fn a_schema_that_refers_elsewhere_is_refused() {
    let elsewhere = json!({ "$ref": "https://schemas.example/order.json" });
    assert!(JsonSchema::new().operation("order", &elsewhere).is_err());
    assert!(JsonSchema::new().operation("order", &json!({ "type": 7 })).is_err());
}
