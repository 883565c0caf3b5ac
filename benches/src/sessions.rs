//! The suite `sessions`: what a hub needs for each client that is connected, and how soon it has told all of them.

mod clients;

pub(crate) use clients::play;

use crate::{
    Setting,
    report::{Bar, Report, median},
    system::{self, Processors},
};
use axum::serve::ListenerExt;
use callback_core::{BoxError, Dsn};
use callback_dispatch::{Dispatcher, Event, MemoryOutbox, Outbox, SqliteOutbox};
use callback_ws::Hub;
use clients::Clients;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, runtime, task::JoinSet};

/// How many publish at once.
const PUBLISHERS: usize = 256;

/// How many messages each client gets in a round.
const EACH: usize = 5;

/// A number of clients, or of messages.
#[derive(Clone, Copy, Debug)]
struct Count(usize);

/// Measures the suite.
pub(crate) fn run(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(setting, report))
}

async fn measure(setting: &Setting, report: &mut Report) -> Result<(), BoxError> {
    let processors = Processors::now();
    let sessions = if setting.is_quick() { 1_000 } else { 10_000 };
    system::allow_open_files(sessions + 1_000)?;
    report.figure("sessions", sessions as f64, "", Bar::None);
    let folder = tempfile::tempdir_in(&setting.folder)?;
    let outbox = SqliteOutbox::open(folder.path().join("outbox.db")).await?;
    let sqlite = Bench { name: "sqlite", sessions, setting }.run(outbox, report).await?;
    let memory = Bench { name: "memory", sessions, setting }.run(MemoryOutbox::new(), report).await?;
    // Only in the first of them: the second uses again what the first has given back.
    report.figure("kib_per_session", sqlite.connected, "KiB", Bar::AtMost(32.0));
    report.figure("kib_per_session_used", sqlite.used, "KiB", Bar::None);
    report.figure("sqlite_begin_rate", sqlite.begin_rate, "1/s", Bar::None);
    report.figure("sqlite_fan_out", sqlite.fan_out, "msg/s", Bar::None);
    report.figure("memory_begin_rate", memory.begin_rate, "1/s", Bar::None);
    report.figure("memory_fan_out", memory.fan_out, "msg/s", Bar::None);
    let others = processors.and_then(|processors| processors.used_by_others());
    report.figure("others_cpu", others.unwrap_or(f64::NAN), "%", Bar::None);
    Ok(())
}

struct Bench<'a> {
    name: &'a str,
    sessions: usize,
    setting: &'a Setting,
}

struct Sample {
    /// Resident memory for each session, in KiB: when all have begun, and when each has been delivered to.
    connected: f64,
    used: f64,
    /// Sessions that begin in a second.
    begin_rate: f64,
    /// Messages a second, from the first publication to the last arrival.
    fan_out: f64,
}

impl Bench<'_> {
    async fn run(&self, outbox: impl Outbox, report: &Report) -> Result<Sample, BoxError> {
        let hub = Hub::builder().sessions(self.sessions).build()?;
        let dispatcher = Dispatcher::builder(outbox).local_sink(hub.clone()).start().await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let listener = listener.tap_io(|stream| {
            // Without it the clients are slower, and nothing else changes.
            let _ = stream.set_nodelay(true);
        });
        let router = hub.router(&dispatcher);
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await });

        let (before, begun) = (resident(), Instant::now());
        let mut clients = Clients::start(address, Count(self.sessions))?;
        let mut sessions = Vec::with_capacity(self.sessions);
        while sessions.len() < self.sessions {
            sessions.push(clients.session().await?);
        }
        let begin_rate = self.sessions as f64 / begun.elapsed().as_secs_f64();
        let connected = (resident() - before) / self.sessions as f64;
        report.progress(format_args!("{}: {} sessions, {begin_rate:.0} a second", self.name, hub.connected()));

        let (sessions, mut rates, mut sent) = (Arc::from(sessions), Vec::new(), 0);
        for round in 1..=self.setting.rounds {
            let begun = Instant::now();
            publish(&dispatcher, &sessions).await?;
            sent += EACH * self.sessions;
            clients.arrived(Count(sent)).await?;
            let rate = (EACH * self.sessions) as f64 / begun.elapsed().as_secs_f64();
            report.progress(format_args!("{}: round {round} of {}: {rate:.0}/s", self.name, self.setting.rounds));
            rates.push(rate);
        }
        let used = (resident() - before) / self.sessions as f64;
        dispatcher.close(Duration::from_secs(20)).await;
        match clients.end().await? {
            arrived if arrived == sent => Ok(Sample { connected, used, begin_rate, fan_out: median(rates) }),
            arrived => Err(format!("{sent} messages were sent, and {arrived} arrived").into()),
        }
    }
}

/// Sends each client its messages of a round.
async fn publish(dispatcher: &Dispatcher, sessions: &Arc<[Dsn]>) -> Result<(), BoxError> {
    let next = Arc::new(AtomicUsize::new(0));
    let body: Arc<str> = format!(r#"{{"orderId":"12345","note":"{}"}}"#, "x".repeat(483)).into();
    let mut publishers = JoinSet::new();
    for _ in 0..PUBLISHERS {
        let (dispatcher, sessions) = (dispatcher.clone(), Arc::clone(sessions));
        let (next, body) = (Arc::clone(&next), Arc::clone(&body));
        publishers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= EACH * sessions.len() {
                    return Ok::<_, BoxError>(());
                }
                let dsn = sessions[number % sessions.len()].clone();
                dispatcher.publish(Event::to(dsn, "bench", &*body)).await?;
            }
        });
    }
    while let Some(published) = publishers.join_next().await {
        published??;
    }
    Ok(())
}

fn resident() -> f64 {
    system::resident().map_or(f64::NAN, |mebibytes| mebibytes * 1_024.0)
}
