//! What each answer of a receiver comes to, and each way of not answering.

use crate::{
    receiver::{Answer, PATIENCE, Raw, Receiver, status},
    sink::{deliver, failed, sink, within},
};
use callback_core::{ErrorKind, Evidence, Message, Phase};
use http::{HeaderValue, StatusCode, header};
use std::{
    net::TcpListener,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// The deadline of what never comes to an end.
const SHORT: Duration = Duration::from_millis(300);

fn answer(code: u16, retry_after: Option<&str>) -> Answer {
    let mut answer = status(StatusCode::from_u16(code).expect("a status"));
    *answer.body_mut() = "what the receiver says".into();
    if let Some(retry_after) = retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_str(retry_after).expect("visible"));
    }
    answer
}

async fn check(code: u16, retry_after: Option<&'static str>, kind: ErrorKind, wait: Option<Duration>) {
    let mut receiver = Receiver::answering(move |_| answer(code, retry_after)).await;
    let error = deliver(&sink(), &receiver.dsn("/")).await.expect_err("no receipt");
    let judged = (error.kind(), error.phase(), error.status(), error.retry_after());
    assert_eq!(judged, (kind, Some(Phase::Answer), Some(code), wait), "{code} {retry_after:?}");
    receiver.next().await;
    assert!(receiver.is_empty(), "a sink does not repeat a delivery");
}

#[tokio::test]
async fn a_status_of_success_is_the_evidence() {
    for code in [200, 201, 202, 226, 299] {
        let receiver = Receiver::answering(move |_| answer(code, None)).await;
        let receipt = deliver(&sink(), &receiver.dsn("/")).await.expect("delivered");
        assert_eq!(receipt.evidence(), &Evidence::Status(code));
    }
    let receiver = Receiver::answering(|_| status(StatusCode::NO_CONTENT)).await;
    let receipt = deliver(&sink(), &receiver.dsn("/")).await.expect("delivered");
    assert_eq!(receipt.status(), Some(204));
}

#[tokio::test]
async fn a_failure_says_what_to_do_next() {
    check(400, None, ErrorKind::Refused, None).await;
    check(401, None, ErrorKind::Unauthorized, None).await;
    check(404, None, ErrorKind::Unroutable, None).await;
    check(408, None, ErrorKind::Unavailable, None).await;
    check(410, None, ErrorKind::Gone, None).await;
    check(413, None, ErrorKind::TooLarge, None).await;
    check(429, None, ErrorKind::Throttled, None).await;
    check(429, Some("7"), ErrorKind::Throttled, Some(Duration::from_secs(7))).await;
    check(500, None, ErrorKind::Unavailable, None).await;
    check(503, None, ErrorKind::Unavailable, None).await;
    check(503, Some("7"), ErrorKind::Throttled, Some(Duration::from_secs(7))).await;
    check(503, Some("Sun, 06 Nov 1994 08:49:37 GMT"), ErrorKind::Throttled, Some(Duration::ZERO)).await;
}

#[tokio::test]
async fn retry_after_may_be_a_date() {
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
    let receiver = Receiver::answering(move |_| answer(429, Some(&date))).await;
    let error = deliver(&sink(), &receiver.dsn("/")).await.expect_err("throttled");
    let wait = error.retry_after().expect("a wait");
    assert!((Duration::from_secs(60)..=Duration::from_secs(90)).contains(&wait), "{wait:?}");
}

#[tokio::test]
async fn a_redirect_is_refused_and_not_followed() {
    let target = Receiver::start().await;
    for code in [301, 302, 303, 304, 307, 308] {
        let location = target.url("/stolen");
        let receiver = Receiver::answering(move |_| {
            let mut answer = status(StatusCode::from_u16(code).expect("a status"));
            answer.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&location).expect("visible"));
            answer
        })
        .await;
        let error = failed(deliver(&sink(), &receiver.dsn("/")).await, ErrorKind::Refused, Some(Phase::Answer));
        assert_eq!(error.status(), Some(code));
    }
    assert_eq!(target.connections(), 0);
}

/// Answers with these bytes, then goes on with `tail` until the other side leaves.
pub(crate) async fn saying(head: &'static str, tail: &'static [u8], pause: Duration) -> Raw {
    Raw::start(move |mut stream: TcpStream| async move {
        let _ = stream.write_all(head.as_bytes()).await;
        loop {
            if tail.is_empty() {
                std::future::pending::<()>().await;
            }
            if stream.write_all(tail).await.is_err() {
                return;
            }
            if !pause.is_zero() {
                tokio::time::interval_at(tokio::time::Instant::now() + pause, pause).tick().await;
            }
        }
    })
    .await
}

/// The deadline ends the delivery, and the delivery ends with the deadline.
#[track_caller]
fn ends_at_the_deadline(server: Raw) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let message = Message::builder("a").build().expect("valid");
        let (begun, attempt) = (Instant::now(), within(SHORT));
        let ended = timeout(PATIENCE, callback_core::Sink::deliver(&sink(), &server.dsn(), &message, &attempt)).await;
        let error = ended.expect("it ends").expect_err("no receipt");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{place}");
        assert!(begun.elapsed() >= SHORT, "{place}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn one_deadline_is_over_everything() {
    let trickle = Duration::from_millis(20);
    ends_at_the_deadline(saying("", b"", Duration::ZERO).await).await;
    ends_at_the_deadline(saying("HTTP/1.1 200 OK\r\nx: ", b"x", trickle).await).await;
    ends_at_the_deadline(saying("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx", b"", Duration::ZERO).await).await;
    ends_at_the_deadline(saying("HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n", b"x", trickle).await).await;
    ends_at_the_deadline(saying("HTTP/1.1 200 OK\r\n\r\n", b"x", trickle).await).await;
    ends_at_the_deadline(saying("HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nx", b"", Duration::ZERO).await).await;
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    ends_at_the_deadline(saying(chunks, b"1\r\nx\r\n", trickle).await).await;
}

#[tokio::test]
async fn a_connection_that_is_never_made_ends_at_the_deadline() {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = socket.listen(1).expect("listening");
    let address = listener.local_addr().expect("bound");
    // Nobody accepts: once the backlog is full, connecting takes for ever.
    let mut backlog = Vec::new();
    while let Ok(stream) = timeout(SHORT, TcpStream::connect(address)).await {
        backlog.push(stream.expect("connected"));
    }
    let message = Message::builder("a").build().expect("valid");
    let dsn = format!("http://{address}/").parse().expect("valid");
    let error = callback_core::Sink::deliver(&sink(), &dsn, &message, &within(SHORT)).await.expect_err("no receipt");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn an_endless_answer_is_read_to_its_limit() {
    let block: &[u8] = &[b'x'; 16 << 10];
    let server = saying("HTTP/1.1 202 Accepted\r\n\r\n", block, Duration::ZERO).await;
    let receipt = deliver(&sink(), &server.dsn()).await.expect("delivered");
    assert_eq!(receipt.status(), Some(202));
    let server = saying("HTTP/1.1 410 Gone\r\n\r\n", block, Duration::ZERO).await;
    failed(deliver(&sink(), &server.dsn()).await, ErrorKind::Gone, Some(Phase::Answer));
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_receipt() {
    let server = Raw::start(|mut stream: TcpStream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    })
    .await;
    let error = failed(deliver(&sink(), &server.dsn()).await, ErrorKind::Unavailable, Some(Phase::Answer));
    assert_eq!(error.status(), Some(200));
}

#[tokio::test]
async fn what_is_no_answer_is_a_failure_of_the_receiver() {
    let many = "x: y\r\n".repeat(1 << 14).leak();
    for (head, tail) in [
        ("HTTP/1.1 200 OK\r\n", many.as_bytes()),
        ("HTTP/1.1 200 OK\r\nx: ", [b'x'; 16 << 10].as_slice()),
        ("SSH-2.0-OpenSSH_9.6\r\n\r\n", b"\r\n"),
        ("HTTP/1.1 999999 No\r\n\r\n", b"x"),
    ] {
        let server = saying(head, tail, Duration::ZERO).await;
        failed(deliver(&sink(), &server.dsn()).await, ErrorKind::Unavailable, Some(Phase::Answer));
    }
}

#[tokio::test]
async fn a_connection_that_is_reset_is_a_failure_of_the_receiver() {
    let server = Raw::start(|stream: TcpStream| async move {
        stream.set_zero_linger().expect("set");
    })
    .await;
    let error = deliver(&sink(), &server.dsn()).await.expect_err("no receipt");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn nobody_listening_is_unavailable_at_connect() {
    let address = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let dsn = format!("http://{address}/").parse().expect("valid");
    failed(deliver(&sink(), &dsn).await, ErrorKind::Unavailable, Some(Phase::Connect));
}
