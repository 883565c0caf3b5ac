//! What a request asks for, and what it is told at once.

use super::*;

#[tokio::test]
async fn a_request_with_a_callback_is_accepted_and_its_result_is_sent_there() {
    let mut api = Api::open(caller()).await;
    let order = json!({ "item": "bread", "callbackUrl": api.callback() });
    let reply = api.post(&[("x-request-id", "r1"), ("authorization", "Bearer secret")], &order).await;
    let location = location(&reply);
    assert_eq!(reply.headers[header::RETRY_AFTER], "1");
    assert!(!reply.headers.contains_key("preference-applied"));
    let hal = json!({
        "_links": { "self": { "href": location } },
        "UUID": id(&location),
        "status": "accepted",
        "message": "The task was accepted; its result will be sent to the callback.",
    });
    check_hal(&reply, 202, &hal);

    let received = api.receiver.next().await;
    assert_eq!((received.method.as_str(), received.uri.path()), ("POST", "/send/callback/here"));
    assert_eq!(received.header("content-type"), Some("application/json"));
    assert_eq!(received.header("ce-type"), Some("callback.task.completed"));
    assert_eq!(received.header("ce-subject"), Some(&*id(&location).to_string()));
    assert_eq!(received.header("x-request-id"), Some("r1"));
    assert_eq!(received.header("authorization"), None);
    assert_eq!(received.json(), json!({ "order": order, "task": id(&location) }));

    // A callback that is lost can be fetched.
    let reply = api.ended(&location).await;
    let result = format!("{location}/result");
    assert_eq!(reply.headers[header::LOCATION], result.as_str());
    let hal = json!({
        "_links": { "self": { "href": location }, "result": { "href": result } },
        "UUID": id(&location),
        "status": "delivered",
        "definitive": true,
        "message": "The callback has accepted the result.",
    });
    check_hal(&reply, 303, &hal);
    let reply = api.get(&result).await;
    assert_eq!(
        (reply.status, &reply.headers[header::CONTENT_TYPE]),
        (StatusCode::CREATED, &"application/json".parse().expect("a value"))
    );
    assert_eq!(reply.body, received.body);
    let reply = api.get(&format!("{location}?follow=no")).await;
    check_hal(&reply, 200, &hal);
    assert!(!reply.headers.contains_key(header::RETRY_AFTER));
}

#[tokio::test]
async fn without_callback_and_preference_the_service_answers_itself() {
    let api = Api::open(caller()).await;
    let order = json!({ "item": "bread" });
    for headers in [&[][..], &[("prefer", "wait=10, return=minimal")], &[("idempotency-key", "k")]] {
        let reply = api.post(headers, &order).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
        assert_eq!(reply.json(), json!({ "order": order, "task": null }));
        assert!(!reply.headers.contains_key("preference-applied"));
    }
    assert_eq!(api.post(&[], &json!({ "callbackUrl": null })).await.status, StatusCode::CREATED);
    // What is no order at all is the service's to refuse, and so is what is no POST.
    let reply = api.send(Method::POST, "/orders", &[("content-type", "application/json")], "no JSON").await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(api.get("/orders").await.body, "the list of orders");
}

#[tokio::test]
async fn a_callback_that_cannot_be_used_is_refused_and_nothing_is_run() {
    let mut api = Api::on(MemoryOutbox::new(), caller(), |layer| {
        layer
            .callback_at(at("$request.body#/callback"))
            .callback_at(at("$request.body#/callback/url"))
            .callback_at(at("$request.header.callback-url"))
            .callback_at(at("$request.query.callback"))
    })
    .await;
    let url = api.callback();
    for (body, status, name, pointer) in [
        (json!({ "callback": "no url" }), 422, "callback-invalid", "#/callback"),
        (json!({ "callback": "" }), 422, "callback-invalid", "#/callback"),
        (json!({ "callback": 7 }), 422, "callback-invalid", "#/callback"),
        (json!({ "callback": { "meta": {} } }), 422, "callback-invalid", "#/callback"),
        (json!({ "callback": { "url": ["a"] } }), 422, "callback-invalid", "#/callback"),
        (json!({ "callback": { "url": "http://10.0.0.1/" } }), 403, "callback-forbidden", "#/callback/url"),
        (json!({ "callback": "ftp://example.com/" }), 403, "callback-forbidden", "#/callback"),
        (json!({ "callback": "https://169.254.169.254/" }), 403, "callback-forbidden", "#/callback"),
    ] {
        let reply = api.post(&[("prefer", "respond-async")], &body).await;
        let problem = check_problem(&reply, status, name);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
        assert!(problem["errors"][0]["detail"].is_string(), "{body}");
    }
    let reply = api.post(&[("callback-url", "no url")], &json!({})).await;
    assert_eq!(check_problem(&reply, 422, "callback-invalid")["errors"][0]["header"], "callback-url");
    let reply = api.post(&[("callback-url", &url), ("callback-url", &url)], &json!({})).await;
    assert_eq!(check_problem(&reply, 422, "callback-invalid")["errors"][0]["header"], "callback-url");
    let reply = api.post(&[("callback-url", &url)], &json!({ "callback": format!("{url}/2") })).await;
    assert_eq!(check_problem(&reply, 422, "callback-invalid")["errors"][0]["header"], "callback-url");
    let headers = [("content-type", "application/json"), ("x-caller", "acme")];
    let reply = api.send(Method::POST, "/orders?callback=x", &headers, "{}").await;
    assert_eq!(check_problem(&reply, 422, "callback-invalid")["errors"][0]["parameter"], "callback");
    assert!(api.receiver.is_empty());

    // Each place is as good as the others.
    for reply in [
        api.post(&[], &json!({ "callback": url })).await,
        api.post(&[], &json!({ "callback": { "url": url, "meta": { "a": 1 } } })).await,
        api.post(&[("callback-url", &url)], &json!({ "callback": url })).await,
        api.send(Method::POST, &format!("/orders?callback={url}"), &headers, "{}").await,
    ] {
        let task = id(&location(&reply)).to_string();
        assert_eq!(api.receiver.next().await.header("ce-subject"), Some(&*task));
    }
}

#[tokio::test]
async fn a_parameter_of_the_path_may_name_the_callback() {
    let build = |with: fn(TaskLayerBuilder) -> TaskLayerBuilder| async move {
        let dispatcher = Dispatcher::builder(MemoryOutbox::new()).start().await.expect("started");
        let worker = dispatcher.worker("orders", Interrupted::RunAgain);
        let worker = worker.run(async |_: Task| Outcome::completed("")).expect("registered");
        with(TaskLayer::builder(worker, Owner::capability())).build()
    };
    let missing = build(|layer| layer.callback_at(at("$request.path.id"))).await;
    assert!(matches!(missing, Err(TaskLayerError::Parameter(name)) if name == "id"));
    let missing = build(|layer| layer.callback_at(at("$request.path.id")).path_template("/items/{Id}")).await;
    assert!(matches!(missing, Err(TaskLayerError::Parameter(_))));
    assert!(matches!(build(|layer| layer.path_template("items")).await, Err(TaskLayerError::Template(_))));

    let mut api = Api::on(MemoryOutbox::new(), caller(), |layer| {
        layer.callback_at(at("$request.path.id")).path_template("/items/{id}/tasks")
    })
    .await;
    let encoded: String = url::form_urlencoded::byte_serialize(api.callback().as_bytes()).collect();
    let headers = [("content-type", "application/json"), ("x-caller", "acme")];
    let reply = api.send(Method::POST, &format!("/items/{encoded}/tasks"), &headers, "{}").await;
    location(&reply);
    api.receiver.next().await;
    // Another path passes through.
    let reply = api.post(&[("prefer", "respond-async")], &json!({})).await;
    assert_eq!(reply.status, StatusCode::CREATED);
}

/// Seed 2: `meta` comes back with the callback, and the secret of the request's header signs its body.
#[tokio::test]
async fn a_profile_shapes_the_result_with_meta_and_secret_of_the_request() {
    let profiled = |layer: TaskLayerBuilder| {
        layer
            .callback_at(at("$request.body#/callback/url"))
            .meta_at(at("$request.body#/callback/meta"))
            .secret_at(at("$request.header.X-COREOS-CALLBACK-SECRET"))
            .profile("os1")
    };
    let mut api = Api::on(MemoryOutbox::new(), caller(), profiled).await;
    let order = json!({ "item": "bread", "callback": { "url": api.callback(), "meta": { "batch": 7 } } });
    let reply = api.post(&[("x-coreos-callback-secret", "mine")], &order).await;
    let task = id(&location(&reply));
    let received = api.receiver.next().await;
    assert_eq!(
        received.json(),
        json!({ "event": "callback.task.completed", "data": { "order": order, "task": task }, "meta": { "batch": 7 } })
    );
    let expected = Secret::from("mine").hex_hmac(&received.body);
    assert_eq!(received.header("x-coreos-hmac-signature"), Some(&*expected));
    assert_eq!(received.header("x-coreos-callback-secret"), None);

    let worker = api.dispatcher.worker("other", Interrupted::RunAgain);
    let worker = worker.run(async |_: Task| Outcome::completed("")).expect("registered");
    let kept =
        profiled(TaskLayer::builder(worker, caller())).keep_header("x-coreos-callback-secret".parse().expect("a name"));
    assert!(matches!(kept.build(), Err(TaskLayerError::Secret(_))));
}

#[tokio::test]
async fn a_request_that_is_sent_again_gets_the_same_acknowledgment() {
    for owner in [caller(), Owner::capability()] {
        let mut api = Api::open(owner).await;
        let order = json!({ "item": "bread", "callbackUrl": api.callback() });
        let first = api.post(&[("idempotency-key", "\"k\"")], &order).await;
        let task = id(&location(&first)).to_string();
        assert_eq!(api.receiver.next().await.header("ce-subject"), Some(&*task));
        let again = api.post(&[("idempotency-key", "\"k\"")], &order).await;
        assert_eq!((location(&again), &again.body), (location(&first), &first.body));
        assert_eq!(api.ended(&location(&again)).await.status, StatusCode::SEE_OTHER);
        let other = json!({ "item": "wine", "callbackUrl": api.callback() });
        check_problem(&api.post(&[("idempotency-key", "\"k\"")], &other).await, 422, "idempotency-key-reused");
        check_problem(&api.post(&[("idempotency-key", "a b")], &order).await, 400, "invalid-request");
        assert_ne!(location(&api.post(&[("idempotency-key", "\"k2\"")], &order).await), location(&first));
        api.receiver.next().await;
        assert!(api.receiver.is_empty());
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.body_limit(100)).await;
    let reply = api.post(&[], &json!({ "item": "x".repeat(100) })).await;
    assert_eq!(check_problem(&reply, 413, "too-large")["detail"], "The body is larger than 100 bytes.");
    assert_eq!(api.post(&[], &json!({ "item": "bread" })).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_service_that_closes_says_when_to_come_again() {
    let api = Api::open(caller()).await;
    api.dispatcher.close(Duration::ZERO).await;
    let reply = api.post(&[("prefer", "respond-async")], &json!({ "item": "bread" })).await;
    check_problem(&reply, 503, "overloaded");
    assert_eq!(reply.headers[header::RETRY_AFTER], "1");
}

/// A service may pass over what it does not know, and be content with all of these.
#[tokio::test]
async fn a_callback_is_seen_beside_what_cannot_be_read() {
    let mut api = Api::open(caller()).await;
    let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
    for other in [r#""\ud83d""#, "1e999", &deep] {
        let body = format!(r#"{{"other":{other},"callbackUrl":"{}"}}"#, api.callback());
        let headers = [("content-type", "application/json"), ("x-caller", "acme")];
        let task = id(&location(&api.send(Method::POST, "/orders", &headers, body).await)).to_string();
        assert_eq!(api.receiver.next().await.header("ce-subject"), Some(&*task));
    }
}

/// What a coded body names could not be read: whoever asks for a callback is not to get a synchronous answer instead.
#[tokio::test]
async fn a_body_with_a_content_coding_is_refused_where_a_callback_may_stand_in_it() {
    let mut api = Api::open(caller()).await;
    let order = json!({ "item": "bread", "callbackUrl": api.callback() });
    for coding in ["gzip", "br", "unheard-of"] {
        let reply = api.post(&[("content-encoding", coding)], &order).await;
        check_problem(&reply, 415, "content-coding-unsupported");
        assert_eq!(reply.headers[header::ACCEPT_ENCODING], "identity");
    }
    location(&api.post(&[("content-encoding", "identity")], &order).await);
    api.receiver.next().await;
    assert!(api.receiver.is_empty());

    // Elsewhere it is the service's, which may know the coding.
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| {
        layer.callback_at(at("$request.header.callback-url")).meta_at(at("$request.body#/meta"))
    })
    .await;
    let gzip = ("content-encoding", "gzip");
    assert_eq!(api.post(&[gzip], &json!({ "item": "bread" })).await.status, StatusCode::CREATED);
    // But what is accepted has its values read here.
    let reply = api.post(&[gzip, ("prefer", "respond-async")], &json!({ "item": "bread" })).await;
    check_problem(&reply, 415, "content-coding-unsupported");
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer).await;
    location(&api.post(&[gzip, ("prefer", "respond-async")], &json!({ "item": "bread" })).await);
}
