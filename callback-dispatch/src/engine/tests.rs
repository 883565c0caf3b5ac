//! What others store is found, and what panics is put off.

use super::faulty::Faulty;
use crate::{
    Clock, Dispatcher, Event, Interrupted, Lane, MemoryOutbox, NewSubscription, TaskState, TokioClock, Work,
    clock::Micros,
    outbox::{Claim, Write, Written, write},
    row::Published,
};
use callback_core::MemorySink;
use futures_util::FutureExt;
use std::{
    panic::panic_any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

#[tokio::test(start_paused = true)]
async fn what_others_store_is_found_though_the_store_could_not_say_so_at_first() {
    let outbox = Faulty::default();
    outbox.faults.is_shared.store(true, Ordering::SeqCst);
    outbox.faults.is_silent.store(2, Ordering::SeqCst);
    let sink = MemorySink::new();
    let _dispatcher = Dispatcher::builder(outbox.clone()).sink(sink.clone()).start().await.expect("started");
    sleep(Duration::from_secs(5)).await;

    let elsewhere = Dispatcher::builder(MemoryOutbox::new()).sink(MemorySink::new()).start().await.expect("started");
    let event = Event::to("memory://events".parse().expect("a valid Dsn"), "a.b", "event");
    let Published::To(row) = elsewhere.engine().event(event).expect("valid") else { panic!("it has a Dsn") };
    write(&outbox.inner, Write::Insert(row)).await.expect("stored");
    timeout(Duration::from_secs(5), sink.next("events")).await.expect("it is found within a sweep");
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_under_a_lease_that_is_over_is_not_begun() {
    let outbox = Faulty::default();
    let sink = MemorySink::new();
    let dispatcher = Dispatcher::builder(outbox.clone()).sink(sink.clone()).start().await.expect("started");
    let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let handler = {
        let (runs, gate) = (Arc::clone(&runs), Arc::clone(&gate));
        move |_| {
            runs.fetch_add(1, Ordering::SeqCst);
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.expect("open").forget();
                Ok::<_, String>("done")
            }
        }
    };
    let worker = dispatcher.worker("a", Interrupted::RunAgain).concurrency(1).run(handler).expect("registered");
    for _ in 0..3 {
        let work = Work::new("work").callback("memory://results".parse().expect("a valid Dsn"));
        worker.accept(work).await.expect("accepted");
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!((runs.load(Ordering::SeqCst), dispatcher.engine().in_hand()), (1, 3));

    // Another process takes all that this one has in hand; then this one is heard of again.
    write(&outbox.inner, Write::Recover).await.expect("stored");
    let workers = vec!["a".into()];
    let claim = Claim {
        number: 0,
        now: Micros(i64::MAX - 1),
        limit: 9,
        bytes: usize::MAX,
        workers,
        left_out: Vec::new(),
        found: None,
    };
    let claimed = write(&outbox.inner, Write::Claim(claim)).await.expect("stored");
    assert!(matches!(claimed, Written::Claimed(rows) if rows.len() == 3));
    outbox.faults.lease.fetch_add(1, Ordering::SeqCst);
    gate.add_permits(3);
    sleep(Duration::from_secs(600)).await;
    assert_eq!((runs.load(Ordering::SeqCst), dispatcher.engine().in_hand()), (1, 0));
    assert!(sink.take("results").is_empty());

    // What it takes from then on goes its way.
    gate.add_permits(1);
    let work = Work::new("work").callback("memory://results".parse().expect("a valid Dsn"));
    worker.accept(work).await.expect("accepted");
    timeout(Duration::from_secs(60), sink.next("results")).await.expect("it is delivered");
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

/// Panics once, when it is told to.
#[derive(Clone, Debug)]
struct Panics {
    clock: TokioClock,
    next: Arc<AtomicBool>,
}

impl Clock for Panics {
    fn now(&self) -> SystemTime {
        if self.next.swap(false, Ordering::SeqCst) {
            panic_any("the clock stands still");
        }
        self.clock.now()
    }
}

#[tokio::test(start_paused = true)]
async fn what_panics_is_given_back_and_goes_on_a_minute_later() {
    let next = Arc::new(AtomicBool::new(true));
    let clock = Panics { clock: TokioClock::default(), next: Arc::default() };
    let (armed, stops) = (Arc::clone(&next), Arc::clone(&clock.next));
    let dispatcher = Dispatcher::builder(MemoryOutbox::new()).clock(clock).start().await.expect("started");
    let handler = move |_| {
        // The next to ask for the time is whoever stores the outcome.
        stops.store(armed.swap(false, Ordering::SeqCst), Ordering::SeqCst);
        async { Ok::<_, String>("done") }
    };
    let worker = dispatcher.worker("a", Interrupted::RunAgain).run(handler).expect("registered");
    let id = worker.accept(Work::new("work")).await.expect("accepted").id();
    let begun = Instant::now();
    let ended = timeout(Duration::from_secs(600), dispatcher.wait(id)).await.expect("it ends");
    let task = ended.expect("readable").expect("known");
    assert_eq!((task.state(), next.load(Ordering::SeqCst)), (TaskState::Completed, false));
    assert!(begun.elapsed() >= Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(dispatcher.engine().in_hand(), 0, "nothing is forgotten in memory");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_that_nobody_waits_for_drops_the_run_all_the_same() {
    let outbox = Faulty::default();
    let dispatcher = Dispatcher::builder(outbox.clone()).start().await.expect("started");
    let handler = |_| std::future::pending::<Result<&str, String>>();
    let worker = dispatcher.worker("a", Interrupted::RunAgain).run(handler).expect("registered");
    let id = worker.accept(Work::new("work")).await.expect("accepted").id();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(dispatcher.engine().in_hand(), 1);
    outbox.faults.answer_late("cancel");
    assert!(dispatcher.cancel(id).now_or_never().is_none(), "it is dropped before it is answered");
    outbox.faults.answer();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(dispatcher.engine().in_hand(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_completion_that_nobody_waits_for_has_ended_is_not_run_on() {
    let outbox = Faulty::default();
    let dispatcher = Dispatcher::builder(outbox.clone()).start().await.expect("started");
    let handler = |_| std::future::pending::<Result<&str, String>>();
    let worker = dispatcher.worker("a", Interrupted::RunAgain).run(handler).expect("registered");
    let id = worker.accept(Work::new("work")).await.expect("accepted").id();
    sleep(Duration::from_secs(1)).await;
    outbox.faults.answer_late("result");
    let done = crate::Outcome::completed("done");
    assert!(dispatcher.complete(id, done).now_or_never().is_none(), "it is dropped before it is answered");
    outbox.faults.answer();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(dispatcher.engine().in_hand(), 0);
    let task = dispatcher.task(id).await.expect("readable").expect("known");
    assert_eq!(task.state(), TaskState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_whose_cancel_nobody_waits_for_gets_nothing_more() {
    let (outbox, sink) = (Faulty::default(), MemorySink::new());
    let builder = Dispatcher::builder(outbox.clone()).sink(sink.clone()).lane(Lane::default().per_second(0.1));
    let dispatcher = builder.start().await.expect("started");
    let new = NewSubscription::new("memory://events".parse().expect("a valid Dsn"));
    let id = dispatcher.subscriptions().create(new).await.expect("created").id();
    for _ in 0..2 {
        dispatcher.publish(Event::new("a.b", "event")).await.expect("published");
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!((sink.take("events").len(), dispatcher.engine().in_hand()), (1, 1));
    outbox.faults.answer_late("end subscription");
    assert!(dispatcher.subscriptions().cancel(id).now_or_never().is_none(), "it is dropped before it is answered");
    outbox.faults.answer();
    sleep(Duration::from_secs(60)).await;
    assert_eq!((sink.take("events").len(), dispatcher.engine().in_hand()), (0, 0));
}
