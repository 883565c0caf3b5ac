//! The suite `fan_out`: one event to ten thousand subscribers.

use crate::{
    Setting,
    bare::Bare,
    receiver::Receiver,
    report::{Bar, Report, median, percentile},
    system,
};
use bytes::Bytes;
use callback_core::{BoxError, Payload, Policy, Rule, Signer};
use callback_dispatch::{Dispatcher, Event, Lane, MemoryOutbox, NewSubscription, Outbox, SqliteOutbox};
use callback_http::HttpSink;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{runtime, task::JoinSet, time};

/// Over how many hosts the subscribers are spread.
const HOSTS: usize = 8;

/// How many requests are made at once, whoever makes them.
const IN_FLIGHT: usize = 128;

/// How often memory is looked at, and whether all is stored.
const LOOK: Duration = Duration::from_millis(1);

/// How long a dispatcher may take to close.
const GRACE: Duration = Duration::from_secs(20);

/// Measures the suite.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(setting, report))
}

async fn measure(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let head = r#"{"orderId":"12345","status":"completed","note":""#;
    let bench = Bench {
        receiver: Receiver::listening(HOSTS)?,
        subscribers: if setting.is_quick() { 1_000 } else { 10_000 },
        signer: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?,
        body: format!("{head}{}\"}}", "x".repeat(512 - head.len() - 2)).into(),
    };
    report.figure("subscribers", bench.subscribers as f64, "", Bar::None);
    bench.compare("memory", MemoryOutbox::new(), setting, report).await?;
    let folder = tempfile::tempdir_in(&setting.folder)?;
    bench.compare("sqlite", SqliteOutbox::open(folder.path().join("outbox.db")).await?, setting, report).await
}

/// What all rounds share.
struct Bench {
    receiver: Receiver,
    subscribers: usize,
    signer: Signer,
    body: Bytes,
}

/// What an event came to.
struct Sample {
    /// Until it was stored, with all its deliveries.
    published: Duration,
    /// Until the end of each delivery was stored.
    took: Duration,
    /// The most memory that was resident meanwhile, in MiB.
    resident: f64,
    /// From the making of the event to each arrival, in whole milliseconds, sorted.
    delays: Vec<u32>,
}

impl Bench {
    /// Measures an outbox against bare reqwest, round by round.
    async fn compare(
        &self,
        name: &str,
        outbox: impl Outbox,
        setting: &Setting,
        report: &mut Report,
    ) -> Result<(), BoxError> {
        let dispatcher = self.dispatcher(outbox).await?;
        let begun = Instant::now();
        self.subscribe(&dispatcher).await?;
        let subscribed = self.subscribers as f64 / begun.elapsed().as_secs_f64();
        // The first of each opens connections.
        self.bare().await?;
        let before = system::resident().unwrap_or(f64::NAN);
        let mut most = self.event(&dispatcher).await?.resident;
        let (mut bares, mut owns) = (Vec::new(), Vec::new());
        for round in 1..=setting.rounds {
            let bare = self.subscribers as f64 / self.bare().await?.as_secs_f64();
            let own = self.event(&dispatcher).await?;
            let rate = self.subscribers as f64 / own.took.as_secs_f64();
            let (of, ratio) = (setting.rounds, rate / bare);
            report.progress(format_args!(
                "{name} round {round} of {of}: bare {bare:.0}/s, own {rate:.0}/s, ratio {ratio:.3}"
            ));
            most = most.max(own.resident);
            bares.push(bare);
            owns.push((rate, ratio, own));
        }
        dispatcher.close(GRACE).await;
        let of = |value: &dyn Fn(&(f64, f64, Sample)) -> f64| median(owns.iter().map(value).collect());
        report.figure(&format!("{name}_ratio"), of(&|own| own.1), "ratio", Bar::None);
        report.figure(&format!("{name}_rate"), of(&|own| own.0), "msg/s", Bar::None);
        report.figure(&format!("{name}_bare_rate"), median(bares), "msg/s", Bar::None);
        report.figure(&format!("{name}_publish"), of(&|own| own.2.published.as_secs_f64() * 1e3), "ms", Bar::None);
        report.figure(&format!("{name}_all"), of(&|own| own.2.took.as_secs_f64() * 1e3), "ms", Bar::None);
        report.figure(&format!("{name}_memory_growth"), most - before, "MiB", Bar::AtMost(64.0));
        report.figure(&format!("{name}_subscribe_rate"), subscribed, "sub/s", Bar::None);
        let mut delays: Vec<u32> = owns.into_iter().flat_map(|own| own.2.delays).collect();
        delays.sort_unstable();
        report.figure(&format!("{name}_arrival_p50"), percentile(&delays, 0.50).into(), "ms", Bar::None);
        report.figure(&format!("{name}_arrival_p99"), percentile(&delays, 0.99).into(), "ms", Bar::None);
        Ok(())
    }

    async fn dispatcher(&self, outbox: impl Outbox) -> Result<Dispatcher, BoxError> {
        let sink = HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build()?;
        let lane = Lane::default().in_flight(IN_FLIGHT / HOSTS);
        let builder = Dispatcher::builder(outbox).sink(sink).signer(self.signer.clone()).lane(lane);
        Ok(builder.start().await?)
    }

    /// Each with a Dsn of its own, host by host.
    async fn subscribe(&self, dispatcher: &Dispatcher) -> Result<(), BoxError> {
        let mut creating = JoinSet::new();
        for (number, url) in (0..self.subscribers).zip(self.receiver.urls().into_iter().cycle()) {
            if creating.len() >= IN_FLIGHT {
                creating.join_next().await.transpose()?.transpose()?;
            }
            let new = NewSubscription::new(format!("{url}/{number}").parse()?);
            let subscriptions = dispatcher.subscriptions();
            creating.spawn(async move { subscriptions.create(new).await });
        }
        while let Some(created) = creating.join_next().await {
            created??;
        }
        Ok(())
    }

    /// As many requests to the same hosts, a client each; how long they took.
    async fn bare(&self) -> Result<Duration, BoxError> {
        let clients = self.receiver.urls().into_iter().map(|url| {
            let bare = Bare::new(url.parse()?, self.signer.clone(), self.body.clone())?;
            Ok::<_, BoxError>(Arc::new(bare))
        });
        let clients = clients.collect::<Result<Vec<_>, _>>()?;
        // Connections are open when it begins, as a dispatcher's are.
        self.post(&clients, HOSTS * IN_FLIGHT).await?;
        let begun = Instant::now();
        self.post(&clients, self.subscribers).await?;
        Ok(begun.elapsed())
    }

    async fn post(&self, clients: &[Arc<Bare>], messages: usize) -> Result<(), BoxError> {
        self.receiver.expect(messages, None);
        let mut posting = JoinSet::new();
        for client in clients {
            posting.spawn(Arc::clone(client).send(messages / HOSTS, IN_FLIGHT / HOSTS));
        }
        while let Some(posted) = posting.join_next().await {
            posted??;
        }
        self.receiver.take()?;
        Ok(())
    }

    /// Publishes an event, and waits until the end of each delivery is stored.
    async fn event(&self, dispatcher: &Dispatcher) -> Result<Sample, BoxError> {
        self.receiver.expect(self.subscribers, None);
        let begun = Instant::now();
        let payload = Payload::new("application/json", self.body.clone());
        dispatcher.publish(Event::new("callback.task.completed", payload)).await?;
        let published = begun.elapsed();
        let (mut resident, mut looking) = (0.0_f64, time::interval(LOOK));
        let mut arrived = std::pin::pin!(self.receiver.all_arrived());
        loop {
            tokio::select! {
                arrived = &mut arrived => break arrived?,
                _ = looking.tick() => resident = resident.max(system::resident().unwrap_or(f64::NAN)),
            }
        }
        while dispatcher.health().await.in_hand > 0 {
            looking.tick().await;
        }
        let took = begun.elapsed();
        let delays = self.receiver.take()?.delays;
        Ok(Sample { published, took, resident, delays })
    }
}
