//! The real RabbitMQ that the tests talk to.

use callback_amqp::{AmqpCluster, AmqpSink};
use callback_core::{Attempt, Dsn, Message, Receipt, Sink, SinkError};
use lapin::{
    Channel, Connection, ConnectionProperties, ExchangeKind,
    message::Delivery,
    options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::{
    collections::HashMap,
    env,
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::{Mutex, MutexGuard},
};

/// How long anything may take that a test waits for: a broker that starts again on a busy machine takes a minute.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A broker, and how to reach it from beside the sink.
pub(crate) struct Broker {
    pub(crate) url: String,
    variables: HashMap<String, String>,
    /// The authority of the broker's certificate, where it has TLS.
    pub(crate) authority: Option<Authority>,
    /// Its end of the pipe is what keeps the broker running.
    _script: Option<Child>,
    _folder: Option<tempfile::TempDir>,
}

/// The broker that all tests share, or `None`, printed, where there is none. No test disturbs it.
pub(crate) fn shared() -> Option<Broker> {
    let Ok(url) = env::var("CALLBACK_TEST_AMQP") else {
        assert!(env::var_os("CI").is_none(), "CALLBACK_TEST_AMQP is not set: run by scripts/rabbitmq");
        // Not by `eprintln!`, which the test runner hides where the test passes.
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let line = format!("skipped: {name}: CALLBACK_TEST_AMQP is not set; scripts/rabbitmq sets it\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        return None;
    };
    Some(Broker { url, variables: env::vars().collect(), authority: None, _script: None, _folder: None })
}

static OWN: Mutex<Option<Broker>> = Mutex::const_new(None);

/// A broker for one test at a time to disturb, with TLS; it is left as it was found.
pub(crate) async fn own() -> Option<OwnBroker> {
    shared()?;
    let mut broker = OWN.lock().await;
    if broker.is_none() {
        *broker = Some(Broker::start().await);
    }
    Some(OwnBroker(broker))
}

pub(crate) struct OwnBroker(MutexGuard<'static, Option<Broker>>);

impl std::ops::Deref for OwnBroker {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        self.0.as_ref().expect("it was started")
    }
}

impl Broker {
    async fn start() -> Self {
        let authority = Authority::new();
        let folder = tempfile::tempdir().expect("a folder");
        let (chain, key) = authority.certificate("localhost", 1);
        for (name, text) in [("ca.pem", &authority.pem), ("cert.pem", &chain), ("key.pem", &key)] {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/rabbitmq");
        let mut script = Command::new(script)
            .args(["run", "sh", "-c", "env; echo; read -r line"])
            .env("CALLBACK_RABBITMQ_TLS", folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/rabbitmq runs");
        let mut lines = BufReader::new(script.stdout.take().expect("piped")).lines();
        let mut variables = HashMap::new();
        while let Some(line) = lines.next_line().await.expect("text").filter(|line| !line.is_empty()) {
            if let Some((name, value)) = line.split_once('=') {
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        let url = variables.get("CALLBACK_TEST_AMQP").expect("the broker started").clone();
        Self { url, variables, authority: Some(authority), _script: Some(script), _folder: Some(folder) }
    }

    pub(crate) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).unwrap_or_else(|| panic!("{name} is not set"))
    }

    /// Runs `rabbitmqctl`.
    pub(crate) async fn control(&self, arguments: &[&str]) {
        let output = Command::new(self.variable("CALLBACK_TEST_RABBITMQCTL")).args(arguments).output().await;
        let output = output.expect("rabbitmqctl runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Has the broker write down what was declared.
    ///
    /// RabbitMQ 3.10.8 was seen to forget a durable queue, and what it had confirmed, when it was killed seconds after the
    /// declaration: its record was not in `rabbit_durable_queue` after the next start.
    pub(crate) async fn write_down(&self) {
        self.control(&["eval", "ok = mnesia:sync_log(), dumped = mnesia:dump_log()."]).await;
    }

    /// Sends a signal to the broker's process.
    pub(crate) async fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(format!("{}/pid", self.variable("CALLBACK_TEST_RABBITMQ"))).expect("a pid");
        let status = Command::new("kill").args([signal, pid.trim()]).status().await.expect("kill runs");
        assert!(status.success(), "kill {signal} {pid}");
    }

    /// Ends the broker's process at once; nobody listens at its port afterwards.
    pub(crate) async fn kill(&self) {
        self.signal("-KILL").await;
        let address = self.address();
        // A busy machine takes a while to end it. Until then its port answers, and `start` would take it for the next node.
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).await.is_ok() {
            assert!(Instant::now() < deadline, "the broker was killed, and listens");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn address(&self) -> SocketAddr {
        let (_, rest) = self.url.split_once('@').expect("a login");
        rest.trim_end_matches('/').parse().expect("an address")
    }

    /// Starts it again after it was killed.
    pub(crate) async fn restart(&self) {
        let start = format!("{}/start", self.variable("CALLBACK_TEST_RABBITMQ"));
        let status = Command::new(start).status().await.expect("start runs");
        assert!(status.success(), "the broker does not start");
    }

    /// The broker as a cluster of which everything is open.
    pub(crate) fn cluster(&self) -> AmqpCluster {
        AmqpCluster::new(self.url.parse().expect("a Dsn")).queue("*").exchange("*").vhost("*")
    }

    pub(crate) fn sink(&self) -> AmqpSink {
        sink(self.cluster())
    }

    /// How often each message id is in a queue, which is empty afterwards; waits until the broker knows the queue.
    ///
    /// One that was killed may have answered before it does.
    pub(crate) async fn ids(&self, queue: &str) -> HashMap<String, usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let side = self.side("").await;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            match side.channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
                Ok(_) => return side.ids(queue).await,
                Err(error) => assert!(Instant::now() < deadline, "the queue is gone: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// A connection beside the sink's.
    pub(crate) async fn side(&self, vhost: &str) -> Side {
        // Without a path, lapin asks for a vhost without a name.
        let url = format!("{}{}", self.url, if vhost.is_empty() { "%2F" } else { vhost });
        let deadline = Instant::now() + PATIENCE;
        let connection = loop {
            match Connection::connect(&url, ConnectionProperties::default()).await {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < deadline, "no connection: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let channel = connection.create_channel().await.expect("a channel");
        Side { _connection: connection, channel }
    }
}

pub(crate) fn sink(cluster: AmqpCluster) -> AmqpSink {
    AmqpSink::builder().default_cluster(cluster).build().expect("a sink")
}

/// A look at the broker by another client.
pub(crate) struct Side {
    _connection: Connection,
    pub(crate) channel: Channel,
}

impl Side {
    /// A new durable queue.
    pub(crate) async fn queue(&self) -> String {
        let name = unique("queue");
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.as_str().into(), durable, FieldTable::default()).await.expect("a queue");
        name
    }

    pub(crate) async fn exchange(&self, name: &str) {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = self.channel.exchange_declare(name.into(), ExchangeKind::Topic, durable, FieldTable::default());
        declared.await.expect("an exchange");
    }

    pub(crate) async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let options = QueueBindOptions::default();
        let bound = self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
        bound.await.expect("a binding");
    }

    pub(crate) async fn delete(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
    }

    /// The next message of a queue.
    pub(crate) async fn next(&self, queue: &str) -> Option<Delivery> {
        let message = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.expect("asked");
        message.map(|message| message.delivery)
    }

    /// How often each message id is in a queue, which is empty afterwards.
    pub(crate) async fn ids(&self, queue: &str) -> HashMap<String, usize> {
        let mut ids = HashMap::new();
        while let Some(delivery) = self.next(queue).await {
            let id = delivery.properties.message_id().as_ref().expect("an id").to_string();
            *ids.entry(id).or_default() += 1;
        }
        ids
    }
}

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new([]).expect("valid");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "callback test authority");
        let pem = parameters.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(parameters, key) }
    }

    /// A certificate for this name and its key, in PEM, that ends in so many days, or has ended before.
    pub(crate) fn certificate(&self, name: &str, days: i64) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::new([name.to_owned()]).expect("valid");
        parameters.distinguished_name.push(DnType::CommonName, name);
        let now = time::OffsetDateTime::now_utc();
        parameters.not_before = now - time::Duration::days(30);
        parameters.not_after = now + time::Duration::days(days);
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// A name that no other test uses.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn to_queue(queue: &str) -> Dsn {
    format!("amqp:///?queue={queue}").parse().expect("a Dsn")
}

pub(crate) fn message() -> Message {
    Message::builder("test.happened").payload("a body").build().expect("a message")
}

pub(crate) fn attempt(limit: Duration) -> Attempt {
    Attempt::new(1, SystemTime::now(), Instant::now() + limit)
}

pub(crate) async fn deliver(sink: &AmqpSink, dsn: &Dsn) -> Result<Receipt, SinkError> {
    sink.deliver(dsn, &message(), &attempt(PATIENCE)).await
}

/// Delivers until it succeeds; the kinds of failure before, each once, in the order in which they came.
pub(crate) async fn deliver_until(sink: &AmqpSink, dsn: &Dsn) -> Vec<callback_core::ErrorKind> {
    let (deadline, mut kinds) = (Instant::now() + PATIENCE, Vec::new());
    while let Err(error) = deliver(sink, dsn).await {
        assert!(Instant::now() < deadline, "it never succeeds: {}", error.chain());
        if !kinds.contains(&error.kind()) {
            kinds.push(error.kind());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    kinds
}
