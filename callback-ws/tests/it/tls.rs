//! Whom the sink believes to be who he says.

use crate::peer::{ack, builder, deliver, sink};
use callback_core::{Dsn, ErrorKind, Phase};
use futures_util::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::sync::Arc;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn config(&self, name: &str) -> Arc<ServerConfig> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let chain = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(chain.as_bytes()).expect("a certificate")],
                PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key"),
            )
            .expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

/// A server of `callback.v1` over TLS, under the name `localhost`.
#[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
async fn serve(config: Arc<ServerConfig>) -> (Dsn, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let dsn = format!("wss://localhost:{}/hook", listener.local_addr().expect("an address").port());
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(Arc::clone(&config));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
                let pick = |_: &Request, mut response: Response| {
                    response.headers_mut().insert("sec-websocket-protocol", "callback.v1".parse().expect("a header"));
                    Ok(response)
                };
                let Ok(mut socket) = accept_hdr_async(stream, pick).await else { return };
                while let Some(Ok(frame)) = socket.next().await {
                    if frame.is_text() {
                        let _ = socket.send(ack(&frame)).await;
                    }
                }
            });
        }
    });
    (dsn.parse().expect("a Dsn"), serving)
}

#[tokio::test]
async fn a_server_of_a_trusted_authority_is_believed_and_no_other() {
    let authority = Authority::new();
    let (dsn, _serving) = serve(authority.config("localhost")).await;
    let trusting = builder().root_certificates(authority.pem.clone()).build().expect("a sink");
    deliver(&trusting, &dsn, "hello").await.expect("delivered");

    let (another, _serving) = serve(authority.config("planted.example")).await;
    let stranger = builder().root_certificates(Authority::new().pem).build().expect("a sink");
    for (sink, dsn) in [(sink(), &dsn), (stranger, &dsn), (trusting, &another)] {
        let error = deliver(&sink, dsn, "hello").await.expect_err("not believed");
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Tls)), "{}", error.chain());
        assert!(!error.chain().contains("planted"), "{}", error.chain());
    }
}
