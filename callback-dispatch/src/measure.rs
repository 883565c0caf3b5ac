//! What is counted and timed, through the `metrics` facade.
//!
//! Labels come from the operator's settings alone: schemes, workers, kinds. A client's destination is never one, since
//! everybody could make any number of them.

use crate::row::Row;
use callback_core::{Evidence, Receipt, SinkError};
use metrics::{counter, gauge, histogram};
use std::time::Duration;

/// Something was stored for the first time.
pub(crate) fn accepted(row: &Row) {
    match &row.worker {
        Some(worker) => counter!("callback_accepted_total", "worker" => worker.to_string()).increment(1),
        None => counter!("callback_published_total").increment(1),
    }
}

/// Deliveries of an event to subscriptions were stored.
pub(crate) fn published(deliveries: u64) {
    counter!("callback_published_total").increment(deliveries);
}

/// What goes on, for as long as it does.
pub(crate) struct Ongoing(&'static str);

impl Ongoing {
    pub(crate) fn run() -> Self {
        Self::begin("callback_running")
    }

    pub(crate) fn attempt() -> Self {
        Self::begin("callback_attempts_in_flight")
    }

    fn begin(name: &'static str) -> Self {
        gauge!(name).increment(1);
        Self(name)
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        gauge!(self.0).decrement(1);
    }
}

/// What an attempt came to, and how long it took.
pub(crate) fn attempted(row: &Row, answer: Result<&Receipt, &SinkError>, took: Duration) {
    let scheme = row.dsn.as_ref().map(|dsn| dsn.scheme().to_owned()).unwrap_or_default();
    histogram!("callback_attempt_seconds", "scheme" => scheme.clone()).record(took);
    match answer {
        Ok(receipt) => {
            let evidence = evidence(receipt.evidence());
            counter!("callback_delivered_total", "scheme" => scheme, "evidence" => evidence).increment(1);
        }
        Err(error) => {
            let kind = error.kind().as_str();
            counter!("callback_attempts_failed_total", "scheme" => scheme, "kind" => kind).increment(1);
        }
    }
}

const fn evidence(evidence: &Evidence) -> &'static str {
    match evidence {
        Evidence::Acknowledged => "acknowledged",
        Evidence::Confirmed => "confirmed",
        Evidence::Custom(word) => word,
        Evidence::Offset { .. } => "offset",
        Evidence::Pong => "pong",
        Evidence::Status(_) => "status",
        _ => "other",
    }
}

/// A message was delivered, so long after it was accepted.
pub(crate) fn arrived(age: Duration) {
    histogram!("callback_end_to_end_seconds").record(age);
}

/// A message was given up.
pub(crate) fn dead() {
    counter!("callback_dead_total").increment(1);
}

pub(crate) fn breaker_opened() {
    gauge!("callback_breakers_open").increment(1);
}

pub(crate) fn breaker_closed() {
    gauge!("callback_breakers_open").decrement(1);
}

/// How much waits, and where.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Depths {
    /// Rows in memory over all lanes, and in the fullest one.
    pub(crate) in_memory: usize,
    pub(crate) fullest_lane: usize,
    /// Rows that nobody holds, and for how long the first of them has been due.
    pub(crate) stored: u64,
    pub(crate) overdue: Duration,
}

pub(crate) fn depths(depths: &Depths) {
    gauge!("callback_lanes_depth").set(depths.in_memory as f64);
    gauge!("callback_lane_depth_max").set(depths.fullest_lane as f64);
    gauge!("callback_outbox_depth").set(depths.stored as f64);
    gauge!("callback_outbox_oldest_seconds").set(depths.overdue.as_secs_f64());
}
