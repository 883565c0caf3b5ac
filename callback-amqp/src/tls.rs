//! The TLS of a cluster: rustls with aws-lc-rs, whatever the process has installed.

use callback_core::BoxError;
use rustls::{
    ClientConfig, RootCertStore,
    client::WantsClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use std::sync::Arc;

/// The settings of a client; roots, certificate chain and key are PEM. Without roots, the system's are taken.
pub(crate) fn config(roots: Option<&[u8]>, certificate: Option<(&[u8], &[u8])>) -> Result<Arc<ClientConfig>, BoxError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?;
    let builder: rustls::ConfigBuilder<ClientConfig, WantsClientCert> = match roots {
        Some(pem) => builder.with_root_certificates(root_store(pem)?),
        None => builder.with_platform_verifier()?,
    };
    Ok(Arc::new(match certificate {
        Some((chain, key)) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
        }
        None => builder.with_no_client_auth(),
    }))
}

fn root_store(pem: &[u8]) -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err("the text holds no certificate".into()) } else { Ok(roots) }
}
