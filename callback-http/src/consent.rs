//! Asks webhooks for their consent.

use crate::HttpSink;
use async_trait::async_trait;
use callback_core::{Consent, Consented, Dsn, SinkError};
use http::HeaderValue;
use std::{fmt, num::NonZeroU32, time::Instant};

/// Asks receivers whether they take webhooks of ours: the handshake of CloudEvents (HTTP webhooks 1.0.2 §4).
///
/// An `OPTIONS` request with the sink's [`origin`](crate::HttpSinkBuilder::origin) as `WebHook-Request-Origin`. A receiver
/// consents by `WebHook-Allowed-Origin`, which is the origin or `*`, whatever its status is; `WebHook-Allowed-Rate` is how many
/// requests a minute it allows, `*` any number. The sink's policy judges the Dsn and the address. An answer by the callback of
/// the specification is not offered: who consents later is found by asking again.
///
/// ```
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// use callback_dispatch::{Dispatcher, MemoryOutbox};
/// use callback_http::HttpSink;
///
/// let sink = HttpSink::builder().origin("events.example.com").build()?;
/// let consent = sink.consent()?.per_minute(600.try_into()?);
/// let dispatcher = Dispatcher::builder(MemoryOutbox::new()).consent(consent).sink(sink).start().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct HttpConsent {
    sink: HttpSink,
    origin: HeaderValue,
    per_minute: Option<NonZeroU32>,
}

impl HttpConsent {
    pub(crate) const fn new(sink: HttpSink, origin: HeaderValue) -> Self {
        Self { sink, origin, per_minute: None }
    }

    /// Asks for so many requests a minute. Default: for no rate. Who consents and names none allows what was asked for.
    pub const fn per_minute(mut self, requests: NonZeroU32) -> Self {
        self.per_minute = Some(requests);
        self
    }
}

#[async_trait]
impl Consent for HttpConsent {
    fn schemes(&self) -> &[&str] {
        &["http", "https"]
    }

    async fn ask(&self, dsn: &Dsn, deadline: Instant) -> Result<Consented, SinkError> {
        self.sink.ask(dsn, &self.origin, self.per_minute, deadline).await
    }
}

impl fmt::Debug for HttpConsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("HttpConsent");
        shown.field("sink", &self.sink).field("origin", &self.origin).field("per_minute", &self.per_minute).finish()
    }
}
