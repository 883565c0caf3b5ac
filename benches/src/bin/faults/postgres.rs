//! The database goes away, or the processes that share it do.

use crate::{
    Setting,
    process::{Process, Start},
    report::Finding,
    server::Server,
    trial::Trial,
};
use callback_core::BoxError;
use std::{
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

/// The services' lease is 2 s.
const BEYOND_THE_LEASE: Duration = Duration::from_secs(4);

const UNMARKED: &str = "the receiver had taken it, and the mark could not be stored";

/// Crashes and restarts of the database under load.
pub(crate) fn restart(setting: &Setting) -> Result<Vec<Finding>, BoxError> {
    let times = if setting.quick { 1 } else { 20 };
    let done = "the database ends at once (`pg_ctl stop -m immediate`) under load, and is started again";
    let crash = |server: &Server, service: &mut Process, trial: &mut Trial| {
        server.crash()?;
        trial.load(service, Duration::from_millis(300), 200);
        server.start_again()
    };
    Ok(vec![under_load(setting, "postgres-restart", done, times, crash)?])
}

/// Connections end, and the database hangs, under load.
pub(crate) fn cut(setting: &Setting) -> Result<Vec<Finding>, BoxError> {
    let times = if setting.quick { 1 } else { 50 };
    let done = "all connections are ended (`pg_terminate_backend`) under load";
    let end = |server: &Server, _: &mut Process, _: &mut Trial| server.end_connections();
    let ended = under_load(setting, "postgres-cut", done, times, end)?;
    let times = if setting.quick { 1 } else { 5 };
    let done = "all processes of the database are stopped (SIGSTOP) under load, for longer than the lease, and go on";
    let hang = |server: &Server, service: &mut Process, trial: &mut Trial| {
        server.signal("-STOP")?;
        trial.load(service, BEYOND_THE_LEASE, 200);
        server.signal("-CONT")
    };
    Ok(vec![ended, under_load(setting, "postgres-cut", done, times, hang)?])
}

fn under_load(
    setting: &Setting,
    fault: &'static str,
    done: &str,
    times: usize,
    make: impl Fn(&Server, &mut Process, &mut Trial) -> Result<(), BoxError>,
) -> Result<Finding, BoxError> {
    let (server, begun) = (Server::start()?, Instant::now());
    let mut trial = Trial::on(setting, server.url())?;
    let mut service = trial.start(Start::default())?;
    while trial.times < times && begun.elapsed() < setting.limit {
        trial.load(&mut service, Duration::from_millis(300), 300);
        make(&server, &mut service, &mut trial)?;
        trial.load(&mut service, Duration::from_millis(300), 300);
        trial.times += 1;
    }
    trial.answers(&mut service);
    trial.finish(service, Finding { fault, done: done.to_owned(), why: UNMARKED, ..Finding::default() })
}

/// Three services on one database: one is killed, one is stopped for longer than its lease and goes on.
pub(crate) fn three_processes(setting: &Setting) -> Result<Vec<Finding>, BoxError> {
    let times = if setting.quick { 1 } else { 10 };
    let (server, begun) = (Server::start()?, Instant::now());
    let mut trial = Trial::on(setting, server.url())?;
    let mut stays = trial.start(Start::default())?;
    while trial.times < times && begun.elapsed() < setting.limit {
        let mut stops = trial.start(Start::default())?;
        let mut dies = trial.start(Start::default())?;
        for service in [&mut stays, &mut stops, &mut dies] {
            trial.load(service, Duration::from_millis(200), 200);
            trial.send(service, 16, 100);
        }
        signal(&stops, "-STOP")?;
        let said = dies.kill()?;
        trial.note_all(&said);
        trial.load(&mut stays, BEYOND_THE_LEASE, 200);
        signal(&stops, "-CONT")?;
        trial.load(&mut stops, Duration::from_millis(300), 100);
        trial.answers(&mut stops);
        trial.answers(&mut stays);
        // So that what it stores late is stored, or refused, before it goes.
        sleep(Duration::from_millis(500));
        let said = stops.close()?;
        trial.note_all(&said);
        trial.times += 1;
    }
    let done = "of three services on one database one is killed, one is stopped (SIGSTOP) for longer than its lease and goes on";
    let why =
        "another service takes over what the stopped one had in hand, and the stopped one, unaware, ends its attempt";
    let finding = Finding { fault: "three-processes", done: done.to_owned(), why, ..Finding::default() };
    Ok(vec![trial.finish(stays, finding)?])
}

fn signal(service: &Process, signal: &str) -> Result<(), BoxError> {
    let status = Command::new("kill").args([signal, &service.id().to_string()]).status()?;
    if status.success() { Ok(()) } else { Err("the service could not be signalled".into()) }
}
