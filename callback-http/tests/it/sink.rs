//! What arrives, and how the sink lives.

use crate::receiver::{PATIENCE, Received, Receiver, status};
use bytes::Bytes;
use callback_core::{
    Attempt, Dsn, ErrorKind, Evidence, Message, MessageBuilder, Payload, Phase, Policy, Receipt, Rule, Signer, Sink,
    SinkError,
};
use callback_http::HttpSink;
use http::StatusCode;
use std::{
    net::TcpListener,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{Barrier, Semaphore},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

pub(crate) fn sink() -> HttpSink {
    with(Policy::default().allow(Rule::loopback()))
}

pub(crate) fn with(policy: Policy) -> HttpSink {
    HttpSink::builder().policy(policy).build().expect("a sink")
}

pub(crate) fn within(limit: Duration) -> Attempt {
    Attempt::new(1, SystemTime::now(), Instant::now() + limit)
}

fn message() -> MessageBuilder {
    Message::builder("callback.rpc.completed")
}

/// Delivers an empty message, with time enough.
pub(crate) async fn deliver(sink: &HttpSink, dsn: &Dsn) -> Result<Receipt, SinkError> {
    sink.deliver(dsn, &message().build().expect("valid"), &within(PATIENCE)).await
}

#[track_caller]
pub(crate) fn failed(result: Result<Receipt, SinkError>, kind: ErrorKind, phase: Option<Phase>) -> SinkError {
    let error = result.expect_err("the delivery fails");
    assert_eq!((error.kind(), error.phase()), (kind, phase), "{}", error.chain());
    error
}

async fn sent(rest: &str, message: &Message, attempt: &Attempt) -> Received {
    let mut receiver = Receiver::start().await;
    let receipt = sink().deliver(&receiver.dsn(rest), message, attempt).await.expect("delivered");
    assert_eq!(receipt.evidence(), &Evidence::Status(200));
    receiver.next().await
}

#[tokio::test]
async fn a_message_arrives_as_a_signed_cloudevent() {
    let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("valid");
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_614_265_330_250);
    let message = message()
        .id("msg_p5jXN8AQM9LWM0D4loKWxJek".parse().expect("valid"))
        .event_id("event-1".parse().expect("valid"))
        .source("/orders")
        .subject("Bestellung für 😀")
        .correlation_id("ray 7")
        .time(time)
        .header("x-request-id", "r-1")
        .payload(Payload::new("application/json", &br#"{"test": 2432232314}"#[..]))
        .build()
        .expect("valid");
    let attempt = Attempt::new(3, time, Instant::now() + PATIENCE)
        .with_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .sign(&signer, &message);
    let mut receiver = Receiver::start().await;
    let dsn = receiver.url("/hook").replace("//", "//me:pa%20ss@").parse().expect("valid");
    sink().deliver(&dsn, &message, &attempt).await.expect("delivered");
    let received = receiver.next().await;

    assert_eq!(received.method, "POST");
    let mut lines: Vec<String> = received
        .headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "host" | "content-length" | "accept" | "user-agent"))
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("visible")))
        .collect();
    lines.sort_unstable();
    assert_eq!(lines.concat(), include_str!("../golden/request-headers.txt"));
    assert_eq!(received.header("content-length"), Some("20"));
    assert_eq!(received.body, r#"{"test": 2432232314}"#);
}

#[tokio::test]
async fn the_body_arrives_byte_for_byte() {
    let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    for body in [Bytes::new(), "Zwölf Boxkämpfer 😀\u{0}\r\n".into(), Bytes::from(bytes)] {
        let message = message().payload(Payload::new("application/octet-stream", body.clone())).build().expect("valid");
        let received = sent("/", &message, &within(PATIENCE)).await;
        assert!(received.body == body, "{} bytes arrive as {}", body.len(), received.body.len());
        assert_eq!(received.header("content-type"), Some("application/octet-stream"));
        assert_eq!(received.header("content-length"), Some(&*body.len().to_string()));
        assert_eq!(received.header("content-encoding"), None);
    }
}

#[tokio::test]
async fn path_and_query_arrive_untouched() {
    let message = message().build().expect("valid");
    for rest in ["/", "/?", "/a/%2F//b;c=d/~*'()!$@:^|[]", "/?x=%c3%A4&y=a+b&&z&[]={}|`^~*()!$@:/?"] {
        assert_eq!(sent(rest, &message, &within(PATIENCE)).await.uri, rest);
    }
    assert_eq!(sent("", &message, &within(PATIENCE)).await.uri, "/");
}

#[tokio::test]
async fn no_credentials_are_sent_that_the_dsn_does_not_name() {
    let received = sent("/?user=me", &message().build().expect("valid"), &within(PATIENCE)).await;
    for name in ["authorization", "cookie", "referer", "accept-encoding", "proxy-authorization"] {
        assert_eq!(received.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn one_connection_carries_many_deliveries() {
    let receiver = Receiver::answering(|_| {
        let mut answer = status(StatusCode::OK);
        *answer.body_mut() = "thank you".into();
        answer
    })
    .await;
    let (sink, dsn) = (sink(), receiver.dsn("/"));
    for _ in 0..50 {
        deliver(&sink, &dsn).await.expect("delivered");
    }
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn many_deliveries_run_at_once() {
    const MANY: usize = 128;
    let barrier = Arc::new(Barrier::new(MANY));
    let receiver = Receiver::answering_after(move || {
        let barrier = Arc::clone(&barrier);
        async move {
            // Nobody is answered before all are there.
            barrier.wait().await;
            status(StatusCode::OK)
        }
    })
    .await;
    let (sink, dsn) = (sink(), receiver.dsn("/"));
    let mut deliveries = JoinSet::new();
    for _ in 0..MANY {
        let (sink, dsn) = (sink.clone(), dsn.clone());
        deliveries.spawn(async move { deliver(&sink, &dsn).await });
    }
    for delivered in deliveries.join_all().await {
        delivered.expect("delivered");
    }
}

#[tokio::test]
async fn closing_waits_for_what_is_in_flight_and_takes_nothing_more() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let mut receiver = Receiver::answering_after(move || {
        let gate = Arc::clone(&held);
        async move {
            gate.acquire().await.expect("open").forget();
            status(StatusCode::OK)
        }
    })
    .await;
    let (sink, dsn) = (sink(), receiver.dsn("/"));
    let in_flight = tokio::spawn({
        let (sink, dsn) = (sink.clone(), dsn.clone());
        async move { deliver(&sink, &dsn).await }
    });
    receiver.next().await;

    let mut closing = sink.close();
    timeout(Duration::ZERO, &mut closing).await.expect_err("a delivery is in flight");
    failed(deliver(&sink, &dsn).await, ErrorKind::Unavailable, None);
    gate.add_permits(1);
    closing.await.expect("closed");
    in_flight.await.expect("no panic").expect("delivered");
    assert!(receiver.is_empty());
    sink.close().await.expect("closing is idempotent");
}

#[tokio::test]
async fn a_dropped_delivery_leaves_the_sink_usable() {
    let begun = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&begun);
    let mut receiver = Receiver::answering_after(move || {
        let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                std::future::pending::<()>().await;
            }
            status(StatusCode::OK)
        }
    })
    .await;
    let (sink, dsn) = (sink(), receiver.dsn("/"));
    tokio::select! {
        _ = deliver(&sink, &dsn) => panic!("nobody has answered"),
        _ = receiver.next() => {}
    }
    deliver(&sink, &dsn).await.expect("delivered");
    timeout(PATIENCE, sink.close()).await.expect("nothing is in flight").expect("closed");
}

#[tokio::test]
async fn no_secret_is_printed() {
    let sink = sink();
    let receiver = Receiver::answering(|_| status(StatusCode::UNAUTHORIZED)).await;
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    for (scheme, port) in [("http", receiver.port()), ("http", nobody), ("https", receiver.port())] {
        let dsn: Dsn = format!("{scheme}://planted-user:planted-password@127.0.0.1:{port}/?key=planted-value")
            .parse()
            .expect("valid");
        let message = message().header("x-key", "planted-header").payload("planted-body").build().expect("valid");
        let error = sink.deliver(&dsn, &message, &within(PATIENCE)).await.expect_err("nobody takes it");
        let text = format!("{error} {error:?} {} {sink:?} {:?}", error.chain(), HttpSink::builder());
        assert!(!text.contains("planted"), "{text}");
    }
}

/// Runs itself again as a child whose environment names a proxy.
#[tokio::test]
async fn a_proxy_of_the_environment_is_ignored() {
    const DSN: &str = "CALLBACK_HTTP_TEST_DSN";
    if let Ok(dsn) = std::env::var(DSN) {
        deliver(&sink(), &dsn.parse().expect("valid")).await.expect("delivered");
        return;
    }
    let proxy = Receiver::answering(|_| status(StatusCode::BAD_GATEWAY)).await;
    let mut receiver = Receiver::start().await;
    let (proxy_url, dsn) = (proxy.url(""), receiver.url("/"));
    let output = spawn_blocking(move || {
        let mut child = Command::new(std::env::current_exe().expect("a path"));
        child.args(["--exact", "sink::a_proxy_of_the_environment_is_ignored"]).env(DSN, dsn).env_remove("NO_PROXY");
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            child.env(name, &proxy_url);
        }
        child.env_remove("no_proxy").output()
    });
    let output = output.await.expect("no panic").expect("started");
    assert!(output.status.success(), "{output:?}");
    receiver.next().await;
    assert_eq!(proxy.connections(), 0);
}
