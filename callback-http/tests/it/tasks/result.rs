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
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    assert_eq!(reply.headers[header::LOCATION], "/orders/7");
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

#[tokio::test]
async fn a_result_has_the_status_and_headers_that_the_service_gave_it() {
    let mut api = Api::open(caller()).await;
    let order = json!({ "item": "bread", "callbackUrl": api.callback() });
    let location = location(&api.post(&[], &order).await);
    // The callback carries the body alone.
    let received = api.receiver.next().await;
    for name in ["location", "content-language", "etag", "set-cookie"] {
        assert_eq!(received.header(name), None, "{name}");
    }
    api.ended(&location).await;
    let reply = api.get(&format!("{location}/result")).await;
    assert_eq!((reply.status, &reply.body), (StatusCode::CREATED, &received.body));
    assert_eq!(reply.headers[header::LOCATION], "/orders/7");
    assert_eq!(reply.headers[header::CONTENT_LANGUAGE], "en");
    assert_eq!(reply.headers[header::ETAG], "\"7\"");
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(reply.headers[header::CACHE_CONTROL], "no-store");
    assert!(!reply.headers.contains_key(header::SET_COOKIE));

    let reply = api.post(&[("prefer", "respond-async")], &json!({ "item": "known" })).await;
    let location = super::location(&reply);
    assert_eq!(api.ended(&location).await.headers[header::LOCATION], format!("{location}/result"));
    let reply = api.get(&format!("{location}/result")).await;
    assert_eq!(
        (reply.status, &reply.headers[header::LOCATION]),
        (StatusCode::SEE_OTHER, &"/orders/7".parse().expect("a value"))
    );
}

/// Protocol §4: a larger result becomes a failure that says so, and stays fetchable where tasks are served.
#[tokio::test]
async fn a_result_that_is_too_large_for_its_callback_can_be_fetched() {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = SqliteOutbox::open(folder.path().join("outbox.db")).await.expect("opened");
    let place = |layer: TaskLayerBuilder| layer.callback_at(at("$request.body#/callbackUrl"));
    let mut api = Api::on(outbox, caller(), place).await;
    let said = |detail: &str| {
        json!({
            "type": "/problems/result-too-large", "title": "The result is too large", "status": 500, "detail": detail,
        })
    };
    let callback = json!(api.callback());
    for callback in [callback.clone(), Value::Null] {
        let location = location(
            &api.post(&[("prefer", "respond-async")], &json!({ "item": "many", "callbackUrl": callback })).await,
        );
        if callback.is_string() {
            let received = api.receiver.next().await;
            assert_eq!(received.header("ce-type"), Some("callback.task.failed"));
            let kept = "the result is larger than 1048576 bytes: it is kept with its task";
            assert_eq!(received.json(), said(kept));
        }
        assert_eq!(api.ended(&location).await.status, StatusCode::SEE_OTHER);
        let reply = api.get(&format!("{location}/result")).await;
        assert_eq!(
            (reply.status, &reply.headers[header::CONTENT_TYPE]),
            (StatusCode::OK, &"text/csv".parse().expect("a value"))
        );
        assert_eq!(reply.body.len(), MANY);
        assert!(reply.body.iter().all(|byte| *byte == b'x'));
    }
    // What is larger than the layer keeps, or than anybody reads, is gone.
    for (item, detail) in [
        ("too many", "the result is larger than 4194304 bytes"),
        ("endless", "the answer is larger than 16777216 bytes"),
    ] {
        let location = location(&api.post(&[], &json!({ "item": item, "callbackUrl": callback })).await);
        assert_eq!(api.receiver.next().await.json(), said(detail), "{item}");
        api.ended(&location).await;
        let reply = api.get(&format!("{location}/result")).await;
        assert_eq!((reply.status.as_u16(), reply.json()), (500, said(detail)), "{item}");
    }
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.result_limit(MANY - 1)).await;
    let location = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "many" })).await);
    api.ended(&location).await;
    check_problem(&api.get(&format!("{location}/result")).await, 500, "result-too-large");
}
