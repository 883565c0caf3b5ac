use super::*;
use callback_core::{ErrorKind, Evidence};

mod properties;

const LATER: Duration = Duration::from_secs(20);

fn id(number: usize) -> MessageId {
    format!("m{number}").parse().expect("an id")
}

/// A session that was opened at this moment, which is then.
fn session(subprotocol: Subprotocol, pace: Pace) -> (Session<usize>, Instant) {
    let now = Instant::now();
    (Session::new(subprotocol, pace, Some(Duration::from_secs(60)), now), now)
}

fn acknowledging() -> (Session<usize>, Instant) {
    session(Subprotocol::CallbackV1, Pace::default())
}

fn write(session: &mut Session<usize>, numbers: impl IntoIterator<Item = usize>, now: Instant) {
    for number in numbers {
        assert!(session.has_room(), "{number}");
        session.written(id(number), number, now + LATER, now);
    }
}

/// The tokens that a text settles, with the kind of failure where it is one.
#[track_caller]
fn answer(session: &mut Session<usize>, text: &str, now: Instant) -> Vec<(usize, Option<ErrorKind>)> {
    kinds(session.received(Incoming::Text(text), now).expect("a known frame"))
}

fn kinds(settled: Vec<Settled<usize>>) -> Vec<(usize, Option<ErrorKind>)> {
    settled.into_iter().map(|(token, result)| (token, result.err().map(|failure| failure.kind))).collect()
}

fn ended(session: Session<usize>, end: End) -> (Vec<(usize, ErrorKind)>, Pace) {
    let (left, pace) = session.end(end);
    (left.into_iter().map(|(token, failure)| (token, failure.kind)).collect(), pace)
}

#[test]
fn acknowledgments_come_in_any_order() {
    let (mut session, now) = acknowledging();
    write(&mut session, 0..4, now);
    assert_eq!(answer(&mut session, r#"{"ack":"m2"}"#, now), [(2, None)]);
    assert_eq!(answer(&mut session, r#"{"nack":"m0","kind":"refused"}"#, now), [(0, Some(ErrorKind::Refused))]);
    assert_eq!(answer(&mut session, r#"{"nack":"m3","kind":"later"}"#, now), [(3, Some(ErrorKind::Throttled))]);
    assert_eq!(answer(&mut session, r#"{"nack":"m1","kind":"gone"}"#, now), [(1, Some(ErrorKind::Gone))]);
    assert_eq!(ended(session, End::Closed(Some(1008))), (vec![], Pace::default()));
}

#[test]
fn an_acknowledgment_of_something_else_is_ignored() {
    let (mut session, now) = acknowledging();
    write(&mut session, 0..1, now);
    for text in [r#"{"ack":"m1"}"#, r#"{"ack":""}"#, r#"{"nack":"m7","kind":"gone"}"#] {
        assert!(answer(&mut session, text, now).is_empty());
    }
    assert_eq!(answer(&mut session, r#"{"ack":"m0"}"#, now), [(0, None)]);
    assert!(answer(&mut session, r#"{"ack":"m0"}"#, now).is_empty(), "it is settled once");
}

#[test]
fn one_acknowledgment_is_for_all_attempts_of_a_message() {
    let (mut session, now) = acknowledging();
    session.written(id(0), 10, now + LATER, now);
    write(&mut session, [1], now);
    session.written(id(0), 11, now + LATER, now);
    assert_eq!(answer(&mut session, r#"{"ack":"m0"}"#, now), [(10, None), (11, None)]);
}

#[test]
fn a_frame_that_callback_v1_does_not_know_is_told() {
    let (mut session, now) = acknowledging();
    assert!(session.received(Incoming::Text("hello"), now).is_err());
    assert!(session.received(Incoming::Binary, now).is_err());
    for incoming in [Incoming::Ping, Incoming::Pong(&[]), Incoming::Pong(&[0; 8])] {
        assert!(session.received(incoming, now).expect("part of every WebSocket").is_empty());
    }
}

#[test]
fn a_frame_written_is_no_evidence_and_neither_is_a_pong_under_callback_v1() {
    let (mut session, now) = acknowledging();
    write(&mut session, 0..1, now);
    assert_eq!(session.ping(), None);
    assert!(session.received(Incoming::Pong(&1_u64.to_be_bytes()), now).expect("known").is_empty());
    assert_eq!(ended(session, End::Broken("over")).0, [(0, ErrorKind::Unavailable)]);
}

#[test]
fn a_pong_is_evidence_for_the_frames_before_its_ping() {
    for subprotocol in [Subprotocol::CloudEvents, Subprotocol::Bare] {
        let (mut session, now) = session(subprotocol, Pace::default());
        write(&mut session, 0..2, now);
        let first = session.ping().expect("frames wait for it");
        assert_eq!(session.ping(), None, "one ping is enough");
        write(&mut session, 2..3, now);
        let second = session.ping().expect("a frame waits for it");
        write(&mut session, 3..4, now);
        let mut pong =
            |payload: &[u8]| kinds(session.received(Incoming::Pong(payload), now).expect("part of every WebSocket"));
        for payload in [&[][..], &[0; 8], &[0xff; 8], &first[..7], &3_u64.to_be_bytes()] {
            assert!(pong(payload).is_empty(), "{payload:?} answers no ping of ours");
        }
        assert_eq!(pong(&first), [(0, None), (1, None)]);
        assert_eq!(pong(&second), [(2, None)]);
        let (left, _) = session.end(End::Closed(None));
        assert_eq!(left.len(), 1, "the ping to the last frame was not written");
    }
}

#[test]
fn a_pong_to_a_later_ping_answers_the_earlier_ones() {
    let (mut session, now) = session(Subprotocol::Bare, Pace::default());
    write(&mut session, 0..1, now);
    session.ping().expect("a frame waits for it");
    write(&mut session, 1..2, now);
    let second = session.ping().expect("a frame waits for it");
    let settled = session.received(Incoming::Pong(&second), now).expect("part of every WebSocket");
    assert!(
        settled.iter().all(|(_, result)| result.as_ref().is_ok_and(|receipt| *receipt.evidence() == Evidence::Pong))
    );
    assert_eq!(settled.len(), 2);
}

#[test]
fn what_a_peer_says_where_a_pong_is_the_evidence_is_ignored() {
    let (mut session, now) = session(Subprotocol::Bare, Pace::default());
    write(&mut session, 0..1, now);
    for incoming in [Incoming::Text("hello"), Incoming::Text(r#"{"ack":"m0"}"#), Incoming::Binary, Incoming::Ping] {
        assert!(session.received(incoming, now).expect("whatever it is").is_empty());
    }
}

#[test]
fn at_most_256_frames_are_unacknowledged() {
    let (mut session, now) = acknowledging();
    write(&mut session, 0..256, now);
    assert!(!session.has_room());
    answer(&mut session, r#"{"ack":"m200"}"#, now);
    assert!(session.has_room());
}

#[test]
fn a_close_code_judges_a_message_that_alone_was_unacknowledged() {
    for (code, kind) in [
        (Some(1003), ErrorKind::Refused),
        (Some(1007), ErrorKind::Refused),
        (Some(1008), ErrorKind::Refused),
        (Some(1009), ErrorKind::TooLarge),
        (Some(1013), ErrorKind::Throttled),
        (Some(1001), ErrorKind::Unavailable),
        (Some(1011), ErrorKind::Unavailable),
        (None, ErrorKind::Unavailable),
    ] {
        let (mut session, now) = acknowledging();
        write(&mut session, 0..2, now);
        answer(&mut session, r#"{"ack":"m0"}"#, now);
        assert_eq!(ended(session, End::Closed(code)), (vec![(1, kind)], Pace::default()), "{code:?}");
    }
}

#[test]
fn among_several_nobody_pays_and_then_it_goes_one_at_a_time() {
    for code in [1000, 1001, 1003, 1006, 1007, 1008, 1009, 1011, 1012, 1013, 4000] {
        let (mut session, now) = acknowledging();
        write(&mut session, 0..256, now);
        let (left, pace) = ended(session, End::Closed(Some(code)));
        assert_eq!(left.len(), 256);
        assert!(left.iter().all(|(_, kind)| *kind == ErrorKind::Unavailable), "{code}");
        let is_slow = matches!(code, 1003 | 1007 | 1008 | 1009);
        assert_eq!(pace.window(), if is_slow { 1 } else { 256 }, "{code}");
    }
}

#[test]
fn it_goes_one_at_a_time_until_256_were_acknowledged_over_all_connections() {
    let mut pace = Pace::ONE_AT_A_TIME;
    for round in 0..2 {
        let (mut session, now) = session(Subprotocol::CallbackV1, pace);
        for number in 0..127 {
            write(&mut session, [number], now);
            assert!(!session.has_room(), "{round} {number}");
            answer(&mut session, &format!(r#"{{"ack":"m{number}"}}"#), now);
        }
        write(&mut session, [127], now);
        answer(&mut session, r#"{"nack":"m127","kind":"refused"}"#, now);
        pace = session.end(End::Closed(Some(1001))).1;
    }
    let (mut session, now) = session(Subprotocol::CallbackV1, pace);
    for number in 0..2 {
        write(&mut session, [number], now);
        assert!(!session.has_room(), "a nack counts for nothing");
        answer(&mut session, &format!(r#"{{"ack":"m{number}"}}"#), now);
    }
    write(&mut session, 2..258, now);
}

#[test]
fn a_peer_that_answers_no_ping_is_dead_at_the_next() {
    let (mut session, start) = acknowledging();
    session.idle = None;
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(session.due(at(1)), Due::Nothing(at(20)));
    assert!(matches!(session.due(at(20)), Due::Ping(_)));
    assert_eq!(session.due(at(21)), Due::Nothing(at(40)));
    session.received(Incoming::Pong(&1_u64.to_be_bytes()), at(22)).expect("known");
    assert!(matches!(session.due(at(40)), Due::Ping(_)));
    assert_eq!(session.due(at(60)), Due::Dead("the peer does not answer pings"));
}

#[test]
fn a_connection_without_work_is_idle_unless_it_may_be() {
    let (mut session, start) = acknowledging();
    let at = |seconds| start + Duration::from_secs(seconds);
    write(&mut session, 0..1, at(10));
    answer(&mut session, r#"{"ack":"m0"}"#, at(12));
    for seconds in [20, 40, 60] {
        assert!(matches!(session.due(at(seconds)), Due::Ping(_)));
        session.received(Incoming::Pong(&[]), at(seconds + 1)).expect("known");
    }
    assert_eq!(session.due(at(71)), Due::Nothing(at(72)));
    assert_eq!(session.due(at(72)), Due::Idle);
}

#[test]
fn a_peer_that_says_nothing_after_a_frame_is_dead_when_its_time_is_over() {
    let (mut session, start) = acknowledging();
    session.written(id(0), 0, start + Duration::from_secs(1), start);
    let at = |seconds| start + Duration::from_secs(seconds);
    assert!(matches!(session.due(at(4)), Due::Nothing(_)), "it has five seconds at least");
    assert!(matches!(session.due(at(5)), Due::Ping(_)), "it is asked first");
    assert!(matches!(session.due(at(9)), Due::Nothing(_)));
    assert_eq!(session.due(at(10)), Due::Dead("the peer does not answer pings"));
}

#[test]
fn a_peer_that_said_something_after_a_frame_is_in_no_doubt() {
    let (mut session, start) = acknowledging();
    let at = |seconds| start + Duration::from_secs(seconds);
    session.written(id(0), 0, at(1), start);
    session.received(Incoming::Ping, at(2)).expect("known");
    assert!(matches!(session.due(at(6)), Due::Nothing(_)), "its time is over, and the peer lives");
}

#[test]
fn a_peer_that_answers_the_ping_after_a_silence_lives() {
    let (mut session, start) = acknowledging();
    let at = |seconds| start + Duration::from_secs(seconds);
    write(&mut session, 0..3, start);
    assert!(matches!(session.due(at(20)), Due::Ping(_)));
    session.received(Incoming::Pong(&1_u64.to_be_bytes()), at(24)).expect("known");
    assert!(matches!(session.due(at(25)), Due::Nothing(_)));
    assert_eq!(answer(&mut session, r#"{"ack":"m1"}"#, at(30)), [(1, None)]);
}

#[test]
fn a_frame_that_a_living_peer_leaves_costs_nobody_a_message() {
    let (mut session, start) = acknowledging();
    let at = |seconds| start + Duration::from_secs(seconds);
    write(&mut session, 0..1, start);
    let mut pings = 0;
    for seconds in 1..200 {
        let number = usize::try_from(seconds).expect("small");
        write(&mut session, [number], at(seconds));
        answer(&mut session, &format!(r#"{{"ack":"m{number}"}}"#), at(seconds));
        write(&mut session, [1_000 + number], at(seconds));
        answer(&mut session, &format!(r#"{{"ack":"m{}"}}"#, 1_000 + number - 1), at(seconds));
        match session.due(at(seconds)) {
            Due::Nothing(_) => {}
            Due::Ping(_) => pings += 1,
            other => panic!("{other:?} after {seconds}"),
        }
    }
    assert_eq!(pings, 9, "it is not asked out of turn");
    answer(&mut session, r#"{"ack":"m1199"}"#, at(200));
    assert_eq!(session.due(at(200)), Due::Dead("the peer does not acknowledge"), "nobody waits any more");
}

#[test]
fn a_peer_that_leaves_half_of_the_window_is_dead() {
    let (mut session, start) = acknowledging();
    write(&mut session, 0..128, start);
    session.received(Incoming::Ping, start + Duration::from_secs(1)).expect("known");
    write(&mut session, 128..129, start + Duration::from_secs(10));
    assert!(matches!(session.due(start + Duration::from_secs(19)), Due::Nothing(_)));
    session.received(Incoming::Ping, start + Duration::from_secs(11)).expect("known");
    assert_eq!(session.due(start + Duration::from_secs(20)), Due::Dead("the peer does not acknowledge"));
}

#[test]
fn one_at_a_time_does_not_wait_for_a_frame_that_is_left() {
    let (mut session, start) = session(Subprotocol::CallbackV1, Pace::ONE_AT_A_TIME);
    write(&mut session, 0..1, start);
    session.received(Incoming::Ping, start + Duration::from_secs(1)).expect("known");
    assert_eq!(session.due(start + LATER), Due::Dead("the peer does not acknowledge"));
}
