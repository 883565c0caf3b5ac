//! The suite `isolation`: what destinations in trouble cost those that are well.

use crate::{
    Setting,
    report::{Bar, Report, median, percentile},
    stand_in::{StandIn, body},
};
use callback_core::{BoxError, Dsn};
use callback_dispatch::{Dispatcher, Event, SqliteOutbox};
use std::time::{Duration, Instant};
use tokio::{
    runtime,
    task::JoinSet,
    time::{self, MissedTickBehavior},
};

/// Of so many destinations 70 % are well, 20 % hang until the deadline, 10 % refuse.
const DESTINATIONS: usize = 1_000;

/// Messages a second, to all of them in turn: far from what the machine can do, so that only waiting shows.
const RATE: f64 = 3_000.0;

/// Short, so that a round sees several.
const DEADLINE: Duration = Duration::from_secs(1);

/// What a round came to.
struct Sample {
    rate: f64,
    p99: f64,
}

/// Measures the suite.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(setting, report))
}

async fn measure(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let (mut rates, mut tails) = (Vec::new(), Vec::new());
    for number in 1..=setting.rounds {
        let alone = round(setting, false).await?;
        let among = round(setting, true).await?;
        report.progress(format_args!(
            "round {number} of {}: alone {:.0}/s, p99 {:.1} ms; among them {:.0}/s, p99 {:.1} ms",
            setting.rounds, alone.rate, alone.p99, among.rate, among.p99
        ));
        rates.push(among.rate / alone.rate);
        tails.push(among.p99 / alone.p99);
    }
    report.figure("healthy_throughput", median(rates), "ratio", Bar::AtLeast(0.90));
    report.figure("healthy_p99", median(tails), "ratio", Bar::AtMost(1.25));
    Ok(())
}

/// Those that are well get the same messages at the same times, with the others or without.
async fn round(setting: &Setting, with_others: bool) -> Result<Sample, BoxError> {
    let folder = tempfile::tempdir_in(&setting.folder)?;
    let sink = StandIn::default();
    let outbox = SqliteOutbox::open(folder.path().join("outbox.db")).await?;
    let dispatcher = Dispatcher::builder(outbox).sink(sink.clone()).deadline(DEADLINE).start().await?;
    let dsns: Vec<(Dsn, bool)> = (0..DESTINATIONS)
        .map(|number| {
            let kind = ["well", "well", "hang", "well", "well", "hang", "well", "refuse", "well", "well"][number % 10];
            Ok((format!("bench://{kind}{number}").parse()?, kind == "well"))
        })
        .collect::<Result<_, BoxError>>()?;
    let seconds = setting.seconds * 2.0;
    let messages = (RATE * seconds) as usize;
    let filler = "x".repeat(400);
    let (begun, mut made, mut healthy) = (Instant::now(), 0, 0);
    let mut tick = time::interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut publishers = JoinSet::new();
    while made < messages {
        tick.tick().await;
        let until = ((begun.elapsed().as_secs_f64() * RATE) as usize).min(messages);
        for number in made..until {
            let (dsn, is_well) = &dsns[number % DESTINATIONS];
            healthy += usize::from(*is_well);
            if *is_well || with_others {
                let event = Event::to(dsn.clone(), "bench", body(&filler));
                let dispatcher = dispatcher.clone();
                publishers.spawn(async move { dispatcher.publish(event).await });
            }
        }
        made = until;
        while let Some(published) = publishers.try_join_next() {
            published??;
        }
    }
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    sink.delivered(healthy).await;
    let took = begun.elapsed().as_secs_f64();
    let delays = sink.take();
    dispatcher.close(Duration::ZERO).await;
    Ok(Sample { rate: healthy as f64 / took, p99: percentile(&delays, 0.99) as f64 / 1_000.0 })
}
