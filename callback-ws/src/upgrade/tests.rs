use super::*;
use futures_util::{SinkExt, StreamExt};
use hyper::{server::conn::http1, service::service_fn};
use std::convert::Infallible;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
};
use tokio_tungstenite::tungstenite::Message as Frame;

/// The key and the answer of RFC 6455 §1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const SPOKEN: Terms<'_> = Terms { subprotocols: &["callback.v1", "cloudevents.json"], origins: None };

/// A request that is right but for these headers: the text before the colon is replaced, or added.
fn headers(changes: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "app.example"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
        ("sec-websocket-protocol", "callback.v1"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in changes {
        let name: HeaderName = name.parse().expect("a name");
        headers.remove(&name);
        for value in value.split('|').filter(|value| !value.is_empty()) {
            headers.append(&name, value.parse().expect("a value"));
        }
    }
    headers
}

#[track_caller]
fn check(changes: &[(&str, &str)], terms: Terms<'_>, expected: Result<&'static str, Refusal>) {
    let judged = judge(&Method::GET, Version::HTTP_11, &headers(changes), terms);
    assert_eq!(judged, expected.map(|picked| (picked, HeaderValue::from_static(ACCEPT))), "{changes:?}");
}

#[test]
fn a_request_that_has_all_it_must_is_taken() {
    check(&[], SPOKEN, Ok("callback.v1"));
    check(&[("upgrade", "h2c, WebSocket"), ("connection", "keep-alive|UPGRADE")], SPOKEN, Ok("callback.v1"));
    check(&[("content-length", "0")], SPOKEN, Ok("callback.v1"));
}

#[test]
fn the_best_of_the_offered_subprotocols_is_picked() {
    for (offered, expected) in [
        ("cloudevents.json, callback.v1", Ok("callback.v1")),
        ("chat|cloudevents.json", Ok("cloudevents.json")),
        ("callback.v1x", Err(Refusal::Subprotocol)),
        ("CALLBACK.V1", Err(Refusal::Subprotocol)),
        ("", Err(Refusal::Subprotocol)),
    ] {
        check(&[("sec-websocket-protocol", offered)], SPOKEN, expected);
    }
}

#[test]
fn what_is_no_opening_handshake_is_refused() {
    for (name, value, refusal) in [
        ("upgrade", "", Refusal::NoUpgrade),
        ("upgrade", "h2c", Refusal::NoUpgrade),
        ("connection", "keep-alive", Refusal::NoUpgrade),
        ("sec-websocket-version", "", Refusal::Version),
        ("sec-websocket-version", "8", Refusal::Version),
        ("sec-websocket-version", "13|13", Refusal::Version),
        ("sec-websocket-key", "", Refusal::Key),
        ("sec-websocket-key", "AAAA", Refusal::Key),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==|dGhlIHNhbXBsZSBub25jZQ==", Refusal::Key),
        ("content-length", "5", Refusal::Body),
        ("content-length", "0|5", Refusal::Body),
        ("transfer-encoding", "chunked", Refusal::Body),
    ] {
        check(&[(name, value)], SPOKEN, Err(refusal));
    }
    for method in [Method::POST, Method::HEAD, Method::CONNECT] {
        assert_eq!(judge(&method, Version::HTTP_11, &headers(&[]), SPOKEN), Err(Refusal::Method));
    }
    for version in [Version::HTTP_10, Version::HTTP_2] {
        assert_eq!(judge(&Method::GET, version, &headers(&[]), SPOKEN), Err(Refusal::Connection));
    }
}

#[test]
fn a_page_is_let_in_where_its_origin_is_listed_or_the_host_s_own() {
    let listed = ["https://partner.example".to_owned()];
    let terms = Terms { origins: Some(&listed), ..SPOKEN };
    for (origin, is_taken) in [
        ("", true),
        ("https://partner.example", true),
        ("https://app.example", true),
        ("http://APP.example", true),
        ("http://partner.example", false),
        ("https://partner.example:8443", false),
        ("https://app.example:8443", false),
        ("https://app.example.evil.example", false),
        ("ftp://app.example", false),
        ("app.example", false),
        ("null", false),
        ("https://partner.example|https://evil.example", false),
    ] {
        let expected = if is_taken { Ok("callback.v1") } else { Err(Refusal::Origin) };
        check(&[("origin", origin)], terms, expected);
        check(&[("origin", origin)], SPOKEN, Ok("callback.v1"));
    }
    check(&[("origin", "https://app.example"), ("host", "")], terms, Err(Refusal::Origin));
    check(&[("origin", "https://")], terms, Err(Refusal::Origin));
}

#[test]
fn every_refusal_is_a_client_error_that_says_what_is_wanted() {
    for (refusal, status, header) in [
        (Refusal::Method, 405, Some((ALLOW, "GET"))),
        (Refusal::Connection, 400, None),
        (Refusal::NoUpgrade, 426, Some((UPGRADE, "websocket"))),
        (Refusal::Version, 426, Some((SEC_WEBSOCKET_VERSION, "13"))),
        (Refusal::Key, 400, None),
        (Refusal::Body, 400, None),
        (Refusal::Subprotocol, 400, None),
        (Refusal::Origin, 403, None),
    ] {
        let answer = refusal.answer();
        assert_eq!(answer.status(), status, "{refusal:?}");
        assert!(!answer.body().is_empty());
        if let Some((name, value)) = header {
            assert_eq!(answer.headers()[name], value);
        }
    }
}

/// A server of HTTP/1.1 over a pipe, which echoes texts; true where it opened a socket.
fn serve(limit: usize) -> (DuplexStream, JoinHandle<bool>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (opened, mut open) = tokio::sync::mpsc::channel(1);
    let serving = tokio::spawn(async move {
        let service = service_fn(|mut request| {
            let opened = opened.clone();
            async move {
                Ok::<_, Infallible>(match accept(&mut request, SPOKEN) {
                    Ok(upgrade) => {
                        assert_eq!(upgrade.subprotocol(), "callback.v1");
                        let answer = upgrade.answer();
                        opened.send(upgrade).await.expect("somebody waits");
                        answer
                    }
                    Err(refusal) => refusal.answer(),
                })
            }
        });
        let _ = http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades().await;
        let Ok(upgrade) = open.try_recv() else { return false };
        let mut socket = upgrade.open(limit).await.expect("a socket");
        while let Some(Ok(frame)) = socket.next().await {
            if frame.is_text() {
                socket.send(frame).await.expect("sent");
            }
        }
        true
    });
    (near, serving)
}

async fn head(stream: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    String::from_utf8(head).expect("a text")
}

fn request(more: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: app.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn an_answer_opens_the_socket() {
    let (mut stream, serving) = serve(100);
    let request = request("Sec-WebSocket-Protocol: callback.v1\r\n");
    // A frame that comes along with the request is not lost.
    let early = [&[0x81, 0x82, 0, 0, 0, 0][..], b"hi"].concat();
    stream.write_all(&[request.as_bytes(), &early].concat()).await.expect("sent");
    let head = head(&mut stream).await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-protocol: callback.v1"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
    }
    assert!(head.contains(&format!("sec-websocket-accept: {}\r\n", ACCEPT.to_ascii_lowercase())), "{head}");

    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    assert_eq!(socket.next().await.expect("open").expect("a frame"), Frame::text("hi"));
    socket.send(Frame::text("x".repeat(100))).await.expect("sent");
    assert_eq!(socket.next().await.expect("open").expect("a frame").len(), 100);
    socket.send(Frame::text("x".repeat(101))).await.expect("sent");
    assert!(serving.await.expect("it ends"), "what is too large is not read");
}

#[tokio::test]
async fn a_refusal_is_an_answer_on_a_connection_that_goes_on() {
    let (mut stream, serving) = serve(100);
    stream.write_all(request("").as_bytes()).await.expect("sent");
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 400 "));
    drop(stream);
    assert!(!serving.await.expect("it ends"));
}

#[test]
fn a_request_that_nobody_can_upgrade_is_refused() {
    let mut request = Request::new(());
    *request.headers_mut() = headers(&[]);
    assert_eq!(accept(&mut request, SPOKEN).expect_err("no connection"), Refusal::Connection);
}
