//! Breakers, rates and caps: a destination in trouble costs the others nothing.

use crate::support::{CustomSink, Gate, Given, Home, dsn, event, killed, lived, receipt, start};
use callback_core::{MemorySink, Phase, Receipt, Schedule, SinkError};
use callback_dispatch::{DeadLetterQuery, Dispatcher, Lane, MemoryOutbox, Notice, TokioClock};
use futures_util::future::{join_all, pending};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

on_each_outbox!(one_destination_has_a_cap_over_all_callers, half_of_the_attempts_are_kept_for_who_answers);
over_lives_on_each_outbox!(an_open_breaker_stays_open_through_a_restart_and_hides_nobody);

const HOUR: Duration = Duration::from_secs(3_600);

fn unreachable() -> SinkError {
    SinkError::unavailable("refused").with_phase(Phase::Connect)
}

/// A dispatcher in paused time; each attempt's second and destination.
async fn paused(
    lane: Lane,
    schedule: Schedule,
    answer: impl Fn(&Given) -> Result<Receipt, SinkError> + Send + Sync + 'static,
) -> (Dispatcher, mpsc::UnboundedReceiver<(f64, u32)>) {
    let (sender, attempts) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let sink = CustomSink::new(move |given| {
        let _ = sender.send((begun.elapsed().as_secs_f64(), given.attempt.number()));
        let answer = answer(&given);
        async { answer }
    });
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default());
    (start(builder.lane(lane).schedule(schedule)).await, attempts)
}

fn every(seconds: u64) -> Schedule {
    let delays = std::iter::repeat_n(Duration::from_secs(seconds), 99);
    Schedule::new(delays).expect("a schedule").jitter(0).give_up_after(HOUR)
}

#[tokio::test(start_paused = true)]
async fn while_the_breaker_is_open_nothing_is_attempted_and_no_attempt_is_used_up() {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let answer = move |_: &Given| if is_well.load(Ordering::SeqCst) { Ok(receipt()) } else { Err(unreachable()) };
    let (dispatcher, mut attempts) =
        paused(Lane::default().breaker(3, Duration::from_secs(100)), every(1), answer).await;
    dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(attempts.recv().await.expect("an attempt"));
    }
    // Three open it, after 100 s one is tried and fails, and 200 s later another.
    let seconds: Vec<(u64, u32)> = made.iter().map(|(second, number)| (second.round() as u64, *number)).collect();
    assert_eq!(seconds, [(0, 1), (1, 2), (2, 3), (102, 4), (302, 5)]);
    well.store(true, Ordering::SeqCst);
    let (second, number) = attempts.recv().await.expect("an attempt");
    assert_eq!((second.round() as u64, number), (702, 6));
    // It is closed: what comes goes at once.
    dispatcher.publish(event("custom://a", json!(2))).await.expect("published");
    let (second, number) = attempts.recv().await.expect("an attempt");
    assert_eq!((second.round() as u64, number), (702, 1));
}

#[tokio::test(start_paused = true)]
async fn a_status_opens_no_breaker() {
    let fails = |_: &Given| Err(SinkError::unavailable("broken").with_status(500).with_phase(Phase::Answer));
    let (dispatcher, mut attempts) = paused(Lane::default().breaker(1, HOUR), every(1), fails).await;
    dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    for number in 1..=10 {
        let (second, made) = attempts.recv().await.expect("an attempt");
        assert_eq!((second.round() as u32, made), (number - 1, number));
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_throttled_is_left_alone_with_all_its_messages() {
    let throttles = |given: &Given| match given.attempt.number() {
        1 if given.message.json::<u32>().ok() == Some(1) => {
            Err(SinkError::throttled("slow down").with_retry_after(Duration::from_secs(60)))
        }
        _ => Ok(receipt()),
    };
    let (dispatcher, mut attempts) = paused(Lane::default(), every(1), throttles).await;
    dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    assert_eq!(attempts.recv().await.expect("an attempt").0.round() as u64, 0);
    dispatcher.publish(event("custom://a", json!(2))).await.expect("published");
    for _ in 0..2 {
        let (second, _) = attempts.recv().await.expect("an attempt");
        assert!((59.9..62.0).contains(&second), "{second}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_an_open_breaker_grows_old_and_is_dead_in_time() {
    let lane = Lane::default().breaker(1, Duration::from_secs(600));
    let (dispatcher, mut attempts) = paused(lane, every(1), |_| Err(unreachable())).await;
    for number in 0..3 {
        dispatcher.publish(event("custom://a", json!(number))).await.expect("published");
    }
    let mut dead = 0;
    let begun = Instant::now();
    while dead < 3 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(begun.elapsed() < HOUR + Duration::from_secs(180), "{dead} are dead");
        dead = dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("readable").items.len();
    }
    assert!(begun.elapsed() >= HOUR);
    let mut made = 0;
    while attempts.try_recv().is_ok() {
        made += 1;
    }
    assert!(made < 15, "{made} attempts");
}

#[tokio::test(start_paused = true)]
async fn no_more_attempts_are_begun_a_second_than_the_lane_says() {
    let (dispatcher, mut attempts) = paused(Lane::default().per_second(2.0), every(1), |_| Ok(receipt())).await;
    let publish = |number| dispatcher.publish(event("custom://a", json!(number)));
    join_all((0..7).map(publish)).await.into_iter().for_each(|published| drop(published.expect("published")));
    for number in 0..7_u32 {
        let (second, _) = attempts.recv().await.expect("an attempt");
        let even = f64::from(number) * 0.5;
        assert!((even - 0.11..even + 0.01).contains(&second), "{number} at {second}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_attempts_are_begun_a_second_to_one_host_over_all_callers() {
    let (sender, mut attempts) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let sink = CustomSink::new(move |_| {
        let _ = sender.send(begun.elapsed().as_secs_f64());
        async { Ok(receipt()) }
    });
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default());
    let dispatcher = start(builder.host_per_second(2.0)).await;
    for number in 0..5 {
        let event = event("custom://a", json!(number)).owner(format!("owner {number}"));
        dispatcher.publish(event).await.expect("published");
    }
    for number in 0..5_u32 {
        let (second, even) = (attempts.recv().await.expect("an attempt"), f64::from(number) * 0.5);
        assert!((even - 0.11..even + 0.01).contains(&second), "{number} at {second}");
    }
}

#[tokio::test(start_paused = true)]
async fn all_of_a_key_grows_old_at_once_in_a_closed_lane() {
    const MANY: usize = 5;
    let (sender, mut told) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let hook = move |notice: &Notice| {
        if let Notice::Dead { attempts, .. } = notice {
            let _ = sender.send((begun.elapsed().as_secs(), *attempts));
        }
    };
    let sink = CustomSink::new(|_| async { Err(unreachable()) });
    let lane = Lane::default().breaker(1, Duration::from_secs(600));
    let schedule = every(1).give_up_after(Duration::from_secs(90));
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default()).on_notice(hook);
    let dispatcher = start(builder.lane(lane).schedule(schedule)).await;
    for number in 0..MANY {
        dispatcher.publish(event("custom://a", json!(number)).ordering_key("key")).await.expect("published");
    }
    for number in 0..MANY {
        assert_eq!(told.recv().await, Some((120, u32::from(number == 0))));
    }
    // The attempts of a former delivery are no longer counted.
    let letters = dispatcher.dead_letters();
    assert_eq!(letters.replay_all(&DeadLetterQuery::default()).await.expect("stored"), MANY as u64);
    for _ in 0..MANY {
        assert_eq!(told.recv().await, Some((240, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_others_comes_no_faster_than_the_lane_says() {
    let (sender, mut attempts) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let sink = CustomSink::new(move |given| {
        let sender = sender.clone();
        async move {
            if given.dsn.authority() == "slow" {
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
            let _ = sender.send(begun.elapsed().as_secs_f64());
            Ok(receipt())
        }
    });
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(TokioClock::default()).in_flight(1);
    let dispatcher = start(builder.lane_for(dsn("custom://a").destination(), Lane::default().per_second(2.0))).await;
    let publish = async |to, count: usize| {
        for number in 0..count {
            dispatcher.publish(event(to, json!(number))).await.expect("published");
        }
    };
    // So well known that many wait for an attempt at once.
    publish("custom://a", 3).await;
    for _ in 0..3 {
        attempts.recv().await.expect("an attempt");
    }
    publish("custom://slow", 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    publish("custom://a", 6).await;
    let first = attempts.recv().await.expect("an attempt");
    for number in 0..6_u32 {
        let (second, even) = (attempts.recv().await.expect("an attempt"), first + f64::from(number) * 0.5);
        assert!((even - 0.11..even + 0.01).contains(&second), "{number} at {second}");
    }
}

async fn one_destination_has_a_cap_over_all_callers(home: Home) {
    let (gate, mut watch) = Gate::new();
    let lane = Lane::default().in_flight(2);
    let builder = home.builder().await.sink(CustomSink::behind(&gate)).lane(lane).host_in_flight(2);
    let dispatcher = start(builder).await;
    for number in 0..9 {
        let event = event("custom://a", json!(number)).owner(format!("owner {number}"));
        dispatcher.publish(event).await.expect("published");
    }
    for _ in 0..2 {
        watch.came().await;
    }
    for _ in 2..9 {
        gate.open(1);
        watch.came().await;
    }
    gate.open(2);
    assert_eq!(gate.most(), 2);
}

async fn half_of_the_attempts_are_kept_for_who_answers(home: Home) {
    let sink = MemorySink::new();
    let (sender, mut hung) = mpsc::unbounded_channel();
    let hangs = CustomSink::new(move |_| {
        let _ = sender.send(());
        pending()
    });
    let builder = home.builder().await.sink(hangs).sink(sink.clone()).in_flight(4);
    let dispatcher = start(builder).await;
    // Once it has answered, nobody who hangs can take its place.
    dispatcher.publish(event("memory://well", json!(0))).await.expect("published");
    sink.next("well").await;
    for number in 0..20 {
        dispatcher.publish(event(&format!("custom://hung{number}"), json!(number))).await.expect("published");
    }
    for _ in 0..2 {
        hung.recv().await.expect("an attempt");
    }
    for number in 1..20 {
        dispatcher.publish(event("memory://well", json!(number))).await.expect("published");
        assert_eq!(sink.next("well").await.message.json::<u32>().expect("a number"), number);
    }
    assert!(hung.try_recv().is_err(), "more than half hang");
    dispatcher.close(Duration::ZERO).await;
}

/// More than are looked through, oldest first, before lanes are asked one by one.
const BACKLOG: u32 = 1_500;

fn an_open_breaker_stays_open_through_a_restart_and_hides_nobody(home: &Home) {
    let lane = Lane::default().breaker(1, HOUR);
    killed(async {
        let (sender, mut attempts) = mpsc::unbounded_channel();
        let dead = CustomSink::new(move |_| {
            let _ = sender.send(());
            async { Err(unreachable()) }
        });
        let (gate, watch) = Gate::new();
        let dispatcher = start(home.builder().await.sink(dead).sink(MemorySink::new()).lane(lane)).await;
        dispatcher.publish(event("custom://dead", json!(0))).await.expect("published");
        attempts.recv().await.expect("an attempt");
        let publish = |number| dispatcher.publish(event("custom://dead", json!(number)));
        join_all((1..BACKLOG).map(publish)).await.into_iter().for_each(|published| drop(published.expect("published")));
        // Tasks that nobody has begun wait behind them all.
        let worker = dispatcher.worker("gate", callback_dispatch::Interrupted::RunAgain).run(gate.handler());
        crate::support::accept(&worker.expect("registered"), 7, "memory://well").await;
        dispatcher.close(Duration::ZERO).await;
        ((), (gate, watch))
    });
    lived(async {
        let sink = MemorySink::new();
        let (sender, mut attempts) = mpsc::unbounded_channel();
        let dead = CustomSink::new(move |given| {
            let _ = sender.send(given.dsn.destination());
            async { Ok(receipt()) }
        });
        let dispatcher = start(home.builder().await.sink(dead).sink(sink.clone()).lane(lane)).await;
        let worker = dispatcher.worker("gate", callback_dispatch::Interrupted::RunAgain);
        let _worker = worker.run(crate::support::echo).expect("registered");
        assert_eq!(sink.next("well").await.message.json::<u32>().expect("a number"), 7);
        dispatcher.publish(event("custom://other", json!(1))).await.expect("published");
        assert_eq!(attempts.recv().await, Some(dsn("custom://other").destination()));
        assert!(attempts.try_recv().is_err(), "the breaker is open");
    });
}
