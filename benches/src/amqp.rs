//! The suite `amqp`: what `AmqpSink` costs beside bare lapin with the same flags.

use crate::{
    Setting,
    bare::take_one,
    report::{Bar, Report, median},
    system::{self, Processors},
};
use bytes::Bytes;
use callback_amqp::{AmqpCluster, AmqpSink};
use callback_core::{Attempt, BoxError, Dsn, Message, MessageId, Payload, Signer, Sink};
use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions},
    types::{AMQPValue, FieldTable},
};
use std::{
    env,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime, task::JoinSet};

/// How many messages are on their way at once, whoever sends them.
const IN_FLIGHT: usize = 1_000;

/// How many channels bare lapin has: as many as the sink.
const CHANNELS: usize = 4;

/// How many messages go before what is measured.
const WARM_UP: usize = 5_000;

const SUBJECT: &str = "0198c7e8-2f4b-7d7a-9a41-1b1c3c8d9e0f";
const DEADLINE: Duration = Duration::from_secs(20);

/// Measures the suite: against the broker that `CALLBACK_TEST_AMQP` names.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let Ok(url) = env::var("CALLBACK_TEST_AMQP") else {
        report.progress("skipped: CALLBACK_TEST_AMQP is not set; `scripts/rabbitmq run` sets it");
        return Ok(());
    };
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let processors = Processors::now();
        let bench = Bench::new(&url).await?;
        bench.compare(setting, report).await?;
        bench.sink.close().await?;
        bench.side.queue_delete(bench.queue.as_str().into(), QueueDeleteOptions::default()).await?;
        let others = processors.and_then(|processors| processors.used_by_others());
        report.figure("others_cpu", others.unwrap_or(f64::NAN), "%", Bar::None);
        Ok(())
    })
}

/// What both contenders share.
#[derive(Clone)]
struct Bench {
    sink: AmqpSink,
    dsn: Dsn,
    queue: String,
    bare: Arc<Connection>,
    side: Channel,
    signer: Signer,
    body: Bytes,
}

/// What a round came to.
struct Sample {
    /// Messages a second.
    rate: f64,
    /// Processor time a message, in microseconds, the broker's not included.
    cost: f64,
}

impl Bench {
    async fn new(url: &str) -> Result<Self, BoxError> {
        let queue = format!("callback-bench-{}", MessageId::new().as_str());
        let bare = Connection::connect(&format!("{url}%2F"), ConnectionProperties::default()).await?;
        let side = bare.create_channel().await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        side.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await?;
        let cluster = AmqpCluster::new(url.parse()?).queue(&*queue);
        let head = r#"{"orderId":"12345","status":"completed","note":""#;
        Ok(Self {
            sink: AmqpSink::builder().default_cluster(cluster).build()?,
            dsn: format!("amqp:///?queue={queue}").parse()?,
            queue,
            bare: Arc::new(bare),
            side,
            signer: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?,
            body: format!("{head}{}\"}}", "x".repeat(512 - head.len() - 2)).into(),
        })
    }

    /// Measures the sink against the bare client, round by round.
    async fn compare(&self, setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
        let rate = self.bare(WARM_UP).await?.rate;
        self.own(WARM_UP).await?;
        let messages = (rate * setting.seconds) as usize + 1;
        let (mut bares, mut owns) = (Vec::new(), Vec::new());
        for round in 1..=setting.rounds {
            let (bare, own) = (self.bare(messages).await?, self.own(messages).await?);
            report.progress(format_args!(
                "round {round} of {}: bare {:.0}/s, own {:.0}/s, ratio {:.3}",
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
        report.figure("ratio", ratio, "ratio", Bar::AtLeast(0.75));
        report.figure("rate", of(&owns, |own| own.rate), "msg/s", Bar::None);
        report.figure("bare_rate", of(&bares, |bare| bare.rate), "msg/s", Bar::None);
        report.figure("cpu", of(&owns, |own| own.cost), "us", Bar::None);
        report.figure("bare_cpu", of(&bares, |bare| bare.cost), "us", Bar::None);
        Ok(())
    }

    async fn own(&self, messages: usize) -> Result<Sample, BoxError> {
        self.side.queue_purge(self.queue.as_str().into(), QueuePurgeOptions::default()).await?;
        let (began, left, mut senders) = (Began::now(), Arc::new(AtomicUsize::new(messages)), JoinSet::new());
        for _ in 0..IN_FLIGHT {
            let (bench, left) = (self.clone(), Arc::clone(&left));
            senders.spawn(async move {
                while take_one(&left) {
                    bench.deliver().await?;
                }
                Ok::<_, BoxError>(())
            });
        }
        began.end(senders, messages).await
    }

    /// One task a channel, which has a channel's share of messages on their way.
    async fn bare(&self, messages: usize) -> Result<Sample, BoxError> {
        self.side.queue_purge(self.queue.as_str().into(), QueuePurgeOptions::default()).await?;
        let (began, left, mut senders) = (Began::now(), Arc::new(AtomicUsize::new(messages)), JoinSet::new());
        for _ in 0..CHANNELS {
            let (bench, left) = (self.clone(), Arc::clone(&left));
            senders.spawn(async move {
                let channel = bench.bare.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                let mut sent = FuturesUnordered::new();
                loop {
                    while sent.len() < IN_FLIGHT / CHANNELS && take_one(&left) {
                        sent.push(bench.publish(&channel));
                    }
                    match sent.next().await {
                        Some(confirmed) => confirmed?,
                        None => return Ok::<_, BoxError>(()),
                    }
                }
            });
        }
        began.end(senders, messages).await
    }

    async fn deliver(&self) -> Result<(), BoxError> {
        let payload = Payload::new("application/json", self.body.clone());
        let message = Message::builder("callback.task.completed").payload(payload).subject(SUBJECT).build()?;
        let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + DEADLINE).sign(&self.signer, &message);
        self.sink.deliver(&self.dsn, &message, &attempt).await?;
        Ok(())
    }

    /// Publishes a message with the sink's properties and headers.
    async fn publish(&self, channel: &Channel) -> Result<(), BoxError> {
        let (id, now) = (MessageId::new(), SystemTime::now());
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("webhook-id", id.as_str()),
            ("webhook-timestamp", &seconds.to_string()),
            ("webhook-signature", &self.signer.sign(&id, now, &self.body)),
            ("callback-attempt", "1"),
            ("ce-specversion", "1.0"),
            ("ce-id", id.as_str()),
            ("ce-type", "callback.task.completed"),
            ("ce-source", "/"),
            ("ce-time", "2026-01-01T00:00:00.123456Z"),
            ("ce-subject", SUBJECT),
        ] {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        let properties = BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_type("callback.task.completed".into())
            .with_app_id("/".into())
            .with_content_type("application/json".into())
            .with_timestamp(seconds)
            .with_delivery_mode(2)
            .with_correlation_id(SUBJECT.into())
            .with_headers(headers);
        let mandatory = BasicPublishOptions { mandatory: true, immediate: false };
        let queue = self.queue.as_str().into();
        match channel.basic_publish("".into(), queue, mandatory, &self.body, properties).await?.await? {
            Confirmation::Ack(None) => Ok(()),
            other => Err(format!("not delivered: {}", other.is_ack()).into()),
        }
    }
}

/// When a round began.
struct Began {
    time: Instant,
    worked: Duration,
}

impl Began {
    fn now() -> Self {
        Self { time: Instant::now(), worked: system::processor_time().unwrap_or_default() }
    }

    async fn end(self, mut senders: JoinSet<Result<(), BoxError>>, messages: usize) -> Result<Sample, BoxError> {
        while let Some(sender) = senders.join_next().await {
            sender??;
        }
        let worked = system::processor_time().unwrap_or_default().saturating_sub(self.worked);
        let messages = messages as f64;
        Ok(Sample { rate: messages / self.time.elapsed().as_secs_f64(), cost: worked.as_secs_f64() * 1e6 / messages })
    }
}
