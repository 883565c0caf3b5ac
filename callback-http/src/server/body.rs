//! One body type, in and out.

use bytes::Bytes;
use callback_core::BoxError;
use http::{HeaderMap, HeaderValue, Request, Response, header, request::Parts};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll},
};
use tower_service::Service;

/// The body of requests and responses on both sides of the layer.
pub struct Body(UnsyncBoxBody<Bytes, BoxError>);

impl Body {
    /// Boxes any body of bytes.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self(body.map_err(Into::into).boxed_unsync())
    }

    /// A body of no bytes.
    #[must_use]
    pub fn empty() -> Self {
        Bytes::new().into()
    }

    /// What was read, then the rest.
    pub(super) fn prefixed<B>(read: Bytes, rest: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        Self::new(Prefixed { read: Some(read), rest })
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::new(Full::new(bytes))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

struct Prefixed<B> {
    read: Option<Bytes>,
    rest: B,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Prefixed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        match this.read.take() {
            Some(read) => Poll::Ready(Some(Ok(Frame::data(read)))),
            None => Pin::new(&mut this.rest).poll_frame(context),
        }
    }
}

/// What came of reading a body up to a limit.
pub(super) enum Read<B> {
    Whole(Bytes),
    /// More than the limit: what was read so far, and the rest.
    Longer(Bytes, B),
    Failed(BoxError),
}

/// Reads a body up to a limit of bytes.
pub(super) async fn read<B>(mut body: B, limit: usize) -> Read<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let mut read = bytes::BytesMut::new();
    loop {
        match body.frame().await {
            None => return Read::Whole(read.freeze()),
            Some(Err(error)) => return Read::Failed(error.into()),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                read.extend_from_slice(&data);
                if read.len() > limit {
                    return Read::Longer(read.freeze(), body);
                }
            }
        }
    }
}

/// A body that was not taken in.
pub(super) enum Untaken<B> {
    /// More than the limit: what was read so far, and the rest.
    Longer(Bytes, Pin<Box<B>>),
    Failed,
}

/// Takes in a request's body up to a limit of bytes; nothing of one that announces more.
pub(super) async fn take<B>(headers: &HeaderMap, body: B, limit: usize) -> Result<Bytes, Untaken<B>>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let body = Box::pin(body);
    if announced(headers) > limit {
        return Err(Untaken::Longer(Bytes::new(), body));
    }
    match read(body, limit).await {
        Read::Whole(body) => Ok(body),
        Read::Longer(read, rest) => Err(Untaken::Longer(read, rest)),
        Read::Failed(error) => {
            tracing::debug!(%error, "a request was not read to its end");
            Err(Untaken::Failed)
        }
    }
}

/// How many bytes a request says that it has; none if it does not say it.
fn announced(headers: &HeaderMap) -> usize {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or_default()
}

/// Whether a body is not as it was before some content coding (RFC 9110 §8.4): nobody here takes that off.
pub(super) fn is_coded(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    codings.flat_map(|value| value.split(|byte| *byte == b',')).any(|coding| {
        let coding = coding.trim_ascii();
        !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
    })
}

/// The answer names what codings a body may have (RFC 9110 §15.5.16): none.
pub(super) fn wanting_no_coding(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    response
}

/// A request whose body was read.
pub(super) fn with_body(mut parts: Parts, body: Bytes) -> Request<Body> {
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    parts.headers.remove(header::TRANSFER_ENCODING);
    Request::from_parts(parts, Body::from(body))
}

/// The wrapped service, called at most once.
pub(super) struct Inner<S>(S);

impl<S: Clone> Inner<S> {
    /// Takes the clone that was polled ready, which is the one to call, and leaves another.
    pub(super) fn ready(service: &mut S) -> Self {
        let next = service.clone();
        Self(mem::replace(service, next))
    }
}

impl<S> Inner<S> {
    pub(super) async fn call<R>(mut self, request: Request<Body>) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<R>>,
        R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Ok(self.0.call(request).await?.map(Body::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coding_is_found_wherever_it_stands() {
        for (values, expected) in [
            (&[][..], false),
            (&[""], false),
            (&["identity"], false),
            (&[" Identity , identity"], false),
            (&["gzip"], true),
            (&["identity, br"], true),
            (&["identity", "zstd"], true),
            (&["unheard-of"], true),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            assert_eq!(is_coded(&headers), expected, "{values:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_bytes(b"\xff").expect("a value"));
        assert!(is_coded(&headers));
    }
}
