//! What a broker is told.

use callback_receive::Verdict;
use std::time::Duration;

/// What becomes of a message in the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is acknowledged.
    Take,
    /// It is rejected: the dead letters of its queue have it, if there are any.
    Reject,
    /// It is given back to its queue after this time, or after some time.
    Later(Option<Duration>),
    /// It is given back to its queue after some time, until it has been unknown for too long.
    Unknown,
}

/// The answer of a verdict.
pub(super) fn of(verdict: &Verdict) -> Answer {
    match verdict {
        Verdict::Accepted | Verdict::Duplicate => Answer::Take,
        Verdict::Refused(_) | Verdict::Unverified | Verdict::TooLarge | Verdict::Ended => Answer::Reject,
        Verdict::RetryLater(wait) => Answer::Later(*wait),
        Verdict::Unknown => Answer::Unknown,
        // What this does not know is not taken.
        _ => Answer::Later(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::Problem;

    #[test]
    fn each_verdict_has_its_answer() {
        let wait = Some(Duration::from_secs(7));
        let table = [
            (Verdict::Accepted, Answer::Take),
            (Verdict::Duplicate, Answer::Take),
            (Verdict::Ended, Answer::Reject),
            (Verdict::Refused(Problem::new("no")), Answer::Reject),
            (Verdict::TooLarge, Answer::Reject),
            (Verdict::Unverified, Answer::Reject),
            (Verdict::RetryLater(wait), Answer::Later(wait)),
            (Verdict::RetryLater(None), Answer::Later(None)),
            (Verdict::Unknown, Answer::Unknown),
        ];
        for (verdict, expected) in table {
            assert_eq!(of(&verdict), expected, "{verdict:?}");
            assert_eq!(expected == Answer::Take, verdict.is_taken(), "{verdict:?}");
        }
    }
}
