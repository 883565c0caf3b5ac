//! When a failed delivery is attempted again: days of it, in paused time.

use crate::support::{CustomSink, Given, event, in_time, receipt, start};
use callback_core::{ErrorKind, Phase, Receipt, Schedule, SinkError};
use callback_dispatch::{Clock, Dispatcher, DispatcherBuilder, Lane, MemoryOutbox, TokioClock};
use serde_json::json;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, time::Instant};

const HOUR: u64 = 3_600;

/// A dispatcher in paused time whose sink answers by `answer`, and the attempts that it makes.
async fn paused(
    answer: impl Fn(&Given) -> Result<Receipt, SinkError> + Send + Sync + 'static,
    settings: impl FnOnce(DispatcherBuilder) -> DispatcherBuilder,
) -> (Dispatcher, mpsc::UnboundedReceiver<(Instant, Given)>) {
    let (sender, attempts) = mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let result = answer(&given);
        let _ = sender.send((Instant::now(), given));
        async { result }
    });
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default());
    (start(settings(builder)).await, attempts)
}

/// Publishes to a sink that fails once; the wait until the second attempt must be within `range`, in seconds.
async fn check_wait(fails: impl Fn() -> SinkError + Send + Sync + 'static, range: std::ops::RangeInclusive<f64>) {
    let answer = move |given: &Given| if given.attempt.number() == 1 { Err(fails()) } else { Ok(receipt()) };
    let (dispatcher, mut attempts) = paused(answer, |builder| builder).await;
    dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    let (first, _) = attempts.recv().await.expect("a first attempt");
    let (second, given) = attempts.recv().await.expect("a second attempt");
    let wait = (second - first).as_secs_f64();
    assert_eq!(given.attempt.number(), 2);
    assert!(range.contains(&wait), "{wait} s, not within {range:?}");
}

#[tokio::test(start_paused = true)]
async fn ten_attempts_are_made_at_their_times_then_the_message_is_dead() {
    let steps = [5, 300, 1_800, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
    let fails = |_: &Given| Err(SinkError::unavailable("the cause").with_status(503).with_phase(Phase::Answer));
    // With all its jitter upwards the last attempt would be due later than 76 h.
    let schedule = Schedule::default().give_up_after(Duration::from_secs(100 * HOUR));
    let (dispatcher, mut attempts) = paused(fails, |builder| builder.schedule(schedule)).await;
    let id = dispatcher.publish(event("custom://down", json!(1))).await.expect("published");

    let mut times = Vec::new();
    for number in 1..=10 {
        let (time, given) = attempts.recv().await.expect("an attempt");
        assert_eq!((given.attempt.number(), given.message.id()), (number, &id));
        times.push(time);
    }
    for (step, pair) in steps.into_iter().zip(times.windows(2)) {
        let (wait, step) = ((pair[1] - pair[0]).as_secs_f64(), Duration::from_secs(step).as_secs_f64());
        assert!((0.8 * step..=1.2 * step + 0.01).contains(&wait), "{wait} s in place of {step} s");
    }

    let letter = loop {
        let page = dispatcher.dead_letters().list(&Default::default()).await.expect("readable");
        match page.items.into_iter().next() {
            Some(letter) => break letter,
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(letter.id.to_string(), id.to_string());
    assert_eq!(letter.attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    for (attempt, time) in letter.attempts.iter().zip(&times) {
        assert_eq!((attempt.kind, attempt.phase, attempt.status), (ErrorKind::Unavailable, Phase::Answer, Some(503)));
        assert!(attempt.reason.contains("the cause"), "{}", attempt.reason);
        let (recorded, made) = (attempt.time.duration_since(letter.attempts[0].time), *time - times[0]);
        assert!(recorded.expect("in order").abs_diff(made) < Duration::from_millis(10));
    }
    // A day later nobody has tried again.
    tokio::time::advance(Duration::from_secs(48 * HOUR)).await;
    dispatcher.close(Duration::ZERO).await;
    assert!(attempts.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_final_is_dead_at_once() {
    let kinds = [ErrorKind::Forbidden, ErrorKind::Gone, ErrorKind::Refused, ErrorKind::TooLarge];
    let kind = move |given: &Given| kinds[given.message.json::<usize>().expect("a number")];
    let (dispatcher, mut attempts) =
        paused(move |given| Err(SinkError::new(kind(given), "no")), |builder| builder).await;
    for number in 0..kinds.len() {
        dispatcher.publish(event("custom://a", json!(number))).await.expect("published");
        attempts.recv().await.expect("an attempt");
    }
    tokio::time::advance(Duration::from_secs(100 * HOUR)).await;
    let dead = dispatcher.dead_letters().list(&Default::default()).await.expect("readable").items;
    let dead: Vec<_> = dead.iter().map(|letter| (letter.attempts.len(), letter.attempts[0].kind)).collect();
    assert_eq!(dead, kinds.map(|kind| (1, kind)));
    assert!(attempts.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_after_five_seconds() {
    for kind in [ErrorKind::Throttled, ErrorKind::TimedOut, ErrorKind::Unavailable, ErrorKind::Unroutable] {
        check_wait(move || SinkError::new(kind, "later"), 4.0..=6.01).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_unauthorized_waits_two_hours() {
    check_wait(|| SinkError::unauthorized("who are you?"), 0.8 * 7_200.0..=1.2 * 7_200.0 + 0.01).await;
}

#[tokio::test(start_paused = true)]
async fn retry_after_lengthens_a_wait_and_does_not_shorten_it() {
    let throttled = |seconds| move || SinkError::throttled("later").with_retry_after(Duration::from_secs(seconds));
    check_wait(throttled(60), 60.0..=72.01).await;
    check_wait(throttled(1), 5.0..=6.01).await;
    check_wait(throttled(1_000 * HOUR), 86_400.0..=1.2 * 86_400.0 + 0.01).await;
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_never_answers_is_given_up_at_the_deadline_and_tried_again() {
    let (sender, mut attempts) = mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let hangs = given.attempt.number() == 1;
        let _ = sender.send((Instant::now(), given.attempt.deadline()));
        async move { if hangs { std::future::pending().await } else { Err(SinkError::refused("no")) } }
    });
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default());
    let dispatcher = start(builder.deadline(Duration::from_secs(7))).await;
    let id = dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    let (first, deadline) = attempts.recv().await.expect("a first attempt");
    assert_eq!(deadline - first.into_std(), Duration::from_secs(7));
    let (second, _) = attempts.recv().await.expect("a second attempt");
    assert!((11.0..=13.01).contains(&(second - first).as_secs_f64()), "{:?}", second - first);

    // By now it is refused, and shows what became of the first.
    tokio::time::advance(Duration::from_secs(1)).await;
    let id = id.as_str().parse().expect("a task's id");
    let letter = dispatcher.dead_letters().get(id).await.expect("readable").expect("it is dead");
    let kinds: Vec<_> = letter.attempts.iter().map(|attempt| attempt.kind).collect();
    assert_eq!(kinds, [ErrorKind::TimedOut, ErrorKind::Refused]);
    assert!(letter.attempts[0].took >= Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn more_than_one_batch_that_is_due_goes_out_at_once() {
    let fails = |given: &Given| {
        if given.attempt.number() == 1 { Err(SinkError::unavailable("down")) } else { Ok(receipt()) }
    };
    let schedule = Schedule::new([Duration::from_secs(5)]).expect("valid").jitter(0);
    let (dispatcher, mut attempts) = paused(fails, |builder| builder.schedule(schedule)).await;
    let begun = Instant::now();
    for number in 0..1_000 {
        // Each has a lane of its own: no lane that empties calls for more.
        dispatcher.publish(event(&format!("custom://host{number}"), json!(number))).await.expect("published");
    }
    for _ in 0..2_000 {
        attempts.recv().await.expect("an attempt");
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_replay_goes_by_the_dispatchers_clock_at_once() {
    let fails = |given: &Given| {
        if given.dsn.path() == "/back" || given.attempt.time() > UNIX_EPOCH + Duration::from_secs(HOUR) {
            Ok(receipt())
        } else {
            Err(SinkError::refused("no"))
        }
    };
    let clock = TokioClock::starting_at(UNIX_EPOCH);
    let (dispatcher, mut attempts) = paused(fails, |builder| builder.clock(clock)).await;
    let id = dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    attempts.recv().await.expect("an attempt");
    tokio::time::advance(Duration::from_secs(2 * HOUR)).await;
    let id = id.as_str().parse().expect("a task's id");
    let replayed = Instant::now();
    assert!(dispatcher.dead_letters().replay(id).await.expect("writable"));
    let (time, given) = attempts.recv().await.expect("another attempt");
    assert!(time - replayed < Duration::from_secs(1), "{:?}", time - replayed);
    assert_eq!(given.attempt.number(), 1);
    assert!(given.attempt.time() < SystemTime::now() - Duration::from_secs(HOUR));
}

#[tokio::test(start_paused = true)]
async fn a_hung_destination_does_not_delay_the_retries_of_another() {
    let (sender, mut attempts) = mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let _ = sender.send((Instant::now(), given.clone()));
        async move {
            match (given.dsn.authority(), given.attempt.number()) {
                ("hung", _) => std::future::pending().await,
                (_, 1) => Err(SinkError::unavailable("down")),
                _ => Ok(receipt()),
            }
        }
    });
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default());
    let builder = builder.lane(Lane::default().in_flight(1)).deadline(Duration::from_secs(HOUR));
    let dispatcher = start(builder).await;
    for _ in 0..20 {
        dispatcher.publish(event("custom://hung", json!(1))).await.expect("published");
    }
    dispatcher.publish(event("custom://well", json!(1))).await.expect("published");
    let begun = Instant::now();
    loop {
        let (time, given) = attempts.recv().await.expect("an attempt");
        if given.dsn.authority() == "well" && given.attempt.number() == 2 {
            assert!(time - begun < Duration::from_secs(7), "{:?}", time - begun);
            break;
        }
    }
}

/// Ten milliseconds pass between any two looks at it.
#[derive(Debug, Default)]
struct SlowMachine(AtomicU64);

impl Clock for SlowMachine {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(HOUR) + Duration::from_millis(10 * self.0.fetch_add(1, Ordering::SeqCst))
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_may_be_as_long_as_there_are_words_for() {
    let (dispatcher, mut attempts) = paused(|_| Ok(receipt()), |builder| builder.deadline(Duration::MAX)).await;
    dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    in_time(attempts.recv()).await.expect("an attempt");
}

#[tokio::test(start_paused = true)]
async fn what_came_due_before_anybody_looked_is_not_passed_over() {
    let fails = |given: &Given| {
        if given.attempt.number() < 4 { Err(SinkError::unavailable("down")) } else { Ok(receipt()) }
    };
    let schedule = Schedule::new([Duration::from_millis(1), Duration::from_millis(15), Duration::from_millis(40)]);
    let settings =
        |builder: DispatcherBuilder| builder.schedule(schedule.expect("valid")).clock(SlowMachine::default());
    let (dispatcher, mut attempts) = paused(fails, settings).await;
    for number in 0..20 {
        dispatcher.publish(event("custom://a", json!(number))).await.expect("published");
    }
    for _ in 0..80 {
        in_time(attempts.recv()).await.expect("an attempt");
    }
}
