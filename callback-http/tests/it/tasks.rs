//! Long-running tasks over HTTP: each exchange over sockets, as protocol §3.2 and seed 3 write it.

use crate::{
    receiver::{PATIENCE, Receiver, status},
    shop::{Reply, Server},
};
use axum::{
    Extension, Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use callback_core::{Policy, Problem, Rule, Secret, TaskId};
use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox, Os1, Outbox, Outcome, SqliteOutbox, Task, TaskState};
use callback_http::{
    HttpSink,
    server::{Owner, TaskHandler, TaskLayer, TaskLayerBuilder, TaskLayerError, problem_router, task_router},
};
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Orders that can be made to wait.
#[derive(Clone)]
struct Orders {
    gate: Arc<Semaphore>,
    begun: Arc<Semaphore>,
}

/// A service with asynchronous orders.
struct Api {
    server: Server,
    dispatcher: Dispatcher,
    receiver: Receiver,
    orders: Orders,
}

async fn order(State(orders): State<Orders>, task: Option<Extension<Task>>, Json(order): Json<Value>) -> Response {
    match order["item"].as_str().unwrap_or_default() {
        "slow" => {
            orders.begun.add_permits(1);
            orders.gate.acquire().await.expect("open").forget();
        }
        "never" => std::future::pending().await,
        "panics" => panic!("an order panics, as it is told to"),
        "none" => return StatusCode::NO_CONTENT.into_response(),
        "sold out" => {
            let problem = json!({ "type": "/sold-out", "title": "Sold out", "left": 0 });
            let headers = [(header::CONTENT_TYPE, Problem::CONTENT_TYPE)];
            return (StatusCode::CONFLICT, headers, problem.to_string()).into_response();
        }
        "unheard of" => return (StatusCode::BAD_REQUEST, "no such item").into_response(),
        _ => {}
    }
    let created = json!({ "order": order, "task": task.map(|task| task.id().to_string()) });
    (StatusCode::CREATED, Json(created)).into_response()
}

/// The caller, as a test's requests name it.
fn caller() -> Owner {
    Owner::hook(|request| Some(request.headers.get("x-caller")?.to_str().ok()?.to_owned()))
}

fn at(expression: &str) -> callback_http::server::Expression {
    expression.parse().expect("an expression")
}

impl Api {
    async fn open(owner: Owner) -> Self {
        Self::on(MemoryOutbox::new(), owner, |layer| layer.callback_at(at("$request.body#/callbackUrl"))).await
    }

    async fn on(outbox: impl Outbox, owner: Owner, with: impl FnOnce(TaskLayerBuilder) -> TaskLayerBuilder) -> Self {
        let policy = Policy::default().allow(Rule::loopback());
        let sink = HttpSink::builder().policy(policy).build().expect("a sink");
        let dispatcher = Dispatcher::builder(outbox).sink(sink).profile(Os1::new("x-coreos-hmac-signature"));
        let dispatcher = dispatcher.start().await.expect("started");
        let orders = Orders { gate: Arc::new(Semaphore::new(0)), begun: Arc::new(Semaphore::new(0)) };
        let routes = Router::new()
            .route("/orders", post(order).get(async || "the list of orders"))
            .route("/items/{id}/tasks", post(order))
            .with_state(orders.clone());
        let worker = dispatcher.worker("orders", Interrupted::RunAgain);
        let worker = worker.run(TaskHandler::new(routes.clone())).expect("registered");
        let layer = with(TaskLayer::builder(worker, owner.clone())).build().expect("a layer");
        let app = routes
            .route_layer(layer)
            .nest("/tasks", task_router(&dispatcher, owner))
            .nest("/problems", problem_router());
        Self { server: Server::start(app).await, dispatcher, receiver: Receiver::start().await, orders }
    }

    fn callback(&self) -> String {
        self.receiver.url("/send/callback/here")
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        crate::shop::request_at(method, self.server.address, path, headers, body).await
    }

    async fn post(&self, headers: &[(&str, &str)], body: &Value) -> Reply {
        let headers = [&[("content-type", "application/json"), ("x-caller", "acme")], headers].concat();
        self.send(Method::POST, "/orders", &headers, body.to_string()).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[("x-caller", "acme")], "").await
    }

    /// The answer once the task is over.
    async fn ended(&self, location: &str) -> Reply {
        self.dispatcher.wait(id(location)).await.expect("readable");
        self.get(location).await
    }
}

fn id(location: &str) -> TaskId {
    let id = location.strip_prefix("/tasks/").expect("a task's").split('.').next().expect("an id");
    id.parse().expect("an id")
}

#[track_caller]
fn location(reply: &Reply) -> String {
    assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
    reply.headers[header::LOCATION].to_str().expect("ASCII").to_owned()
}

#[track_caller]
fn check_hal(reply: &Reply, status: u16, body: &Value) {
    assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/hal+json");
    assert_eq!(reply.headers[header::CACHE_CONTROL], "no-store");
    assert_eq!(&reply.json(), body);
}

#[track_caller]
fn check_problem(reply: &Reply, status: u16, name: &str) -> Value {
    assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/problem+json");
    let problem = reply.json();
    assert_eq!(problem["type"], format!("/problems/{name}"), "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert!(problem["title"].is_string(), "{problem}");
    problem
}

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
        (StatusCode::OK, &"application/json".parse().expect("a value"))
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
async fn put_and_delete_cancel_a_task_until_it_is_over() {
    let api = Api::open(caller()).await;
    for method in [Method::PUT, Method::DELETE] {
        let location = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await);
        let reply = api.send(method.clone(), &location, &[("x-caller", "acme")], "").await;
        let hal = json!({
            "_links": { "self": { "href": location } },
            "UUID": id(&location),
            "status": "cancelled",
            "message": "The task is cancelled.",
        });
        check_hal(&reply, 202, &hal);
        let reply = api.send(method, &location, &[("x-caller", "acme")], "").await;
        check_problem(&reply, 403, "task-over");
        let reply = api.get(&location).await;
        assert_eq!((reply.status, &reply.json()["status"]), (StatusCode::OK, &json!("cancelled")));
        assert_eq!(reply.json()["definitive"], true);
        assert!(!reply.headers.contains_key(header::RETRY_AFTER));
        check_problem(&api.get(&format!("{location}/result")).await, 410, "task-cancelled");
    }
}

#[tokio::test]
async fn a_task_expires_when_the_request_or_the_operator_says_so() {
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.expires_at(at("$request.body#/expires"))).await;
    let asynchronous = [("prefer", "respond-async")];
    let soon = location(&api.post(&asynchronous, &json!({ "item": "never", "expires": 0.05 })).await);
    let reply = api.ended(&soon).await;
    assert_eq!((reply.status, &reply.json()["status"]), (StatusCode::OK, &json!("expired")));
    check_problem(&api.get(&format!("{soon}/result")).await, 410, "task-expired");
    for expires in [json!("2999-01-01T00:00:00Z"), json!("3600"), json!(3600), json!(null)] {
        let reply = api.post(&asynchronous, &json!({ "item": "never", "expires": expires })).await;
        assert_eq!(api.get(&location(&reply)).await.json()["definitive"], false, "{expires}");
    }
    for expires in [json!("2001-01-01T00:00:00Z"), json!("tomorrow"), json!(0), json!(-1), json!({}), json!("NaN")] {
        let reply = api.post(&asynchronous, &json!({ "item": "never", "expires": expires })).await;
        let problem = check_problem(&reply, 422, "invalid-member");
        assert_eq!(problem["errors"][0]["pointer"], "#/expires", "{expires}");
    }
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.expires_in(Duration::from_millis(50))).await;
    let soon = location(&api.post(&asynchronous, &json!({ "item": "never" })).await);
    assert_eq!(api.ended(&soon).await.json()["status"], "expired");
}

#[tokio::test]
async fn what_is_not_the_callers_is_as_if_it_were_not_there() {
    let api = Api::open(caller()).await;
    let location = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await);
    let unknown = format!("/tasks/{}", TaskId::new());
    let mut bodies = Vec::new();
    for (path, headers) in [
        (&*location, &[("x-caller", "other")][..]),
        (&*location, &[]),
        (&*unknown, &[("x-caller", "acme")]),
        ("/tasks/1", &[("x-caller", "acme")]),
        ("/tasks/%ff", &[("x-caller", "acme")]),
        (&*format!("{location}.x"), &[("x-caller", "acme")]),
        (&*format!("{location}/more"), &[("x-caller", "acme")]),
    ] {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let reply = api.send(method, path, headers, "").await;
            check_problem(&reply, 404, "not-found");
            bodies.push(reply.body);
        }
        check_problem(&api.send(Method::GET, &format!("{path}/result"), headers, "").await, 404, "not-found");
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let reply = api.send(Method::POST, "/orders", &[("prefer", "respond-async")], "{}").await;
    check_problem(&reply, 403, "caller-unknown");
    assert_eq!(api.get(&location).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_capability_in_the_url_is_the_only_way_to_a_task() {
    let api = Api::open(Owner::capability()).await;
    let reply = api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await;
    let with = location(&reply);
    let (without, capability) = with.split_once('.').expect("a capability");
    assert_eq!(capability.len(), 22);
    assert_eq!(reply.json()["_links"]["self"]["href"], with);
    assert_eq!(reply.json()["UUID"], id(&with).to_string());
    assert_eq!(api.get(&with).await.status, StatusCode::OK);
    let other = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await);
    let others = other.split_once('.').expect("a capability").1;
    assert_ne!(capability, others);
    for path in [without, &format!("{without}."), &format!("{without}.{others}"), &format!("{with}A")] {
        check_problem(&api.get(path).await, 404, "not-found");
        check_problem(&api.send(Method::DELETE, path, &[], "").await, 404, "not-found");
    }
    assert_eq!(api.send(Method::DELETE, &with, &[], "").await.status, StatusCode::ACCEPTED);
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
async fn a_task_outlives_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outbox.db");
    for owner in [caller(), Owner::capability()] {
        let api = Api::on(SqliteOutbox::open(&path).await.expect("opened"), owner.clone(), |layer| layer).await;
        let order = json!({ "item": "slow" });
        let headers = [("prefer", "respond-async"), ("idempotency-key", "k")];
        let before = location(&api.post(&headers, &order).await);
        api.orders.begun.acquire().await.expect("open").forget();
        api.dispatcher.close(Duration::ZERO).await;
        drop(api);

        let api = Api::on(SqliteOutbox::open(&path).await.expect("opened"), owner, |layer| layer).await;
        assert_eq!(location(&api.post(&headers, &order).await), before);
        assert_eq!(api.get(&before).await.status, StatusCode::OK);
        api.orders.gate.add_permits(1);
        assert_eq!(api.ended(&before).await.status, StatusCode::SEE_OTHER);
        let result = api.get(&format!("{before}/result")).await.json();
        assert_eq!(result, json!({ "order": order, "task": id(&before) }));
        api.dispatcher.close(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_method_that_a_task_does_not_have_is_named_with_those_that_it_has() {
    let api = Api::open(caller()).await;
    let location = location(&api.post(&[("prefer", "respond-async")], &json!({ "item": "slow" })).await);
    for (path, method, allow) in [
        (location.clone(), Method::POST, "GET,HEAD,PUT,DELETE"),
        (location.clone(), Method::PATCH, "GET,HEAD,PUT,DELETE"),
        (format!("{location}/result"), Method::DELETE, "GET,HEAD"),
    ] {
        let reply = api.send(method, &path, &[("x-caller", "acme")], "").await;
        check_problem(&reply, 405, "method-not-allowed");
        assert_eq!(reply.headers[header::ALLOW], allow);
    }
    let reply = api.send(Method::HEAD, &location, &[("x-caller", "acme")], "").await;
    assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, 0));
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/hal+json");
    for query in ["follow=maybe", "follow=no&follow=no", "follow="] {
        check_problem(&api.get(&format!("{location}?{query}")).await, 400, "invalid-request");
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
async fn each_type_of_problem_is_explained_where_it_points() {
    let api = Api::open(caller()).await;
    let problem = check_problem(&api.get("/tasks/1").await, 404, "not-found");
    let reply = api.get(problem["type"].as_str().expect("a URI")).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    let text = str::from_utf8(&reply.body).expect("a text");
    assert!(text.starts_with("There is no such resource (404)\n"), "{text}");
}
