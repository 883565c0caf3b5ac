//! librdkafka's consumer, on a thread of its own: it blocks.

use super::{listening::Arrived, wire};
use crate::{log, outcome::Trouble};
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// How long one poll waits: by then it is seen that nobody wants records any more.
const POLL: Duration = Duration::from_millis(100);

/// How long one question to the brokers may take.
const QUESTION: Duration = Duration::from_secs(5);

/// How many records wait to be offered.
const READ_AHEAD: usize = 16;

/// What consumers are set to where the operator says nothing else.
pub(super) const DEFAULTS: [(&str, &str); 2] = [
    // librdkafka wants one to assign partitions. Nothing joins it, and nothing is committed.
    ("group.id", "callback"),
    // What librdkafka reads ahead, beside what is offered; a broker's answer may go beyond it.
    ("queued.max.messages.kbytes", "16384"),
];

/// What the receiver relies on.
pub(super) const FIXED: [(&str, &str); 5] = [
    // Where a position is not there any more, everything that is there is read.
    ("auto.offset.reset", "earliest"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("enable.partition.eof", "false"),
    ("isolation.level", "read_committed"),
];

/// Why nobody else sets it.
pub(super) const RESERVED: [(&str, &str); 5] = [
    ("auto.offset.reset", "is always `earliest`"),
    ("enable.auto.commit", "is always off: positions are in the inbox"),
    ("enable.auto.offset.store", "is always off: positions are in the inbox"),
    ("enable.partition.eof", "is always off"),
    ("isolation.level", "is always `read_committed`"),
];

/// A consumer that is connected and reads nothing yet.
pub(super) struct Opened {
    consumer: BaseConsumer<Context>,
    /// The first offset and the end of each partition.
    pub(super) partitions: BTreeMap<i32, (i64, i64)>,
}

/// Why a consumer could not be opened.
pub(super) enum OpenError {
    /// librdkafka does not start; its own text, which may hold settings.
    Start(KafkaError),
    /// What the brokers said last.
    Answer(RDKafkaErrorCode),
}

impl Opened {
    /// Connects, and asks where each partition ends. Blocks, `within` this time.
    pub(super) fn open(config: &ClientConfig, topic: &str, within: Duration) -> Result<Self, OpenError> {
        let begun = Instant::now();
        let context = Context::default();
        let consumer: BaseConsumer<Context> = config.create_with_context(context).map_err(OpenError::Start)?;
        loop {
            let left = within.saturating_sub(begun.elapsed());
            let question = left.min(QUESTION).max(POLL);
            let error = match ends(&consumer, topic, question) {
                Ok(partitions) => return Ok(Self { consumer, partitions }),
                Err(error) => error,
            };
            // What the client itself has to say comes by polls.
            drop(consumer.poll(POLL));
            if begun.elapsed() >= within {
                let said = consumer.context().trouble().or_else(|| error.rdkafka_error_code());
                return Err(OpenError::Answer(said.unwrap_or(RDKafkaErrorCode::Fail)));
            }
        }
    }

    /// Reads from these offsets on, on a thread of its own, until nobody wants records any more. The second future
    /// resolves when the consumer is gone.
    pub(super) fn read(
        self,
        topic: String,
        starts: Vec<(i32, i64)>,
        discover: Duration,
        limit: usize,
    ) -> io::Result<(mpsc::Receiver<Arrived>, oneshot::Receiver<()>)> {
        let (arrivals, receiver) = mpsc::channel(READ_AHEAD);
        let (gone, is_gone) = oneshot::channel::<()>();
        let reader = move || {
            let reading = Reading { consumer: self.consumer, topic, limit, arrivals };
            reading.read(&starts, discover);
            drop(reading);
            drop(gone);
        };
        thread::Builder::new().name("callback-kafka".into()).spawn(reader)?;
        Ok((receiver, is_gone))
    }

    /// Ends the consumer without anybody waiting for it.
    pub(super) fn end(self) {
        // Without a thread it ends here.
        drop(thread::Builder::new().spawn(move || drop(self)));
    }
}

struct Reading {
    consumer: BaseConsumer<Context>,
    topic: String,
    limit: usize,
    arrivals: mpsc::Sender<Arrived>,
}

impl Reading {
    fn read(&self, starts: &[(i32, i64)], discover: Duration) {
        let mut known: HashSet<i32> = starts.iter().map(|(partition, _)| *partition).collect();
        let starts = starts.iter().map(|(partition, next)| (*partition, Offset::Offset(*next)));
        if let Err(error) = self.list(starts).and_then(|list| self.consumer.assign(&list)) {
            return tracing::error!(topic = self.topic, %error, "the partitions are not assigned");
        }
        let mut looked = Instant::now();
        while !self.arrivals.is_closed() {
            if looked.elapsed() >= discover {
                self.look(&mut known);
                looked = Instant::now();
            }
            match self.consumer.poll(POLL) {
                None => {}
                Some(Ok(record)) => {
                    self.consumer.context().clear();
                    let (partition, offset) = (record.partition(), record.offset());
                    let content = wire::offer(record.key(), record.payload(), record.headers(), self.limit);
                    drop(record);
                    if self.arrivals.blocking_send(Arrived { partition, offset, content }).is_err() {
                        return;
                    }
                }
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    return tracing::error!(topic = self.topic, %code, "a fatal error of librdkafka");
                }
                // The context has logged it, and librdkafka goes on.
                Some(Err(_)) => {}
            }
        }
    }

    /// Looks for partitions that the topic has got meanwhile: they are read from their beginning.
    fn look(&self, known: &mut HashSet<i32>) {
        let Ok(partitions) = partitions(&self.consumer, &self.topic, QUESTION) else { return };
        self.consumer.context().clear();
        let new: Vec<i32> = partitions.into_iter().filter(|partition| !known.contains(partition)).collect();
        if new.is_empty() {
            return;
        }
        let starts = new.iter().map(|partition| (*partition, Offset::Beginning));
        match self.list(starts).and_then(|list| self.consumer.incremental_assign(&list)) {
            Ok(()) => {
                tracing::info!(topic = self.topic, partitions = ?new, "the topic has more partitions");
                known.extend(new);
            }
            Err(error) => tracing::warn!(topic = self.topic, %error, "further partitions are not assigned"),
        }
    }

    fn list(&self, starts: impl Iterator<Item = (i32, Offset)>) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in starts {
            list.add_partition_offset(&self.topic, partition, offset)?;
        }
        Ok(list)
    }
}

/// The partitions of a topic.
fn partitions(consumer: &BaseConsumer<Context>, topic: &str, within: Duration) -> KafkaResult<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), within)?;
    let topic = metadata.topics().first().ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic))?;
    match topic.error() {
        Some(error) => Err(KafkaError::MetadataFetch(error.into())),
        None => Ok(topic.partitions().iter().map(|partition| partition.id()).collect()),
    }
}

/// The first offset and the end of each partition.
fn ends(consumer: &BaseConsumer<Context>, topic: &str, within: Duration) -> KafkaResult<BTreeMap<i32, (i64, i64)>> {
    let partitions = partitions(consumer, topic, within)?;
    let end = |partition| Ok((partition, consumer.fetch_watermarks(topic, partition, within)?));
    let ends: BTreeMap<_, _> = partitions.into_iter().map(end).collect::<KafkaResult<_>>()?;
    if ends.is_empty() { Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic)) } else { Ok(ends) }
}

/// Whether it speaks of the coordinator of a group, whom librdkafka looks for though nothing is asked of him.
const fn is_of_the_group(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::CoordinatorLoadInProgress
            | RDKafkaErrorCode::NotCoordinator
    )
}

/// Takes what librdkafka says. The same error is logged once, until it has passed.
#[derive(Default)]
struct Context(Mutex<Vec<RDKafkaErrorCode>>);

impl Context {
    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The error of the connections that says most of what is wrong.
    fn trouble(&self) -> Option<RDKafkaErrorCode> {
        let codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let troubles = codes.iter().filter_map(|code| Some((Trouble::of(*code)? as u8, *code)));
        troubles.min_by_key(|(order, _)| *order).map(|(_, code)| code)
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log::line(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code().filter(|code| !is_of_the_group(*code)) else { return };
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !codes.contains(&code) {
            codes.push(code);
            tracing::warn!(target: "librdkafka", %code, reason, "the consumer has an error, and goes on");
        }
    }
}

impl ConsumerContext for Context {}
