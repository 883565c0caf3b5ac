//! TLS as a client: rustls with aws-lc-rs, whatever the process has installed.

use callback_core::BoxError;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use std::sync::Arc;

/// The settings of a client; roots are PEM. Without roots, the system's are taken.
pub(crate) fn config(roots: Option<&[u8]>) -> Result<Arc<ClientConfig>, BoxError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?;
    let builder = match roots {
        Some(pem) => builder.with_root_certificates(root_store(pem)?),
        None => builder.with_platform_verifier()?,
    };
    let mut config = builder.with_no_client_auth();
    // RFC 8441, WebSocket over HTTP/2, is not spoken.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn root_store(pem: &[u8]) -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err("the text holds no certificate".into()) } else { Ok(roots) }
}
