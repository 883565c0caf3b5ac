//! Whom the sink believes to be who he says.

use crate::{
    receiver::Receiver,
    sink::{deliver, failed, sink},
};
use callback_core::{Dsn, ErrorKind, Evidence, Phase, Policy, Rule};
use callback_http::{HttpSink, HttpSinkError};
use http::Version;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

fn acceptor(certificate: &Certificate, key: &KeyPair, protocols: &[&[u8]]) -> TlsAcceptor {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a certificate");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A certificate authority in PEM, and a receiver whose certificate for this name it signed.
async fn receiver_of_a_ca(name: &str) -> (String, Receiver) {
    let (root, acceptor) = acceptor_of_a_ca(name, &[]);
    (root, Receiver::tls(acceptor).await)
}

/// A certificate authority in PEM, and what takes connections by a certificate for this name that it signed.
pub(crate) fn acceptor_of_a_ca(name: &str, protocols: &[&[u8]]) -> (String, TlsAcceptor) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new([]).expect("valid");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = ca.self_signed(&ca_key).expect("a certificate").pem();
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new([name.to_owned()]).expect("valid");
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).expect("a certificate");
    (root, acceptor(&leaf, &key, protocols))
}

fn https(receiver: &Receiver) -> Dsn {
    format!("https://127.0.0.1:{}/", receiver.port()).parse().expect("valid")
}

pub(crate) fn trusting(root: &str) -> HttpSink {
    let policy = Policy::default().allow(Rule::loopback());
    HttpSink::builder().policy(policy).root_certificates(root).build().expect("a sink")
}

#[tokio::test]
async fn a_receiver_of_a_trusted_authority_gets_its_messages() {
    let (root, mut receiver) = receiver_of_a_ca("127.0.0.1").await;
    let sink = trusting(&root);
    for _ in 0..3 {
        let receipt = deliver(&sink, &https(&receiver)).await.expect("delivered");
        assert_eq!(receipt.evidence(), &Evidence::Status(200));
    }
    assert_eq!(receiver.next().await.uri, "/");
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_receiver_chooses_between_http_2_and_1() {
    for (offered, version) in
        [(&[b"h2", &b"http/1.1"[..]][..], Version::HTTP_2), (&[b"http/1.1"], Version::HTTP_11), (&[], Version::HTTP_11)]
    {
        let (root, acceptor) = acceptor_of_a_ca("127.0.0.1", offered);
        let mut receiver = Receiver::tls(acceptor).await;
        let sink = trusting(&root);
        for _ in 0..3 {
            deliver(&sink, &https(&receiver)).await.expect("delivered");
            assert_eq!(receiver.next().await.version, version);
        }
        assert_eq!(receiver.connections(), 1);
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_a_failure_of_tls() {
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(["127.0.0.1".to_owned()]).expect("valid").self_signed(&key).expect("signed");
    let receiver = Receiver::tls(acceptor(&own, &key, &[])).await;
    failed(deliver(&sink(), &https(&receiver)).await, ErrorKind::Unavailable, Some(Phase::Tls));

    let (_, receiver) = receiver_of_a_ca("127.0.0.1").await;
    let (other_root, _) = receiver_of_a_ca("127.0.0.1").await;
    failed(deliver(&trusting(&other_root), &https(&receiver)).await, ErrorKind::Unavailable, Some(Phase::Tls));
    assert!(receiver.is_empty());
}

#[tokio::test]
async fn a_certificate_for_another_name_is_a_failure_of_tls() {
    let (root, receiver) = receiver_of_a_ca("127.0.0.2").await;
    failed(deliver(&trusting(&root), &https(&receiver)).await, ErrorKind::Unavailable, Some(Phase::Tls));
}

#[tokio::test]
async fn a_receiver_without_tls_is_a_failure_of_tls() {
    let receiver = Receiver::start().await;
    failed(deliver(&sink(), &https(&receiver)).await, ErrorKind::Unavailable, Some(Phase::Tls));
}

#[test]
fn a_text_without_certificates_makes_no_sink() {
    for pem in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let error = HttpSink::builder().root_certificates(pem).build().expect_err(pem);
        assert!(matches!(error, HttpSinkError::Roots(_)), "{error:?}");
    }
}
