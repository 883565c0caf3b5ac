//! A hub behind pipes in memory, under a clock that jumps.

use super::*;
use callback_dispatch::{DeadLetterQuery, Event, MemoryOutbox, TokioClock};
use futures_util::{SinkExt, StreamExt};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde_json::Value;
use tokio::io::DuplexStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message as Frame, client::IntoClientRequest},
};

type Client = WebSocketStream<DuplexStream>;

struct Service {
    hub: Hub,
    dispatcher: Dispatcher,
    router: Router,
}

async fn start(hub: Hub) -> Service {
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).local_sink(hub.clone()).clock(TokioClock::default());
    let dispatcher = dispatcher.start().await.expect("started");
    let router = hub.router(&dispatcher);
    Service { hub, dispatcher, router }
}

impl Service {
    /// A client that has said nothing.
    async fn connect(&self) -> Client {
        let (near, far) = tokio::io::duplex(64 << 10);
        let service = TowerToHyperService::new(self.router.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades());
        let mut request = "ws://hub.example/".into_client_request().expect("a request");
        request.headers_mut().insert("sec-websocket-protocol", "callback.v1".parse().expect("a value"));
        client_async(request, near).await.expect("a socket").0
    }

    /// A client that has said this, and what it was answered.
    async fn greet(&self, hello: &Value) -> (Client, Value) {
        let mut client = self.connect().await;
        client.send(Frame::text(hello.to_string())).await.expect("sent");
        let welcome = client.next().await.expect("open").expect("a frame");
        let welcome = serde_json::from_str(welcome.to_text().expect("a text")).expect("JSON");
        (client, welcome)
    }

    async fn publish(&self, welcome: &Value) {
        let dsn = welcome["session"].as_str().expect("a session").parse().expect("a Dsn");
        self.dispatcher.publish(Event::to(dsn, "a.b", "hello")).await.expect("stored");
    }
}

fn begin() -> Value {
    serde_json::json!({ "resume": null })
}

fn resume(welcome: &Value) -> Value {
    serde_json::json!({ "resume": welcome["resume"] })
}

/// The code that a client is closed with.
async fn code(client: &mut Client) -> u16 {
    loop {
        match client.next().await.expect("open").expect("a frame") {
            Frame::Close(Some(close)) => return close.code.into(),
            Frame::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_session_has_an_address_of_128_bits_at_least() {
    let hub = Hub::new();
    for (dsn, is_possible) in [
        ("session://kR3mZ0wqV1c_8dXy-7LbQA", true),
        ("session://kR3mZ0wqV1c_8dXy-7LbQAkR3mZ0wqV1c_8dXy-7LbQA", true),
        ("session://kR3mZ0wqV1c_8dXy-7LbQ", false),
        ("session://a", false),
        ("wss://kR3mZ0wqV1c_8dXy-7LbQA/", false),
    ] {
        assert_eq!(hub.check(&dsn.parse().expect("a Dsn")).is_ok(), is_possible, "{dsn}");
    }
}

#[test]
fn what_cannot_be_an_origin_is_refused() {
    assert!(Hub::builder().origin("https://app.example").origin("http://localhost:8080").build().is_ok());
    for origin in ["*", "app.example", "https://app.example/"] {
        assert!(matches!(Hub::builder().origin(origin).build(), Err(HubError::Origin)), "{origin}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_closed_after_ten_seconds() {
    let service = start(Hub::new()).await;
    let begun = tokio::time::Instant::now();
    let mut client = service.connect().await;
    assert_eq!(code(&mut client).await, 1008);
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(service.hub.connected(), 0);
}

#[tokio::test(start_paused = true)]
async fn pings_are_no_greeting() {
    let service = start(Hub::new()).await;
    let mut client = service.connect().await;
    let begun = tokio::time::Instant::now();
    for _ in 0..8 {
        client.send(Frame::Ping("a".into())).await.expect("sent");
    }
    let close = loop {
        match client.next().await.expect("open").expect("a frame") {
            Frame::Close(close) => break close.expect("a code"),
            other => assert!(other.is_pong(), "{other:?}"),
        }
    };
    assert_eq!((close.code.into(), begun.elapsed().as_secs()), (1008, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_ping_is_away_and_its_session_is_kept() {
    let service = start(Hub::new()).await;
    let (client, welcome) = service.greet(&begin()).await;
    // It does not read, so it does not answer.
    tokio::time::sleep(Duration::from_secs(45)).await;
    assert_eq!(service.hub.connected(), 0);
    service.publish(&welcome).await;
    tokio::time::sleep(Duration::from_secs(500)).await;
    let (mut back, again) = service.greet(&resume(&welcome)).await;
    assert!(again["resumed"] == true && again["session"] == welcome["session"] && again["resume"] != welcome["resume"]);
    let frame = back.next().await.expect("open").expect("a frame");
    let frame: Value = serde_json::from_str(frame.to_text().expect("a text")).expect("JSON");
    assert_eq!((&frame["body"], &frame["attempt"]), (&"hello".into(), &1.into()), "it used up no attempt");
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_kept_for_its_time_and_what_waited_is_dead_then() {
    let hub = Hub::builder().session_time(Duration::from_secs(60)).build().expect("a hub");
    let service = start(hub).await;
    let (client, welcome) = service.greet(&begin()).await;
    assert_eq!(welcome["keep"], 60);
    drop(client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    service.publish(&welcome).await;
    tokio::time::sleep(Duration::from_secs(50)).await;
    let letters = service.dispatcher.dead_letters();
    assert!(letters.list(&DeadLetterQuery::default()).await.expect("listed").items.is_empty());
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(letters.list(&DeadLetterQuery::default()).await.expect("listed").items.len(), 1);
    let mut client = service.connect().await;
    client.send(Frame::text(resume(&welcome).to_string())).await.expect("sent");
    assert_eq!(code(&mut client).await, 4410);
}

#[test]
fn a_session_is_kept_for_a_second_at_least_and_a_year_at_most() {
    for (asked, kept) in [(0, 1), (1, 1), (600, 600), (u64::MAX, 366 * 24 * 60 * 60)] {
        let hub = Hub::builder().session_time(Duration::from_secs(asked)).build().expect("a hub");
        assert_eq!(hub.0.shared.keep, Duration::from_secs(kept));
    }
    assert_eq!(Hub::new().0.shared.keep, Duration::from_secs(600));
}

#[test]
fn there_is_room_for_ten_thousand_unless_it_is_set() {
    let room = |hub: &Hub| hub.0.shared.room.available_permits();
    assert_eq!(room(&Hub::new()), 10_000);
    assert_eq!(room(&Hub::builder().sessions(7).build().expect("a hub")), 7);
}

#[tokio::test(start_paused = true)]
async fn the_last_hub_that_is_dropped_closes_its_sockets() {
    let service = start(Hub::new()).await;
    let (mut client, _) = service.greet(&begin()).await;
    drop(service);
    assert_eq!(code(&mut client).await, 1001);
}
