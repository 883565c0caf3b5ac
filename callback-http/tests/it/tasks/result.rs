//! What a client gets of a task that is done.

use super::*;

#[tokio::test]
async fn respond_async_is_polled_until_the_result_is_there() {
    let api = Api::open(caller()).await;
    let reply = api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await;
    assert_eq!(reply.headers["preference-applied"], "respond-async");
    assert_eq!(reply.json()["message"], "The task was accepted; its result will be served here.");
    let location = location(&reply);
    api.orders.begun.acquire().await.expect("open").forget();
    let reply = api.get(&location).await;
    assert_eq!(reply.headers[header::RETRY_AFTER], "1");
    let hal = json!({
        "_links": { "self": { "href": location } },
        "UUID": id(&location),
        "status": "running",
        "definitive": false,
        "message": "The task is being done.",
    });
    check_hal(&reply, 200, &hal);
    let reply = api.get(&format!("{location}/result")).await;
    check_problem(&reply, 404, "no-result-yet");
    assert_eq!(reply.headers[header::RETRY_AFTER], "1");

    api.orders.gate.add_permits(1);
    let reply = api.ended(&location).await;
    assert_eq!((reply.status, &reply.json()["status"]), (StatusCode::SEE_OTHER, &json!("completed")));
    assert_eq!(api.get(&format!("{location}/result")).await.json()["order"], json!({ "item": "slow" }));
}

#[tokio::test]
async fn who_would_wait_gets_the_result_if_it_comes_in_time() {
    let api = Api::open(caller()).await;
    let reply = api.post(&[("prefer", "respond-async, wait=30")], &json!({ "item": "bread" })).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.headers["preference-applied"], "wait=30");
    let result = reply.headers[header::CONTENT_LOCATION].to_str().expect("ASCII");
    assert_eq!(api.get(result).await.body, reply.body);

    let reply = api.post(&[("prefer", "respond-async"), ("prefer", "wait=30")], &json!({ "item": "sold out" })).await;
    assert_eq!((reply.status, &reply.json()["type"]), (StatusCode::CONFLICT, &json!("/sold-out")));

    let reply = api.post(&[("prefer", "respond-async, wait=0")], &json!({ "item": "slow" })).await;
    assert_eq!(reply.headers["preference-applied"], "respond-async");
    location(&reply);
    // With a callback nobody waits.
    let order = json!({ "item": "slow", "callbackUrl": api.callback() });
    location(&api.post(&[("prefer", "respond-async, wait=30")], &order).await);
}

#[tokio::test]
async fn who_would_not_wait_is_told_so() {
    let api = Api::open(caller()).await;
    let key = ("idempotency-key", "k");
    let location = location(&api.post(&[("prefer", "respond-async"), key], &json!({ "item": "bread" })).await);
    api.ended(&location).await;
    let reply = api.post(&[("prefer", "respond-async, wait=0"), key], &json!({ "item": "bread" })).await;
    assert_eq!(reply.headers[header::CONTENT_LOCATION], format!("{location}/result"));
    assert_eq!(reply.headers["preference-applied"], "wait=0");
}

#[tokio::test]
async fn a_server_waits_no_longer_than_it_will() {
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.longest_wait(Duration::from_millis(1))).await;
    let reply = api.post(&[("prefer", "respond-async, wait=3600")], &json!({ "item": "never" })).await;
    assert_eq!(reply.headers["preference-applied"], "respond-async");
    location(&reply);
}

#[tokio::test]
async fn a_failure_is_a_problem_under_its_own_status() {
    let mut api = Api::on(MemoryOutbox::new(), caller(), |layer| {
        layer.callback_at(at("$request.body#/callbackUrl")).time_limit(Duration::from_millis(500))
    })
    .await;
    for (item, status, expected) in [
        ("sold out", 409, json!({ "type": "/sold-out", "title": "Sold out", "left": 0, "status": 409 })),
        (
            "unheard of",
            400,
            json!({ "type": "/problems/task-failed", "title": "The task failed", "status": 400, "detail": "no such item" }),
        ),
        (
            "panics",
            500,
            json!({ "type": "/problems/task-failed", "title": "The task failed", "status": 500, "detail": "the handler panicked" }),
        ),
        (
            "never",
            504,
            json!({
                "type": "/problems/task-timed-out", "title": "The task took too long", "status": 504,
                "detail": "the work took longer than 0.5 s",
            }),
        ),
    ] {
        let reply = api.post(&[], &json!({ "item": item, "callbackUrl": api.callback() })).await;
        let location = location(&reply);
        let received = api.receiver.next().await;
        assert_eq!(received.header("ce-type"), Some("callback.task.failed"), "{item}");
        assert_eq!(received.header("content-type"), Some("application/problem+json"), "{item}");
        assert_eq!(received.json(), expected, "{item}");
        assert_eq!(api.ended(&location).await.status, StatusCode::SEE_OTHER, "{item}");
        let reply = api.get(&format!("{location}/result")).await;
        assert_eq!((reply.status.as_u16(), reply.json()), (status, expected), "{item}");
        assert_eq!(reply.headers[header::CONTENT_TYPE], "application/problem+json");
    }
}

#[tokio::test]
async fn an_empty_result_is_no_content() {
    let api = Api::open(caller()).await;
    let location = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "none" })).await);
    api.ended(&location).await;
    let reply = api.get(&format!("{location}/result")).await;
    assert_eq!((reply.status, reply.body.len()), (StatusCode::NO_CONTENT, 0));
}

#[tokio::test]
async fn a_result_that_nobody_takes_can_still_be_fetched() {
    let api = Api::open(caller()).await;
    let refusing = Receiver::answering(|_| status(StatusCode::GONE)).await;
    let order = json!({ "item": "bread", "callbackUrl": refusing.url("/") });
    let location = location(&api.post(&[], &order).await);
    let reply = api.ended(&location).await;
    assert_eq!((reply.status, &reply.json()["status"]), (StatusCode::SEE_OTHER, &json!("dead")));
    assert_eq!(api.get(&format!("{location}/result")).await.json()["order"], order);
    let task = api.dispatcher.task(id(&location)).await.expect("readable").expect("kept");
    assert_eq!(task.state(), TaskState::Dead);
}
