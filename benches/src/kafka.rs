//! The suite `kafka`: what `KafkaSink` costs beside a bare producer with the same settings.

use crate::{
    Setting,
    bare::take_one,
    report::{Bar, Report, median},
    system::{self, Processors},
};
use bytes::Bytes;
use callback_core::{Attempt, BoxError, Message, MessageId, Payload, Signer, Sink};
use callback_kafka::{KafkaCluster, KafkaSink};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    message::{Header, OwnedHeaders},
    mocking::MockCluster,
    producer::{FutureProducer, FutureRecord},
};
use std::{
    env,
    future::Future,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime, task::JoinSet};

/// How many records are on their way at once, whoever sends them.
const IN_FLIGHT: usize = 4_096;

/// How many records go before what is measured.
const WARM_UP: usize = 20_000;

const PARTITIONS: i32 = 4;
const TOPIC: &str = "callback-bench";
const SUBJECT: &str = "0198c7e8-2f4b-7d7a-9a41-1b1c3c8d9e0f";
const DEADLINE: Duration = Duration::from_secs(20);

/// Measures the suite: against the broker that `CALLBACK_TEST_KAFKA` names, and against librdkafka's mock.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let processors = Processors::now();
        match env::var("CALLBACK_TEST_KAFKA") {
            Ok(brokers) => {
                create_topic(&brokers).await?;
                Bench::new(&brokers)?.compare("broker", setting, report).await?;
            }
            Err(_) => report.progress("skipped: CALLBACK_TEST_KAFKA is not set; `scripts/kafka run` sets it"),
        }
        let mock = tokio::task::block_in_place(|| MockCluster::new(1))?;
        mock.create_topic(TOPIC, PARTITIONS, 1)?;
        Bench::new(&mock.bootstrap_servers())?.compare("mock", setting, report).await?;
        let others = processors.and_then(|processors| processors.used_by_others());
        report.figure("others_cpu", others.unwrap_or(f64::NAN), "%", Bar::None);
        Ok(())
    })
}

async fn create_topic(brokers: &str) -> Result<(), BoxError> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(DEADLINE));
    for created in admin.create_topics([&topic], &options).await? {
        created.map_err(|(name, code)| format!("the topic {name} is not created: {code}"))?;
    }
    Ok(())
}

/// What both contenders share.
#[derive(Clone)]
struct Bench {
    sink: KafkaSink,
    bare: FutureProducer,
    signer: Signer,
    body: Bytes,
}

/// What a round came to.
struct Sample {
    /// Records a second.
    rate: f64,
    /// Processor time a record, in microseconds; of the mock, its own included.
    cost: f64,
}

impl Bench {
    fn new(brokers: &str) -> Result<Self, BoxError> {
        let cluster = KafkaCluster::new(brokers).topic(TOPIC).in_flight(IN_FLIGHT);
        let head = r#"{"orderId":"12345","status":"completed","note":""#;
        // The settings of the sink, all of them.
        let bare = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("batch.size", "65536")
            .set("delivery.timeout.ms", "10000")
            .set("message.max.bytes", "16777216")
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.messages", (IN_FLIGHT * 2 + 1).to_string())
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.keepalive.enable", "true")
            .set("topic.metadata.propagation.max.ms", "2000")
            .create()?;
        Ok(Self {
            sink: KafkaSink::builder().default_cluster(cluster).build()?,
            bare,
            signer: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?,
            body: format!("{head}{}\"}}", "x".repeat(512 - head.len() - 2)).into(),
        })
    }

    /// Measures the sink against the bare producer, round by round.
    async fn compare(&self, name: &str, setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
        let rate = self.bare(WARM_UP).await?.rate;
        self.own(WARM_UP).await?;
        let records = (rate * setting.seconds) as usize + 1;
        let (mut bares, mut owns) = (Vec::new(), Vec::new());
        for round in 1..=setting.rounds {
            let (bare, own) = (self.bare(records).await?, self.own(records).await?);
            report.progress(format_args!(
                "{name} round {round} of {}: bare {:.0}/s, own {:.0}/s, ratio {:.3}",
                setting.rounds,
                bare.rate,
                own.rate,
                own.rate / bare.rate
            ));
            bares.push(bare);
            owns.push(own);
        }
        let of = |samples: &[Sample], value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        let ratio = median(owns.iter().zip(&bares).map(|(own, bare)| own.rate / bare.rate).collect());
        report.figure(&format!("{name}_ratio"), ratio, "ratio", Bar::AtLeast(0.90));
        report.figure(&format!("{name}_rate"), of(&owns, |own| own.rate), "msg/s", Bar::None);
        report.figure(&format!("{name}_bare_rate"), of(&bares, |bare| bare.rate), "msg/s", Bar::None);
        report.figure(&format!("{name}_cpu"), of(&owns, |own| own.cost), "us", Bar::None);
        report.figure(&format!("{name}_bare_cpu"), of(&bares, |bare| bare.cost), "us", Bar::None);
        Ok(())
    }

    async fn bare(&self, records: usize) -> Result<Sample, BoxError> {
        self.round(records, |bench| async move { bench.produce().await }).await
    }

    async fn own(&self, records: usize) -> Result<Sample, BoxError> {
        self.round(records, |bench| async move { bench.deliver().await }).await
    }

    async fn round<F>(&self, records: usize, send: fn(Self) -> F) -> Result<Sample, BoxError>
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let (began, worked) = (Instant::now(), system::processor_time().unwrap_or_default());
        let left = Arc::new(AtomicUsize::new(records));
        let mut senders = JoinSet::new();
        for _ in 0..IN_FLIGHT {
            let (bench, left) = (self.clone(), Arc::clone(&left));
            senders.spawn(async move {
                while take_one(&left) {
                    send(bench.clone()).await?;
                }
                Ok::<_, BoxError>(())
            });
        }
        while let Some(sender) = senders.join_next().await {
            sender??;
        }
        let worked = system::processor_time().unwrap_or_default().saturating_sub(worked);
        let records = records as f64;
        Ok(Sample { rate: records / began.elapsed().as_secs_f64(), cost: worked.as_secs_f64() * 1e6 / records })
    }

    async fn deliver(&self) -> Result<(), BoxError> {
        let payload = Payload::new("application/json", self.body.clone());
        let message = Message::builder("callback.task.completed").payload(payload).subject(SUBJECT).build()?;
        let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + DEADLINE).sign(&self.signer, &message);
        self.sink.deliver(&"kafka:///callback-bench".parse()?, &message, &attempt).await?;
        Ok(())
    }

    /// Sends a record with the sink's headers.
    async fn produce(&self) -> Result<(), BoxError> {
        let (id, now) = (MessageId::new(), SystemTime::now());
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs().to_string();
        let signature = self.signer.sign(&id, now, &self.body);
        let headers = [
            ("content-type", "application/json"),
            ("webhook-id", id.as_str()),
            ("webhook-timestamp", &seconds),
            ("webhook-signature", &signature),
            ("callback-attempt", "1"),
            ("ce_specversion", "1.0"),
            ("ce_id", id.as_str()),
            ("ce_type", "callback.task.completed"),
            ("ce_source", "/"),
            ("ce_time", "2026-01-01T00:00:00.123456Z"),
            ("ce_subject", SUBJECT),
        ];
        let mut owned = OwnedHeaders::new_with_capacity(headers.len());
        for (key, value) in headers {
            owned = owned.insert(Header { key, value: Some(value) });
        }
        let record = FutureRecord::to(TOPIC).key(SUBJECT).payload(&*self.body).headers(owned);
        let report = self.bare.send_result(record).map_err(|(error, _)| error)?;
        report.await?.map_err(|(error, _)| error)?;
        Ok(())
    }
}
