//! The walk through callbacks of Delhivery OS1: register a secret, create a container, be called back, verify, answer 202.
//!
//! Service, application and webhook run in this process; what goes over the wire is printed. It ends with status 0 if all of
//! it is as the walk-through says.
#![expect(clippy::print_stdout, reason = "a program for people")]

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderName, StatusCode},
    routing::post,
};
use callback_core::{BoxError, Policy, Rule, Secret};
use callback_dispatch::{Dispatcher, Event, MemoryOutbox, Os1, Submission, Violations};
use callback_examples::{Hook, Server, exchange};
use callback_http::{HttpSink, server::SubscriptionRouter};
use serde_json::{Value, json};
use std::{net::Ipv4Addr, time::Duration};

/// Under which header the callbacks are signed.
const SIGNATURE: &str = "x-coreos-hmac-signature";

/// What the application and the platform share, and nobody else.
const SECRET: &str = "a secret of this application";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // A policy that opens this machine, since the webhook runs here.
    let sink = HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build()?;
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink).profile(Os1::new(SIGNATURE)).start().await?;
    let subscriptions = SubscriptionRouter::builder(&dispatcher, |request| {
        Some(request.headers.get("x-coreos-tid")?.to_str().ok()?.to_owned())
    })
    .profile("os1")
    .secret_header(HeaderName::from_static("x-coreos-callback-secret"))
    .validator(known_events)
    .build()?;
    let app = Router::new()
        .route("/core/api/v2/containers/{id}", post(create))
        .with_state(dispatcher.clone())
        .nest("/subscriptions", subscriptions);
    let platform = Server::start((Ipv4Addr::LOCALHOST, 0).into(), app).await?;
    let mut webhook = Hook::start("/hooks/os1", StatusCode::ACCEPTED).await?;

    println!("1. Register a callback and a secret");
    let url = format!("http://{}/hooks/os1", webhook.address());
    let wish = |events: &[&str]| {
        let callback = json!({ "url": url, "meta": { "screen": "containers" } });
        format!("{:#}", json!({ "callback": callback, "service": "container", "events": events }))
    };
    let head = format!(
        "POST /subscriptions HTTP/1.1\ncontent-type: application/json\nx-coreos-tid: acme\nx-coreos-callback-secret: {SECRET}"
    );
    let (status, _, body) = exchange(platform.address(), &head, &wish(&["container.created"])).await?;
    expect(&status, &201)?;
    expect(&body.contains(SECRET), &false)?;

    println!("\n2. What would fail later is refused now");
    let (status, _, body) = exchange(platform.address(), &head, &wish(&["order.created"])).await?;
    expect(&status, &422)?;
    expect(&serde_json::from_str::<Value>(&body)?["errors"][0]["pointer"], &json!("#/events/0"))?;

    println!("\n3. Create a container");
    let container = json!({ "isHazmat": false, "isContainerizable": true, "isReusable": false });
    let head = "POST /core/api/v2/containers/c-7 HTTP/1.1\ncontent-type: application/json\nx-coreos-tid: acme";
    let (status, ..) = exchange(platform.address(), head, &format!("{container:#}")).await?;
    expect(&status, &202)?;

    println!("\n4. The platform calls back, and the webhook answers 202");
    let (headers, body) = webhook.next().await?;
    let mut data = container;
    data["containerId"] = "c-7".into();
    let expected = json!({
        "event": "container.created", "service": "container", "data": data, "meta": { "screen": "containers" },
    });
    expect(&serde_json::from_slice::<Value>(&body)?, &expected)?;

    println!("\n5. Verify the signature over the body");
    let signature = headers.get(SIGNATURE).and_then(|value| value.to_str().ok()).ok_or("it is not signed")?;
    expect(&signature, &Secret::from(SECRET).hex_hmac(&body).as_str())?;
    println!("{SIGNATURE} is right");
    dispatcher.close(Duration::from_secs(5)).await;
    Ok(())
}

/// Containers can be watched, nothing else.
fn known_events(submission: &Submission<'_>) -> Result<(), Violations> {
    let events = submission.content["events"].as_array().ok_or_else(|| Violations::at("/events", "is missing"))?;
    let known = |event: &Value| event.as_str().is_some_and(|event| event.starts_with("container."));
    match events.iter().position(|event| !known(event)) {
        Some(place) => Err(Violations::at(format!("/events/{place}"), "must begin with `container.`")),
        None => Ok(()),
    }
}

/// Creates a container, and says so to those who have subscribed to it.
async fn create(
    State(dispatcher): State<Dispatcher>,
    Path(id): Path<String>,
    Json(mut container): Json<Value>,
) -> Result<StatusCode, StatusCode> {
    container["containerId"] = id.into();
    let created = Event::new("container.created", container).service("container");
    dispatcher.publish(created).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(StatusCode::ACCEPTED)
}

fn expect<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug>(found: &T, expected: &U) -> Result<(), BoxError> {
    if found == expected { Ok(()) } else { Err(format!("expected {expected:?}, found {found:?}").into()) }
}
