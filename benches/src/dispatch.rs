//! The suite `dispatch`: what sink, engine and outbox cost beside a bare client.

use crate::{
    Setting,
    bare::{Bare, take_one},
    receiver::{Arrivals, Receiver},
    report::{Bar, Report, median, percentile},
    system::{self, Processors},
};
use bytes::Bytes;
use callback_core::{Attempt, BoxError, Dsn, Message, Payload, Policy, Rule, Signer, Sink};
use callback_dispatch::{
    Dispatcher, Event, Interrupted, Lane, MemoryOutbox, Outbox, Outcome, SqliteOutbox, Task, Work, Worker,
};
use callback_http::HttpSink;
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    runtime,
    sync::Semaphore,
    task::JoinSet,
    time::{self, MissedTickBehavior},
};

/// How many requests are made at once, whoever makes them.
const IN_FLIGHT: usize = 128;

/// How many messages are between their publication and their arrival: as many wait to be stored as are in flight.
const WINDOW: usize = 2 * IN_FLIGHT;

/// How many messages go before what is measured.
const WARM_UP: usize = 2_000;

/// How long one attempt may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Above this a disk is too slow for times to be judged.
const FAST_DISK: Duration = Duration::from_micros(500);

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Contender {
    Bare,
    Sink,
    Memory,
    SqliteMessage,
    SqliteTask,
    #[cfg(feature = "postgres")]
    PostgresMessage,
}

impl Contender {
    /// The contenders that are measured against `Bare`, their names and bars.
    const MEASURED: &[(Self, &'static str, f64)] = &[
        (Self::Sink, "sink", 0.90),
        (Self::Memory, "memory", 0.70),
        (Self::SqliteMessage, "sqlite_message", 0.48),
        #[cfg(feature = "postgres")]
        (Self::PostgresMessage, "postgres_message", 0.28),
        (Self::SqliteTask, "sqlite_task", 0.36),
    ];

    /// Whether there is what it needs.
    fn is_possible(self) -> bool {
        match self {
            #[cfg(feature = "postgres")]
            Self::PostgresMessage => crate::postgres::server().is_some(),
            _ => true,
        }
    }
}

/// What a round came to.
struct Sample {
    /// Messages a second.
    rate: f64,
    /// Processor time a message, in microseconds, receiver included.
    cost: f64,
    arrivals: Arrivals,
}

/// When a round began.
struct Begun {
    time: Instant,
    processor_time: Duration,
}

/// What all rounds share.
struct Bench {
    receiver: Receiver,
    dsn: Dsn,
    signer: Signer,
    body: Bytes,
    folder: PathBuf,
}

/// Measures the suite.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(setting, report))
}

async fn measure(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let processors = Processors::now();
    let bench = Bench::new(setting)?;
    let synced = system::fdatasync(&setting.folder)?;
    report.figure("fdatasync_p50", milliseconds(synced), "ms", Bar::None);

    let bare_rate = bench.calibrate(Contender::Bare).await?;
    let mut task_rate = 0.0;
    for contender in Contender::MEASURED {
        if contender.0.is_possible() {
            task_rate = bench.compare(*contender, bare_rate, setting, report).await?;
        } else {
            report.progress(format_args!("{} skipped: CALLBACK_TEST_POSTGRES is not set", contender.1));
        }
    }

    let bar = |most| if synced <= FAST_DISK { Bar::AtMost(most) } else { Bar::NotJudged(most) };
    let closed = bench.tasks_in_flight(setting.messages(task_rate)).await?;
    report.figure("ack_p50", milliseconds(percentile(&closed, 0.50)), "ms", Bar::None);
    report.figure("ack_p99", milliseconds(percentile(&closed, 0.99)), "ms", bar(10.0));
    let half = bench.tasks_at_rate(task_rate / 2.0, setting.seconds).await?;
    report.figure("ack_half_rate_p50", milliseconds(percentile(&half, 0.50)), "ms", Bar::None);
    report.figure("ack_half_rate_p99", milliseconds(percentile(&half, 0.99)), "ms", bar(5.0));
    report.figure("resident", system::resident().unwrap_or(f64::NAN), "MiB", Bar::None);
    let others = processors.and_then(|processors| processors.used_by_others());
    report.figure("others_cpu", others.unwrap_or(f64::NAN), "%", Bar::None);
    Ok(())
}

impl Setting {
    /// How many messages fill a round at this rate.
    fn messages(&self, rate: f64) -> usize {
        count(rate, self.seconds)
    }
}

impl Bench {
    fn new(setting: &Setting) -> Result<Self, BoxError> {
        let receiver = Receiver::start()?;
        let head = r#"{"orderId":"12345","status":"completed","note":""#;
        let body = format!("{head}{}\"}}", "x".repeat(512 - head.len() - 2));
        Ok(Self {
            dsn: receiver.url().parse()?,
            receiver,
            signer: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?,
            body: body.into(),
            folder: setting.folder.clone(),
        })
    }

    /// Measures a contender against bare reqwest, round by round; its own messages a second.
    async fn compare(
        &self,
        (contender, name, bar): (Contender, &str, f64),
        bare_rate: f64,
        setting: &Setting,
        report: &mut Report,
    ) -> Result<f64, BoxError> {
        let own_rate = self.calibrate(contender).await?;
        let (mut bares, mut owns) = (Vec::new(), Vec::new());
        for round in 1..=setting.rounds {
            let bare = self.round(Contender::Bare, setting.messages(bare_rate)).await?;
            let own = self.round(contender, setting.messages(own_rate)).await?;
            if own.arrivals.header_names != bare.arrivals.header_names {
                let (own, bare) = (own.arrivals.header_names, bare.arrivals.header_names);
                return Err(format!("{name} sends the headers {own:?}, bare reqwest {bare:?}").into());
            }
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
        let rate = of(&owns, |own| own.rate);
        report.figure(&format!("{name}_ratio"), ratio, "ratio", Bar::AtLeast(bar));
        report.figure(&format!("{name}_rate"), rate, "msg/s", Bar::None);
        report.figure(&format!("{name}_bare_rate"), of(&bares, |bare| bare.rate), "msg/s", Bar::None);
        report.figure(&format!("{name}_cpu"), of(&owns, |own| own.cost), "us", Bar::None);
        report.figure(&format!("{name}_bare_cpu"), of(&bares, |bare| bare.cost), "us", Bar::None);
        if contender != Contender::Sink {
            let mut delays: Vec<u32> = owns.into_iter().flat_map(|own| own.arrivals.delays).collect();
            delays.sort_unstable();
            report.figure(&format!("{name}_arrival_p50"), percentile(&delays, 0.50).into(), "ms", Bar::None);
            report.figure(&format!("{name}_arrival_p99"), percentile(&delays, 0.99).into(), "ms", Bar::None);
        }
        Ok(rate)
    }

    /// About how many messages a second a contender makes.
    async fn calibrate(&self, contender: Contender) -> Result<f64, BoxError> {
        Ok(self.round(contender, 2 * WARM_UP).await?.rate)
    }

    async fn round(&self, contender: Contender, messages: usize) -> Result<Sample, BoxError> {
        match contender {
            Contender::Bare => self.bare(messages).await,
            Contender::Sink => self.sink(messages).await,
            Contender::Memory => self.dispatched(MemoryOutbox::new(), false, messages).await,
            Contender::SqliteMessage | Contender::SqliteTask => {
                let folder = tempfile::tempdir_in(&self.folder)?;
                let outbox = SqliteOutbox::open(folder.path().join("outbox.db")).await?;
                self.dispatched(outbox, contender == Contender::SqliteTask, messages).await
            }
            #[cfg(feature = "postgres")]
            Contender::PostgresMessage => {
                let url = crate::postgres::server().ok_or("there is no PostgreSQL")?;
                self.dispatched(callback_dispatch::PostgresOutbox::connect(&url).await?, false, messages).await
            }
        }
    }

    async fn bare(&self, messages: usize) -> Result<Sample, BoxError> {
        let url = self.receiver.url().parse()?;
        let bare = Arc::new(Bare::new(url, self.signer.clone(), self.body.clone())?);
        self.receiver.expect(WARM_UP, None);
        Arc::clone(&bare).send(WARM_UP, IN_FLIGHT).await?;
        self.receiver.expect(messages, None);
        let begun = Begun::now();
        bare.send(messages, IN_FLIGHT).await?;
        self.sample(messages, &begun)
    }

    async fn sink(&self, messages: usize) -> Result<Sample, BoxError> {
        let sink = sink()?;
        self.receiver.expect(WARM_UP, None);
        self.deliver(&sink, WARM_UP).await?;
        self.receiver.expect(messages, None);
        let begun = Begun::now();
        self.deliver(&sink, messages).await?;
        self.sample(messages, &begun)
    }

    async fn deliver(&self, sink: &HttpSink, messages: usize) -> Result<(), BoxError> {
        let left = Arc::new(AtomicUsize::new(messages));
        let mut senders = JoinSet::new();
        for _ in 0..IN_FLIGHT {
            let (sink, left, signer) = (sink.clone(), Arc::clone(&left), self.signer.clone());
            let (dsn, payload) = (self.dsn.clone(), self.payload());
            senders.spawn(async move {
                while take_one(&left) {
                    let message = Message::builder("callback.task.completed").payload(payload.clone());
                    let message = message.subject("0198c7e8-2f4b-7d7a-9a41-1b1c3c8d9e0f").build()?;
                    let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + DEADLINE).sign(&signer, &message);
                    sink.deliver(&dsn, &message, &attempt).await?;
                }
                Ok::<_, BoxError>(())
            });
        }
        while let Some(sender) = senders.join_next().await {
            sender??;
        }
        Ok(())
    }

    /// From the first publication until everything is delivered and its end is stored.
    async fn dispatched(&self, outbox: impl Outbox, as_tasks: bool, messages: usize) -> Result<Sample, BoxError> {
        let dispatcher = self.dispatcher(outbox).await?;
        let source = self.source(&dispatcher, as_tasks)?;
        self.publish(&source, WARM_UP, WINDOW).await?;
        let begun = Begun::now();
        self.publish(&source, messages, WINDOW).await?;
        dispatcher.close(DEADLINE).await;
        self.sample(messages, &begun)
    }

    async fn dispatcher(&self, outbox: impl Outbox) -> Result<Dispatcher, BoxError> {
        let builder = Dispatcher::builder(outbox).sink(sink()?).signer(self.signer.clone()).deadline(DEADLINE);
        Ok(builder.lane(Lane::default().in_flight(IN_FLIGHT)).start().await?)
    }

    fn source(&self, dispatcher: &Dispatcher, as_tasks: bool) -> Result<Source, BoxError> {
        let (dsn, payload) = (self.dsn.clone(), self.payload());
        if !as_tasks {
            return Ok(Source::Events { dispatcher: dispatcher.clone(), dsn, payload });
        }
        let worker = dispatcher.worker("echo", Interrupted::RunAgain).concurrency(IN_FLIGHT);
        let worker = worker.run(|task: Task| async move { Outcome::completed(task.payload().clone()) })?;
        Ok(Source::Tasks { worker, dsn, payload })
    }

    /// Publishes as many messages, so many at once until they arrive; how long each acknowledgment took.
    async fn publish(&self, source: &Source, messages: usize, at_once: usize) -> Result<Vec<Duration>, BoxError> {
        let window = Arc::new(Semaphore::new(at_once));
        self.receiver.expect(messages, Some(Arc::clone(&window)));
        let left = Arc::new(AtomicUsize::new(messages));
        let mut publishers = JoinSet::new();
        for _ in 0..at_once {
            let (source, left, window) = (source.clone(), Arc::clone(&left), Arc::clone(&window));
            publishers.spawn(async move {
                let mut acknowledged = Vec::new();
                while take_one(&left) {
                    // The receiver gives the place back.
                    window.acquire().await?.forget();
                    acknowledged.push(source.publish().await?);
                }
                Ok::<_, BoxError>(acknowledged)
            });
        }
        let mut acknowledged = Vec::with_capacity(messages);
        while let Some(publisher) = publishers.join_next().await {
            acknowledged.extend(publisher??);
        }
        self.receiver.all_arrived().await?;
        Ok(acknowledged)
    }

    /// Accepts tasks, each as soon as another has arrived; how long each acknowledgment took, sorted.
    async fn tasks_in_flight(&self, messages: usize) -> Result<Vec<Duration>, BoxError> {
        let folder = tempfile::tempdir_in(&self.folder)?;
        let dispatcher = self.dispatcher(SqliteOutbox::open(folder.path().join("outbox.db")).await?).await?;
        let source = self.source(&dispatcher, true)?;
        self.publish(&source, WARM_UP, IN_FLIGHT).await?;
        let mut acknowledged = self.publish(&source, messages, IN_FLIGHT).await?;
        dispatcher.close(DEADLINE).await;
        acknowledged.sort_unstable();
        Ok(acknowledged)
    }

    /// Accepts tasks at this rate; how long each acknowledgment took, sorted.
    async fn tasks_at_rate(&self, rate: f64, seconds: f64) -> Result<Vec<Duration>, BoxError> {
        let folder = tempfile::tempdir_in(&self.folder)?;
        let dispatcher = self.dispatcher(SqliteOutbox::open(folder.path().join("outbox.db")).await?).await?;
        let source = self.source(&dispatcher, true)?;
        self.publish(&source, WARM_UP, IN_FLIGHT).await?;
        let messages = count(rate, seconds);
        self.receiver.expect(messages, None);
        let (begun, mut publishers) = (Instant::now(), JoinSet::new());
        let mut tick = time::interval(Duration::from_millis(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while publishers.len() < messages {
            tick.tick().await;
            for _ in publishers.len()..count(rate, begun.elapsed().as_secs_f64()).min(messages) {
                let source = source.clone();
                publishers.spawn(async move { source.publish().await });
            }
        }
        let mut acknowledged = Vec::with_capacity(messages);
        while let Some(publisher) = publishers.join_next().await {
            acknowledged.push(publisher??);
        }
        self.receiver.all_arrived().await?;
        dispatcher.close(DEADLINE).await;
        acknowledged.sort_unstable();
        Ok(acknowledged)
    }

    fn payload(&self) -> Payload {
        Payload::new("application/json", self.body.clone())
    }

    fn sample(&self, messages: usize, begun: &Begun) -> Result<Sample, BoxError> {
        let took = begun.time.elapsed();
        let worked = system::processor_time().unwrap_or_default().saturating_sub(begun.processor_time);
        let messages = messages as f64;
        let arrivals = self.receiver.take()?;
        Ok(Sample { rate: messages / took.as_secs_f64(), cost: worked.as_secs_f64() * 1e6 / messages, arrivals })
    }
}

impl Begun {
    fn now() -> Self {
        Self { time: Instant::now(), processor_time: system::processor_time().unwrap_or_default() }
    }
}

/// Where a dispatcher's messages come from.
#[derive(Clone)]
enum Source {
    Events { dispatcher: Dispatcher, dsn: Dsn, payload: Payload },
    Tasks { worker: Worker, dsn: Dsn, payload: Payload },
}

impl Source {
    /// Has one message accepted; how long that took.
    async fn publish(&self) -> Result<Duration, BoxError> {
        let begun = Instant::now();
        match self {
            Self::Events { dispatcher, dsn, payload } => {
                dispatcher.publish(Event::to(dsn.clone(), "callback.task.completed", payload.clone())).await?;
            }
            Self::Tasks { worker, dsn, payload } => {
                worker.accept(Work::new(payload.clone()).callback(dsn.clone())).await?;
            }
        }
        Ok(begun.elapsed())
    }
}

fn sink() -> Result<HttpSink, BoxError> {
    Ok(HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build()?)
}

/// How many there are at a rate after so many seconds; at least one.
fn count(rate: f64, seconds: f64) -> usize {
    (rate * seconds) as usize + 1
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
