//! Every type of problem (`docs/problems.md`), in an answer that has it.

use super::{answered, folder};
use crate::{
    receiver::PATIENCE,
    recovery::runtime,
    shop::Reply,
    subscriptions::{self, ACME, JSON, created},
    tasks::{Api, at, caller, location},
};
use callback_dispatch::{Interrupted, MemoryOutbox, SqliteOutbox};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ASYNCHRONOUS: (&str, &str) = ("prefer", "respond-async");

/// Compares an answer to the file of its type.
#[track_caller]
fn problem(name: &str, reply: &Reply) {
    assert_eq!(reply.headers[header::CONTENT_TYPE], "application/problem+json", "{name}: {reply:?}");
    assert_eq!(reply.json()["type"], format!("/problems/{name}"), "{reply:?}");
    answered(&format!("problems/{name}"), reply);
}

async fn open() -> Api {
    Api::open(caller()).await
}

async fn result(api: &Api, location: &str) -> Reply {
    api.get(&format!("{location}/result")).await
}

#[test]
fn each_problem_has_a_golden_file() {
    let documented = include_str!("../../../../docs/problems.md");
    let documented = documented.lines().filter_map(|line| line.strip_prefix("| `/problems/")?.split('`').next());
    let files = fs::read_dir(folder().join("problems")).expect("a folder");
    let files = files.map(|file| file.expect("a file").path().file_stem().expect("a name").to_owned());
    let files: BTreeSet<String> = files.map(|name| name.into_string().expect("ASCII")).collect();
    assert_eq!(files, documented.map(str::to_owned).collect());
}

#[tokio::test]
async fn problems_of_a_task() {
    let api = open().await;
    problem("not-found", &api.get("/tasks/1").await);
    let bread = json!({ "item": "bread" });
    let unknown = api.send(Method::POST, "/orders", &[JSON, ASYNCHRONOUS], bread.to_string()).await;
    problem("caller-unknown", &unknown);
    let slow = location(&api.post(&[ASYNCHRONOUS], &json!({ "item": "slow" })).await);
    api.orders.begun.acquire().await.expect("open").forget();
    problem("invalid-request", &api.get(&format!("{slow}?follow=maybe")).await);
    problem("method-not-allowed", &api.send(Method::PATCH, &slow, &[ACME], "").await);
    problem("no-result-yet", &result(&api, &slow).await);
    assert_eq!(api.send(Method::DELETE, &slow, &[ACME], "").await.status, StatusCode::ACCEPTED);
    problem("task-over", &api.send(Method::DELETE, &slow, &[ACME], "").await);
    problem("task-cancelled", &result(&api, &slow).await);

    let key = ("idempotency-key", "k");
    location(&api.post(&[ASYNCHRONOUS, key], &bread).await);
    problem("idempotency-key-reused", &api.post(&[ASYNCHRONOUS, key], &json!({ "item": "wine" })).await);
    for (item, name) in [("unheard of", "task-failed"), ("too many", "result-too-large")] {
        let location = location(&api.post(&[ASYNCHRONOUS], &json!({ "item": item })).await);
        api.ended(&location).await;
        problem(name, &result(&api, &location).await);
    }
    api.dispatcher.close(Duration::ZERO).await;
    problem("overloaded", &api.post(&[ASYNCHRONOUS], &bread).await);
}

#[tokio::test]
async fn problems_of_a_task_that_takes_long() {
    let never = json!({ "item": "never", "expires": 0.05 });
    let short = Duration::from_millis(50);
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.time_limit(short)).await;
    let late = location(&api.post(&[ASYNCHRONOUS], &never).await);
    api.ended(&late).await;
    problem("task-timed-out", &result(&api, &late).await);
    let expiring = at("$request.body#/expires");
    let api = Api::on(MemoryOutbox::new(), caller(), |layer| layer.expires_at(expiring)).await;
    let expired = location(&api.post(&[ASYNCHRONOUS], &never).await);
    api.ended(&expired).await;
    problem("task-expired", &result(&api, &expired).await);
}

#[tokio::test]
async fn problems_of_a_subscription() {
    let api = subscriptions::Api::open().await;
    let send =
        async |headers: &[(&str, &str)], body: String| api.send(Method::POST, "/subscriptions", headers, body).await;
    problem("body-invalid", &send(&[JSON, ACME], "no JSON".to_owned()).await);
    problem("body-unreadable", &broken_off(api.server.address).await);
    problem("unsupported-media-type", &send(&[ACME], "{}".to_owned()).await);
    problem("content-coding-unsupported", &send(&[JSON, ACME, ("content-encoding", "gzip")], "{}".to_owned()).await);
    problem("too-large", &send(&[JSON, ACME], format!("{{\"meta\":\"{}\"}}", "x".repeat(64 << 10))).await);
    let to = |url: &str| json!({ "callbackUrl": url });
    problem("callback-forbidden", &api.post(&to("https://10.0.0.1/")).await);
    problem("callback-invalid", &api.post(&to("no url")).await);
    problem("invalid-member", &api.post(&json!({ "callbackUrl": 7, "kind": "twice" })).await);
    problem("internal", &send(&[JSON, ("x-caller", "")], to(&api.callback()).to_string()).await);
    let href = created(&api.post(&to(&api.callback())).await);
    assert_eq!(api.send(Method::DELETE, &href, &[ACME], "").await.status, StatusCode::ACCEPTED);
    problem("subscription-over", &api.send(Method::DELETE, &href, &[ACME], "").await);
    let api = subscriptions::Api::with(|dispatcher| dispatcher.subscription_limit(1), |router| router).await;
    let wish = to(&api.callback());
    created(&api.post(&wish).await);
    problem("subscriptions-too-many", &api.post(&wish).await);
}

/// Asks for a subscription, and leaves off within the body.
async fn broken_off(address: SocketAddr) -> Reply {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let head = "POST /subscriptions HTTP/1.1\r\nhost: a\r\nx-caller: acme\r\ncontent-type: application/json\r\n";
    let half = format!("{head}content-length: 50\r\n\r\n{{\"callback");
    stream.write_all(half.as_bytes()).await.expect("it reads");
    stream.shutdown().await.expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let headers: HeaderMap = lines
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| *name != "connection")
        .map(|(name, value)| {
            (name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"))
        })
        .collect();
    Reply { status, headers, body: body.to_owned().into() }
}

#[tokio::test]
async fn a_store_that_cannot_be_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outbox.db");
    let api = Api::on(SqliteOutbox::open(&path).await.expect("opened"), caller(), |layer| layer).await;
    let location = location(&api.post(&[ASYNCHRONOUS], &json!({ "item": "bread" })).await);
    api.ended(&location).await;
    let stranger = SqliteConnectOptions::new().filename(&path).busy_timeout(PATIENCE);
    let mut stranger = SqliteConnection::connect_with(&stranger).await.expect("it opens");
    sqlx::query("ALTER TABLE callback_outbox RENAME TO elsewhere").execute(&mut stranger).await.expect("renamed");
    problem("unavailable", &api.get(&location).await);
}

/// The first life ends while the order is done; it is not done again.
#[test]
fn a_task_that_a_crash_cut_short() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("outbox.db");
    let begin = async |path: &Path| {
        let outbox = SqliteOutbox::open(path).await.expect("opened");
        Api::working(outbox, caller(), Interrupted::Report, |layer| layer).await
    };
    let life = runtime();
    let (api, location) = life.block_on(async {
        let api = begin(&path).await;
        let location = location(&api.post(&[ASYNCHRONOUS], &json!({ "item": "slow" })).await);
        api.orders.begun.acquire().await.expect("open").forget();
        (api, location)
    });
    life.shutdown_timeout(PATIENCE);
    drop(api);
    runtime().block_on(async {
        let api = begin(&path).await;
        api.ended(&location).await;
        problem("task-interrupted", &result(&api, &location).await);
        let ended: Value = api.get(&location).await.json();
        assert_eq!(ended["status"], "completed");
    });
}
