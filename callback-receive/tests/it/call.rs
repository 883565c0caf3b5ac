//! A call whose result comes as a callback: late, early, wrong.

use crate::wire::{Wire, message, soon};
use callback_core::{Acknowledgment, BoxError, RpcError, RpcId, RpcRequest, RpcResponse, TaskId};
use callback_receive::{CallError, Incoming, Receiver, Verdict};
use serde_json::{Value, json};

fn callback(request: &RpcRequest) -> String {
    let params = request.params.as_ref().expect("params");
    params["$rpc.callback"].as_str().expect("a callback").to_owned()
}

fn acknowledge(request: &RpcRequest) -> RpcResponse {
    let dsn = callback(request).parse().expect("a Dsn");
    Acknowledgment::new(TaskId::new(), Some(dsn)).to_rpc(request.id.clone().expect("an id"))
}

fn result(id: RpcId, value: Value) -> Incoming {
    let response = serde_json::to_value(RpcResponse::success(id, value)).expect("JSON");
    Incoming::new(message(&TaskId::new().to_string()).payload(response).build().expect("valid"))
}

#[tokio::test]
async fn the_result_comes_after_the_acknowledgment() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let client = |request: RpcRequest| {
        let wire = wire.clone();
        async move {
            assert_eq!(request.method, "OrderService.processOrder");
            assert_eq!(request.params.as_ref().expect("params")["orderId"], "12345");
            let (url, id) = (callback(&request), request.id.clone().expect("an id"));
            tokio::spawn(async move { wire.offer(&url, result(id, json!({ "status": "completed" }))).await });
            Ok::<_, BoxError>(acknowledge(&request))
        }
    };
    let params = json!({ "orderId": "12345" });
    let order: Value = soon(receiver.call(&client, "OrderService.processOrder", &params)).await.expect("a result");
    assert_eq!(order["status"], "completed");
    assert_eq!(receiver.open_handles(), 0);
}

#[tokio::test]
async fn the_result_may_come_before_the_acknowledgment() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let client = |request: RpcRequest| {
        let wire = wire.clone();
        async move {
            // Such a service answers the call once its callback was taken.
            let id = request.id.clone().expect("an id");
            assert_eq!(wire.offer(&callback(&request), result(id, json!(7))).await, Verdict::Accepted);
            Ok::<_, BoxError>(acknowledge(&request))
        }
    };
    assert_eq!(soon(receiver.call::<u32>(&client, "m", &json!({}))).await.expect("a result"), 7);
}

#[tokio::test]
async fn what_is_no_response_to_the_call_is_refused() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let client = |request: RpcRequest| {
        let wire = wire.clone();
        async move {
            let (url, id) = (callback(&request), request.id.clone().expect("an id"));
            tokio::spawn(async move {
                let told = wire.offer(&url, result("another".into(), json!(1))).await;
                assert!(matches!(told, Verdict::Refused(_)), "{told:?}");
                let told = wire.send(&url, "no-json").await;
                assert!(matches!(told, Verdict::Refused(_)), "{told:?}");
                wire.offer(&url, result(id, json!(2))).await
            });
            Ok::<_, BoxError>(acknowledge(&request))
        }
    };
    assert_eq!(soon(receiver.call::<u32>(&client, "m", &json!({}))).await.expect("a result"), 2);
}

#[tokio::test]
async fn what_fails_is_told_apart() {
    let (wire, receiver) = Wire::open(Receiver::builder()).await;
    let failing = |request: RpcRequest| async move {
        let error = RpcError::new(RpcError::INVALID_PARAMS, "Invalid params");
        Ok::<_, BoxError>(RpcResponse::failure(request.id.expect("an id"), error))
    };
    let error = receiver.call::<Value>(&failing, "m", &json!({})).await.expect_err("it failed");
    assert!(matches!(&error, CallError::Rpc(error) if error.code == RpcError::INVALID_PARAMS), "{error:?}");

    let synchronous = |request: RpcRequest| async move {
        Ok::<_, BoxError>(RpcResponse::success(request.id.expect("an id"), json!({ "status": "completed" })))
    };
    let error = receiver.call::<Value>(&synchronous, "m", &json!({})).await.expect_err("no acknowledgment");
    assert!(matches!(error, CallError::NotAcknowledged), "{error:?}");

    let broken = |_: RpcRequest| async { Err::<RpcResponse, BoxError>("no connection".into()) };
    let error = receiver.call::<Value>(&broken, "m", &json!({})).await.expect_err("not sent");
    assert!(matches!(error, CallError::Client(_)), "{error:?}");

    let error = receiver.call::<Value>(&broken, "m", &json!([1])).await.expect_err("no object");
    assert!(matches!(error, CallError::Params), "{error:?}");

    let shaped = |request: RpcRequest| {
        let wire = wire.clone();
        async move {
            let (url, id) = (callback(&request), request.id.clone().expect("an id"));
            tokio::spawn(async move { wire.offer(&url, result(id, json!("text"))).await });
            Ok::<_, BoxError>(acknowledge(&request))
        }
    };
    let error = soon(receiver.call::<u32>(&shaped, "m", &json!({}))).await.expect_err("another shape");
    assert!(matches!(error, CallError::Malformed(_)), "{error:?}");
}
