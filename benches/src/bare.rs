//! What everything is measured against: reqwest without machinery.

use bytes::Bytes;
use callback_core::{BoxError, MessageId, Signer};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use reqwest::{Client, Url, redirect, retry};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::task::JoinSet;

/// A client with the settings of `HttpSink`.
pub(crate) fn client() -> Result<Client, BoxError> {
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .referer(false)
        .pool_idle_timeout(Duration::from_secs(30))
        .user_agent(concat!("callback-bench/", env!("CARGO_PKG_VERSION")));
    Ok(client.build()?)
}

/// What each request has in common.
pub(crate) struct Bare {
    pub(crate) client: Client,
    pub(crate) url: Url,
    pub(crate) signer: Signer,
    pub(crate) body: Bytes,
    /// The headers that are the same in every request.
    pub(crate) headers: HeaderMap,
}

impl Bare {
    pub(crate) fn new(url: Url, signer: Signer, body: Bytes) -> Result<Self, BoxError> {
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (HeaderName::from_static("callback-attempt"), "1"),
            (HeaderName::from_static("ce-specversion"), "1.0"),
            (HeaderName::from_static("ce-type"), "callback.task.completed"),
            (HeaderName::from_static("ce-source"), "/"),
            (HeaderName::from_static("ce-time"), "2026-01-01T00:00:00.123456Z"),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        Ok(Self { client: client()?, url, signer, body, headers })
    }

    /// Posts as many messages, this many at once.
    pub(crate) async fn send(self: Arc<Self>, messages: usize, in_flight: usize) -> Result<(), BoxError> {
        let left = Arc::new(AtomicUsize::new(messages));
        let mut senders = JoinSet::new();
        for _ in 0..in_flight {
            let (bare, left) = (Arc::clone(&self), Arc::clone(&left));
            senders.spawn(async move {
                while take_one(&left) {
                    bare.post().await?;
                }
                Ok::<_, BoxError>(())
            });
        }
        while let Some(sender) = senders.join_next().await {
            sender??;
        }
        Ok(())
    }

    async fn post(&self) -> Result<(), BoxError> {
        let (id, now) = (MessageId::new(), SystemTime::now());
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let id_value = HeaderValue::from_str(id.as_str())?;
        let request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header("webhook-id", id_value.clone())
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", self.signer.sign(&id, now, &self.body))
            .header("ce-id", id_value.clone())
            .header("ce-subject", id_value)
            .body(self.body.clone());
        request.send().await?.error_for_status()?.bytes().await?;
        Ok(())
    }
}

/// Takes one of what is left to do.
pub(crate) fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}
