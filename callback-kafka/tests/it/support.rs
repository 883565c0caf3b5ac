//! A broker, and what tests read from it.

use callback_core::{Attempt, Dsn, Message, MessageId, Signer};
use callback_kafka::{KafkaCluster, KafkaSink};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};
use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};
use tokio::task::{block_in_place, spawn_blocking};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A node that `scripts/kafka` started.
pub(crate) struct Broker {
    variables: HashMap<String, String>,
    own: Option<Child>,
}

/// One record as a consumer reads it.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) headers: HashMap<String, String>,
}

impl Broker {
    /// The broker that all tests share: `scripts/kafka run cargo test` brings it along.
    pub(crate) fn shared() -> Option<Self> {
        if env::var_os("CALLBACK_TEST_KAFKA").is_none() {
            assert!(env::var_os("CI").is_none(), "CALLBACK_TEST_KAFKA is not set");
            say("skipped: CALLBACK_TEST_KAFKA is not set");
            return None;
        }
        let variables = env::vars().filter(|(name, _)| name.starts_with("CALLBACK_TEST_KAFKA"));
        Some(Self { variables: variables.collect(), own: None })
    }

    /// A broker for a test that disturbs it.
    pub(crate) fn own() -> Option<Self> {
        Self::shared()?;
        Some(Self::start())
    }

    fn start() -> Self {
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kafka"))
            .args(["run", "sh", "-c", "env | grep ^CALLBACK_TEST_KAFKA; echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/kafka can be run");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let lines = output.lines().map_while(Result::ok).take_while(|line| !line.is_empty());
        let variables: HashMap<_, _> =
            lines.filter_map(|line| line.split_once('=').map(|(name, value)| (name.into(), value.into()))).collect();
        assert!(variables.contains_key("CALLBACK_TEST_KAFKA"), "the broker did not start");
        Self { variables, own: Some(child) }
    }

    fn variable(&self, name: &str) -> &str {
        self.variables.get(name).unwrap_or_else(|| panic!("{name} is not set"))
    }

    /// `host:port` of a listener: `""` is the plain one.
    pub(crate) fn listener(&self, name: &str) -> &str {
        self.variable(&format!("CALLBACK_TEST_KAFKA{name}"))
    }

    /// A file of the broker's folder.
    pub(crate) fn file(&self, name: &str) -> String {
        let path = format!("{}/{name}", self.variable("CALLBACK_TEST_KAFKA_FOLDER"));
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Sends a signal to the node.
    pub(crate) fn signal(&self, name: &str) {
        assert!(self.own.is_some(), "others use this broker");
        let kill = format!("kill -{name} {}", self.file("pid").trim());
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("there is a shell").success(), "{kill}");
    }

    /// A cluster without security, with short waits.
    pub(crate) fn plain(&self) -> KafkaCluster {
        cluster(self.listener(""))
    }

    pub(crate) fn sink(&self) -> KafkaSink {
        sink(self.plain())
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.listener(""));
        config
    }

    pub(crate) fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.config().create().expect("an admin client")
    }

    /// Makes a topic of one's own.
    pub(crate) async fn topic(&self, partitions: i32, settings: &[(&str, &str)]) -> String {
        let name = new_topic();
        self.create_topic(&name, partitions, settings).await;
        name
    }

    pub(crate) async fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin = self.admin();
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (name, value) in settings {
            topic = topic.set(name, value);
        }
        let created = admin.create_topics([&topic], &admin_options()).await.expect("an answer");
        assert_eq!(created, [Ok(name.to_owned())]);
        block_in_place(|| drop(admin));
    }

    /// All records of a topic, partition by partition.
    pub(crate) async fn read(&self, topic: &str) -> Vec<Record> {
        let (mut config, topic) = (self.config(), topic.to_owned());
        config.set("group.id", "callback-test").set("enable.auto.commit", "false");
        spawn_blocking(move || read(&config.create().expect("a consumer"), &topic)).await.expect("no panic")
    }
}

pub(crate) fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

/// Tells whoever reads the output of the tests.
#[expect(clippy::print_stdout, reason = "a test has no other way to say it")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}

fn read(consumer: &BaseConsumer, topic: &str) -> Vec<Record> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("metadata");
    let (mut partitions, mut left) = (TopicPartitionList::new(), 0);
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE).expect("watermarks");
        left += high - low;
        partitions.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("a place");
    }
    consumer.assign(&partitions).expect("assigned");
    let mut records = Vec::new();
    while left > 0 {
        let message = consumer.poll(PATIENCE).expect("a record in time").expect("a record");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        records.push(Record {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(text),
            body: message.payload().expect("a value").to_vec(),
            headers: headers.map(|header| (header.key.to_owned(), text(header.value.expect("a value")))).collect(),
        });
        left -= 1;
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.own.take() {
            // Its command reads to the end of this, and the script then stops the node.
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// A cluster behind these brokers, with short waits and all topics open.
pub(crate) fn cluster(brokers: &str) -> KafkaCluster {
    let cluster = KafkaCluster::new(brokers).topic("*").delivery_timeout(Duration::from_secs(3));
    cluster.setting("linger.ms", "0").setting("topic.metadata.propagation.max.ms", "500")
}

/// A sink whose default cluster this is.
pub(crate) fn sink(cluster: KafkaCluster) -> KafkaSink {
    KafkaSink::builder().default_cluster(cluster).build().expect("it is set up well")
}

pub(crate) fn new_topic() -> String {
    format!("test.{}", MessageId::new())
}

pub(crate) fn dsn(text: &str) -> Dsn {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A Dsn of the default cluster.
pub(crate) fn to(topic: &str) -> Dsn {
    dsn(&format!("kafka:///{topic}"))
}

pub(crate) fn message(body: impl Into<String>) -> Message {
    Message::builder("test.done").subject("task-1").payload(body.into()).build().expect("valid")
}

/// A signed attempt that has as long as anything may take.
pub(crate) fn attempt(number: u32, message: &Message) -> Attempt {
    attempt_within(PATIENCE, number, message)
}

pub(crate) fn attempt_within(limit: Duration, number: u32, message: &Message) -> Attempt {
    let signer: Signer = SECRET.parse().expect("valid");
    Attempt::new(number, SystemTime::now(), Instant::now() + limit).sign(&signer, message)
}

/// Waits until it holds; nothing else tells when.
pub(crate) async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "it takes too long");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
