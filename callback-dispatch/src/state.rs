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
    use proptest::{collection::vec, prelude::*, sample::select};
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

    /// What may happen to a task, one thing after the other.
    #[derive(Clone, Debug)]
    enum Happens {
        Run(OutcomeKind),
        Attempt(Option<callback_core::ErrorKind>),
        /// The process dies: whatever goes on is cut short, and begins anew.
        Crash,
        /// So much time passes.
        Time(u64),
        Complete,
        Cancel,
        Expire,
    }

    fn happens() -> impl Strategy<Value = Happens> {
        use callback_core::ErrorKind::{Gone, Refused, TimedOut, Unauthorized, Unavailable};
        let kinds = select(vec![Gone, Refused, TimedOut, Unauthorized, Unavailable, Unavailable, Unavailable]);
        let outcomes = select(vec![OutcomeKind::Completed, OutcomeKind::Failed, OutcomeKind::Deferred]);
        prop_oneof![
            4 => outcomes.prop_map(Happens::Run),
            8 => prop::option::weighted(0.9, kinds).prop_map(Happens::Attempt),
            2 => Just(Happens::Crash),
            2 => (0..100_000_u64).prop_map(Happens::Time),
            1 => Just(Happens::Complete),
            1 => Just(Happens::Cancel),
            1 => Just(Happens::Expire),
        ]
    }

    /// A task as the engine brings it from step to step, with an outbox that stores the first end and no other.
    #[derive(Debug)]
    struct Life {
        stage: Stage,
        starts: u32,
        runs: u32,
        attempts: u32,
        first_due: Micros,
        now: Micros,
        ends: Vec<Stage>,
    }

    impl Life {
        fn goes_to(&mut self, stage: Stage) {
            assert!(!self.stage.is_ended(), "{self:?} goes on");
            if stage.is_ended() {
                self.ends.push(stage);
            }
            if stage == Stage::Delivering && self.stage.is_open() {
                self.first_due = self.now;
            }
            self.stage = stage;
        }

        fn run(&mut self, outcome: OutcomeKind, interrupted: Interrupted, has_dsn: bool, crashes: bool) {
            match begin(self.stage, self.starts, interrupted) {
                Begin::Report => return self.goes_to(after_run(OutcomeKind::Failed, has_dsn)),
                Begin::MarkThenRun => self.goes_to(Stage::Started),
                Begin::Run => {}
            }
            self.runs += 1;
            if crashes {
                self.starts += 1;
            } else {
                self.goes_to(after_run(outcome, has_dsn));
            }
        }

        fn attempt(&mut self, failure: Option<callback_core::ErrorKind>, schedule: &Schedule) {
            self.attempts += 1;
            let answer =
                failure.map_or(Ok(Receipt::new(Evidence::Acknowledged)), |kind| Err(SinkError::new(kind, "it failed")));
            let verdict = after_attempt(answer.as_ref(), self.attempts, self.first_due, self.now, schedule, 7);
            if let Verdict::Retry { due } = verdict {
                assert!(due > self.now, "{verdict:?} at {:?}", self.now);
                self.now = due;
            }
            self.goes_to(verdict.stage());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_task_ends_in_exactly_one_way(
            happens in vec(happens(), 0..60),
            interrupted in select(vec![Interrupted::RunAgain, Interrupted::Report]),
            has_dsn in any::<bool>(),
        ) {
            let schedule = Schedule::default();
            let (stage, zero) = (Stage::Accepted, Micros(0));
            let mut life =
                Life { stage, starts: 0, runs: 0, attempts: 0, first_due: zero, now: zero, ends: Vec::new() };
            // What happens at random, then what happens if nobody hinders it: work that is deferred is completed.
            let then = (0..40).flat_map(|_| {
                let fails = Some(callback_core::ErrorKind::Unavailable);
                [Happens::Run(OutcomeKind::Completed), Happens::Attempt(fails), Happens::Complete]
            });
            for what in happens.into_iter().chain(then) {
                if life.stage.is_ended() {
                    break;
                }
                let is_waiting = matches!(life.stage, Stage::Accepted | Stage::Started);
                match what {
                    Happens::Run(outcome) if is_waiting => life.run(outcome, interrupted, has_dsn, false),
                    Happens::Crash if is_waiting => life.run(OutcomeKind::Completed, interrupted, has_dsn, true),
                    Happens::Attempt(failure) if life.stage == Stage::Delivering => life.attempt(failure, &schedule),
                    Happens::Time(seconds) => life.now = life.now.after(Duration::from_secs(seconds)),
                    Happens::Complete if life.stage.is_open() => life.goes_to(after_run(OutcomeKind::Completed, has_dsn)),
                    Happens::Cancel => life.goes_to(Stage::Cancelled),
                    Happens::Expire => life.goes_to(Stage::Expired),
                    _ => {}
                }
            }
            prop_assert_eq!(life.ends.len(), 1, "{:?}", life);
            prop_assert!(life.attempts <= 10, "{:?}", life);
            prop_assert!(life.runs <= UNFINISHED_STARTS + 1, "{:?}", life);
            let [end] = life.ends[..] else { unreachable!("there is one") };
            prop_assert!(has_dsn || !matches!(end, Stage::Delivered | Stage::Dead), "{:?}", life);
            prop_assert!(!has_dsn || end != Stage::Completed, "{:?}", life);
        }
    }
}
