//! Delivers to webhooks.

use crate::{
    HttpConsent,
    config::{HttpSinkBuilder, HttpSinkError},
    outcome, wire,
};
use async_trait::async_trait;
use bytes::Bytes;
use callback_core::{Attempt, Consented, Dsn, DsnError, Message, Phase, Policy, Receipt, Sink, SinkError};
use http::{HeaderMap, HeaderValue, header};
use reqwest::{
    Client, Method, Request, Response,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect, retry,
};
use rustls::ClientConfig;
use std::{
    error::Error,
    fmt, io,
    net::SocketAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::time::{timeout, timeout_at};
use tokio_util::task::TaskTracker;
use url::Host;

/// Delivers messages by `POST` to `http` and `https`.
///
/// Delivered is what the receiver answered with 2xx, the answer read to its end or to 64 KiB. Connections are pooled; the
/// policy judges each address before it is dialled. Redirects are not followed, and no proxy is taken from the environment.
/// HTTP/2 is spoken to receivers of `https` that choose it (RFC 7301), HTTP/1.1 to all others.
///
/// ```
/// use callback_core::Policy;
/// use callback_http::HttpSink;
///
/// let sink = HttpSink::builder().policy(Policy::default().allow("10.0.0.0/8".parse()?)).build()?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct HttpSink(Arc<Inner>);

struct Inner {
    policy: Policy,
    origin: Option<HeaderValue>,
    plain: Client,
    tls: Client,
    in_flight: TaskTracker,
}

const SCHEMES: [&str; 2] = ["http", "https"];

/// How much of an answer is read.
const ANSWER_LIMIT: u32 = 64 << 10;

/// How much of the answers that share a connection of HTTP/2 may be under way: no receiver fills more of our memory.
const ANSWERS_LIMIT: u32 = 16 * ANSWER_LIMIT;

/// How long the body of a refusal is read.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);

/// How long the name of a host may take: longer than every attempt, whose own deadline ends it.
const RESOLVE_LIMIT: Duration = Duration::from_secs(600);

impl HttpSink {
    /// A sink with the default policy and the system's certificates.
    ///
    /// # Errors
    /// When the system has no root certificates.
    pub fn new() -> Result<Self, HttpSinkError> {
        Self::builder().build()
    }

    /// Begins a sink that is set up otherwise.
    pub fn builder() -> HttpSinkBuilder {
        HttpSinkBuilder::default()
    }

    /// Who asks receivers to consent to what this sink sends them, for a dispatcher's `consent`.
    ///
    /// # Errors
    /// When the sink has no [`origin`](HttpSinkBuilder::origin).
    pub fn consent(&self) -> Result<HttpConsent, HttpSinkError> {
        let origin = self.0.origin.clone().ok_or(HttpSinkError::NoOrigin)?;
        Ok(HttpConsent::new(self.clone(), origin))
    }

    pub(crate) fn with(policy: Policy, origin: Option<HeaderValue>, tls: &ClientConfig) -> Result<Self, HttpSinkError> {
        // A client for each scheme: the policy asks by which scheme a name is resolved.
        let client = |scheme: &'static str| {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .dns_resolver(Arc::new(Judged { policy: policy.clone(), scheme }))
                .no_proxy()
                .redirect(redirect::Policy::none())
                .retry(retry::never())
                .referer(false)
                .pool_idle_timeout(Duration::from_secs(30))
                .http2_initial_stream_window_size(ANSWER_LIMIT)
                .http2_initial_connection_window_size(ANSWERS_LIMIT)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .http2_keep_alive_timeout(Duration::from_secs(5))
                .http2_keep_alive_while_idle(true)
                .user_agent(concat!("callback-http/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(HttpSinkError::Client)
        };
        let (plain, tls) = (client("http")?, client("https")?);
        Ok(Self(Arc::new(Inner { policy, origin, plain, tls, in_flight: TaskTracker::new() })))
    }

    async fn post(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let headers = wire::headers(dsn, message, attempt, self.0.origin.as_ref());
        let mut response = self.send(Method::POST, dsn, headers, message.body().clone()).await?;
        let status = response.status().as_u16();
        let judged = outcome::judge(status, retry_after(&response), SystemTime::now());
        match judged {
            Ok(receipt) => drain(&mut response).await.map(|()| receipt).map_err(|error| error.with_status(status)),
            Err(error) => {
                // What a refusal says is read to use the connection again, but not waited for.
                let _ = timeout(REFUSAL_LIMIT, drain(&mut response)).await;
                Err(error)
            }
        }
    }

    /// Asks a receiver for its consent, by a handshake.
    pub(crate) async fn ask(
        &self,
        dsn: &Dsn,
        origin: &HeaderValue,
        per_minute: Option<NonZeroU32>,
        deadline: Instant,
    ) -> Result<Consented, SinkError> {
        let _in_flight = self.0.in_flight.token();
        if self.0.in_flight.is_closed() {
            return Err(SinkError::unavailable("the sink is closed"));
        }
        let asking = async {
            let headers = wire::handshake(dsn, origin, per_minute);
            let mut response = self.send(Method::OPTIONS, dsn, headers, Bytes::new()).await?;
            // Its headers say it all; the rest is read to use the connection again.
            let _ = timeout(REFUSAL_LIMIT, drain(&mut response)).await;
            let status = response.status().as_u16();
            let asked = outcome::Asked { origin, per_minute };
            outcome::consent(&asked, status, response.headers(), SystemTime::now())
        };
        let asked = timeout_at(deadline.into(), asking).await;
        asked.unwrap_or_else(|_elapsed| Err(SinkError::timed_out("no answer in time")))
    }

    async fn send(&self, method: Method, dsn: &Dsn, headers: HeaderMap, body: Bytes) -> Result<Response, SinkError> {
        // A literal address never reaches the resolver: it is judged here, as is the port.
        self.check(dsn)?;
        let url = dsn.url().ok_or_else(|| DsnError::invalid("the scheme must be http or https"))?;
        let client = if dsn.scheme() == "https" { &self.0.tls } else { &self.0.plain };
        // Not by the client's builder, which copies header by header: a tenth of a delivery's cost.
        let mut request = Request::new(method, url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = (!body.is_empty()).then(|| body.into());
        client.execute(request).await.map_err(sink_error)
    }
}

fn retry_after(response: &Response) -> Option<&str> {
    response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok())
}

/// Reads an answer to its end or to the limit; a connection whose answer was read to the end is used again.
async fn drain(response: &mut Response) -> Result<(), SinkError> {
    let mut left = ANSWER_LIMIT as usize;
    while let Some(chunk) = response.chunk().await.map_err(|error| sink_error(error).with_phase(Phase::Answer))? {
        match left.checked_sub(chunk.len()) {
            Some(rest) => left = rest,
            None => break,
        }
    }
    Ok(())
}

#[async_trait]
impl Sink for HttpSink {
    fn schemes(&self) -> &[&str] {
        &SCHEMES
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        if !SCHEMES.contains(&dsn.scheme()) {
            return Err(DsnError::unknown_scheme(dsn.scheme(), &SCHEMES));
        }
        Ok(self.0.policy.judge(dsn)?)
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let _in_flight = self.0.in_flight.token();
        if self.0.in_flight.is_closed() {
            return Err(SinkError::unavailable("the sink is closed"));
        }
        if attempt.deadline() <= Instant::now() {
            // A timer is up to a millisecond late: a receiver nearby has answered by then.
            return Err(SinkError::timed_out("the deadline is over"));
        }
        match timeout_at(attempt.deadline().into(), self.post(dsn, message, attempt)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(SinkError::timed_out("no answer in time")),
        }
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.0.in_flight.close();
        // Each delivery ends by its own deadline.
        self.0.in_flight.wait().await;
        Ok(())
    }
}

impl fmt::Debug for HttpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSink").field("policy", &self.0.policy).finish_non_exhaustive()
    }
}

/// Resolves names, and lets no address pass that the policy does not open.
struct Judged {
    policy: Policy,
    scheme: &'static str,
}

impl Resolve for Judged {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, scheme) = (self.policy.clone(), self.scheme);
        Box::pin(async move {
            let host = Host::Domain(name.as_str().to_owned());
            let addresses = policy.resolve_host(scheme, &host, Instant::now() + RESOLVE_LIMIT).await?;
            // Port 0 stands for the scheme's own.
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

/// What failed, and where. Neither URL nor header is in the text.
fn sink_error(error: reqwest::Error) -> SinkError {
    let error = error.without_url();
    let (mut phase, mut cause) = (None, error.source());
    while let Some(source) = cause {
        if let Some(judged) = source.downcast_ref::<SinkError>() {
            // The resolver's own error, from below several layers.
            let text = judged.chain();
            return SinkError::new(judged.kind(), text).with_phase(judged.phase().unwrap_or(Phase::Resolve));
        }
        if is_tls(source) {
            phase = Some(Phase::Tls);
        }
        cause = source.source();
    }
    let phase = phase.unwrap_or_else(|| match () {
        () if error.is_connect() => Phase::Connect,
        () if error.is_body() => Phase::Write,
        () => Phase::Answer,
    });
    SinkError::unavailable(error).with_phase(phase)
}

/// Whether TLS failed. An I/O error is no source of itself to what it wraps, and may wrap another.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    error.is::<rustls::Error>()
        || error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).is_some_and(|inner| is_tls(inner))
}
