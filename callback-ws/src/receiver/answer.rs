//! What a sender is told.

use crate::{receiver::wire::Reason, wire::Subprotocol};
use callback_core::MessageId;
use callback_receive::Verdict;
use serde::Serialize;
use std::time::Duration;
use tokio_tungstenite::tungstenite::{Message as Frame, protocol::frame::coding::CloseCode};

/// When a sender is told to come again, where nobody says when.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How long a reason may be, in bytes; what is beyond is cut off.
const REASON: usize = 1_024;

/// What follows a verdict.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// Nothing: the pong is let go.
    Nothing,
    /// A frame.
    Frame(Frame),
    /// The end of the connection.
    Close(CloseCode, Reason),
}

/// The answer of a verdict on a message.
///
/// Where a pong is the evidence, what is not taken ends the connection, since there is no other way to say so.
pub(super) fn of(subprotocol: Subprotocol, id: &MessageId, verdict: &Verdict) -> Answer {
    let told = match verdict {
        Verdict::Accepted | Verdict::Duplicate => Told::Taken,
        Verdict::Ended => Told::Not(Kind::Gone, "the callback has ended".into()),
        Verdict::Refused(problem) => Told::Not(Kind::Refused, problem.title.clone().into()),
        Verdict::TooLarge => return Answer::Close(CloseCode::Size, "the body is too large".into()),
        Verdict::Unverified => Told::Not(Kind::Refused, "the signature is missing or does not count".into()),
        Verdict::RetryLater(wait) => Told::Not(Kind::Later(*wait), "not now".into()),
        // What this does not know is not taken.
        _ => Told::Not(Kind::Later(None), "there is no such callback".into()),
    };
    match told {
        Told::Taken if subprotocol.acknowledges() => Answer::Frame(json(&Ack { ack: id.as_str() })),
        Told::Taken => Answer::Nothing,
        Told::Not(kind, reason) if subprotocol.acknowledges() => Answer::Frame(nack(id, kind, &reason)),
        Told::Not(Kind::Later(_), reason) => Answer::Close(CloseCode::Again, reason),
        Told::Not(Kind::Gone | Kind::Refused, reason) => Answer::Close(CloseCode::Policy, reason),
    }
}

/// The answer to a message that cannot be read.
pub(super) fn malformed(id: &MessageId, reason: &str) -> Frame {
    nack(id, Kind::Refused, reason)
}

enum Told {
    Taken,
    Not(Kind, Reason),
}

#[derive(Clone, Copy)]
enum Kind {
    Gone,
    Later(Option<Duration>),
    Refused,
}

#[derive(Serialize)]
struct Ack<'a> {
    ack: &'a str,
}

#[derive(Serialize)]
struct Nack<'a> {
    nack: &'a str,
    kind: &'a str,
    reason: &'a str,
    #[serde(rename = "retryAfter", skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

fn nack(id: &MessageId, kind: Kind, reason: &str) -> Frame {
    let (kind, retry_after) = match kind {
        Kind::Gone => ("gone", None),
        Kind::Later(wait) => ("later", Some(whole_seconds(wait.unwrap_or(RETRY_AFTER)))),
        Kind::Refused => ("refused", None),
    };
    json(&Nack { nack: id.as_str(), kind, reason: cut(reason, REASON), retry_after })
}

/// One at least.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// So much of a text as fits into so many bytes.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn json(value: &impl Serialize) -> Frame {
    // Texts and a number have a JSON form.
    Frame::text(serde_json::to_string(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{self, Verdict as Read};
    use callback_core::Problem;

    /// Every verdict, as a sender of ours reads its answer.
    fn verdicts() -> Vec<(Verdict, Read)> {
        let later = |seconds| Read::Later(Some(Duration::from_secs(seconds)));
        vec![
            (Verdict::Accepted, Read::Acknowledged),
            (Verdict::Duplicate, Read::Acknowledged),
            (Verdict::Ended, Read::Gone),
            (Verdict::Refused(Problem::new("too late, it is on the road")), Read::Refused),
            (Verdict::RetryLater(None), later(5)),
            (Verdict::RetryLater(Some(Duration::ZERO)), later(1)),
            (Verdict::RetryLater(Some(Duration::from_millis(7_001))), later(8)),
            (Verdict::Unknown, later(5)),
            (Verdict::Unverified, Read::Refused),
        ]
    }

    fn id() -> MessageId {
        "msg_1".parse().expect("an id")
    }

    #[test]
    fn the_answers_are_those_of_the_golden_file() {
        let mut lines = String::new();
        for (verdict, _) in verdicts() {
            let Answer::Frame(frame) = of(Subprotocol::CallbackV1, &id(), &verdict) else { panic!("{verdict:?}") };
            lines += frame.to_text().expect("a text");
            lines += "\n";
        }
        assert_eq!(lines, include_str!("../../tests/golden/answers.jsonl"));
    }

    #[test]
    fn a_sender_of_ours_reads_each_verdict_from_its_answer() {
        for (verdict, expected) in verdicts() {
            let Answer::Frame(frame) = of(Subprotocol::CallbackV1, &id(), &verdict) else { panic!("{verdict:?}") };
            let answer = wire::answer(frame.to_text().expect("a text")).expect("an answer");
            assert_eq!((&*answer.id, answer.verdict), ("msg_1", expected), "{verdict:?}");
            assert_eq!(expected == Read::Acknowledged, verdict.is_taken());
        }
    }

    #[test]
    fn a_body_that_is_too_large_ends_the_connection_with_1009() {
        for subprotocol in [Subprotocol::CallbackV1, Subprotocol::CloudEvents] {
            let answer = of(subprotocol, &id(), &Verdict::TooLarge);
            assert!(matches!(answer, Answer::Close(CloseCode::Size, _)), "{answer:?}");
        }
    }

    #[test]
    fn where_a_pong_is_the_evidence_what_is_not_taken_ends_the_connection() {
        for (verdict, read) in verdicts() {
            let code = match of(Subprotocol::CloudEvents, &id(), &verdict) {
                Answer::Nothing => None,
                Answer::Close(code, _) => Some(code),
                Answer::Frame(frame) => panic!("{verdict:?}: {frame:?}"),
            };
            assert_eq!(code.is_none(), verdict.is_taken(), "{verdict:?}");
            let expected = match read {
                Read::Acknowledged => None,
                Read::Later(_) => Some(CloseCode::Again),
                Read::Gone | Read::Refused => Some(CloseCode::Policy),
            };
            assert_eq!(code, expected, "{verdict:?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_off() {
        let problem = Problem::new("ä".repeat(100_000));
        let Answer::Frame(frame) = of(Subprotocol::CallbackV1, &id(), &Verdict::Refused(problem)) else { panic!() };
        assert!(frame.len() < 2 * REASON, "{}", frame.len());
        assert_eq!(cut("äö", 3), "ä");
    }
}
