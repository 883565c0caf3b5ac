//! The suite `postgres`: one dispatcher on a database, and two that share it, with as many attempts in flight in all.

use crate::{
    Setting,
    report::{Bar, Report, median},
    stand_in::{StandIn, body},
};
use callback_core::{BoxError, Dsn};
use callback_dispatch::{Dispatcher, Event, PostgresOutbox};
use std::{
    env,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{runtime, task::JoinSet};

/// How many publish at once, and how many attempts are in flight, over all dispatchers.
const AT_ONCE: usize = 128;

/// To so many destinations in turn, so that no lane is the limit.
const DESTINATIONS: usize = 64;

/// About what is delivered in a second; it sets only how long a round takes.
const ABOUT: f64 = 4_000.0;

/// The URL of the server that is measured.
pub(crate) fn server() -> Option<String> {
    env::var("CALLBACK_TEST_POSTGRES").ok()
}

/// Measures the suite.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let Some(url) = server() else {
        report.progress("skipped: CALLBACK_TEST_POSTGRES is not set; scripts/postgres sets it");
        return Ok(());
    };
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(setting, &url, report))
}

async fn measure(setting: &Setting, url: &str, report: &mut Report) -> Result<(), BoxError> {
    let (mut ones, mut twos, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=setting.rounds {
        let one = round(setting, url, 1).await?;
        let two = round(setting, url, 2).await?;
        let ratio = two / one;
        report.progress(format_args!(
            "round {number} of {}: one dispatcher {one:.0}/s, two {two:.0}/s, ratio {ratio:.3}",
            setting.rounds
        ));
        ones.push(one);
        twos.push(two);
        ratios.push(ratio);
    }
    report.figure("one_dispatcher", median(ones), "msg/s", Bar::None);
    report.figure("two_dispatchers", median(twos), "msg/s", Bar::None);
    report.figure("two_over_one", median(ratios), "ratio", Bar::None);
    Ok(())
}

/// How many messages a second so many dispatchers accept and deliver.
async fn round(setting: &Setting, url: &str, dispatchers: usize) -> Result<f64, BoxError> {
    let sink = StandIn::default();
    let messages = (ABOUT * setting.seconds) as usize;
    let dsns: Arc<[Dsn]> =
        (0..DESTINATIONS).map(|number| format!("bench://well{number}").parse()).collect::<Result<_, _>>()?;
    let mut started = Vec::new();
    for _ in 0..dispatchers {
        let outbox = PostgresOutbox::connect(url).await?;
        let builder = Dispatcher::builder(outbox).sink(sink.clone()).in_flight(AT_ONCE / dispatchers);
        started.push(builder.start().await?);
    }
    let begun = Instant::now();
    let mut publishers = JoinSet::new();
    for publisher in 0..AT_ONCE {
        let (dispatcher, dsns) = (started[publisher % dispatchers].clone(), Arc::clone(&dsns));
        publishers.spawn(async move {
            let filler = "x".repeat(400);
            for number in (publisher..messages).step_by(AT_ONCE) {
                let dsn = dsns[number % DESTINATIONS].clone();
                dispatcher.publish(Event::to(dsn, "bench", body(&filler))).await?;
            }
            Ok::<_, BoxError>(())
        });
    }
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    sink.delivered(messages).await;
    let took = begun.elapsed().as_secs_f64();
    for dispatcher in started {
        dispatcher.close(Duration::from_secs(5)).await;
    }
    Ok(messages as f64 / took)
}
