//! Whatever a peer does, each frame has one end, and a receipt only by its own evidence.

use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Ping,
    Answer(usize, &'static str),
    Pong(u64),
    Garbage(String),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let answers = prop::sample::select(vec![
        r#"{"ack":"ID"}"#,
        r#"{"nack":"ID","kind":"later","retryAfter":3}"#,
        r#"{"nack":"ID","kind":"refused"}"#,
        r#"{"nack":"ID","kind":"gone"}"#,
    ]);
    prop_oneof![
        4 => (0..40_usize).prop_map(Step::Write),
        1 => Just(Step::Ping),
        4 => (0..40_usize, answers).prop_map(|(number, text)| Step::Answer(number, text)),
        1 => (0..20_u64).prop_map(Step::Pong),
        1 => ".{0,20}".prop_map(Step::Garbage),
        1 => (0..30_u64).prop_map(Step::Wait),
    ]
}

fn subprotocol() -> impl Strategy<Value = Subprotocol> {
    prop::sample::select(vec![Subprotocol::CallbackV1, Subprotocol::CloudEvents, Subprotocol::Bare])
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Broken("over")), proptest::option::of(1000..1020_u16).prop_map(End::Closed)]
}

proptest! {
    #[test]
    fn each_frame_has_one_end(
        subprotocol in subprotocol(),
        slow in any::<bool>(),
        steps in prop::collection::vec(step(), 0..300),
        end in end(),
    ) {
        let pace = if slow { Pace::ONE_AT_A_TIME } else { Pace::default() };
        let (mut session, mut now) = session(subprotocol, pace);
        // By token: the message, and the ping that came first after the frame.
        let mut open: HashMap<usize, (usize, Option<u64>)> = HashMap::new();
        let (mut tokens, mut pings) = (0, 0);
        for step in steps {
            let mut settled = Vec::new();
            match step {
                Step::Write(number) if session.has_room() => {
                    session.written(id(number), tokens, now + LATER, now);
                    open.insert(tokens, (number, None));
                    tokens += 1;
                }
                Step::Write(_) => prop_assert_eq!(open.len(), session.pace.window()),
                Step::Ping => {
                    if let Some(ping) = session.ping() {
                        pings += 1;
                        prop_assert_eq!(u64::from_be_bytes(ping), pings);
                        open.values_mut().for_each(|(_, after)| *after = after.or(Some(pings)));
                    }
                }
                Step::Answer(number, text) => {
                    let text = text.replace("ID", id(number).as_str());
                    settled = session.received(Incoming::Text(&text), now).expect("a known frame");
                    let is_of_it = |token: &usize| open[token].0 == number;
                    prop_assert!(settled.iter().all(|(token, _)| subprotocol.acknowledges() && is_of_it(token)));
                    let is_ack = text.contains("\"ack\"");
                    prop_assert!(settled.iter().all(|(_, result)| result.is_ok() == is_ack));
                }
                Step::Pong(number) => {
                    settled = session.received(Incoming::Pong(&number.to_be_bytes()), now).expect("a known frame");
                    let is_before = |token: &usize| open[token].1.is_some_and(|after| after <= number);
                    prop_assert!(settled.iter().all(|(token, _)| !subprotocol.acknowledges() && is_before(token)));
                    prop_assert!(settled.iter().all(|(_, result)| result.is_ok()));
                }
                Step::Garbage(text) => {
                    settled = session.received(Incoming::Text(&text), now).unwrap_or_default();
                    prop_assert!(settled.is_empty());
                }
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    if let Due::Ping(ping) = session.due(now) {
                        pings += 1;
                        prop_assert_eq!(u64::from_be_bytes(ping), pings);
                        open.values_mut().for_each(|(_, after)| *after = after.or(Some(pings)));
                    }
                }
            }
            for (token, _) in settled {
                prop_assert!(open.remove(&token).is_some(), "it was settled before");
            }
        }
        let (left, _) = session.end(end);
        let is_judged = left.len() == 1;
        prop_assert!(is_judged || left.iter().all(|(_, failure)| failure.kind == ErrorKind::Unavailable));
        let left: HashSet<usize> = left.into_iter().map(|(token, _)| token).collect();
        prop_assert_eq!(left, open.into_keys().collect::<HashSet<_>>());
    }
}
