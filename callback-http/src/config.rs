//! How a sink is set up.

use crate::HttpSink;
use callback_core::Policy;
use http::HeaderValue;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use std::{fmt, sync::Arc};

/// Builds an [`HttpSink`].
#[derive(Clone, Default)]
#[must_use]
pub struct HttpSinkBuilder {
    policy: Policy,
    roots: Option<Vec<u8>>,
    origin: Option<String>,
}

impl HttpSinkBuilder {
    /// Sets who may send where. Default: [`Policy::default`], public addresses over `https` alone.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Trusts these certificates, in PEM, instead of the system's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Says who sends: a DNS name of ours, which each request carries as `WebHook-Request-Origin`. Default: none is sent.
    ///
    /// It is what receivers are asked to consent to, see [`HttpSink::consent`].
    pub fn origin(mut self, name: impl Into<String>) -> Self {
        self.origin = Some(name.into());
        self
    }

    /// Makes the sink. Does no I/O but reading the system's certificates.
    ///
    /// # Errors
    /// When there are no root certificates, or those given cannot be read; when the origin is no DNS name.
    pub fn build(self) -> Result<HttpSink, HttpSinkError> {
        let mut tls = match self.roots {
            Some(pem) => tls_with_roots(&pem)?,
            None => tls_of_the_system()?,
        };
        // To a configuration that it is given the client adds nothing.
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let origin = self.origin.map(|name| origin(&name).ok_or(HttpSinkError::Origin(name))).transpose()?;
        HttpSink::with(self.policy, origin, &tls)
    }
}

/// A DNS name as a header has it: labels of letters, digits, hyphens and underscores, 253 characters at most.
fn origin(name: &str) -> Option<HeaderValue> {
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = name.len() <= 253 && name.split('.').all(is_label);
    HeaderValue::from_str(name).ok().filter(|_| is_name)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn tls_of_the_system() -> Result<ClientConfig, HttpSinkError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(|error| HttpSinkError::Roots(error.into()))?;
    Ok(config.with_no_client_auth())
}

fn tls_with_roots(pem: &[u8]) -> Result<ClientConfig, HttpSinkError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| HttpSinkError::Roots(error.into()))?;
        roots.add(certificate).map_err(|error| HttpSinkError::Roots(error.into()))?;
    }
    if roots.is_empty() {
        return Err(HttpSinkError::Roots("the text holds no certificate".into()));
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| HttpSinkError::Roots(error.into()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

impl fmt::Debug for HttpSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSinkBuilder").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Why a sink could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpSinkError {
    /// The client could not be set up.
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
    /// Nobody is asked for consent without an origin.
    #[error("the sink has no origin")]
    NoOrigin,
    /// The origin is no DNS name.
    #[error("the origin {0:?} is no DNS name")]
    Origin(String),
    /// There are no usable root certificates: install `ca-certificates`, or give your own.
    #[error("no usable root certificates: install ca-certificates, or give your own")]
    Roots(#[source] callback_core::BoxError),
}
