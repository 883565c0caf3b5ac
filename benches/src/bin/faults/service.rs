//! The service that is broken: a process of its own, asked line by line.
//!
//! `accept WORKER NUMBER BYTES DSN` is answered by `accepted ID` once it is stored, by `refused NUMBER REASON`, or by
//! `unknown NUMBER REASON`; `wait ID` by `ended ID STATE`; `clock SECONDS` moves its clock and is answered by `moved`. Its
//! first line is `ready`; at the end of its input it closes.

use callback_core::{BoxError, Dsn, Policy, Rule, Schedule, TaskId};
use callback_dispatch::{
    AcceptError, Clock, Dispatcher, DispatcherBuilder, Interrupted, Lane, Outbox, PostgresOutbox, SqliteOutbox, Task,
    Work, Worker,
};
use callback_http::HttpSink;
use serde_json::{Value, json};
use std::{
    io::{self, BufRead, Write},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{runtime, sync::mpsc, time::sleep};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The outbox: a file, or the URL of a PostgreSQL.
    #[arg(long)]
    outbox: String,

    /// How far the clock is off at the start, in seconds.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    clock: i64,
}

/// The system's clock, moved.
#[derive(Clone, Debug)]
struct MovedClock(Arc<AtomicI64>);

impl Clock for MovedClock {
    fn now(&self) -> SystemTime {
        let moved = self.0.load(Ordering::SeqCst);
        let by = Duration::from_secs(moved.unsigned_abs());
        if moved < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
    }
}

/// What takes part in an answer.
struct Service {
    dispatcher: Dispatcher,
    again: Worker,
    report: Worker,
    clock: MovedClock,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), BoxError> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(arguments))?;
    // The thread that reads the input may be in the middle of it.
    runtime.shutdown_background();
    Ok(())
}

async fn serve(arguments: &Arguments) -> Result<(), BoxError> {
    let clock = MovedClock(Arc::new(AtomicI64::new(arguments.clock)));
    let dispatcher = builder(arguments).await?.clock(clock.clone()).start().await?;
    let again = dispatcher.worker("again", Interrupted::RunAgain).run(echo)?;
    let report = dispatcher.worker("report", Interrupted::Report).run(echo)?;
    let service = Arc::new(Service { dispatcher, again, report, clock });
    say("ready");
    let (sender, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let service = Arc::clone(&service);
        tokio::spawn(async move { say(&service.answer(&line).await) });
    }
    service.dispatcher.close(Duration::from_secs(10)).await;
    Ok(())
}

async fn builder(arguments: &Arguments) -> Result<DispatcherBuilder, BoxError> {
    let outbox: Arc<dyn Outbox> = if arguments.outbox.starts_with("postgres:") {
        // Short, so that the work of a dead process does not wait long.
        Arc::new(PostgresOutbox::builder().lease(Duration::from_secs(2)).connect(&arguments.outbox).await?)
    } else {
        Arc::new(SqliteOutbox::open(&arguments.outbox).await?)
    };
    // Short and many, so that a receiver that comes back is found at once, and nothing is given up.
    let steps = [50, 100, 200, 400].map(Duration::from_millis).into_iter();
    let schedule = Schedule::new(steps.chain(std::iter::repeat_n(Duration::from_secs(1), 600)))?;
    let sink = HttpSink::builder().policy(Policy::default().allow(Rule::loopback())).build()?;
    let lane = Lane::default().breaker(1_000_000, Duration::from_millis(50));
    Ok(Dispatcher::builder(outbox).sink(sink).schedule(schedule).lane(lane).deadline(Duration::from_secs(5)))
}

/// Takes as long as it is told, so that a crash meets it.
async fn echo(task: Task) -> Result<Value, Value> {
    let request: Value = task.json().unwrap_or(Value::Null);
    sleep(Duration::from_millis(request["number"].as_u64().unwrap_or(0) % 10)).await;
    Ok(request)
}

impl Service {
    async fn answer(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["accept", worker, number, bytes, dsn] => self.accept(worker, number, bytes, dsn).await,
            ["wait", id] => self.wait(id).await,
            ["clock", seconds] => self.set_clock(seconds),
            _ => Err("no such command".into()),
        };
        answer.unwrap_or_else(|error| format!("failed {error}"))
    }

    async fn accept(&self, worker: &str, number: &str, bytes: &str, dsn: &str) -> Result<String, BoxError> {
        let worker = if worker == "report" { &self.report } else { &self.again };
        let padding = "x".repeat(bytes.parse()?);
        let request = json!({ "number": number.parse::<u64>()?, "padding": padding });
        let dsn: Dsn = dsn.parse()?;
        Ok(match worker.accept(Work::new(request).callback(dsn)).await {
            Ok(acknowledgment) => format!("accepted {}", acknowledgment.id()),
            Err(AcceptError::Outbox(error)) if error.is_unknown() => format!("unknown {number} {error}"),
            Err(error) => format!("refused {number} {error}"),
        })
    }

    async fn wait(&self, id: &str) -> Result<String, BoxError> {
        let id: TaskId = id.parse()?;
        let state = self.dispatcher.wait(id).await?.map(|task| task.state());
        Ok(state.map_or_else(|| format!("ended {id} unknown"), |state| format!("ended {id} {state:?}")))
    }

    fn set_clock(&self, seconds: &str) -> Result<String, BoxError> {
        self.clock.0.store(seconds.parse()?, Ordering::SeqCst);
        Ok("moved".to_owned())
    }
}

/// A line, all of it or none: the other side reads what was written before a crash.
fn say(line: &str) {
    let mut output = io::stdout().lock();
    let _ = output.write_all(format!("{line}\n").as_bytes());
    let _ = output.flush();
}
