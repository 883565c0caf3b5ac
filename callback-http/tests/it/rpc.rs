//! A call with `$rpc.callback`, from the request to the callback.

use crate::shop::{Opening, SEED_REQUEST, Shop, request, result_of_the_seed};
use axum::Router;
use callback_core::{Signer, TaskId};
use callback_dispatch::{Interrupted, MemoryOutbox, SqliteOutbox, TaskState};
use callback_http::server::{RpcHandler, RpcLayer};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use tower::{Layer, ServiceExt};

fn signer() -> Signer {
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("valid")
}

#[track_caller]
fn names(object: &Value) -> Vec<&str> {
    object.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn the_seeds_request_gives_the_seeds_acknowledgment_and_callback() {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = SqliteOutbox::open(folder.path().join("outbox.sqlite")).await.expect("opened");
    let opening = Opening::on(outbox).dispatcher(|dispatcher| dispatcher.signer(signer()).source("/orders"));
    let mut shop = opening.open().await;

    let reply = shop.post(SEED_REQUEST).await;
    assert_eq!((reply.status, reply.headers["content-type"].as_bytes()), (StatusCode::OK, &b"application/json"[..]));
    let acknowledgment = reply.json();
    assert_eq!(names(&acknowledgment), ["id", "jsonrpc", "result"]);
    assert_eq!((&acknowledgment["jsonrpc"], &acknowledgment["id"]), (&json!("2.0"), &json!("example_order")));
    assert_eq!(names(&acknowledgment["result"]), ["callback"]);
    let callback = &acknowledgment["result"]["callback"];
    assert_eq!(names(callback), ["data", "id", "status", "url"]);
    assert_eq!(callback["url"], *shop.callback());
    assert_eq!((&callback["status"], &callback["data"]), (&json!(true), &json!([])));
    let id: TaskId = callback["id"].as_str().expect("a text").parse().expect("a task's id");

    let received = shop.next().await;
    assert_eq!((&received.method, &*received.uri.to_string()), (&Method::POST, "/order/callback"));
    let expected = json!({ "jsonrpc": "2.0", "id": "example_order", "result": result_of_the_seed() });
    assert_eq!(received.json(), expected);
    let id = id.to_string();
    for (name, value) in [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-type", "callback.rpc.completed"),
        ("ce-source", "/orders"),
        ("ce-subject", &id),
        ("ce-id", &id),
        ("webhook-id", &id),
        ("callback-attempt", "1"),
    ] {
        assert_eq!(received.header(name), Some(value), "{name}");
    }
    assert!(received.header("ce-time").is_some_and(|time| time.ends_with('Z')));
    let header = |name| received.header(name).expect("signed");
    signer()
        .verifier()
        .verify_headers(
            header("webhook-id"),
            header("webhook-timestamp"),
            header("webhook-signature"),
            &received.body,
            SystemTime::now(),
        )
        .expect("a valid signature");

    let task = shop.dispatcher.wait(id.parse().expect("valid")).await.expect("readable").expect("known");
    assert_eq!((task.state(), task.operation()), (TaskState::Delivered, "OrderService.processOrder"));
    let seen = shop.methods.only();
    assert_eq!(
        seen.text(),
        r#"{"id":"example_order","method":"OrderService.processOrder","params":{"orderId":"12345"}}"#
    );
    assert_eq!(seen.uri, "/rpc?v=1");
    assert!(shop.receiver.is_empty());
}

#[tokio::test]
async fn the_acknowledgment_comes_before_the_work() {
    let mut shop = Shop::open().await;
    shop.post(r#"{"id":1,"method":"blocked","params":{"$rpc.callback":"%CALLBACK%"}}"#).await.task();
    assert!(shop.receiver.is_empty());
    shop.methods.gate.add_permits(1);
    assert_eq!(shop.next().await.json()["result"], "open");
}

#[tokio::test]
async fn a_methods_error_is_delivered_as_a_failure() {
    let mut shop = Shop::open().await;
    for method in ["OrderService.failOrder", "error under 500", "unknown"] {
        shop.post(&format!(r#"{{"id":7,"method":"{method}","params":{{"$rpc.callback":"%CALLBACK%"}}}}"#)).await.task();
        let received = shop.next().await;
        assert_eq!(received.header("ce-type"), Some("callback.rpc.failed"));
        let answer = received.json();
        assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(7)));
        assert!(answer["error"]["code"].is_i64() && answer.get("result").is_none(), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_is_delivered_byte_for_byte_and_always_says_its_version() {
    let mut shop = Shop::open().await;
    for (method, expected) in [
        ("spelled", r#"{ "result" : 1.50, "jsonrpc":"2.0","id":"a" }"#),
        ("no version", r#"{"jsonrpc":"2.0", "result" : 1.50,"id":"a" }"#),
    ] {
        shop.post(&format!(r#"{{"id":"a","method":"{method}","params":{{"$rpc.callback":"%CALLBACK%"}}}}"#))
            .await
            .task();
        assert_eq!(shop.next().await.body, expected);
    }
}

/// The body that the method sees, the options that come with it, and the callback's correlation.
async fn check(request: &str, expected: &str, ignore_cache: bool, ray_id: Option<&str>) {
    let mut shop = Shop::open().await;
    let task = shop.post(request).await.task();
    let received = shop.next().await;
    let seen = shop.methods.only();
    assert_eq!(seen.text(), expected, "{request}");
    let options = seen.options.expect("options are an extension");
    assert_eq!((options.ignore_cache, options.ray_id.as_deref()), (ignore_cache, ray_id), "{request}");
    let correlation = ray_id.map(|id| id.replace(' ', "%20"));
    assert_eq!(received.header("ce-correlationid"), correlation.as_deref(), "{request}");
    assert_eq!((received.header("ce-subject"), received.header("webhook-id")), (Some(&*task), Some(&*task)));
    assert_eq!(seen.task.expect("the task is an extension").id, task);
}

#[tokio::test]
async fn flat_and_nested_options_are_the_same() {
    let expected = r#"{"id":1,"method":"echo","params":{"a":1}}"#;
    let flat = r#"{"id":1,"method":"echo","params":{"a":1,"$rpc.callback":"%CALLBACK%","$rpc.timeout":10,
        "$rpc.rayId":"ray 1","$rpc.ignoreCache":true}}"#;
    check(flat, expected, true, Some("ray 1")).await;
    let nested = r#"{"id":1,"method":"echo","params":{"$rpc":{"callback":"%CALLBACK%","timeout":120,
        "rayId":"ray 1","ignoreCache":true},"a":1}}"#;
    check(nested, expected, true, Some("ray 1")).await;
    let mixed = r#"{"id":1,"method":"echo","params":{"$RPC.callback":"%CALLBACK%","a":1,"$Rpc":{"rayId":7}}}"#;
    check(mixed, expected, false, Some("7")).await;
}

#[tokio::test]
async fn the_other_parameters_reach_the_method_as_they_were_spelled() {
    let odd = r#""z":1.50,"a":"\u00e4 ä","big":123456789012345678901234567890,"callback":"mine","$rpcs":1,"n":{"b" : [1,  2]}"#;
    let request = format!(
        r#"{{"jsonrpc":"2.0","id":"\u0041","method":"echo","extra":[ ],"params":{{{odd},"$rpc.callback":"%CALLBACK%"}}}}"#
    );
    let expected = format!(r#"{{"jsonrpc":"2.0","id":"\u0041","method":"echo","extra":[ ],"params":{{{odd}}}}}"#);
    check(&request, &expected, false, None).await;
}

#[tokio::test]
async fn a_clients_timeout_limits_the_method() {
    // Ten seconds are the least that a client may ask for: what is stored is looked at instead of waiting for them.
    let mut shop = Shop::open().await;
    shop.post(r#"{"id":1,"method":"echo","params":{"$rpc.callback":"%CALLBACK%","$rpc.timeout":12.5}}"#).await.task();
    shop.next().await;
    let seen = shop.methods.only();
    assert_eq!(seen.options.expect("options").timeout, Some(Duration::from_millis(12_500)));
}

#[tokio::test]
async fn a_call_without_callback_is_answered_at_once_and_unchanged() {
    let shop = Shop::open().await;
    let body = r#" { "jsonrpc":"2.0", "id" : 1, "method":"echo", "params": {"a" : 1.0} } "#;
    let reply = shop.post(body).await;
    assert_eq!(reply.result(), json!({ "a": 1.0 }));
    let seen = shop.methods.only();
    assert_eq!(seen.text(), body);
    assert!(seen.task.is_none());
    assert_eq!(seen.headers["content-length"], *body.len().to_string());

    let shop = Shop::open().await;
    shop.post(r#"{"id":1,"method":"echo","params":{"$rpc.ignoreCache":true,"$rpc":{"timeout":20},"a":1}}"#)
        .await
        .result();
    let seen = shop.methods.only();
    assert_eq!(seen.text(), r#"{"id":1,"method":"echo","params":{"a":1}}"#);
    let options = seen.options.expect("options are an extension");
    assert_eq!((options.ignore_cache, options.timeout), (true, Some(Duration::from_secs(20))));
    assert_eq!(seen.headers["content-length"], *seen.body.len().to_string());
    assert!(shop.receiver.is_empty());
}

#[tokio::test]
async fn positional_parameters_and_none_at_all_reach_the_method() {
    for body in [
        r#"{"id":1,"method":"echo","params":["$rpc.callback","http://127.0.0.1/"]}"#,
        r#"{"id":1,"method":"echo"}"#,
        r#"{"id":null,"method":"echo","params":{}}"#,
    ] {
        let shop = Shop::open().await;
        shop.post(body).await.result();
        assert_eq!(shop.methods.only().text(), body);
    }
}

#[tokio::test]
async fn what_is_no_json_rpc_passes_through_unread() {
    // None of these bodies would survive a reader of JSON.
    let with_callback = r#"{"id":1,"method":"echo","params":{"$rpc.callback":"no dsn"}}"#;
    for (method, content_type) in [
        (Method::POST, Some("text/plain")),
        (Method::POST, Some("application/jsonx")),
        (Method::POST, Some("multipart/form-data; boundary=application/json")),
        (Method::POST, None),
        (Method::PUT, Some("application/json")),
        (Method::GET, Some("application/json")),
        (Method::DELETE, Some("application/json")),
    ] {
        let shop = Shop::open().await;
        let headers: Vec<(&str, &str)> = content_type.map(|text| ("content-type", text)).into_iter().collect();
        request(method.clone(), shop.address(), &headers, with_callback).await.result();
        assert_eq!(shop.methods.only().text(), with_callback, "{method} {content_type:?}");
        request(method, shop.address(), &headers, "{ no JSON").await;
        assert_eq!(shop.methods.seen().len(), 2);
    }
}

/// A body that nobody may read.
struct Untouchable;

impl http_body::Body for Untouchable {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        panic!("it is read")
    }
}

#[tokio::test]
async fn what_passes_through_is_not_read() {
    let shop = Shop::open().await;
    let worker = shop.dispatcher.worker("other", Interrupted::RunAgain);
    let page = Router::new().fallback(async || "a page");
    let worker = worker.run(RpcHandler::new(page.clone())).expect("registered");
    let service = RpcLayer::new(worker).layer(page);
    for (method, content_type) in [(Method::POST, "text/plain"), (Method::GET, "application/json")] {
        let request = Request::builder().method(method).header("content-type", content_type);
        let request = request.body(Untouchable).expect("a request");
        let answer = service.clone().oneshot(request).await.expect("infallible");
        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "a page");
    }
    // What is announced as too large is refused before a byte of it is read.
    let request = Request::post("/").header("content-type", "application/json").header("content-length", 2 << 20);
    let answer = service.oneshot(request.body(Untouchable).expect("a request")).await.expect("infallible");
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn every_content_type_of_json_is_read() {
    for content_type in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json-rpc",
        "application/jsonrequest",
        "application/vnd.shop+json",
    ] {
        let mut shop = Shop::open().await;
        let body = SEED_REQUEST.replace("%CALLBACK%", &shop.callback());
        shop.send(&[("content-type", content_type)], body).await.task();
        let seen = shop.next().await;
        assert_eq!(seen.json()["id"], "example_order");
        assert_eq!(shop.methods.only().headers["content-type"], "application/json");
    }
}

#[tokio::test]
async fn a_callback_of_true_goes_to_the_operators_topic() {
    let topic = crate::receiver::Receiver::start().await;
    let dsn = topic.dsn("/topic");
    let mut topic = topic;
    let shop = Opening::on(MemoryOutbox::new()).layer(move |layer| layer.topic(dsn)).open().await;
    for callback in [r#""$rpc.callback":true"#, r#""$rpc":{"callback":true}"#] {
        let reply = shop.post(&format!(r#"{{"id":1,"method":"echo","params":{{{callback}}}}}"#)).await;
        assert_eq!(reply.result()["callback"]["url"], topic.url("/topic"));
        assert_eq!(topic.next().await.uri, "/topic");
    }
    // Who names a DSN of his own gets it there.
    let mut shop = shop;
    shop.post(SEED_REQUEST).await.task();
    shop.next().await;
    assert!(topic.is_empty());
}

#[tokio::test]
async fn of_the_clients_headers_only_ids_and_trace_go_with_the_callback() {
    let mut shop = Shop::open().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", "request-1"),
        ("x-correlation-id", "correlation 1"),
        ("traceparent", trace),
        ("authorization", "Bearer planted"),
        ("proxy-authorization", "Basic planted"),
        ("cookie", "session=planted"),
        ("x-api-key", "planted"),
        ("tracestate", "planted=1"),
        ("baggage", "user=planted"),
        ("user-agent", "planted"),
        ("accept-language", "planted"),
    ];
    let body = SEED_REQUEST.replace("%CALLBACK%", &shop.callback());
    shop.send(&headers, body).await.task();
    let received = shop.next().await;
    for (name, value) in [("x-request-id", "request-1"), ("x-correlation-id", "correlation 1"), ("traceparent", trace)]
    {
        assert_eq!(received.header(name), Some(value), "{name}");
    }
    assert!(!format!("{received:?}").contains("planted"), "{received:?}");
    assert_eq!(received.header("authorization"), None);
    // Nor does the method see what nobody keeps.
    let seen = shop.methods.only();
    let mut names: Vec<&str> = seen.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "content-type"]);
}

/// Protocol §3.1: `Location` of the task, where tasks are served.
#[cfg(feature = "axum")]
#[tokio::test]
async fn an_acknowledgment_names_the_place_of_its_task_where_tasks_are_served() {
    use crate::shop::request_at;
    use callback_http::server::{Owner, task_router};
    let user = || Owner::hook(|parts| parts.headers.get("x-user")?.to_str().ok().map(str::to_owned));
    for owner in [user(), Owner::capability()] {
        let outbox = MemoryOutbox::new();
        let with = owner.clone();
        let opening = Opening::on(outbox).dispatcher(|dispatcher| dispatcher.body_limit(50_000));
        let mut shop = opening.layer(move |layer| layer.tasks_at("/tasks/", with)).open().await;
        let router = Router::new().nest("/tasks", task_router(&shop.dispatcher, owner.clone()));
        let tasks = crate::shop::Server::start(router).await;
        let call = |method: &str| json!({ "id": 7, "method": method, "params": { "$rpc.callback": shop.callback() } });
        let get = async |path: &str, headers: &[(&str, &str)]| {
            request_at(Method::GET, tasks.address, path, headers, "").await
        };
        let json = ("content-type", "application/json");
        let headers = [json, ("x-user", "me"), ("idempotency-key", "k")];
        let echo = call("echo").to_string();
        let reply = shop.send(&headers, echo.clone()).await;
        let location = reply.headers["location"].to_str().expect("ASCII").to_owned();
        assert!(location.starts_with(&format!("/tasks/{}", reply.task())), "{location}");
        let again = shop.send(&headers, echo.clone()).await;
        assert_eq!((again.headers["location"].as_bytes(), again.body), (location.as_bytes(), reply.body));
        let large = shop.send(&[json, ("x-user", "me")], call("large").to_string()).await;
        let batch = shop.send(&[json, ("x-user", "me")], format!("[{echo}]")).await;
        assert!(!batch.headers.contains_key("location"));
        let received = [shop.next().await, shop.next().await, shop.next().await];
        let too_large = received.iter().map(crate::receiver::Received::json).find(|it| it.get("error").is_some());
        let error = json!({ "code": -32010, "message": "Result too large", "data": { "limit": 50_000, "kept": true } });
        assert_eq!(too_large, Some(json!({ "jsonrpc": "2.0", "id": 7, "error": error })));
        let of_large = large.headers["location"].to_str().expect("ASCII");
        for (href, length) in [(&*location, 2), (of_large, 100_000)] {
            let id = href.strip_prefix("/tasks/").expect("a task").split('.').next().expect("an id");
            shop.dispatcher.wait(id.parse().expect("an id")).await.expect("readable");
            let result = get(&format!("{href}/result"), &[("x-user", "me")]).await;
            assert_eq!(result.status, StatusCode::OK);
            assert_eq!(result.json()["result"].to_string().trim_matches('"').len(), length);
        }
        assert_eq!(
            get(&format!("/tasks/{}", large.task()), &[("x-user", "other")]).await.status,
            StatusCode::NOT_FOUND
        );
    }
    // A call of nobody is done, and not served.
    let mut shop = Opening::on(MemoryOutbox::new()).layer(move |layer| layer.tasks_at("/tasks", user())).open().await;
    let reply = shop.post(r#"{"id":1,"method":"echo","params":{"$rpc.callback":"%CALLBACK%"}}"#).await;
    reply.task();
    assert!(!reply.headers.contains_key("location"));
    shop.next().await;
}
