//! Whom the sink believes to be who he says, and how it says who it is.

use crate::broker::{Authority, Broker, deliver, own, sink, to_queue, unique};
use callback_amqp::AmqpCluster;
use callback_core::{ErrorKind, Phase};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

fn cluster(url: &str) -> AmqpCluster {
    AmqpCluster::new(url.parse().expect("a Dsn")).queue("*")
}

fn authority(broker: &Broker) -> &Authority {
    broker.authority.as_ref().expect("it has TLS")
}

#[tokio::test]
async fn a_broker_of_a_trusted_authority_is_believed() {
    let Some(broker) = own().await else { return };
    let side = broker.side("").await;
    let queue = side.queue().await;
    let url = broker.variable("CALLBACK_TEST_AMQPS");
    let trusting = sink(cluster(url).root_certificates(authority(&broker).pem.clone()));
    deliver(&trusting, &to_queue(&queue)).await.expect("delivered");
    deliver(&trusting, &to_queue(&queue).expose().replace("amqp:", "amqps:").parse().expect("a Dsn"))
        .await
        .expect("delivered");
    assert_eq!(side.ids(&queue).await.len(), 2);

    for stranger in [cluster(url), cluster(url).root_certificates(Authority::new().pem)] {
        let error = deliver(&sink(stranger), &to_queue(&queue)).await.expect_err("not believed");
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Tls)), "{}", error.chain());
    }
    let by_address = url.replace("localhost", "127.0.0.1");
    let sink = sink(cluster(&by_address).root_certificates(authority(&broker).pem.clone()));
    let error = deliver(&sink, &to_queue(&queue)).await.expect_err("another name");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Tls)), "{}", error.chain());
}

#[cfg(feature = "receiver")]
#[tokio::test]
async fn a_receiver_listens_over_tls() {
    use crate::receiver::{Post, accept, close};
    let Some(broker) = own().await else { return };
    let post = Post::new(&broker).await;
    let url = broker.variable("CALLBACK_TEST_AMQPS");
    let connect = async |cluster: AmqpCluster| {
        let builder = callback_amqp::AmqpReceiver::builder(cluster).exchange(&*post.exchange);
        builder.queue(&*post.queue).connect().await
    };
    connect(cluster(url)).await.expect_err("an authority that nobody trusts");
    let amqp = connect(cluster(url).root_certificates(authority(&broker).pem.clone())).await.expect("connected");
    let receiver = callback_receive::Receiver::builder().open(amqp).await.expect("it opens");
    let mut callback = receiver.spawn();
    post.send(&callback.dsn(), "first").await;
    assert_eq!(accept(&mut callback).await, "first");
    close(&receiver).await;
}

#[tokio::test]
async fn a_client_certificate_logs_in() {
    let Some(broker) = own().await else { return };
    let (side, user) = (broker.side("").await, unique("user"));
    let queue = side.queue().await;
    broker.control(&["add_user", &user, "unknown"]).await;
    broker.control(&["set_permissions", &user, ".*", ".*", ".*"]).await;
    let authority = authority(&broker);
    let url = broker.variable("CALLBACK_TEST_AMQPS").replace("guest:guest@", "");
    let with = |(chain, key): (String, String)| {
        sink(cluster(&url).root_certificates(authority.pem.clone()).client_certificate(chain, key))
    };
    deliver(&with(authority.certificate(&user, 1)), &to_queue(&queue)).await.expect("delivered");

    let error = deliver(&with(authority.certificate("nobody", 1)), &to_queue(&queue)).await.expect_err("nobody");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unauthorized, Some(Phase::Connect)), "{}", error.chain());

    // TLS 1.3 lets a client know after its own handshake.
    let error = deliver(&with(authority.certificate(&user, -1)), &to_queue(&queue)).await.expect_err("expired");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
}

#[tokio::test]
async fn a_broker_whose_certificate_has_expired_is_not_believed() {
    let authority = Authority::new();
    let (chain, key) = authority.certificate("localhost", -1);
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(chain.as_bytes()).expect("a certificate")],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
        )
        .expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("amqps://a:b@localhost:{}/", listener.local_addr().expect("an address").port());
    let server = tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            assert!(acceptor.accept(stream).await.is_err(), "the certificate is believed");
        }
    });
    let sink = sink(cluster(&url).root_certificates(authority.pem.clone()));
    let error = deliver(&sink, &to_queue("q")).await.expect_err("expired");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Tls)), "{}", error.chain());
    server.abort();
}
