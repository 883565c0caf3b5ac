//! TLS and SASL.

use crate::support::{Broker, attempt, cluster, dsn, message, sink};
use callback_core::{ErrorKind, Phase, Sink, SinkError};
use callback_kafka::KafkaCluster;
use futures_util::future::join_all;

/// Sends a message to the default cluster and reads it back.
async fn deliver(broker: &Broker, cluster: KafkaCluster, scheme: &str) -> Result<(), SinkError> {
    let topic = broker.topic(1, &[]).await;
    let (sink, message) = (sink(cluster), message("a"));
    sink.deliver(&dsn(&format!("{scheme}:///{topic}")), &message, &attempt(1, &message)).await?;
    assert_eq!(broker.read(&topic).await.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_go_by_tls() {
    let Some(broker) = Broker::shared() else { return };
    let tls = cluster(broker.listener("_TLS")).ssl().root_certificates(broker.file("server.pem"));
    deliver(&broker, tls, "kafka+ssl").await.expect("delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown() {
    let Some(broker) = Broker::shared() else { return };
    let mutual = cluster(broker.listener("_MUTUAL")).ssl().root_certificates(broker.file("server.pem"));
    let shown = mutual.clone().client_certificate(broker.file("client.pem"), broker.file("client.key"));
    deliver(&broker, shown, "kafka+ssl").await.expect("delivered");
    let error = deliver(&broker, mutual, "kafka").await.expect_err("without a certificate nobody gets in");
    // By TLS 1.3 the handshake is over before the broker has judged: it then hangs up.
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mechanism_authenticates() {
    let Some(broker) = Broker::shared() else { return };
    let plain = || cluster(broker.listener("_SASL"));
    let tls = || cluster(broker.listener("_SASL_TLS")).ssl().root_certificates(broker.file("server.pem"));
    let password = "alice-secret";
    deliver(&broker, plain().sasl_plain("alice", password), "kafka+sasl").await.expect("PLAIN");
    deliver(&broker, plain().scram_sha_256("alice", password), "kafka+sasl").await.expect("SCRAM-SHA-256");
    deliver(&broker, plain().scram_sha_512("alice", password), "kafka+sasl").await.expect("SCRAM-SHA-512");
    deliver(&broker, tls().scram_sha_512("alice", password), "kafka+sasl+ssl").await.expect("SCRAM-SHA-512 over TLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_unauthorized() {
    let Some(broker) = Broker::shared() else { return };
    let clusters = [
        cluster(broker.listener("_SASL")).sasl_plain("alice", "planted-wrong"),
        cluster(broker.listener("_SASL")).scram_sha_512("alice", "planted-wrong"),
        cluster(broker.listener("_SASL")).scram_sha_256("nobody", "planted-wrong"),
    ];
    for result in join_all(clusters.map(|cluster| deliver(&broker, cluster, "kafka"))).await {
        let error = result.expect_err("the broker does not know us");
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.chain());
        assert!(!error.chain().contains("planted"), "{}", error.chain());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_is_unauthorized() {
    let Some(broker) = Broker::shared() else { return };
    let mallory = cluster(broker.listener("_SASL")).scram_sha_512("mallory", "mallory-secret");
    let error = deliver(&broker, mallory, "kafka").await.expect_err("mallory may do nothing");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expired_or_is_unknown_is_not_trusted() {
    let Some(broker) = Broker::shared() else { return };
    let expired = cluster(broker.listener("_EXPIRED")).ssl().root_certificates(broker.file("expired.pem"));
    let unknown = cluster(broker.listener("_TLS")).ssl().root_certificates(broker.file("client.pem"));
    for result in join_all([expired, unknown].map(|cluster| deliver(&broker, cluster, "kafka"))).await {
        let error = result.expect_err("the certificate is no good");
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Tls)), "{}", error.chain());
    }
}
