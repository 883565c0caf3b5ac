//! What follows from what: the decisions about a row, as pure functions.

use crate::{Interrupted, clock::Micros, outcome::OutcomeKind, row::Stage};
use callback_core::{Failed, Receipt, Schedule, SinkError};

/// How a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// Run it.
    Run,
    /// Store the mark that a run has begun, then run it.
    MarkThenRun,
    /// Do not run it: report that it was interrupted.
    Report,
}

/// A task that a process left unfinished this often gets the mark before it is run again.
///
/// So a task that takes its process down is started three times, and reported at the fourth start.
const UNFINISHED_STARTS: u32 = 2;

/// How a run begins, by what is stored of earlier ones.
pub(crate) fn begin(stage: Stage, starts: u32, interrupted: Interrupted) -> Begin {
    match (stage, interrupted) {
        (Stage::Started, _) => Begin::Report,
        (_, Interrupted::Report) => Begin::MarkThenRun,
        (_, Interrupted::RunAgain) if starts >= UNFINISHED_STARTS => Begin::MarkThenRun,
        (_, Interrupted::RunAgain) => Begin::Run,
    }
}

/// Where a run leaves its task.
pub(crate) fn after_run(outcome: OutcomeKind, has_dsn: bool) -> Stage {
    match (outcome, has_dsn) {
        (OutcomeKind::Deferred, _) => Stage::Deferred,
        (_, true) => Stage::Delivering,
        (_, false) => Stage::Completed,
    }
}

/// What follows from an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Delivered,
    Dead,
    Retry { due: Micros },
}

/// What follows from attempt `number` of a delivery that was first due at `first_due`.
pub(crate) fn after_attempt(
    result: Result<&Receipt, &SinkError>,
    number: u32,
    first_due: Micros,
    now: Micros,
    schedule: &Schedule,
    seed: u64,
) -> Verdict {
    let Err(error) = result else { return Verdict::Delivered };
    let failed = Failed {
        attempt: number,
        kind: error.kind(),
        retry_after: error.retry_after(),
        since_first_due: now.since(first_due),
    };
    match schedule.next(&failed, seed) {
        Some(wait) => Verdict::Retry { due: now.after(wait) },
        None => Verdict::Dead,
    }
}

impl Verdict {
    /// Where the attempt leaves its row.
    pub(crate) const fn stage(self) -> Stage {
        match self {
            Self::Delivered => Stage::Delivered,
            Self::Dead => Stage::Dead,
            Self::Retry { .. } => Stage::Delivering,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::Evidence;
    use std::time::Duration;

    #[test]
    fn a_run_begins_by_what_is_stored_of_earlier_ones() {
        use Interrupted::{Report, RunAgain};
        let table = [
            (Stage::Accepted, 0, RunAgain, Begin::Run),
            (Stage::Accepted, 1, RunAgain, Begin::Run),
            (Stage::Accepted, 2, RunAgain, Begin::MarkThenRun),
            (Stage::Accepted, 9, RunAgain, Begin::MarkThenRun),
            (Stage::Started, 3, RunAgain, Begin::Report),
            (Stage::Accepted, 0, Report, Begin::MarkThenRun),
            (Stage::Accepted, 5, Report, Begin::MarkThenRun),
            (Stage::Started, 1, Report, Begin::Report),
        ];
        for (stage, starts, interrupted, expected) in table {
            assert_eq!(begin(stage, starts, interrupted), expected, "{stage:?} {starts} {interrupted:?}");
        }
    }

    #[test]
    fn a_run_ends_in_a_delivery_or_a_stored_result() {
        assert_eq!(after_run(OutcomeKind::Completed, true), Stage::Delivering);
        assert_eq!(after_run(OutcomeKind::Failed, true), Stage::Delivering);
        assert_eq!(after_run(OutcomeKind::Failed, false), Stage::Completed);
        assert_eq!(after_run(OutcomeKind::Deferred, true), Stage::Deferred);
    }

    #[test]
    fn an_attempt_ends_delivered_dead_or_to_be_retried() {
        let schedule = Schedule::default();
        let receipt = Receipt::new(Evidence::Acknowledged);
        let judge = |result: Result<&Receipt, &SinkError>, number| {
            after_attempt(result, number, Micros(0), Micros(0), &schedule, 1)
        };
        assert_eq!(judge(Ok(&receipt), 1), Verdict::Delivered);
        assert_eq!(judge(Err(&SinkError::refused("no")), 1), Verdict::Dead);
        assert_eq!(judge(Err(&SinkError::unavailable("down")), 10), Verdict::Dead);
        let Verdict::Retry { due } = judge(Err(&SinkError::unavailable("down")), 1) else { panic!("retried") };
        let wait = due.since(Micros(0));
        assert!((Duration::from_secs(4)..=Duration::from_secs(6)).contains(&wait), "{wait:?}");
    }
}
