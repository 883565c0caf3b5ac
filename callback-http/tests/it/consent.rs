//! Receivers that are asked before anything is sent to them.

use crate::{
    receiver::{Answer, PATIENCE, Received, Receiver, status},
    sink::{deliver, with},
};
use callback_core::{Consent, Consented, Dsn, ErrorKind, Phase, Policy, Rule, Schedule, SinkError};
use callback_dispatch::{Dispatcher, Event, MemoryOutbox};
use callback_http::{HttpConsent, HttpSink, HttpSinkError};
use http::{HeaderValue, Method, StatusCode};
use std::{
    net::TcpListener,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;

const ORIGIN: &str = "events.example.com";

fn sink(policy: Policy) -> HttpSink {
    HttpSink::builder().policy(policy).origin(ORIGIN).build().expect("a sink")
}

fn open() -> Policy {
    Policy::default().allow(Rule::loopback())
}

fn consent(policy: Policy) -> HttpConsent {
    sink(policy).consent().expect("it has an origin")
}

async fn ask(consent: &HttpConsent, dsn: &Dsn) -> Result<Consented, SinkError> {
    consent.ask(dsn, Instant::now() + PATIENCE).await
}

#[track_caller]
fn failed(asked: Result<Consented, SinkError>, kind: ErrorKind, phase: Phase) -> SinkError {
    let error = asked.expect_err("no consent");
    assert_eq!((error.kind(), error.phase()), (kind, Some(phase)), "{}", error.chain());
    error
}

/// What a receiver answers that consents to an origin, at a rate.
fn consenting(origin: &'static str, rate: Option<&'static str>) -> impl Fn(&Received) -> Answer + Send + Sync {
    move |received| {
        let mut answer = Answer::default();
        if received.method == Method::OPTIONS {
            answer.headers_mut().insert("webhook-allowed-origin", HeaderValue::from_static(origin));
            if let Some(rate) = rate {
                answer.headers_mut().insert("webhook-allowed-rate", HeaderValue::from_static(rate));
            }
        }
        answer
    }
}

/// A dispatcher that asks, and tries again each second.
async fn asking() -> Dispatcher {
    let sink = sink(open());
    let schedule = Schedule::new([Duration::from_secs(1); 90]).expect("a schedule").jitter(0);
    let consent = sink.consent().expect("it has an origin");
    let builder = Dispatcher::builder(MemoryOutbox::new()).consent(consent).sink(sink).schedule(schedule);
    builder.start().await.expect("started")
}

async fn publish(dispatcher: &Dispatcher, receiver: &Receiver) {
    dispatcher.publish(Event::to(receiver.dsn("/hook"), "a.b", "event")).await.expect("published");
}

#[tokio::test]
async fn a_handshake_is_an_options_request_with_origin_and_rate() {
    let mut receiver = Receiver::answering(consenting(ORIGIN, Some("60"))).await;
    let consent = consent(open()).per_minute(NonZeroU32::new(120).expect("not 0"));
    let dsn = receiver.url("/hook?a=b").replace("//", "//me:secret@").parse().expect("valid");
    let consented = ask(&consent, &dsn).await.expect("it consents");
    assert_eq!(consented.requests_per_minute(), NonZeroU32::new(60));
    let asked = receiver.next().await;
    assert_eq!((asked.method.as_str(), asked.uri.to_string().as_str()), ("OPTIONS", "/hook?a=b"));
    assert_eq!(asked.header("webhook-request-origin"), Some(ORIGIN));
    assert_eq!(asked.header("webhook-request-rate"), Some("120"));
    assert_eq!(asked.header("authorization"), Some("Basic bWU6c2VjcmV0"));
    assert!(asked.body.is_empty());
    assert!(!format!("{consent:?}").contains("secret"));
}

#[tokio::test]
async fn every_delivery_names_the_origin_where_there_is_one() {
    let mut receiver = Receiver::start().await;
    for (sink, origin) in [(sink(open()), Some(ORIGIN)), (with(open()), None)] {
        deliver(&sink, &receiver.dsn("/")).await.expect("delivered");
        assert_eq!(receiver.next().await.header("webhook-request-origin"), origin);
    }
}

#[tokio::test]
async fn who_answers_without_the_header_does_not_consent() {
    for code in [StatusCode::OK, StatusCode::NO_CONTENT, StatusCode::METHOD_NOT_ALLOWED, StatusCode::FOUND] {
        let receiver = Receiver::answering(move |_| status(code)).await;
        let error = failed(ask(&consent(open()), &receiver.dsn("/")).await, ErrorKind::Unauthorized, Phase::Answer);
        assert_eq!(error.status(), Some(code.as_u16()));
    }
    let receiver = Receiver::answering(consenting("other.example.com", None)).await;
    failed(ask(&consent(open()), &receiver.dsn("/")).await, ErrorKind::Unauthorized, Phase::Answer);
}

#[tokio::test]
async fn who_cannot_be_asked_has_not_refused() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let nobody = format!("http://127.0.0.1:{port}/").parse().expect("valid");
    failed(ask(&consent(open()), &nobody).await, ErrorKind::Unavailable, Phase::Connect);
    let hangs = Receiver::answering_after(std::future::pending).await;
    let asked = consent(open()).ask(&hangs.dsn("/"), Instant::now() + Duration::from_millis(50)).await;
    assert_eq!(asked.expect_err("no answer").kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_handshake_goes_where_the_policy_lets_it_and_nowhere_else() {
    let receiver = Receiver::answering(consenting("*", None)).await;
    failed(ask(&consent(Policy::default()), &receiver.dsn("/")).await, ErrorKind::Forbidden, Phase::Policy);
    // The name is open, the address that it has is not.
    let by_name = Policy::default().allow("localhost".parse().expect("a rule"));
    let named = format!("http://localhost:{}/", receiver.port()).parse().expect("valid");
    assert_eq!(ask(&consent(by_name), &named).await.expect_err("blocked").kind(), ErrorKind::Forbidden);
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn a_sink_that_is_closed_asks_nobody() {
    let (sink, receiver) = (sink(open()), Receiver::answering(consenting("*", None)).await);
    let consent = sink.consent().expect("it has an origin");
    callback_core::Sink::close(&sink).await.expect("nothing is in flight");
    assert_eq!(ask(&consent, &receiver.dsn("/")).await.expect_err("closed").kind(), ErrorKind::Unavailable);
    assert_eq!(receiver.connections(), 0);
}

#[test]
fn an_origin_is_a_dns_name_and_nobody_asks_without_one() {
    assert!(matches!(with(open()).consent(), Err(HttpSinkError::NoOrigin)));
    let long = "a".repeat(64);
    for bad in ["", "a b", "https://a", "a:443", "a..b", "-a", "a-", "ä.example", "a\r\nb: c", &*long] {
        let built = HttpSink::builder().origin(bad).build();
        assert!(matches!(built, Err(HttpSinkError::Origin(name)) if name == bad), "{bad}");
    }
    for good in ["a", "events.example.com", "my-host_1.Example"] {
        HttpSink::builder().origin(good).build().expect("a sink");
    }
}

#[tokio::test]
async fn a_receiver_that_does_not_consent_gets_nothing_until_it_does() {
    let consents = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&consents);
    let mut receiver = Receiver::answering(move |received| match now.load(Ordering::SeqCst) {
        true => consenting("*", None)(received),
        false => status(StatusCode::METHOD_NOT_ALLOWED),
    })
    .await;
    let dispatcher = asking().await;
    publish(&dispatcher, &receiver).await;
    assert_eq!(receiver.next().await.method, Method::OPTIONS);
    // It is asked again, though no sooner than in five seconds.
    assert_eq!(receiver.next().await.method, Method::OPTIONS);
    consents.store(true, Ordering::SeqCst);
    let delivered = loop {
        let received = receiver.next().await;
        if received.method != Method::OPTIONS {
            break received;
        }
    };
    assert_eq!((delivered.method, delivered.body.as_ref()), (Method::POST, &b"event"[..]));
    assert_eq!(delivered.headers["webhook-request-origin"], ORIGIN);
}

#[tokio::test]
async fn a_receiver_gets_no_more_than_it_allows() {
    let mut receiver = Receiver::answering(consenting(ORIGIN, Some("1"))).await;
    let dispatcher = asking().await;
    for _ in 0..3 {
        publish(&dispatcher, &receiver).await;
    }
    assert_eq!(receiver.next().await.method, Method::OPTIONS);
    assert_eq!(receiver.next().await.method, Method::POST);
    // The others wait for a minute each; without a limit they take a few milliseconds.
    sleep(Duration::from_millis(500)).await;
    assert!(receiver.is_empty());
}

#[cfg(feature = "receiver")]
#[tokio::test]
async fn our_own_receiver_consents() {
    let (receiver, _) = crate::client::open(callback_receive::Receiver::builder()).await;
    let mut handle = receiver.spawn();
    let dispatcher = asking().await;
    let to = handle.url().parse().expect("a Dsn");
    dispatcher.publish(Event::to(to, "a.b", "event")).await.expect("published");
    let delivery = tokio::time::timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
    assert_eq!(delivery.accept().await.expect("direct").body(), "event");
}
