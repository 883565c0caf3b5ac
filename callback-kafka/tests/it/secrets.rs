//! No secret is in an error, in `Debug`, or in the log, even if librdkafka is told to log everything.

use crate::support::{Broker, attempt, cluster, sink, to};
use callback_core::{Message, Sink};
use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().map_err(|_| io::ErrorKind::Other)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The same by a receiver, which takes the message if it may.
#[cfg(feature = "receiver")]
async fn receives(cluster: callback_kafka::KafkaCluster, topic: &str, message: &Message, is_good: bool) {
    use callback_kafka::KafkaReceiver;
    use callback_receive::Receiver;

    let kafka = KafkaReceiver::builder().open_within(std::time::Duration::from_secs(5));
    let kafka = match kafka.open(cluster.clone(), topic).await {
        Ok(kafka) => kafka,
        Err(error) => return assert!(!is_good && !format!("{error} {error:?}").contains("planted"), "{error:?}"),
    };
    assert!(is_good && !format!("{kafka:?}").contains("secret"), "{kafka:?}");
    let receiver = Receiver::builder().open(kafka).await.expect("it opens");
    let mut handle = receiver.spawn();
    let sink = sink(cluster);
    sink.deliver(&handle.dsn(), message, &attempt(1, message)).await.expect("delivered");
    sink.close().await.expect("closed");
    handle.next().await.expect("open").accept().await.expect("direct");
    receiver.close(crate::support::PATIENCE).await.expect("nothing is in hand");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_logged() {
    let Some(broker) = Broker::shared() else { return };
    let log = Log::default();
    // librdkafka logs from threads of its own: only a subscriber of the whole process hears them.
    let subscriber =
        tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(log.clone()).with_ansi(false);
    tracing::subscriber::set_global_default(subscriber.finish()).expect("no other test sets one");
    let topic = broker.topic(1, &[]).await;
    let message = Message::builder("a").subject("s").header("x-planted", "planted-header").payload("planted-body");
    let message = message.build().expect("valid");
    let tls = cluster(broker.listener("_SASL_TLS")).ssl().root_certificates(broker.file("server.pem"));
    let tls = tls.client_certificate(broker.file("client.pem"), broker.file("client.key"));
    let known = "alice-secret";
    for (cluster, is_good) in [
        (tls.scram_sha_512("alice", known), true),
        (cluster(broker.listener("_SASL")).sasl_plain("alice", known), true),
        (cluster(broker.listener("_SASL")).sasl_plain("alice", "planted-password"), false),
        (cluster(broker.listener("_SASL")).scram_sha_256("alice", "planted-password"), false),
    ] {
        let cluster = cluster.setting("debug", "all").setting("ssl.key.password", "planted-phrase");
        #[cfg(feature = "receiver")]
        receives(cluster.clone(), &topic, &message, is_good).await;
        let sink = sink(cluster);
        match sink.deliver(&to(&topic), &message, &attempt(1, &message)).await {
            Ok(_) => assert!(is_good),
            Err(error) => {
                let text = format!("{} {error:?}", error.chain());
                assert!(!is_good && !text.contains("planted"), "{text}");
            }
        }
        sink.close().await.expect("closed");
    }
    let log = String::from_utf8_lossy(&log.0.lock().expect("no panic")).into_owned();
    assert!(log.contains("SASL") && log.contains("librdkafka"), "nothing was logged");
    let key = broker.file("client.key");
    let key = key.lines().nth(1).expect("the key");
    for secret in ["planted", known, key] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
