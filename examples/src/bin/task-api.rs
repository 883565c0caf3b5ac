//! The three exchanges of the callback pattern in the adidas API guidelines: subscribe, be called back, cancel.
//!
//! Service, subscriber and webhook run in this process; what goes over the wire is printed. It ends with status 0 if each
//! answer has the status, media type and members that the guidelines write.
#![expect(clippy::print_stdout, reason = "a program for people")]

use axum::{Router, http::StatusCode};
use callback_core::{BoxError, Policy, Rule};
use callback_dispatch::{Dispatcher, Event, Hal, MemoryOutbox};
use callback_examples::{Hook, Server, exchange};
use callback_http::{HttpSink, server::SubscriptionRouter};
use serde_json::{Value, json};
use std::{net::Ipv4Addr, time::Duration};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // A policy that opens this machine, since the webhook runs here.
    let sink = HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build()?;
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink).profile(Hal).start().await?;
    let subscriptions =
        SubscriptionRouter::builder(&dispatcher, |_| Some("anybody".to_owned())).profile("hal").build()?;
    let app = Router::new().nest("/subscriptions", subscriptions);
    let service = Server::start((Ipv4Addr::LOCALHOST, 0).into(), app).await?;
    let mut webhook = Hook::start("/send/callback/here", StatusCode::OK).await?;

    println!("1. Settle the subscription");
    let callback = format!("http://{}/send/callback/here", webhook.address());
    let request = format!("{:#}", json!({ "callbackUrl": callback }));
    let head = "POST /subscriptions HTTP/1.1\ncontent-type: application/json";
    let (status, head, body) = exchange(service.address(), head, &request).await?;
    let created: Value = serde_json::from_str(&body)?;
    let uuid = created["UUID"].as_str().ok_or("there is no UUID")?;
    let href = format!("/subscriptions/{uuid}");
    expect(&status, &201)?;
    expect(&head.contains("content-type: application/hal+json"), &true)?;
    expect(&created["_links"], &json!({ "self": { "href": href } }))?;
    expect(&created["message"].is_string(), &true)?;

    println!("\n2. The publisher sends the callback");
    dispatcher.publish(Event::new("item.sold", json!({ "item": "4746", "left": 7 }))).await?;
    let (headers, body) = webhook.next().await?;
    let sent: Value = serde_json::from_slice(&body)?;
    expect(&headers.get("content-type").map(|value| value.as_bytes()), &Some(b"application/hal+json"))?;
    let data = json!({ "item": "4746", "left": 7 });
    expect(&sent, &json!({ "_links": { "self": { "href": href } }, "UUID": uuid, "data": data }))?;

    println!("\n3. The subscriber cancels the subscription");
    let (status, head, body) = exchange(service.address(), &format!("PUT {href} HTTP/1.1"), "").await?;
    expect(&status, &202)?;
    expect(&head.contains("content-type: application/hal+json"), &true)?;
    let cancelled = json!({ "_links": { "self": { "href": href } }, "message": "Your subscription is cancelled." });
    expect(&serde_json::from_str::<Value>(&body)?, &cancelled)?;

    println!("\n4. What is over is not cancelled again");
    let (status, head, _) = exchange(service.address(), &format!("PUT {href} HTTP/1.1"), "").await?;
    expect(&status, &403)?;
    expect(&head.contains("content-type: application/problem+json"), &true)?;
    dispatcher.close(Duration::from_secs(5)).await;
    Ok(())
}

fn expect<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug>(found: &T, expected: &U) -> Result<(), BoxError> {
    if found == expected { Ok(()) } else { Err(format!("expected {expected:?}, found {found:?}").into()) }
}
