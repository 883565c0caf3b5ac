//! What verdicts do, by a receiver that says what a test wants.

use super::*;
use callback_core::{Message, Problem};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};
use tokio::task::JoinHandle;

const HOUR: Duration = Duration::from_secs(3600);

/// What every record takes.
const SIZE: usize = 100;

type Script = dyn Fn(i64, usize) -> Option<Verdict> + Send + Sync;

/// A receiver that answers by a script: what the record of this offset is told at its how many-th offer; `None` is no answer.
#[derive(Clone)]
struct Scripted {
    script: Arc<Script>,
    seen: Arc<Mutex<Seen>>,
    begun: Instant,
}

#[derive(Default)]
struct Seen {
    /// Offset, seconds since the beginning, and the position to be stored with it.
    offers: Vec<(i64, u64, Option<i64>)>,
    passed: Vec<(String, i64)>,
    is_expected: bool,
    fails_to_store: bool,
}

impl Scripted {
    fn new(script: impl Fn(i64, usize) -> Option<Verdict> + Send + Sync + 'static) -> Self {
        Self { script: Arc::new(script), seen: Arc::default(), begun: Instant::now() }
    }

    fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().expect("no panic"))
    }

    fn offered(&self) -> Vec<i64> {
        self.seen(|seen| seen.offers.iter().map(|offer| offer.0).collect())
    }

    fn passed(&self) -> Vec<i64> {
        self.seen(|seen| seen.passed.iter().map(|(_, offset)| *offset).collect())
    }
}

/// The handle that a record of this offset is for.
fn handle(offset: i64) -> HandleId {
    format!("{offset:0>32}").parse().expect("a handle")
}

impl Take for Scripted {
    fn offer(&self, to: HandleId, _: Incoming, position: Option<(String, i64)>) -> BoxFuture<'static, Verdict> {
        let offset = to.expose().trim_start_matches('0').parse().unwrap_or(0);
        let position = position.map(|(log, offset)| {
            assert_eq!(log, "kafka:///t/0");
            offset
        });
        let number = self.seen(|seen| {
            seen.offers.push((offset, self.begun.elapsed().as_secs(), position));
            seen.offers.iter().filter(|offer| offer.0 == offset).count()
        });
        match (self.script)(offset, number) {
            Some(verdict) => future::ready(verdict).boxed(),
            None => future::pending().boxed(),
        }
    }

    fn is_unknown(&self, _: &HandleId) -> bool {
        !self.seen(|seen| seen.is_expected)
    }

    fn pass(&self, positions: Vec<(String, i64)>) -> BoxFuture<'static, bool> {
        future::ready(self.seen(|seen| {
            seen.passed.extend(positions);
            !seen.fails_to_store
        }))
        .boxed()
    }
}

fn record(offset: i64) -> Arrived {
    let incoming = Incoming::new(Message::builder("a").build().expect("valid"));
    Arrived { partition: 0, offset, content: Ok(Offer { handle: handle(offset), incoming, size: SIZE }) }
}

const BOUNDS: Bounds = Bounds { records: 10, bytes: 10 * SIZE, keep: HOUR, keep_bytes: 3 * SIZE };

fn listening(intake: &Scripted, has_inbox: bool, bounds: Bounds) -> Listening<Scripted> {
    Listening::new(intake.clone(), Log::new(None, "t".into()), has_inbox, bounds, &[(0, 0)])
}

/// A listener that runs.
struct Running {
    arrivals: mpsc::Sender<Arrived>,
    closing: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(intake: &Scripted, bounds: Bounds) -> Self {
        let (arrivals, receiver) = mpsc::channel(1);
        let closing = CancellationToken::new();
        let task = tokio::spawn(listening(intake, true, bounds).run(receiver, closing.clone()));
        Self { arrivals, closing, task }
    }

    async fn send(&self, offset: i64) {
        self.arrivals.send(record(offset)).await.expect("it listens");
    }

    async fn close(self) {
        self.closing.cancel();
        self.task.await.expect("no panic");
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_passes_only_by_a_verdict_that_says_so() {
    let refused = Verdict::Refused(Problem::new("not wanted"));
    for (verdict, has_inbox, passes) in [
        (Verdict::Accepted, true, true),
        (Verdict::Duplicate, true, true),
        (Verdict::Ended, true, true),
        (refused, true, true),
        (Verdict::TooLarge, true, true),
        (Verdict::Unverified, true, true),
        (Verdict::RetryLater(None), true, false),
        (Verdict::RetryLater(Some(Duration::MAX)), true, false),
        (Verdict::Unknown, true, false),
        (Verdict::Unknown, false, true),
    ] {
        let intake = Scripted::new({
            let verdict = verdict.clone();
            move |_, _| Some(verdict.clone())
        });
        let mut listening = listening(&intake, has_inbox, BOUNDS);
        listening.arrived(record(0));
        assert_eq!(listening.progress[&0].passed() == 0, passes, "{verdict:?} {has_inbox}");
        assert_eq!(listening.held.0, usize::from(matches!(verdict, Verdict::RetryLater(_))), "{verdict:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_message_passes_without_an_offer() {
    let intake = Scripted::new(|_, _| None);
    let mut listening = listening(&intake, true, BOUNDS);
    listening.arrived(Arrived { partition: 0, offset: 0, content: Err(Unread::Tombstone) });
    assert_eq!((listening.progress[&0].passed(), intake.offered()), (0, vec![]));
}

/// What is counted, by topic and reason.
#[derive(Default)]
struct Counters(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Counters {
    fn all(&self) -> Vec<(String, u64)> {
        let counters = self.0.lock().expect("no panic");
        counters.iter().map(|(name, counter)| (name.clone(), counter.load(Ordering::SeqCst))).collect()
    }
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        assert_eq!(key.name(), "callback_kafka_passed_total");
        let labels: Vec<&str> = key.labels().map(metrics::Label::value).collect();
        let mut counters = self.0.lock().expect("no panic");
        Counter::from_arc(Arc::clone(counters.entry(labels.join(" ")).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_without_being_taken_is_counted_by_its_reason() {
    let verdicts = [
        Verdict::Accepted,
        Verdict::Duplicate,
        Verdict::Ended,
        Verdict::Refused(Problem::new("not wanted")),
        Verdict::TooLarge,
        Verdict::Unverified,
        Verdict::Unknown,
        Verdict::RetryLater(None),
    ];
    let intake = Scripted::new(move |offset, _| usize::try_from(offset).ok().map(|offset| verdicts[offset].clone()));
    let counters = Counters::default();
    let _counting = metrics::set_default_local_recorder(&counters);
    let mut listening = listening(&intake, false, BOUNDS);
    (0..8).for_each(|offset| listening.arrived(record(offset)));
    let unread = [Unread::Tombstone, Unread::NoHandle, Unread::TooLarge, Unread::NoMessage("it is none".into())];
    for (offset, unread) in (8..).zip(unread) {
        listening.arrived(Arrived { partition: 0, offset, content: Err(unread) });
    }
    let expected = [
        ("t ended", 1),
        ("t no_handle", 1),
        ("t no_message", 1),
        ("t refused", 1),
        ("t tombstone", 1),
        ("t too_large", 2),
        ("t unknown", 1),
        ("t unverified", 1),
    ];
    assert_eq!(counters.all(), expected.map(|(name, count)| (name.to_owned(), count)));
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_later_is_offered_again_after_the_wait() {
    let intake = Scripted::new(|offset, number| match (offset, number) {
        (1, 1) => Some(Verdict::RetryLater(Some(Duration::from_secs(40)))),
        (2, number) if number < 9 => Some(Verdict::RetryLater(None)),
        _ => Some(Verdict::Accepted),
    });
    let running = Running::start(&intake, BOUNDS);
    for offset in 0..3 {
        running.send(offset).await;
    }
    seconds(300).await;
    let times = |offset| {
        intake
            .seen(|seen| seen.offers.iter().filter(|offer| offer.0 == offset).map(|offer| offer.1).collect::<Vec<_>>())
    };
    assert_eq!(times(0), [0]);
    assert_eq!(times(1), [0, 40]);
    assert_eq!(times(2), [0, 1, 3, 7, 15, 25, 35, 45, 55]);
    running.close().await;
    assert_eq!(intake.passed().last(), Some(&2));
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_room_is_offered_when_its_handle_has_some() {
    // All are for one handle, which has room from the third offer on; the second wants a wait.
    let intake = Scripted::new(|_, number| match number {
        1 => Some(Verdict::RetryLater(None)),
        2 => Some(Verdict::RetryLater(Some(Duration::from_secs(5)))),
        3 => Some(Verdict::RetryLater(None)),
        _ => Some(Verdict::Accepted),
    });
    let running = Running::start(&intake, BOUNDS);
    let to_one = |offset| Arrived { offset, ..record(7) };
    for offset in 0..4 {
        running.arrivals.send(to_one(offset)).await.expect("it listens");
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let positions = intake.seen(|seen| seen.offers.iter().map(|(_, _, at)| *at).collect::<Vec<_>>());
    // The last one's acceptance brings the first, and that one's the third.
    assert_eq!(positions, [Some(0), Some(-1), Some(-1), Some(-1), Some(0), Some(0)]);
    seconds(6).await;
    assert_eq!(intake.seen(|seen| seen.offers.last().copied()), Some((7, 5, Some(3))));
    running.close().await;
    assert_eq!(intake.passed().last(), Some(&3));
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_at_once_again_and_again_leaves_time_for_others() {
    let intake = Scripted::new(|offset, _| match offset {
        0 => Some(Verdict::RetryLater(Some(Duration::ZERO))),
        _ => Some(Verdict::Accepted),
    });
    let running = Running::start(&intake, BOUNDS);
    running.send(0).await;
    running.send(1).await;
    tokio::time::sleep(Duration::from_millis(105)).await;
    let offered = intake.offered();
    assert!(offered.contains(&1));
    assert_eq!(offered.iter().filter(|offset| **offset == 0).count(), 11, "each 10 ms");
    running.close().await;
}

#[tokio::test(start_paused = true)]
async fn records_are_offered_in_their_order_and_many_at_once() {
    let intake = Scripted::new(|_, _| None);
    let running = Running::start(&intake, BOUNDS);
    for offset in 0..10 {
        running.send(offset).await;
    }
    seconds(1).await;
    assert_eq!(intake.offered(), (0..10).collect::<Vec<_>>());
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn a_position_covers_nothing_that_has_no_verdict() {
    let intake = Scripted::new(|offset, number| match (offset, number) {
        (1, 1) => Some(Verdict::RetryLater(None)),
        _ => Some(Verdict::Accepted),
    });
    let running = Running::start(&intake, BOUNDS);
    for offset in 0..4 {
        running.send(offset).await;
    }
    seconds(2).await;
    let positions = intake.seen(|seen| seen.offers.iter().map(|(offset, _, at)| (*offset, *at)).collect::<Vec<_>>());
    assert_eq!(positions, [(0, Some(0)), (1, Some(1)), (2, Some(0)), (3, Some(0)), (1, Some(3))]);
    running.close().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_is_offered_than_there_is_room_for() {
    for bounds in [Bounds { records: 2, ..BOUNDS }, Bounds { bytes: SIZE + 1, ..BOUNDS }] {
        let intake = Scripted::new(|offset, number| match (offset, number) {
            (0, 1) => Some(Verdict::RetryLater(None)),
            (1, _) => None,
            _ => Some(Verdict::Accepted),
        });
        let running = Running::start(&intake, bounds);
        running.send(0).await;
        running.send(1).await;
        // The channel has room for it, the listener has not.
        running.send(2).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(intake.offered(), [0, 1]);
        // The first is accepted at its second offer.
        seconds(1).await;
        assert_eq!(intake.offered(), [0, 1, 0, 2]);
        drop(running);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_that_is_expected_later_is_offered_again() {
    let intake = Scripted::new(|offset, number| match (offset, number) {
        (0, 1) => Some(Verdict::Unknown),
        _ => Some(Verdict::Accepted),
    });
    let running = Running::start(&intake, BOUNDS);
    running.send(0).await;
    running.send(1).await;
    seconds(60).await;
    assert_eq!((intake.offered(), intake.passed()), (vec![0, 1], Vec::new()), "kept, and holding back its position");
    intake.seen(|seen| seen.is_expected = true);
    seconds(6).await;
    assert_eq!((intake.offered(), intake.passed()), (vec![0, 1, 0], vec![1]));
    running.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_kept_for_a_time() {
    let intake = Scripted::new(|_, _| Some(Verdict::Unknown));
    let running = Running::start(&intake, BOUNDS);
    running.send(0).await;
    seconds(HOUR.as_secs() - 2).await;
    assert!(intake.passed().is_empty());
    seconds(8).await;
    assert_eq!((intake.passed(), intake.offered()), (vec![0], vec![0]));
    running.close().await;
}

#[tokio::test(start_paused = true)]
async fn unknown_keys_are_kept_for_so_many_bytes_and_take_no_other_room() {
    let intake = Scripted::new(|_, _| Some(Verdict::Unknown));
    let running = Running::start(&intake, Bounds { records: 1, ..BOUNDS });
    for offset in 0..5 {
        running.send(offset).await;
    }
    seconds(2).await;
    // Three have room.
    assert_eq!((intake.offered().len(), intake.passed()), (5, vec![1]));
    running.close().await;
}

#[tokio::test(start_paused = true)]
async fn how_far_was_passed_is_stored_where_it_has_changed() {
    let intake = Scripted::new(|_, _| Some(Verdict::Refused(Problem::new("not wanted"))));
    intake.seen(|seen| seen.fails_to_store = true);
    let running = Running::start(&intake, BOUNDS);
    running.send(0).await;
    seconds(3).await;
    assert!(intake.passed().len() > 1, "it is tried again");
    intake.seen(|seen| {
        seen.fails_to_store = false;
        seen.passed.clear();
    });
    seconds(10).await;
    assert_eq!(intake.passed(), [0]);
    running.send(1).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    running.close().await;
    assert_eq!(intake.passed().last(), Some(&1), "at the end as well");
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_closes_waits_for_verdicts_and_offers_nothing_more() {
    let answer = CancellationToken::new();
    let intake = Scripted::new(|offset, _| (offset != 0).then_some(Verdict::Accepted));
    // The first is answered when the test says so.
    let slow = Slow { intake: intake.clone(), answer: answer.clone() };
    let (arrivals, receiver) = mpsc::channel(1);
    let closing = CancellationToken::new();
    let listening = Listening::new(slow, Log::new(None, "t".into()), true, BOUNDS, &[(0, 0)]);
    let task = tokio::spawn(listening.run(receiver, closing.clone()));
    arrivals.send(record(0)).await.expect("it listens");
    seconds(1).await;
    closing.cancel();
    seconds(1).await;
    assert!(arrivals.is_closed() && !task.is_finished());
    answer.cancel();
    task.await.expect("no panic");
    assert_eq!((intake.offered(), intake.passed()), (vec![0], vec![0]));
}

struct Slow {
    intake: Scripted,
    answer: CancellationToken,
}

impl Take for Slow {
    fn offer(&self, to: HandleId, incoming: Incoming, position: Option<(String, i64)>) -> BoxFuture<'static, Verdict> {
        drop(self.intake.offer(to, incoming, position));
        let answer = self.answer.clone();
        async move {
            answer.cancelled().await;
            Verdict::Accepted
        }
        .boxed()
    }

    fn is_unknown(&self, handle: &HandleId) -> bool {
        self.intake.is_unknown(handle)
    }

    fn pass(&self, positions: Vec<(String, i64)>) -> BoxFuture<'static, bool> {
        self.intake.pass(positions)
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_read_twice_is_offered_once_at_a_time() {
    let intake = Scripted::new(|_, _| None);
    let mut listening = listening(&intake, true, BOUNDS);
    listening.arrived(record(0));
    listening.arrived(record(0));
    assert_eq!((intake.offered(), listening.held.0), (vec![0], 1));
}
