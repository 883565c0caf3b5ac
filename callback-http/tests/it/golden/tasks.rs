//! What is said of a task (protocol §3.2).

use super::{answered, received};
use crate::{
    receiver::{Receiver, status},
    tasks::{Api, at, caller, location},
};
use callback_dispatch::{Interrupted, MemoryOutbox, Task, Work};
use callback_http::server::Owner;
use http::{Method, StatusCode};
use serde_json::{Value, json};

const ASYNCHRONOUS: (&str, &str) = ("prefer", "respond-async");

async fn open() -> Api {
    let places = |layer: callback_http::server::TaskLayerBuilder| {
        layer.callback_at(at("$request.body#/callbackUrl")).expires_at(at("$request.body#/expires"))
    };
    Api::on(MemoryOutbox::new(), caller(), places).await
}

/// The state of a task, as who does not follow sees it.
async fn state(api: &Api, location: &str) -> crate::shop::Reply {
    api.get(&format!("{location}?follow=no")).await
}

#[tokio::test]
async fn a_task_that_is_accepted() {
    let mut api = open().await;
    let order = json!({ "item": "bread", "callbackUrl": api.callback() });
    let reply = api.post(&[], &order).await;
    answered("tasks/202", &reply);
    let href = location(&reply);
    received("messages/task-completed", &api.receiver.next().await);
    answered("tasks/303-result", &api.ended(&href).await);
    answered("tasks/200-delivered", &state(&api, &href).await);
    answered("tasks/result", &api.get(&format!("{href}/result")).await);
    api.post(&[], &json!({ "item": "sold out", "callbackUrl": api.callback() })).await;
    received("messages/task-failed", &api.receiver.next().await);

    answered("tasks/202-respond-async", &api.post(&[ASYNCHRONOUS], &json!({ "item": "bread" })).await);
    let waited = api.post(&[("prefer", "respond-async, wait=30")], &json!({ "item": "bread" })).await;
    answered("tasks/result-waited-for", &waited);
    let api = Api::open(Owner::capability()).await;
    answered("tasks/202-capability", &api.post(&[ASYNCHRONOUS], &json!({ "item": "bread" })).await);
}

#[tokio::test]
async fn a_task_in_each_state() {
    let api = open().await;
    let slow = location(&api.post(&[ASYNCHRONOUS], &json!({ "item": "slow" })).await);
    api.orders.begun.acquire().await.expect("open").forget();
    answered("tasks/200-running", &api.get(&slow).await);
    api.orders.gate.add_permits(1);
    api.ended(&slow).await;
    answered("tasks/200-completed", &state(&api, &slow).await);

    // Nobody is free for the second.
    let worker = api.dispatcher.worker("busy", Interrupted::RunAgain).concurrency(1);
    let worker = worker.run(async |_: Task| std::future::pending::<Result<Value, String>>().await).expect("registered");
    worker.accept(Work::new(json!(1)).owner("acme")).await.expect("accepted");
    let waits = worker.accept(Work::new(json!(2)).owner("acme")).await.expect("accepted");
    answered("tasks/200-accepted", &api.get(&format!("/tasks/{}", waits.id())).await);

    let mut silent = Receiver::answering_after(std::future::pending).await;
    let delivering = location(&api.post(&[], &json!({ "item": "bread", "callbackUrl": silent.url("/") })).await);
    silent.next().await;
    answered("tasks/200-delivering", &state(&api, &delivering).await);

    let refusing = Receiver::answering(|_| status(StatusCode::GONE)).await;
    let dead = location(&api.post(&[], &json!({ "item": "bread", "callbackUrl": refusing.url("/") })).await);
    api.ended(&dead).await;
    answered("tasks/200-dead", &state(&api, &dead).await);

    let expired = location(&api.post(&[ASYNCHRONOUS], &json!({ "item": "never", "expires": 0.05 })).await);
    answered("tasks/200-expired", &api.ended(&expired).await);

    let cancelled = location(&api.post(&[ASYNCHRONOUS], &json!({ "item": "slow" })).await);
    answered("tasks/202-cancelled", &api.send(Method::PUT, &cancelled, &[("x-caller", "acme")], "").await);
    answered("tasks/200-cancelled", &api.get(&cancelled).await);
}
