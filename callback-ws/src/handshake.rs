//! The opening handshake of RFC 6455 §4, as text.
//!
//! tungstenite's own refuses a server that picks none of the offered subprotocols, and loses the connection with it.

use crate::{
    outcome::{self, Failure},
    wire::Subprotocol,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use callback_core::{Dsn, ErrorKind, Phase};
use std::time::SystemTime;
use tokio_tungstenite::tungstenite::{
    handshake::{client::Response, derive_accept_key, machine::TryParse},
    http::StatusCode,
};

/// The request for the socket at a Dsn. `key` is base64 of 16 random bytes.
pub(crate) fn request(dsn: &Dsn, origin: Option<&str>, key: &str) -> Result<String, Failure> {
    let url = dsn.url().ok_or_else(|| Failure::new(ErrorKind::Refused, Phase::Policy, "the host is missing"))?;
    let mut request = format!("GET {}", url.path());
    if let Some(query) = url.query() {
        request += "?";
        request += query;
    }
    request += " HTTP/1.1\r\nHost: ";
    request += url.host_str().unwrap_or_default();
    if let Some(port) = url.port() {
        request += &format!(":{port}");
    }
    request += "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ";
    request += key;
    request += "\r\nSec-WebSocket-Protocol: ";
    request += Subprotocol::OFFERED;
    request += concat!("\r\nUser-Agent: callback-ws/", env!("CARGO_PKG_VERSION"), "\r\n");
    if let Some(origin) = origin {
        request += &format!("Origin: {origin}\r\n");
    }
    if let Some(user) = dsn.username() {
        let basic = BASE64_STANDARD.encode(format!("{user}:{}", dsn.password().unwrap_or_default()));
        request += &format!("Authorization: Basic {basic}\r\n");
    }
    Ok(request + "\r\n")
}

/// Reads the head of an answer, and says how long it is; `None` as long as it is not there as a whole.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<(usize, Response)>, Failure> {
    Response::try_parse(bytes).map_err(|_| Failure::unavailable(Phase::Answer, "the server does not speak HTTP"))
}

/// Whether the answer proper is still to come (RFC 9110 §15.2).
pub(crate) fn is_interim(response: &Response) -> bool {
    response.status().is_informational() && response.status() != StatusCode::SWITCHING_PROTOCOLS
}

/// Judges an answer to the request with this key.
pub(crate) fn judge(response: &Response, key: &str, now: SystemTime) -> Result<Subprotocol, Failure> {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let status = response.status().as_u16();
    if status != 101 {
        return Err(outcome::handshake(status, header("retry-after"), now));
    }
    let has_token = |name: &str, expected: &str| {
        header(name).is_some_and(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(expected)))
    };
    let wrong = |text: &'static str| Err(Failure::unavailable(Phase::Answer, text));
    if !has_token("upgrade", "websocket") || !has_token("connection", "upgrade") {
        return wrong("the server upgrades to something else");
    }
    if header("sec-websocket-accept") != Some(derive_accept_key(key.as_bytes()).as_str()) {
        return wrong("the server answers another handshake");
    }
    if response.headers().contains_key("sec-websocket-extensions") {
        return wrong("the server uses an extension that was not offered");
    }
    let mut picked = response.headers().get_all("sec-websocket-protocol").iter();
    match (picked.next().map(|value| value.to_str().unwrap_or_default()), picked.next()) {
        (picked, None) => Subprotocol::picked(picked),
        (_, Some(_)) => None,
    }
    .map_or_else(|| wrong("the server picks a subprotocol that was not offered"), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the answer of RFC 6455 §1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    #[test]
    fn a_request_is_that_of_the_golden_file() {
        let dsn = "wss://me:pa%20ss@example.com:8443/hook?a=b".parse().expect("a Dsn");
        let request = request(&dsn, Some("https://orders.example"), KEY).expect("a request");
        assert_eq!(request.replace("\r\n", "\n"), include_str!("../tests/golden/handshake.txt"));
        assert!(!request.replace("\r\n", "").contains(['\r', '\n']));
    }

    #[test]
    fn nothing_is_sent_that_is_not_set() {
        let request = request(&"ws://[::1]".parse().expect("a Dsn"), None, KEY).expect("a request");
        assert!(request.starts_with("GET / HTTP/1.1\r\nHost: [::1]\r\n"), "{request}");
        assert!(!request.contains("Origin") && !request.contains("Authorization"));
    }

    /// An answer that is right but for these changes, as text.
    fn text(changes: &[(&str, &str)], more: &str) -> String {
        let text = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n{more}\r\n"
        );
        changes.iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from));
            text.replace(from, to)
        })
    }

    fn answer(changes: &[(&str, &str)], more: &str) -> Result<Subprotocol, Failure> {
        let text = text(changes, more);
        let (_, response) = head(text.as_bytes())?.expect("a whole head");
        judge(&response, KEY, SystemTime::now())
    }

    #[test]
    fn the_server_picks_one_of_what_was_offered_or_none() {
        let picked = |name: &str| answer(&[], &format!("Sec-WebSocket-Protocol: {name}\r\n"));
        assert_eq!(picked("callback.v1"), Ok(Subprotocol::CallbackV1));
        assert_eq!(picked("cloudevents.json"), Ok(Subprotocol::CloudEvents));
        assert_eq!(answer(&[], ""), Ok(Subprotocol::Bare));
        assert_eq!(answer(&[("Connection: Upgrade", "connection: keep-alive, UPGRADE")], ""), Ok(Subprotocol::Bare));
        for name in
            ["chat", "", "CALLBACK.V1", "callback.v1, cloudevents.json", "callback.v1\r\nSec-WebSocket-Protocol: x"]
        {
            assert_eq!(picked(name).expect_err("not offered").kind, ErrorKind::Unavailable, "{name}");
        }
    }

    #[test]
    fn what_is_no_answer_to_this_handshake_is_refused() {
        for change in [
            ("Upgrade: websocket", "Upgrade: h2c"),
            ("Upgrade: websocket\r\n", ""),
            ("Connection: Upgrade", "Connection: close"),
            (ACCEPT, "AAAA"),
            ("HTTP/1.1 101 Switching Protocols", "HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1/"),
            ("HTTP/1.1 101 Switching Protocols", "HTTP/1.1 503 No\r\nRetry-After: 7"),
            ("HTTP/1.1", "SSH-2.0"),
        ] {
            assert!(answer(&[change], "").is_err(), "{change:?}");
        }
        assert!(answer(&[], "Sec-WebSocket-Extensions: permessage-deflate\r\n").is_err());
    }

    #[test]
    fn a_head_is_read_when_it_is_there_as_a_whole() {
        let text = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
        for end in 0..text.len() {
            assert!(head(&text.as_bytes()[..end]).expect("a beginning").is_none(), "{end}");
        }
        let (length, _) = head(format!("{text}\u{1}frame").as_bytes()).expect("HTTP").expect("a whole head");
        assert_eq!(length, text.len());
    }
}
