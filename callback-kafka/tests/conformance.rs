//! The sink keeps the contract, against Apache Kafka behind a network that fails.

#[path = "it/support.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use callback_core::{
    Dsn, ErrorKind, async_trait,
    conformance::{Fault, Harness, Proxy, Received, Skip, server},
};
use callback_kafka::KafkaSink;
use rdkafka::{
    ClientConfig,
    admin::{AlterConfig, ResourceSpecifier},
    producer::{FutureProducer, FutureRecord},
};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use support::{Broker, PATIENCE, admin_options, cluster, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Handle,
    task::{JoinSet, block_in_place},
};

/// The limits of a topic, in bytes.
const NOTHING: &str = "1";
const EVERYTHING: &str = "16777216";

/// A topic of the shared broker, behind a proxy of its own.
struct Topic {
    broker: Broker,
    name: String,
    proxy: Proxy,
    refuses: AtomicBool,
    /// Ends with the harness.
    _rewriting: JoinSet<io::Result<()>>,
}

/// Passes everything on, but for the address that the broker says: clients are told the proxy's.
async fn rewrite(listener: TcpListener, broker: String, from: Vec<u8>, to: Vec<u8>) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await?;
        let (mut requests, answers) = client.into_split();
        let (from_broker, mut to_broker) = TcpStream::connect(&broker).await?.into_split();
        let (from, to) = (from.clone(), to.clone());
        connections.spawn(async move {
            copy(&mut requests, &mut to_broker).await?;
            to_broker.shutdown().await
        });
        connections.spawn(async move { pass_frames(from_broker, answers, &from, &to).await });
    }
}

/// An answer is its length and as many bytes (Kafka protocol guide, "Common Request and Response Structure").
async fn pass_frames(mut from_broker: OwnedReadHalf, mut to: OwnedWriteHalf, old: &[u8], new: &[u8]) -> io::Result<()> {
    loop {
        let length = from_broker.read_u32().await?;
        let mut frame = vec![0; length as usize];
        from_broker.read_exact(&mut frame).await?;
        if let Some(at) = frame.windows(old.len()).position(|window| window == old) {
            frame[at..at + new.len()].copy_from_slice(new);
        }
        to.write_u32(length).await?;
        to.write_all(&frame).await?;
    }
}

/// The address as an answer about the cluster holds it: host, and the port in four bytes.
fn as_told(address: SocketAddr) -> Vec<u8> {
    [address.ip().to_string().as_bytes(), &u32::from(address.port()).to_be_bytes()].concat()
}

impl Topic {
    /// Has the broker take records of this size, and waits until it does, or does not.
    fn limit(&self, bytes: &str) {
        let limited = async {
            let admin = self.broker.admin();
            let change = AlterConfig::new(ResourceSpecifier::Topic(&self.name)).set("max.message.bytes", bytes);
            let changed = admin.alter_configs([&change], &admin_options()).await.expect("an answer");
            assert!(changed.iter().all(Result::is_ok), "{changed:?}");
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", self.broker.listener("")).set("linger.ms", "0");
            let producer: FutureProducer = config.create().expect("a producer");
            until(async || {
                let record = FutureRecord::<str, str>::to(&self.name).payload("no delivery");
                producer.send(record, PATIENCE).await.is_ok() == (bytes != NOTHING)
            })
            .await;
        };
        block_in_place(|| Handle::current().block_on(limited));
    }
}

#[async_trait]
impl Harness for Topic {
    type Sink = KafkaSink;

    async fn start() -> Result<Self, Skip> {
        server("CALLBACK_TEST_KAFKA")?;
        let broker = Broker::shared().ok_or_else(|| Skip::absent("there is no broker"))?;
        let name = broker.topic(1, &[("max.message.bytes", EVERYTHING)]).await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let proxy = Proxy::start(listener.local_addr().expect("bound").to_string()).await.expect("a free port");
        let told = as_told(broker.listener("_ADVERTISED").parse().expect("an address"));
        let proxied = broker.listener("_PROXIED").to_owned();
        let mut rewriting = JoinSet::new();
        rewriting.spawn(rewrite(listener, proxied, told, as_told(proxy.address())));
        Ok(Self { broker, name, proxy, refuses: AtomicBool::new(false), _rewriting: rewriting })
    }

    fn sink(&self) -> KafkaSink {
        // Every record travels alone, so that one that is too large is known to be the culprit.
        let cluster = cluster(&self.proxy.address().to_string()).setting("batch.size", "1");
        support::sink(cluster.delivery_timeout(Duration::from_secs(5)))
    }

    fn dsn(&self) -> Dsn {
        support::dsn(&format!("kafka:///{}?key=planted-key", self.name))
    }

    async fn received(&self) -> Vec<Received> {
        let records = self.broker.read(&self.name).await.into_iter();
        let received = records.filter_map(|record| {
            let id = record.headers.get("webhook-id")?.parse().expect("an id");
            let headers = record.headers.into_iter().map(|(name, value)| (name.replace('_', "-"), value));
            Some(Received::new(id, record.body).with_headers(headers))
        });
        received.collect()
    }

    async fn inject(&self, fault: Fault) -> Result<(), Skip> {
        match fault {
            Fault::Refuse => {
                self.limit(NOTHING);
                self.refuses.store(true, Ordering::Relaxed);
                Ok(())
            }
            Fault::Throttle(_) => Err(Skip::because("a broker slows its clients down, and refuses nothing")),
            _ => self.proxy.inject(fault),
        }
    }

    async fn heal(&self) {
        self.proxy.heal();
        if self.refuses.swap(false, Ordering::Relaxed) {
            self.limit(EVERYTHING);
        }
    }

    fn refusal(&self) -> ErrorKind {
        ErrorKind::TooLarge
    }

    fn forbidden(&self) -> Result<(KafkaSink, Dsn), Skip> {
        Ok((self.sink(), support::dsn(&format!("kafka://127.0.0.2:9092/{}", self.name))))
    }

    fn forbidden_at_connect(&self) -> Result<(KafkaSink, Dsn), Skip> {
        Err(Skip::because("only registered clusters are dialled, by librdkafka"))
    }
}

callback_core::conformance!(Topic);
