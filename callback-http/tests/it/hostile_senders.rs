//! Senders who do it wrong, by accident or on purpose.

use crate::{
    client::{Answered, answer, open, place, posting, raw, request, send, serve},
    receiver::PATIENCE,
};
use callback_core::{MessageId, Signer};
use callback_http::{HttpReceiver, HttpReceiverBuilder};
use callback_receive::{Callback, Receiver};
use std::time::{Duration, SystemTime};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

async fn impatient(set: impl FnOnce(HttpReceiverBuilder) -> HttpReceiverBuilder) -> Receiver {
    let http = set(HttpReceiver::builder()).bind("127.0.0.1:0", "http://127.0.0.1:0/in").await.expect("a free port");
    serve(http, Receiver::builder()).await.0
}

/// Takes and accepts one callback from an honest sender.
async fn serves(handle: &mut Callback, id: &str) {
    let told = posting(&handle.url(), id, "x");
    let delivery = timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
    assert_eq!(delivery.accept().await.expect("direct").id().as_str(), id);
    assert_eq!(told.await.expect("no panic").status, 200);
}

async fn nothing_came(handle: &mut Callback) {
    assert!(futures_util::future::poll_immediate(handle.next()).await.is_none());
}

async fn signed(url: &str, key: &str, id: &str, time: SystemTime, sent: &str) -> Answered {
    let (id, signer): (MessageId, Signer) = (id.parse().expect("an id"), key.parse().expect("a key"));
    let signature = signer.sign(&id, time, b"{}");
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs().to_string();
    let headers = [("webhook-id", id.as_str()), ("webhook-timestamp", &seconds), ("webhook-signature", &signature)];
    send("POST", url, &headers, sent).await
}

#[tokio::test]
async fn a_signature_that_does_not_count_is_401() {
    let (receiver, _) = open(Receiver::builder().verifier(KEY.parse().expect("a key"))).await;
    let mut handle = receiver.spawn();
    let (url, now) = (handle.url(), SystemTime::now());
    let refused = |told: Answered| {
        assert_eq!(told.status, 401, "{told:?}");
        assert!(told.header("www-authenticate").is_some());
        told.body
    };
    let forged = refused(signed(&url, "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "a", now, "{}").await);
    let changed = refused(signed(&url, KEY, "a", now, "[]").await);
    let stale = refused(signed(&url, KEY, "a", now - Duration::from_secs(301), "{}").await);
    let ahead = refused(signed(&url, KEY, "a", now + Duration::from_secs(400), "{}").await);
    let missing = refused(send("POST", &url, &[("webhook-id", "a")], "{}").await);
    assert!([changed, stale, ahead, missing].iter().all(|body| *body == forged), "the answer says no more than that");
    nothing_came(&mut handle).await;

    let sender = url.clone();
    let told = tokio::spawn(async move { signed(&sender, KEY, "a", SystemTime::now(), "{}").await });
    handle.next().await.expect("open").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic").status, 200);
    assert_eq!(signed(&url, KEY, "a", now, "{}").await.status, 200, "a replay is known");
    nothing_came(&mut handle).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_400_and_says_why() {
    let (receiver, _) = open(Receiver::builder()).await;
    let mut handle = receiver.spawn();
    for (headers, word) in [
        (&[("ce-specversion", "0.3")][..], "ce-specversion"),
        (&[("ce-specversion", "1.0"), ("ce-id", "1")][..], "ce-source"),
        (&[("webhook-id", "a b")][..], "webhook-id"),
    ] {
        let told = send("POST", &handle.url(), headers, "x").await;
        assert_eq!(told.status, 400);
        assert!(told.body.contains(word), "{told:?}");
    }
    nothing_came(&mut handle).await;
}

#[tokio::test]
async fn a_slow_head_is_cut_off() {
    let receiver = impatient(|http| http.head_timeout(Duration::from_millis(500))).await;
    let mut handle = receiver.spawn();
    for bytes in [&b""[..], b"POST /in/x HT", b"POST /in/x HTTP/1.1\r\nhost: x\r\nx: "] {
        let told = timeout(PATIENCE, raw(place(&handle.url()).0, bytes)).await.expect("it ends");
        assert!(told.is_none_or(|told| told.status == 408), "no 200");
    }
    serves(&mut handle, "a").await;
}

#[tokio::test]
async fn connections_that_were_busy_make_room_once_they_are_idle() {
    let receiver = impatient(|http| http.connections(1)).await;
    let mut handle = receiver.spawn();
    let (address, path) = place(&handle.url());
    let mut kept = TcpStream::connect(address).await.expect("it listens");
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nwebhook-id: a\r\ncontent-length: 1\r\n\r\nx");
    kept.write_all(head.as_bytes()).await.expect("it reads");
    let busy = timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
    let told = posting(&handle.url(), "b", "x");
    // It is here, and finds no room: the only connection has a request.
    tokio::task::yield_now().await;
    busy.accept().await.expect("direct");
    let delivery = timeout(PATIENCE, handle.next()).await.expect("the idle connection made room").expect("open");
    delivery.accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic").status, 200);
    assert_eq!(answer(&mut kept).await.expect("it was answered before it had to go").status, 200);
}

#[tokio::test]
async fn a_slow_body_is_408() {
    let receiver = impatient(|http| http.body_timeout(Duration::from_millis(500))).await;
    let mut handle = receiver.spawn();
    let bytes = request("POST", &handle.url(), &[], "0123456789");
    let told = raw(place(&handle.url()).0, &bytes[..bytes.len() - 1]).await;
    assert_eq!(told.expect("it answers").status, 408);
    nothing_came(&mut handle).await;
    serves(&mut handle, "a").await;
}

#[tokio::test]
async fn half_a_body_is_not_handed_over() {
    let (receiver, address) = open(Receiver::builder()).await;
    let mut handle = receiver.spawn();
    for bytes in [
        request("POST", &handle.url(), &[], "0123456789"),
        b"POST "
            .iter()
            .chain(place(&handle.url()).1.as_bytes())
            .copied()
            .chain(*b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r")
            .collect(),
    ] {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(&bytes[..bytes.len() - 1]).await.expect("it reads");
        stream.shutdown().await.expect("half is sent");
        let told = answer(&mut stream).await;
        assert!(told.is_none_or(|told| told.status == 400), "no 200");
    }
    nothing_came(&mut handle).await;
    serves(&mut handle, "a").await;
}

#[tokio::test]
async fn chunks_beyond_the_limit_are_413() {
    let (receiver, address) = open(Receiver::builder().body_limit(100)).await;
    let mut handle = receiver.spawn();
    let path = place(&handle.url()).1;
    let chunk = format!("40\r\n{}\r\n", "x".repeat(64));
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n");
    let told = raw(address, format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).await;
    assert_eq!(told.expect("it answers").status, 413);
    nothing_came(&mut handle).await;
}

#[tokio::test]
async fn bodies_have_a_budget() {
    let receiver = impatient(|http| http.body_memory(1_000)).await;
    let mut handle = receiver.spawn();
    let first = posting(&handle.url(), "a", &"x".repeat(900));
    let delivery = timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
    let told = posting(&handle.url(), "b", &"x".repeat(900)).await.expect("no panic");
    assert_eq!(told.status, 503);
    assert!(told.header("retry-after").is_some());
    delivery.accept().await.expect("direct");
    assert_eq!(first.await.expect("no panic").status, 200);
    serves(&mut handle, "b").await;
}

#[tokio::test]
async fn nobody_who_knows_no_handle_makes_it_read_a_body() {
    let (receiver, address) = open(Receiver::builder()).await;
    let head = format!(
        "POST /in/{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000000\r\n\r\n",
        "A".repeat(32)
    );
    assert_eq!(raw(address, head.as_bytes()).await.expect("it answers at once").status, 404);
    drop(receiver);
}

#[tokio::test]
async fn no_verdict_in_time_is_503() {
    let (receiver, _) = open(Receiver::builder().answer_within(Duration::from_millis(50))).await;
    let handle = receiver.spawn();
    let told = posting(&handle.url(), "a", "x").await.expect("no panic");
    assert_eq!((told.status, told.header("retry-after")), (503, Some("5")));
}

#[tokio::test]
async fn refusal_and_wait_are_told() {
    let (receiver, _) = open(Receiver::builder()).await;
    let mut handle = receiver.spawn();
    let told = posting(&handle.url(), "a", "x");
    handle.next().await.expect("open").refuse("too late").await.expect("direct");
    let told = told.await.expect("no panic");
    assert_eq!((told.status, told.header("content-type")), (403, Some("application/problem+json")));
    assert_eq!(told.body, r#"{"title":"too late","status":403}"#);
    let told = posting(&handle.url(), "a", "x");
    handle.next().await.expect("open").retry_later(Duration::from_secs(90)).await.expect("direct");
    let told = told.await.expect("no panic");
    assert_eq!((told.status, told.header("retry-after")), (503, Some("90")));
}

#[tokio::test]
async fn a_handshake_is_answered() {
    let (receiver, _) = open(Receiver::builder()).await;
    let handle = receiver.spawn();
    let url = handle.url();
    let asked = [("webhook-request-origin", "sender.example"), ("webhook-request-rate", "120")];
    let told = send("OPTIONS", &url, &asked, "").await;
    assert_eq!(told.status, 200);
    assert_eq!(told.header("webhook-allowed-origin"), Some("sender.example"));
    assert_eq!(told.header("webhook-allowed-rate"), Some("*"));
    assert_eq!(told.header("allow"), Some("post, options"));
    assert!(send("OPTIONS", &url, &[], "").await.header("webhook-allowed-origin").is_none());
    drop(handle);
    assert_eq!(send("OPTIONS", &url, &asked, "").await.status, 410);
}

#[test]
fn ten_thousand_connections_that_send_nothing_keep_nobody_out() {
    // A process of its own, which may have as many descriptors as the system allows.
    let run =
        "ulimit -n \"$(ulimit -Hn)\" && exec \"$0\" hostile_senders::holds_ten_thousand_connections --exact --ignored";
    let program = std::env::current_exe().expect("this test");
    let output = std::process::Command::new("sh").arg("-c").arg(run).arg(program).output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by `ten_thousand_connections_that_send_nothing_keep_nobody_out`"]
async fn holds_ten_thousand_connections() {
    let receiver = impatient(|http| http.connections(64)).await;
    let mut handle = receiver.spawn();
    let address = place(&handle.url()).0;
    let mut silent = Vec::new();
    for number in 0..10_000 {
        let Ok(stream) = TcpStream::connect(address).await else { break };
        silent.push(stream);
        if number % 2_500 == 2_499 {
            serves(&mut handle, &number.to_string()).await;
        }
    }
    assert_eq!(silent.len(), 10_000, "descriptors: the test needs 11,000");
    serves(&mut handle, "last").await;
    let mut open = 0;
    for stream in &silent {
        if stream.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            open += 1;
        }
    }
    assert!(open < 5_000, "{open} are still held open");
}

#[tokio::test]
async fn close_answers_what_is_under_way() {
    let (receiver, address) = open(Receiver::builder()).await;
    let mut handle = receiver.spawn();
    let told = posting(&handle.url(), "a", "x");
    let delivery = timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
    let mut slow = TcpStream::connect(address).await.expect("it listens");
    let bytes = request("POST", &handle.url(), &[], "0123456789");
    slow.write_all(&bytes[..bytes.len() - 1]).await.expect("it reads");
    let idle = TcpStream::connect(address).await.expect("it listens");
    let closing = receiver.clone();
    let closing = tokio::spawn(async move { closing.close(PATIENCE).await });
    delivery.accept().await.expect("there is time");
    assert_eq!(told.await.expect("no panic").status, 200);
    closing.await.expect("no panic").expect("nothing is in hand");
    assert!(answer(&mut slow).await.is_none_or(|told| told.status == 503), "no 200");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    drop(idle);
}

#[tokio::test]
async fn close_does_not_wait_for_who_never_ends_his_head() {
    let (receiver, address) = open(Receiver::builder()).await;
    let mut handle = receiver.spawn();
    let mut silent = TcpStream::connect(address).await.expect("it listens");
    silent.write_all(b"POST /in/x HTTP/1.1\r\nhost").await.expect("it reads");
    // By then that has been read, too.
    serves(&mut handle, "a").await;
    timeout(PATIENCE / 2, receiver.close(Duration::ZERO)).await.expect("it ends").expect("nothing is in hand");
}

const EVENT: &str = r#"{"specversion":"1.0","id":"e1","source":"/orders","type":"order.completed","data":{"a": 1}}"#;

/// Sends a body with the signature of the event.
async fn structured(url: String, body: String) -> u16 {
    let (id, signer): (MessageId, Signer) = ("a".parse().expect("an id"), KEY.parse().expect("a key"));
    let now = SystemTime::now();
    let signature = signer.sign(&id, now, EVENT.as_bytes());
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs().to_string();
    let headers = [
        ("content-type", "application/cloudevents+json"),
        ("webhook-id", "a"),
        ("webhook-timestamp", &seconds),
        ("webhook-signature", &signature),
    ];
    send("POST", &url, &headers, &body).await.status
}

#[tokio::test]
async fn an_event_in_structured_mode_is_signed_as_a_whole_and_its_data_is_the_body() {
    let (receiver, _) = open(Receiver::builder().verifier(KEY.parse().expect("a key"))).await;
    let mut handle = receiver.spawn();
    assert_eq!(structured(handle.url(), EVENT.replace("e1", "e2")).await, 401);
    let told = tokio::spawn(structured(handle.url(), EVENT.to_owned()));
    let delivery = timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
    let message = delivery.message();
    assert_eq!((message.id().as_str(), message.event_id().as_str()), ("a", "e1"));
    assert_eq!((message.body().as_ref(), message.content_type()), (&br#"{"a": 1}"#[..], "application/json"));
    delivery.accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), 200);
    assert_eq!(structured(handle.url(), EVENT.to_owned()).await, 200, "it is known");
    nothing_came(&mut handle).await;
}

#[tokio::test]
async fn an_event_in_structured_mode_without_an_id_of_a_webhook_is_known_when_it_comes_again() {
    let (receiver, _) = open(Receiver::builder()).await;
    let mut handle = receiver.spawn();
    let headers = [("content-type", "application/cloudevents+json")];
    let url = handle.url();
    let told = tokio::spawn(async move { send("POST", &url, &headers, EVENT).await.status });
    timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), 200);
    assert_eq!(send("POST", &handle.url(), &headers, EVENT).await.status, 200);
    nothing_came(&mut handle).await;
    let batch = send("POST", &handle.url(), &[("content-type", "application/cloudevents-batch+json")], "[]").await;
    assert_eq!(batch.status, 415);
}

#[tokio::test]
async fn a_receiver_that_is_dropped_listens_no_more() {
    let (receiver, address) = open(Receiver::builder()).await;
    drop(receiver);
    let gone = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.expect("nobody listens");
}
