//! Subscriptions over HTTP: each exchange of seeds 2 and 3 over sockets, and what goes wrong.

use crate::{
    receiver::{PATIENCE, Receiver, status},
    shop::{Reply, Server, request_at},
};
use axum::Router;
use bytes::Bytes;
use callback_core::{Keys, MemorySink, Policy, Rule, Secret, Signer};
use callback_dispatch::{
    Dispatcher, DispatcherBuilder, Event, Hal, MemoryOutbox, Os1, Submission, SubscriptionId, Violations,
};
use callback_http::{
    HttpSink,
    server::{SubscriptionRouter, SubscriptionRouterBuilder, key_router},
};
use http::{Method, StatusCode, header};
use serde_json::{Value, json};
use std::time::SystemTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");
pub(crate) const ACME: (&str, &str) = ("x-caller", "acme");

pub(crate) struct Api {
    pub(crate) server: Server,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) receiver: Receiver,
}

impl Api {
    pub(crate) async fn open() -> Self {
        Self::with(|dispatcher| dispatcher, |router| router).await
    }

    pub(crate) async fn with(
        dispatcher: impl FnOnce(DispatcherBuilder) -> DispatcherBuilder,
        router: impl FnOnce(SubscriptionRouterBuilder) -> SubscriptionRouterBuilder,
    ) -> Self {
        let sink = HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build().expect("a sink");
        let builder = Dispatcher::builder(MemoryOutbox::new())
            .sink(sink)
            .profile(Hal)
            .profile(Os1::new("x-coreos-hmac-signature"));
        let dispatcher = dispatcher(builder).start().await.expect("started");
        let caller = |request: &http::request::Parts| Some(request.headers.get("x-caller")?.to_str().ok()?.to_owned());
        let subscriptions = router(SubscriptionRouter::builder(&dispatcher, caller)).build().expect("a router");
        let app = Router::new().nest("/subscriptions", subscriptions);
        Self { server: Server::start(app).await, dispatcher, receiver: Receiver::start().await }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        request_at(method, self.server.address, path, headers, body).await
    }

    pub(crate) async fn post(&self, body: &Value) -> Reply {
        self.send(Method::POST, "/subscriptions", &[JSON, ACME], body.to_string()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[ACME], "").await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Reply {
        let headers = [("content-type", "application/merge-patch+json"), ACME];
        self.send(Method::PATCH, path, &headers, body.to_string()).await
    }

    pub(crate) fn callback(&self) -> String {
        self.receiver.url("/send/callback/here")
    }

    pub(crate) async fn publish(&self, event_type: &str, data: Value) {
        let event = Event::new(event_type, data).service("container");
        self.dispatcher.publish(event).await.expect("published");
    }
}

#[track_caller]
pub(crate) fn created(reply: &Reply) -> String {
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    reply.headers[header::LOCATION].to_str().expect("ASCII").to_owned()
}

#[track_caller]
fn check_problem(reply: &Reply, status: u16, name: &str) -> Value {
    assert_eq!(reply.status.as_u16(), status, "{reply:?}");
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/problem+json");
    let problem = reply.json();
    assert_eq!((&problem["type"], &problem["status"]), (&json!(format!("/problems/{name}")), &json!(status)));
    problem
}

/// Seed 3: settle the subscription, the publisher sends the callback, the subscriber cancels.
#[tokio::test]
async fn the_exchanges_of_seed_3() {
    let mut api = Api::with(|dispatcher| dispatcher, |router| router.profile("hal")).await;
    let reply = api.post(&json!({ "callbackUrl": api.callback() })).await;
    let href = created(&reply);
    let uuid = href.strip_prefix("/subscriptions/").expect("nested there").to_owned();
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/hal+json");
    assert_eq!(
        reply.json(),
        json!({
            "_links": { "self": { "href": href } },
            "message": "Your request to subscribe has been accepted.",
            "UUID": uuid,
        })
    );

    api.publish("container.created", json!({ "id": 7 })).await;
    let received = api.receiver.next().await;
    assert_eq!((received.method.as_str(), received.uri.path()), ("POST", "/send/callback/here"));
    assert_eq!(received.header("content-type"), Some("application/hal+json"));
    let notification = json!({ "_links": { "self": { "href": href } }, "UUID": uuid, "data": { "id": 7 } });
    assert_eq!(received.json(), notification);

    let reply = api.send(Method::PUT, &href, &[ACME], "").await;
    assert_eq!(reply.status, StatusCode::ACCEPTED);
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/hal+json");
    let cancelled = json!({ "_links": { "self": { "href": href } }, "message": "Your subscription is cancelled." });
    assert_eq!(reply.json(), cancelled);
    for method in [Method::PUT, Method::DELETE] {
        check_problem(&api.send(method, &href, &[ACME], "").await, 403, "subscription-over");
    }
    api.publish("container.created", json!({ "id": 8 })).await;
    assert_eq!(api.get(&href).await.json()["status"], "cancelled");
    assert!(api.receiver.is_empty());
}

/// Seed 3: a subscription that is only once is cancelled after its callback.
#[tokio::test]
async fn an_only_once_subscription_ends_by_itself() {
    let mut api = Api::open().await;
    let href = created(&api.post(&json!({ "callbackUrl": api.callback(), "kind": "once" })).await);
    assert_eq!(api.get(&href).await.json()["kind"], "once");
    api.publish("a", json!(1)).await;
    api.publish("a", json!(2)).await;
    assert_eq!(api.receiver.next().await.json(), json!(1));
    while api.get(&href).await.json()["status"] != "completed" {
        tokio::task::yield_now().await;
    }
    check_problem(&api.send(Method::DELETE, &href, &[ACME], "").await, 403, "subscription-over");
    assert!(api.receiver.is_empty());
}

/// Seed 3: the receiver does not accept the callback.
#[tokio::test]
async fn a_receivers_403_refuses_a_notification_for_good() {
    let api = Api::with(|dispatcher| dispatcher, |router| router.profile("hal")).await;
    let mut refusing = Receiver::answering(|_| status(StatusCode::FORBIDDEN)).await;
    created(&api.post(&json!({ "callbackUrl": refusing.url("/") })).await);
    api.publish("a", json!(1)).await;
    refusing.next().await;
    loop {
        let dead = api.dispatcher.dead_letters().list(&callback_dispatch::DeadLetterQuery::default()).await;
        let dead = dead.expect("readable");
        if let [letter] = &dead.items[..] {
            assert_eq!(letter.attempts.len(), 1);
            break;
        }
        tokio::task::yield_now().await;
    }
}

/// Seed 2: register a secret, create, receive, verify, answer 202.
#[tokio::test]
async fn the_exchange_of_seed_2() {
    let api = Api::with(
        |dispatcher| dispatcher,
        |router| router.profile("os1").secret_header(header::HeaderName::from_static("x-coreos-callback-secret")),
    )
    .await;
    let mut receiver = Receiver::answering(|_| status(StatusCode::ACCEPTED)).await;
    let secret = "a secret of this receiver";
    let body = json!({
        "callback": { "url": receiver.url("/hooks/os1"), "meta": { "batch": 7 } },
        "service": "container",
        "events": ["container.created"],
    });
    let headers = [JSON, ACME, ("x-coreos-callback-secret", secret)];
    let reply = api.send(Method::POST, "/subscriptions", &headers, body.to_string()).await;
    let href = created(&reply);
    assert!(!String::from_utf8_lossy(&reply.body).contains(secret));

    api.publish("container.deleted", json!({ "id": 1 })).await;
    api.publish("container.created", json!({ "id": 2 })).await;
    let received = receiver.next().await;
    assert_eq!(received.header("content-type"), Some("application/json"));
    assert_eq!(
        received.json(),
        json!({ "event": "container.created", "service": "container", "data": { "id": 2 }, "meta": { "batch": 7 } })
    );
    let expected = Secret::from(secret).hex_hmac(&received.body);
    assert_eq!(received.header("x-coreos-hmac-signature"), Some(&*expected));

    let found = api.get(&href).await;
    assert!(!String::from_utf8_lossy(&found.body).contains(secret));
    assert_eq!(found.json()["hasSecret"], true);
    assert_eq!(found.json()["meta"], json!({ "batch": 7 }));
}

/// It would be as if the client had named none, and nothing would be signed.
#[tokio::test]
async fn a_secret_in_a_header_that_cannot_be_read_is_refused() {
    let header = header::HeaderName::from_static("x-coreos-callback-secret");
    let api = Api::with(|dispatcher| dispatcher, |router| router.profile("os1").secret_header(header)).await;
    let body = json!({ "callback": api.callback() }).to_string();
    let secret = ("x-coreos-callback-secret", "mine");
    let reply = api.send(Method::POST, "/subscriptions", &[JSON, ACME, secret, secret], body.clone()).await;
    let problem = check_problem(&reply, 400, "invalid-request");
    assert_eq!(problem["detail"], "The header x-coreos-callback-secret is there twice, or no text.");

    let mut stream = TcpStream::connect(api.server.address).await.expect("it listens");
    let head = "POST /subscriptions HTTP/1.1\r\nhost: a\r\nx-caller: acme\r\ncontent-type: application/json\r\n";
    let rest = "x-coreos-callback-secret: sésame\r\nconnection: close\r\n";
    let request = format!("{head}{rest}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("same"), "{answer}");
    assert_eq!(api.get("/subscriptions").await.json()["_embedded"]["subscriptions"], json!([]));
}

#[tokio::test]
async fn a_callback_is_a_text_or_an_object_in_seed_2() {
    let api = Api::open().await;
    for callback in [json!(api.callback()), json!({ "url": api.callback() })] {
        let href = created(&api.post(&json!({ "callback": callback })).await);
        assert_eq!(api.get(&href).await.json()["callbackUrl"], api.callback());
    }
}

#[tokio::test]
async fn a_secret_is_replaced_with_overlap() {
    let mut api = Api::open().await;
    let (old, new) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
    let href = created(&api.post(&json!({ "callbackUrl": api.callback(), "secret": old })).await);
    let reply = api.patch(&href, &json!({ "secret": new })).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.json()["hasSecret"], true);
    api.publish("a", json!(1)).await;
    let received = api.receiver.next().await;
    for secret in [old, new] {
        let verifier = secret.parse::<Signer>().expect("a key").verifier();
        let header = |name| received.header(name).expect("signed");
        let (id, time, signature) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
        verifier.verify_headers(id, time, signature, &received.body, SystemTime::now()).expect("verified");
    }
    assert_eq!(api.patch(&href, &json!({ "secret": null })).await.json()["hasSecret"], false);
    api.publish("a", json!(2)).await;
    assert_eq!(api.receiver.next().await.header("webhook-signature"), None);
}

#[tokio::test]
async fn a_subscription_is_changed_by_a_merge_patch() {
    let mut api = Api::open().await;
    let subscribe = json!({
        "callbackUrl": api.callback(), "events": ["a"], "service": "container", "meta": { "a": 1, "b": 2 }, "lease": 3600,
    });
    let href = created(&api.post(&subscribe).await);
    let before = api.get(&href).await.json();
    assert_eq!(
        (&before["status"], &before["events"], &before["service"]),
        (&json!("active"), &json!(["a"]), &json!("container"))
    );
    assert!(before["expires"].is_string() && before["created"].is_string(), "{before}");

    let paused = api.patch(&href, &json!({ "active": false })).await.json();
    assert_eq!(paused["status"], "paused");
    api.publish("a", json!(1)).await;
    let change =
        json!({ "active": true, "events": ["b"], "service": null, "meta": { "b": null, "c": 3 }, "lease": null });
    let changed = api.patch(&href, &change).await.json();
    assert_eq!((&changed["status"], &changed["events"]), (&json!("active"), &json!(["b"])));
    assert_eq!(
        (&changed["meta"], &changed["service"], &changed["expires"]),
        (&json!({ "a": 1, "c": 3 }), &Value::Null, &Value::Null)
    );
    assert_eq!(changed, api.get(&href).await.json());
    api.publish("a", json!(2)).await;
    api.publish("b", json!(3)).await;
    assert_eq!(api.receiver.next().await.json(), json!(3));
    assert!(api.receiver.is_empty());

    assert_eq!(api.patch(&href, &json!({})).await.json(), changed);
    let problem =
        check_problem(&api.patch(&href, &json!({ "callbackUrl": "x", "active": 1 })).await, 422, "invalid-member");
    let pointers: Vec<&str> =
        problem["errors"].as_array().expect("errors").iter().filter_map(|it| it["pointer"].as_str()).collect();
    assert_eq!(pointers, ["#/active", "#/callbackUrl"]);
    let reply = api.send(Method::PATCH, &href, &[("content-type", "text/plain"), ACME], "{}").await;
    check_problem(&reply, 415, "unsupported-media-type");
    assert_eq!(reply.headers["accept-patch"], "application/merge-patch+json");
    api.send(Method::DELETE, &href, &[ACME], "").await;
    check_problem(&api.patch(&href, &json!({ "active": true })).await, 403, "subscription-over");
}

#[tokio::test]
async fn what_is_malformed_is_named_place_by_place() {
    let api = Api::open().await;
    for (body, status, name, pointers) in [
        (json!({}), 422, "invalid-member", &["#/callbackUrl"][..]),
        (json!({ "callbackUrl": 7, "kind": "twice" }), 422, "invalid-member", &["#/callbackUrl", "#/kind"]),
        (json!({ "callbackUrl": "no url" }), 422, "callback-invalid", &["#/callbackUrl"]),
        (json!({ "callbackUrl": "https://10.0.0.1/" }), 403, "callback-forbidden", &["#/callbackUrl"]),
        (json!({ "callback": { "url": "ftp://a.example/" } }), 403, "callback-forbidden", &["#/callback/url"]),
        (json!({ "callbackUrl": api.callback(), "unknown/member": 1 }), 422, "invalid-member", &["#/unknown~1member"]),
        (json!({ "callbackUrl": api.callback(), "events": vec!["x"; 101] }), 422, "invalid-member", &["#/events"]),
        (json!([]), 422, "invalid-member", &["#"]),
    ] {
        let problem = check_problem(&api.post(&body).await, status, name);
        let found: Vec<&str> =
            problem["errors"].as_array().expect("errors").iter().filter_map(|it| it["pointer"].as_str()).collect();
        assert_eq!(found, pointers, "{body}: {problem}");
    }
    let send = |headers, body: &'static str| api.send(Method::POST, "/subscriptions", headers, body);
    check_problem(&send(&[JSON, ACME], "no JSON").await, 400, "body-invalid");
    check_problem(&send(&[ACME], "{}").await, 415, "unsupported-media-type");
    check_problem(&send(&[JSON], "{}").await, 403, "caller-unknown");
    let large = format!("{{\"meta\":\"{}\"}}", "x".repeat(64 << 10));
    check_problem(&api.send(Method::POST, "/subscriptions", &[JSON, ACME], large).await, 413, "too-large");
    for query in ["limit=0", "limit=x", "limit=1001", "after=x"] {
        check_problem(&api.get(&format!("/subscriptions?{query}")).await, 400, "invalid-request");
    }
    let reply = api.send(Method::DELETE, "/subscriptions", &[ACME], "").await;
    check_problem(&reply, 405, "method-not-allowed");
    assert_eq!(reply.headers[header::ALLOW], "GET,HEAD,POST");
}

#[tokio::test]
async fn a_validator_refuses_before_anything_is_stored() {
    let known = |submission: &Submission<'_>| {
        assert_eq!(submission.content.get("secret"), None);
        match submission.content["events"].as_array() {
            Some(_) => Ok(()),
            None => Err(Violations::at("/events", "is missing").and("/service", "must be given with them")),
        }
    };
    let api = Api::with(|dispatcher| dispatcher, |router| router.validator(known)).await;
    let body = json!({ "callbackUrl": api.callback(), "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" });
    let problem = check_problem(&api.post(&body).await, 422, "invalid-member");
    assert_eq!(
        problem["errors"],
        json!([
            { "pointer": "#/events", "detail": "is missing" },
            { "pointer": "#/service", "detail": "must be given with them" },
        ])
    );
    assert_eq!(api.get("/subscriptions").await.json()["_embedded"]["subscriptions"], json!([]));
    created(&api.post(&json!({ "callbackUrl": api.callback(), "events": ["a"] })).await);
}

#[tokio::test]
async fn a_caller_sees_his_own_subscriptions_page_by_page() {
    let api = Api::open().await;
    let mut hrefs = Vec::new();
    for _ in 0..3 {
        hrefs.push(created(&api.post(&json!({ "callbackUrl": api.callback() })).await));
    }
    let other = [JSON, ("x-caller", "other")];
    let foreign =
        api.send(Method::POST, "/subscriptions", &other, json!({ "callbackUrl": api.callback() }).to_string()).await;
    let foreign = created(&foreign);
    let (mut found, mut next) = (Vec::new(), Some("/subscriptions?limit=2".to_owned()));
    let mut pages = 0;
    while let Some(path) = next {
        let page = api.get(&path).await;
        assert_eq!(page.headers[header::CONTENT_TYPE], "application/hal+json");
        let page = page.json();
        for item in page["_embedded"]["subscriptions"].as_array().expect("a list") {
            found.push(item["_links"]["self"]["href"].as_str().expect("a link").to_owned());
        }
        next = page["_links"]["next"]["href"].as_str().map(str::to_owned);
        pages += 1;
    }
    assert_eq!((found, pages), (hrefs, 2));

    let unknown = format!("/subscriptions/{}", foreign.rsplit('/').next().expect("an id").replace(['1', '2'], "3"));
    for path in [&*foreign, &unknown, "/subscriptions/1", "/subscriptions/%ff"] {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            check_problem(&api.send(method, path, &[ACME], "").await, 404, "not-found");
        }
        check_problem(&api.patch(path, &json!({ "active": false })).await, 404, "not-found");
    }
    let id: SubscriptionId = foreign.rsplit('/').next().expect("an id").parse().expect("an id");
    assert!(api.dispatcher.subscriptions().get(id).await.expect("readable").is_some());
}

/// Seed 3, the topic variant: no callback is named, the answer names topic and UUID.
#[tokio::test]
async fn without_a_callback_the_answer_names_the_topic() {
    let sink = MemorySink::new();
    let api = Api::with(
        |dispatcher| dispatcher.sink(sink.clone()),
        |router| router.topic("memory://orders.completed".parse().expect("a Dsn")),
    )
    .await;
    let reply = api.post(&json!({ "events": ["a"] })).await;
    let href = created(&reply);
    assert_eq!(reply.json()["topic"], "memory://orders.completed");
    let uuid = reply.json()["UUID"].as_str().expect("an id").to_owned();
    assert_eq!(api.get(&href).await.json()["topic"], "memory://orders.completed");
    api.publish("a", json!(1)).await;
    assert_eq!(sink.next("orders.completed").await.message.subject(), Some(&*uuid));

    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink).start().await.expect("started");
    for topic in ["kafka:///orders", "memory://user:password@orders"] {
        let builder = SubscriptionRouter::builder(&dispatcher, |_| None).topic(topic.parse().expect("a Dsn"));
        assert!(builder.build().is_err(), "{topic}");
    }
}

#[tokio::test]
async fn public_keys_are_a_jwk_set_that_verifies() {
    let signer: Signer = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc=".parse().expect("a key");
    let mut api = Api::with(|dispatcher| dispatcher.signer(signer.clone()), |router| router).await;
    let keys = Server::start(key_router(&Keys::from(signer))).await;
    let reply = request_at(Method::GET, keys.address, "/.well-known/callback-keys", &[], "").await;
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/jwk-set+json");
    let set = reply.json();
    let key = &set["keys"][0];
    assert_eq!((&key["kty"], &key["crv"], &key["alg"]), (&json!("OKP"), &json!("Ed25519"), &json!("EdDSA")));
    created(&api.post(&json!({ "callbackUrl": api.callback() })).await);
    api.publish("a", json!(1)).await;
    let received = api.receiver.next().await;
    let header = |name| received.header(name).expect("signed");
    let verifier: callback_core::Verifier = key["whpk"].as_str().expect("a key").parse().expect("a key");
    let (id, time, signature) = (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
    verifier.verify_headers(id, time, signature, &received.body, SystemTime::now()).expect("verified");
    let none = Server::start(key_router(&Keys::new())).await;
    assert_eq!(
        request_at(Method::GET, none.address, "/.well-known/callback-keys", &[], "").await.json(),
        json!({ "keys": [] })
    );
}

/// Whoever is not known is not listened to: nothing of what he would send is read.
#[tokio::test]
async fn the_caller_is_known_before_the_body_is_read() {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    let api = Api::open().await;
    let known = created(&api.post(&json!({ "callbackUrl": api.callback() })).await);
    let unknown = format!("/subscriptions/{}", callback_core::TaskId::new());
    for (method, path, caller, status) in [
        ("POST", "/subscriptions", "", "403"),
        ("PATCH", &*known, "", "403"),
        ("PATCH", &*known, "x-caller: other\r\n", "404"),
        ("PATCH", &*unknown, "x-caller: acme\r\n", "404"),
    ] {
        let mut stream = TcpStream::connect(api.server.address).await.expect("it listens");
        let head = format!("{method} {path} HTTP/1.1\r\nhost: a\r\n{caller}content-type: application/json\r\n");
        // The body never comes.
        stream.write_all(format!("{head}content-length: 50\r\n\r\n").as_bytes()).await.expect("written");
        let mut answer = [0; 12];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        read.expect("an answer without the body").expect("read");
        assert_eq!(str::from_utf8(&answer), Ok(&*format!("HTTP/1.1 {status}")), "{method} {path} {caller}");
    }
    let large = format!("{{\"meta\":\"{}\"}}", "x".repeat(64 << 10));
    check_problem(&api.send(Method::POST, "/subscriptions", &[JSON], large).await, 403, "caller-unknown");
}

#[tokio::test]
async fn an_owner_that_cannot_be_is_the_services_fault() {
    let api = Api::open().await;
    let body = json!({ "callbackUrl": api.callback() }).to_string();
    let long = "x".repeat(256);
    for owner in ["", &long] {
        let reply = api.send(Method::POST, "/subscriptions", &[JSON, ("x-caller", owner)], body.clone()).await;
        let problem = check_problem(&reply, 500, "internal");
        assert_eq!(problem["errors"], Value::Null);
    }
}

#[tokio::test]
async fn a_body_with_a_content_coding_is_refused() {
    let api = Api::open().await;
    let href = created(&api.post(&json!({ "callbackUrl": api.callback() })).await);
    for (method, path) in [(Method::POST, "/subscriptions"), (Method::PATCH, &*href)] {
        let reply = api.send(method, path, &[JSON, ACME, ("content-encoding", "gzip")], "{}").await;
        check_problem(&reply, 415, "content-coding-unsupported");
        assert_eq!(reply.headers[header::ACCEPT_ENCODING], "identity");
        assert!(!reply.headers.contains_key("accept-patch"));
    }
}

#[tokio::test]
async fn a_caller_that_has_as_many_as_it_may_is_told_so() {
    let api = Api::with(|dispatcher| dispatcher.subscription_limit(1), |router| router).await;
    let href = created(&api.post(&json!({ "callbackUrl": api.callback() })).await);
    let reply = api.post(&json!({ "callbackUrl": api.callback() })).await;
    let problem = check_problem(&reply, 403, "subscriptions-too-many");
    assert_eq!(problem["detail"], "The caller has 1 subscriptions, and may have no more.");
    assert_eq!(api.send(Method::DELETE, &href, &[ACME], "").await.status, StatusCode::ACCEPTED);
    created(&api.post(&json!({ "callbackUrl": api.callback() })).await);
}

#[tokio::test]
async fn a_value_of_the_callers_that_is_too_large_is_named() {
    let api = Api::with(|dispatcher| dispatcher, |router| router.body_limit(1 << 20)).await;
    let meta = "a".repeat(64 << 10);
    let body = json!({ "callbackUrl": api.callback(), "meta": meta });
    let problem = check_problem(&api.post(&body).await, 422, "invalid-member");
    assert_eq!(problem["errors"], json!([{ "pointer": "#/meta", "detail": "is larger than 65536 bytes" }]));
    let href = created(&api.post(&json!({ "callbackUrl": api.callback(), "meta": { "a": 1 } })).await);
    check_problem(&api.patch(&href, &json!({ "meta": { "b": meta } })).await, 422, "invalid-member");
}
