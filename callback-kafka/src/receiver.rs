//! Takes callbacks in from a topic of Kafka.

mod consumer;
mod kept;
mod listening;
mod log;
mod progress;
mod wire;

use crate::{KafkaCluster, KafkaSinkError, cluster, outcome::Trouble, target};
use async_trait::async_trait;
use callback_core::Dsn;
use callback_receive::{HandleId, Intake, Listener};
use consumer::{OpenError, Opened};
use listening::{Bounds, Listening};
use log::Log;
use rdkafka::{ClientConfig, error::KafkaError, error::RDKafkaErrorCode};
use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::spawn_blocking;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Takes callbacks in from one topic: the [`Listener`] of a [`Receiver`](callback_receive::Receiver).
///
/// A handle is the key of its records: `kafka:///callbacks?key=…`. There is no consumer group: each process reads all
/// partitions of the topic, since any sender may choose any, from their ends as they were before the first Dsn was given
/// out; with an inbox, from where it stopped. Partitions that the topic gets later are read from their beginning.
///
/// librdkafka runs on threads of its own; the runtime is not blocked. Only registered brokers are dialled, and whatever these
/// advertise.
///
/// ```no_run
/// use callback_kafka::{KafkaCluster, KafkaReceiver};
/// use callback_receive::Receiver;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let kafka = KafkaReceiver::open(KafkaCluster::new("b1:9092,b2:9092"), "callbacks").await?;
/// let receiver = Receiver::builder().open(kafka).await?;
/// println!("{}", receiver.spawn().url()); // kafka:///callbacks?key=…
/// # Ok(())
/// # }
/// ```
pub struct KafkaReceiver {
    log: Log,
    /// A handle's Dsn, without the handle.
    base: String,
    opened: Mutex<Option<Opened>>,
    has_inbox: AtomicBool,
    bounds: Bounds,
    discover: Duration,
    closing: CancellationToken,
    listening: TaskTracker,
}

impl KafkaReceiver {
    /// Connects to the cluster, and reads where each partition of the topic ends.
    ///
    /// Of the cluster the brokers, the security and the settings count; which topics it opens is for sinks.
    ///
    /// # Errors
    /// When the cluster is set up wrongly, or the topic is not found or may not be read within 30 s.
    pub async fn open(cluster: KafkaCluster, topic: &str) -> Result<Self, KafkaReceiverError> {
        Self::builder().open(cluster, topic).await
    }

    /// Begins a receiver that is set up otherwise.
    pub fn builder() -> KafkaReceiverBuilder {
        KafkaReceiverBuilder::default()
    }

    fn take_opened(&self) -> Option<Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Builds a [`KafkaReceiver`].
#[derive(Clone, Debug)]
#[must_use]
pub struct KafkaReceiverBuilder {
    name: Option<String>,
    bounds: Bounds,
    discover: Duration,
    open_within: Duration,
}

impl Default for KafkaReceiverBuilder {
    fn default() -> Self {
        let keep = Duration::from_secs(3600);
        Self {
            name: None,
            bounds: Bounds { records: 1_000, bytes: 64 << 20, keep, keep_bytes: 16 << 20 },
            discover: Duration::from_secs(30),
            open_within: Duration::from_secs(30),
        }
    }
}

impl KafkaReceiverBuilder {
    /// Sets the name that senders know the cluster by: Dsns are `kafka://name/topic?key=…`. Default: their default cluster.
    ///
    /// A name is as [`Dsn::is_cluster_name`] says. Positions in an inbox are stored under it: another name is another log.
    pub fn cluster_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how many records are offered at once or wait to be offered again, and how many bytes they have. Default 1,000 and
    /// 64 MiB; 0 counts as 1.
    ///
    /// Where the bytes are reached, the last record may be beyond them. Nothing is read meanwhile, for no handle.
    pub fn in_flight(mut self, records: usize, bytes: usize) -> Self {
        (self.bounds.records, self.bounds.bytes) = (records.max(1), bytes.max(1));
        self
    }

    /// Sets how long records are kept whose key is a handle that nobody expects, and how many bytes they have at most, 512 for
    /// each record included. Default 1 h and 16 MiB.
    ///
    /// Beyond the bytes the oldest go, counted. Without an inbox none is kept.
    pub fn keep_unknown(mut self, time: Duration, bytes: usize) -> Self {
        (self.bounds.keep, self.bounds.keep_bytes) = (time, bytes);
        self
    }

    /// Sets how often it is looked whether the topic has more partitions. Default 30 s.
    pub fn discover_every(mut self, time: Duration) -> Self {
        self.discover = time;
        self
    }

    /// Sets how long `open` tries to reach the cluster and to find the topic. Default 30 s.
    pub fn open_within(mut self, time: Duration) -> Self {
        self.open_within = time;
        self
    }

    /// Connects, like [`KafkaReceiver::open`].
    ///
    /// # Errors
    /// Those of [`KafkaReceiver::open`].
    pub async fn open(self, cluster: KafkaCluster, topic: &str) -> Result<KafkaReceiver, KafkaReceiverError> {
        let Self { name, bounds, discover, open_within } = self;
        if let Some(name) = name.as_ref().filter(|name| !Dsn::is_cluster_name(name)) {
            return Err(KafkaSinkError::no_name(name.clone()).into());
        }
        let config = config(&cluster, name.as_deref())?;
        let of_topic = |reason: String| KafkaReceiverError::Topic { topic: topic.to_owned(), reason };
        target::check_topic(topic).map_err(|error| of_topic(error.to_string()))?;
        let base = format!("kafka://{}/{topic}?key=", name.as_deref().unwrap_or_default());
        let (asked, log) = (topic.to_owned(), Log::new(name, topic.to_owned()));
        let opening = spawn_blocking(move || Opened::open(&config, &asked, open_within));
        let unreachable = |reason: String| KafkaReceiverError::Unreachable { reason };
        let opened = match opening.await {
            Ok(Ok(opened)) => opened,
            Ok(Err(OpenError::Answer(code))) => {
                return Err(match (code, Trouble::of(code)) {
                    (_, Some(trouble)) => unreachable(trouble.text().to_owned()),
                    (RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition, None) => {
                        of_topic("is not there".to_owned())
                    }
                    (RDKafkaErrorCode::TopicAuthorizationFailed, None) => of_topic("may not be read".to_owned()),
                    (code, None) => unreachable(code.to_string()),
                });
            }
            Ok(Err(OpenError::Start(KafkaError::ClientCreation(text)))) => {
                return Err(unreachable(cluster.masked(text)));
            }
            // The other errors may print values.
            Ok(Err(OpenError::Start(_))) => return Err(unreachable("the settings are not taken".to_owned())),
            Err(_) => return Err(unreachable("the runtime ends".to_owned())),
        };
        Ok(KafkaReceiver {
            log,
            base,
            opened: Mutex::new(Some(opened)),
            has_inbox: AtomicBool::new(false),
            bounds,
            discover,
            closing: CancellationToken::new(),
            listening: TaskTracker::new(),
        })
    }
}

/// All properties of the consumer, secrets included.
fn config(cluster: &KafkaCluster, name: Option<&str>) -> Result<ClientConfig, KafkaSinkError> {
    let mut config = cluster.connection(&consumer::DEFAULTS);
    config.extend(consumer::FIXED.map(|(name, value)| (name.to_owned(), value.to_owned())));
    cluster.checked(name, &[&cluster::RESERVED[..], &consumer::RESERVED].concat(), &config)?;
    Ok(config)
}

#[async_trait]
impl Listener for KafkaReceiver {
    fn dsn(&self, handle: &HandleId) -> Dsn {
        let dsn = format!("{}{}", self.base, handle.expose());
        dsn.parse().expect("names of clusters and topics that were checked, and a handle, make a Dsn")
    }

    fn begin(&self, stored: &[(String, i64)]) -> Vec<(String, i64)> {
        self.has_inbox.store(true, Ordering::Relaxed);
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = opened.iter().flat_map(|opened| &opened.partitions);
        self.log.begin(stored, ends.map(|(partition, (_, end))| (*partition, *end)))
    }

    async fn listen(&self, intake: Intake) {
        let _listening = self.listening.token();
        let Some(opened) = self.take_opened() else { return };
        let has_inbox = self.has_inbox.load(Ordering::Relaxed);
        let positions = if has_inbox { self.log.positions(&intake.positions()) } else { Vec::new() };
        let mut starts = Vec::new();
        for (partition, (first, end)) in &opened.partitions {
            let position = positions.iter().find(|(known, _)| known == partition);
            starts.push((*partition, self.start(*partition, position.map(|(_, at)| at + 1), *first, *end)));
        }
        let read = opened.read(self.log.topic().to_owned(), starts.clone(), self.discover, intake.body_limit());
        let (arrivals, is_gone) = match read {
            Ok(reading) => reading,
            Err(error) => return tracing::error!(%error, "there is no thread to read on"),
        };
        let listening = Listening::new(intake, self.log.clone(), has_inbox, self.bounds, &starts);
        listening.run(arrivals, self.closing.clone()).await;
        // It sends nothing: it is gone with its thread.
        let _ = is_gone.await;
    }

    async fn close(&self) {
        self.closing.cancel();
        if let Some(opened) = self.take_opened() {
            opened.end();
        }
        self.listening.close();
        self.listening.wait().await;
    }
}

impl KafkaReceiver {
    /// Where to go on, or where a partition ends that has no position. What is missing by now is logged.
    fn start(&self, partition: i32, next: Option<i64>, first: i64, end: i64) -> i64 {
        let topic = self.log.topic();
        match next {
            None => end,
            Some(next) if next > end => {
                tracing::error!(
                    topic,
                    partition,
                    next,
                    end,
                    "the topic is shorter than it was: it is read from its beginning"
                );
                first
            }
            Some(next) => {
                if next < first {
                    tracing::warn!(topic, partition, next, first, "records are not there any more");
                }
                next.max(first)
            }
        }
    }
}

impl Drop for KafkaReceiver {
    fn drop(&mut self) {
        self.closing.cancel();
        if let Some(opened) = self.take_opened() {
            opened.end();
        }
    }
}

impl fmt::Debug for KafkaReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaReceiver")
            .field("log", &self.log)
            .field("bounds", &self.bounds)
            .field("discover", &self.discover)
            .finish_non_exhaustive()
    }
}

/// Why a receiver could not be made. Prints no value of a setting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaReceiverError {
    /// The cluster is set up wrongly.
    #[error("the cluster cannot be used")]
    Cluster(#[from] KafkaSinkError),
    /// The topic cannot be read.
    #[error("the topic `{topic}` cannot be read: {reason}")]
    #[non_exhaustive]
    Topic {
        /// The topic.
        topic: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The cluster did not answer in time.
    #[error("the cluster cannot be reached: {reason}")]
    #[non_exhaustive]
    Unreachable {
        /// What librdkafka says.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_receiver_relies_on_cannot_be_set() {
        for (name, reason) in consumer::RESERVED {
            let error = config(&KafkaCluster::new("b1").setting(name, "x"), None).expect_err("it is refused");
            assert!(error.to_string().ends_with(&format!("`{name}` of the default cluster {reason}")), "{error}");
        }
        let error = config(&KafkaCluster::new("b1").setting("plugin.library.paths", "x"), Some("orders"));
        assert!(error.expect_err("it is refused").to_string().contains("it loads code"));
    }

    #[test]
    fn the_consumer_commits_nothing_and_reads_what_is_committed() {
        let cluster = KafkaCluster::new("b1").ssl().sasl_plain("me", "secret").setting("group.id", "mine");
        let config = config(&cluster, None).expect("no topic has to be open");
        let expected = [
            ("auto.offset.reset", "earliest"),
            ("enable.auto.commit", "false"),
            ("isolation.level", "read_committed"),
            ("bootstrap.servers", "b1:9092"),
            ("security.protocol", "sasl_ssl"),
            ("sasl.password", "secret"),
            ("group.id", "mine"),
            ("client.id", "callback"),
        ];
        for (name, value) in expected {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
        assert_eq!((config.get("acks"), config.get("batch.size")), (None, None));
    }
}
