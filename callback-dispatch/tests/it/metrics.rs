//! What is counted and timed.

use crate::support::{CustomSink, Home, accept, ended, event, in_time, receipt, start};
use callback_core::{Phase, Schedule, SinkError};
use callback_dispatch::{Interrupted, Lane, Task};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_default_local_recorder,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Keeps everything under its name and labels.
#[derive(Clone, Default)]
pub(crate) struct Figures(Arc<Mutex<BTreeMap<String, Figure>>>);

#[derive(Clone)]
enum Figure {
    Counter(Arc<AtomicU64>),
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Times>),
}

#[derive(Default)]
struct Times(Mutex<Vec<f64>>);

impl HistogramFn for Times {
    fn record(&self, value: f64) {
        self.0.lock().expect("not poisoned").push(value);
    }
}

impl Figures {
    fn figure(&self, key: &Key, new: impl FnOnce() -> Figure) -> Figure {
        let labels: Vec<String> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        self.0.lock().expect("not poisoned").entry(name).or_insert_with(new).clone()
    }

    /// The value of a counter or gauge, or how often a time was taken; zero where there is none.
    fn value(&self, name: &str) -> f64 {
        match self.0.lock().expect("not poisoned").get(name) {
            Some(Figure::Counter(value)) => value.load(Ordering::SeqCst) as f64,
            Some(Figure::Gauge(value)) => f64::from_bits(value.load(Ordering::SeqCst)),
            Some(Figure::Histogram(times)) => times.0.lock().expect("not poisoned").len() as f64,
            None => 0.0,
        }
    }

    /// All names and labels.
    pub(crate) fn names(&self) -> String {
        self.0.lock().expect("not poisoned").keys().map(|name| format!("{name}\n")).collect()
    }
}

impl Recorder for Figures {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.figure(key, || Figure::Counter(Arc::default())) {
            Figure::Counter(counter) => Counter::from_arc(counter),
            Figure::Gauge(_) | Figure::Histogram(_) => panic!("{key} is something else"),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.figure(key, || Figure::Gauge(Arc::default())) {
            Figure::Gauge(gauge) => Gauge::from_arc(gauge),
            Figure::Counter(_) | Figure::Histogram(_) => panic!("{key} is something else"),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.figure(key, || Figure::Histogram(Arc::default())) {
            Figure::Histogram(histogram) => Histogram::from_arc(histogram),
            Figure::Counter(_) | Figure::Gauge(_) => panic!("{key} is something else"),
        }
    }
}

// On one thread, so that everything is counted by the recorder of this one.
#[tokio::test]
async fn everything_is_counted_once() {
    let figures = Figures::default();
    let _recording = set_default_local_recorder(&figures);
    in_time(live(&figures)).await;
    for (name, expected) in [
        ("callback_accepted_total{worker=echo}", 1.0),
        ("callback_published_total{}", 4.0),
        ("callback_delivered_total{scheme=custom,evidence=acknowledged}", 3.0),
        ("callback_attempts_failed_total{scheme=custom,kind=unavailable}", 2.0),
        ("callback_attempts_failed_total{scheme=custom,kind=refused}", 1.0),
        ("callback_dead_total{}", 1.0),
        ("callback_attempt_seconds{scheme=custom}", 6.0),
        ("callback_end_to_end_seconds{}", 3.0),
        ("callback_running{}", 0.0),
        ("callback_attempts_in_flight{}", 0.0),
        ("callback_breakers_open{}", 1.0),
    ] {
        assert!(
            (figures.value(name) - expected).abs() < 0.1,
            "{name}: {} of\n{}",
            figures.value(name),
            figures.names()
        );
    }
    for name in ["lanes_depth", "lane_depth_max", "outbox_depth", "outbox_oldest_seconds"] {
        assert!(figures.names().contains(&format!("callback_{name}{{}}")), "{name} is not in\n{}", figures.names());
    }
}

async fn live(figures: &Figures) {
    let sink = CustomSink::new(|given| {
        let answer = match (given.dsn.authority(), given.attempt.number()) {
            ("down", _) => Err(SinkError::unavailable("down").with_phase(Phase::Connect)),
            ("refuses", _) => Err(SinkError::refused("no")),
            (_, 1) if given.message.json::<u32>().ok() == Some(1) => Err(SinkError::unavailable("down")),
            _ => Ok(receipt()),
        };
        async { answer }
    });
    let schedule = Schedule::new([Duration::from_millis(1)]).expect("valid");
    let builder = Home::memory().builder().await.sink(sink).schedule(schedule);
    let dispatcher = start(builder.lane(Lane::default().breaker(1, Duration::from_secs(600)))).await;
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(|task: Task| async move {
        task.publish(event("custom://well", json!(4))).expect("it can be sent");
        crate::support::echo(task).await
    });
    let worker = worker.expect("registered");
    ended(&dispatcher, accept(&worker, 0, "custom://well").await).await;
    for (to, number) in [("custom://well", 1), ("custom://refuses", 2), ("custom://down", 3)] {
        dispatcher.publish(event(to, json!(number))).await.expect("published");
    }
    // The last one stays behind its breaker, the others end.
    let is_over = || {
        figures.value("callback_end_to_end_seconds{}") + figures.value("callback_dead_total{}") > 3.5
            && figures.value("callback_breakers_open{}") > 0.5
    };
    while !is_over() {
        tokio::task::yield_now().await;
    }
    dispatcher.close(Duration::from_secs(5)).await;
}
