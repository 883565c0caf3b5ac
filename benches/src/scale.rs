//! The suite `scale`: a backlog of a million messages that nobody takes.

use crate::{
    Setting,
    report::{Bar, Report},
    stand_in::{StandIn, body},
    system,
};
use callback_core::BoxError;
use callback_dispatch::{Dispatcher, Event, Lane, SqliteOutbox};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{runtime, task::JoinSet};

/// How many publish at once.
const PUBLISHERS: usize = 128;

/// How many acceptances are timed, with an empty outbox and with a full one.
const TIMED: usize = 50_000;

/// Measures the suite.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(setting, report))
}

async fn measure(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let backlog = if setting.is_quick() { 100_000 } else { 1_000_000 };
    let folder = tempfile::tempdir_in(&setting.folder)?;
    let path = folder.path().join("outbox.db");
    let sink = StandIn::default();
    let dispatcher = start(&path, &sink).await?;
    // Its breaker opens, and stays open.
    publish(&dispatcher, "bench://refuse", 1).await?;
    while sink.attempts() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    publish(&dispatcher, "bench://refuse", TIMED).await?;
    let before = system::resident().unwrap_or(f64::NAN);
    let empty = rate(&dispatcher).await?;
    for done in (2 * TIMED..backlog).step_by(100_000) {
        publish(&dispatcher, "bench://refuse", 100_000.min(backlog - done)).await?;
        report.progress(format_args!("{} of {backlog} stored", (done + 100_000).min(backlog)));
    }
    let full = rate(&dispatcher).await?;
    let after = system::resident().unwrap_or(f64::NAN);
    report.figure("backlog", backlog as f64, "rows", Bar::None);
    report.figure("accept_rate_empty", empty, "msg/s", Bar::None);
    report.figure("accept_rate_full", full, "msg/s", Bar::None);
    report.figure("accept_ratio", full / empty, "ratio", Bar::AtLeast(0.9));
    report.figure("memory_growth", after - before, "MiB", Bar::AtMost(64.0));

    // One more for somebody who answers, but not before the restart.
    dispatcher.publish(Event::to("bench://hang".parse()?, "bench", body(""))).await?;
    dispatcher.close(Duration::ZERO).await;
    let begun = Instant::now();
    let dispatcher = start(&path, &sink).await?;
    let attempts = sink.attempts();
    while sink.attempts() == attempts {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    report.figure("restart_to_delivery", begun.elapsed().as_secs_f64(), "s", Bar::AtMost(2.0));
    let left_alone = sink.attempts() - attempts;
    dispatcher.close(Duration::ZERO).await;
    if left_alone != 1 {
        return Err(format!("{left_alone} attempts were made after the restart, not one").into());
    }
    Ok(())
}

async fn start(path: &std::path::Path, sink: &StandIn) -> Result<Dispatcher, BoxError> {
    let lane = Lane::default().breaker(1, Duration::from_secs(600));
    let outbox = SqliteOutbox::open(path).await?;
    Ok(Dispatcher::builder(outbox).sink(sink.clone()).lane(lane).start().await?)
}

/// How many messages a second are accepted for a destination that is closed.
async fn rate(dispatcher: &Dispatcher) -> Result<f64, BoxError> {
    let begun = Instant::now();
    publish(dispatcher, "bench://refuse", TIMED).await?;
    Ok(TIMED as f64 / begun.elapsed().as_secs_f64())
}

async fn publish(dispatcher: &Dispatcher, dsn: &str, messages: usize) -> Result<(), BoxError> {
    let left = Arc::new(AtomicUsize::new(messages));
    let filler: Arc<str> = "x".repeat(400).into();
    let mut publishers = JoinSet::new();
    for _ in 0..PUBLISHERS.min(messages) {
        let (dispatcher, dsn, left, filler) =
            (dispatcher.clone(), dsn.parse()?, Arc::clone(&left), Arc::clone(&filler));
        publishers.spawn(async move {
            let take = |left: usize| left.checked_sub(1);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                dispatcher.publish(Event::to(Clone::clone(&dsn), "bench", body(&filler))).await?;
            }
            Ok::<_, BoxError>(())
        });
    }
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    Ok(())
}
