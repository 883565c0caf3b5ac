//! Taking a connection in: the server's half of the opening handshake (RFC 6455 §4.2), on a request that hyper has read.
//!
//! [`accept`] judges the request; its answer is sent as any other, and then [`Upgrade::open`] gives the socket.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        http::{
            HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
            header::{
                ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, ORIGIN, SEC_WEBSOCKET_ACCEPT,
                SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
            },
        },
        protocol::{Role, WebSocketConfig},
    },
};

/// A socket that a peer has opened to us.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// How large the buffers of a connection are, in bytes: most of ten thousand wait for something to say.
const BUFFER: usize = 4 << 10;

/// What a request must have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    /// The subprotocols that are spoken, the best first. A peer that offers none of them is refused.
    pub(crate) subprotocols: &'a [&'static str],
    /// The values of `Origin` that are let in, beside that of the host itself; `None` lets all in.
    ///
    /// A request without `Origin` comes from no browser, and is let in.
    pub(crate) origins: Option<&'a [String]>,
}

/// A request that is taken: first the [answer](Self::answer), then the [socket](Self::open).
#[derive(Debug)]
pub(crate) struct Upgrade {
    subprotocol: &'static str,
    accept: HeaderValue,
    upgrade: OnUpgrade,
}

/// Judges a request for a socket.
///
/// # Errors
/// Says why it is refused, as the answer to be sent.
pub(crate) fn accept<B>(request: &mut Request<B>, terms: Terms<'_>) -> Result<Upgrade, Refusal> {
    let (subprotocol, accept) = judge(request.method(), request.version(), request.headers(), terms)?;
    let upgrade = request.extensions_mut().remove().ok_or(Refusal::Connection)?;
    Ok(Upgrade { subprotocol, accept, upgrade })
}

impl Upgrade {
    /// The subprotocol that is spoken.
    pub(crate) fn subprotocol(&self) -> &'static str {
        self.subprotocol
    }

    /// The answer that opens the socket.
    pub(crate) fn answer(&self) -> Response<String> {
        with_headers(
            StatusCode::SWITCHING_PROTOCOLS,
            [
                (CONNECTION, HeaderValue::from_static("upgrade")),
                (UPGRADE, HeaderValue::from_static("websocket")),
                (SEC_WEBSOCKET_ACCEPT, self.accept.clone()),
                (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(self.subprotocol)),
            ],
        )
    }

    /// The socket, once the answer was sent. Messages of more than `limit` bytes are not read.
    ///
    /// # Errors
    /// When the connection has ended before.
    pub(crate) async fn open(self, limit: usize) -> hyper::Result<Socket> {
        let stream = TokioIo::new(self.upgrade.await?);
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        Ok(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await)
    }
}

/// Why a request gets no socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Method,
    Connection,
    NoUpgrade,
    Version,
    Key,
    Body,
    Subprotocol,
    Origin,
}

impl Refusal {
    /// What is answered.
    pub(crate) fn answer(self) -> Response<String> {
        let (status, text) = match self {
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "a WebSocket is opened with GET"),
            Self::Connection => (StatusCode::BAD_REQUEST, "a WebSocket is opened over HTTP/1.1"),
            Self::NoUpgrade => (StatusCode::UPGRADE_REQUIRED, "there is a WebSocket here, and nothing else"),
            Self::Version => (StatusCode::UPGRADE_REQUIRED, "version 13 of WebSocket is spoken"),
            Self::Key => (StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is not 16 bytes in base64"),
            Self::Body => (StatusCode::BAD_REQUEST, "a request for a WebSocket has no body"),
            Self::Subprotocol => (StatusCode::BAD_REQUEST, "none of the offered subprotocols is spoken"),
            Self::Origin => (StatusCode::FORBIDDEN, "pages of this origin are not let in"),
        };
        let more = match self {
            Self::Method => Some((ALLOW, "GET")),
            Self::NoUpgrade => Some((UPGRADE, "websocket")),
            // RFC 6455 §4.4.
            Self::Version => Some((SEC_WEBSOCKET_VERSION, "13")),
            _ => None,
        };
        let kind = Some((CONTENT_TYPE, "text/plain; charset=utf-8"));
        let headers = [kind, more].into_iter().flatten();
        let mut answer = with_headers(status, headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
        *answer.body_mut() = text.to_owned();
        answer
    }
}

fn with_headers(status: StatusCode, headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Response<String> {
    let mut answer = Response::new(String::new());
    *answer.status_mut() = status;
    answer.headers_mut().extend(headers);
    answer
}

/// The subprotocol and the `Sec-WebSocket-Accept` for a request that is let in.
fn judge(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    terms: Terms<'_>,
) -> Result<(&'static str, HeaderValue), Refusal> {
    if method != Method::GET {
        return Err(Refusal::Method);
    }
    if version != Version::HTTP_11 {
        return Err(Refusal::Connection);
    }
    let names = |name: HeaderName, wanted: &str| tokens(headers, &name).any(|token| token.eq_ignore_ascii_case(wanted));
    if !names(UPGRADE, "websocket") || !names(CONNECTION, "upgrade") {
        return Err(Refusal::NoUpgrade);
    }
    if only(headers, &SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(Refusal::Version);
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).ok_or(Refusal::Key)?;
    if !BASE64_STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16) {
        return Err(Refusal::Key);
    }
    let has_body = headers.contains_key(TRANSFER_ENCODING)
        || headers.get_all(CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0");
    if has_body {
        return Err(Refusal::Body);
    }
    let offered = |name: &&&str| tokens(headers, &SEC_WEBSOCKET_PROTOCOL).any(|token| token == **name);
    let subprotocol = terms.subprotocols.iter().find(offered).ok_or(Refusal::Subprotocol)?;
    if terms.origins.is_some_and(|origins| !is_at_home(headers, origins)) {
        return Err(Refusal::Origin);
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| Refusal::Key)?;
    Ok((subprotocol, accept))
}

/// Whether no page asks, or one of these origins or of the host itself (RFC 6455 §10.2).
///
/// The host is what `Host` says, with or without TLS: a proxy in front may have ended it.
fn is_at_home(headers: &HeaderMap, origins: &[String]) -> bool {
    if !headers.contains_key(ORIGIN) {
        return true;
    }
    let Some(origin) = only(headers, &ORIGIN) else { return false };
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let is_same = host.is_some_and(|host| only(headers, &HOST).is_some_and(|here| here.eq_ignore_ascii_case(host)));
    is_same || origins.iter().any(|listed| listed == origin)
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        _ => None,
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests;
