//! A clock that leaps costs no more than a retry's wait.

use crate::support::{CustomSink, Home, dsn, ended, event, lived, receipt, start};
use callback_core::{MemorySink, Schedule, SinkError};
use callback_dispatch::{Clock, Dispatcher, DispatcherBuilder, Interrupted, MemoryOutbox, TaskState, TokioClock, Work};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{sync::Notify, time::sleep};

/// An hour ahead, and more, until it is set back.
#[derive(Clone, Debug, Default)]
struct LeapingClock(Arc<AtomicU64>);

impl LeapingClock {
    fn ahead() -> Self {
        Self(Arc::new(AtomicU64::new(3_600)))
    }

    fn set_back(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

impl Clock for LeapingClock {
    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// A destination that is down at first, and tells of each attempt.
#[derive(Clone, Default)]
struct Destination {
    is_up: Arc<AtomicBool>,
    attempted: Arc<Notify>,
}

impl Destination {
    fn sink(&self) -> CustomSink {
        let this = self.clone();
        CustomSink::new(move |_| {
            let this = this.clone();
            async move {
                this.attempted.notify_one();
                if this.is_up.load(Ordering::SeqCst) { Ok(receipt()) } else { Err(SinkError::unavailable("down")) }
            }
        })
    }
}

/// Waits of a second, so that a message waits when the clock leaps.
async fn builder(home: &Home, clock: &LeapingClock, destination: &Destination) -> DispatcherBuilder {
    let schedule = Schedule::new([Duration::from_secs(1); 100]).expect("a schedule").jitter(0);
    home.builder().await.clock(clock.clone()).schedule(schedule).sink(destination.sink())
}

async fn accept_one(dispatcher: &Dispatcher) -> callback_core::TaskId {
    let worker = dispatcher.worker("echo", Interrupted::RunAgain).run(crate::support::echo).expect("registered");
    worker.accept(Work::new("x").callback(dsn("custom://there"))).await.expect("accepted").id()
}

on_each_outbox!(a_clock_that_is_set_back_does_not_put_off_a_retry_by_as_much);

async fn a_clock_that_is_set_back_does_not_put_off_a_retry_by_as_much(home: Home) {
    let (clock, destination) = (LeapingClock::ahead(), Destination::default());
    let dispatcher = start(builder(&home, &clock, &destination).await).await;
    let id = accept_one(&dispatcher).await;
    destination.attempted.notified().await;
    clock.set_back();
    destination.is_up.store(true, Ordering::SeqCst);
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
}

over_lives_on_each_outbox!(a_clock_that_is_set_back_between_two_lives_does_not_either);

fn a_clock_that_is_set_back_between_two_lives_does_not_either(home: &Home) {
    let (clock, destination) = (LeapingClock::ahead(), Destination::default());
    let id = lived(async {
        let dispatcher = start(builder(home, &clock, &destination).await).await;
        let id = accept_one(&dispatcher).await;
        destination.attempted.notified().await;
        dispatcher.close(Duration::from_secs(5)).await;
        id
    });
    clock.set_back();
    destination.is_up.store(true, Ordering::SeqCst);
    lived(async {
        let dispatcher = start(builder(home, &clock, &destination).await).await;
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    });
}

/// Panics once when it is told to.
#[derive(Clone, Debug, Default)]
struct Breaking {
    inner: TokioClock,
    breaks: Arc<AtomicBool>,
}

impl Clock for Breaking {
    fn now(&self) -> SystemTime {
        assert!(!self.breaks.swap(false, Ordering::SeqCst), "it was told to");
        self.inner.now()
    }
}

#[tokio::test(start_paused = true)]
async fn what_panics_between_two_steps_is_let_go_of_and_tried_again() {
    let clock = Breaking::default();
    let (breaks, attempted) = (Arc::clone(&clock.breaks), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&attempted);
    let sink = CustomSink::new(move |_| {
        // The next to ask for the time is the attempt that goes on here.
        breaks.store(count.fetch_add(1, Ordering::SeqCst) == 0, Ordering::SeqCst);
        async { Ok(receipt()) }
    });
    let dispatcher = start(Dispatcher::builder(MemoryOutbox::new()).sink(sink).clock(clock)).await;
    dispatcher.publish(event("custom://a", json!(1))).await.expect("published");
    sleep(Duration::from_secs(61)).await;
    assert_eq!((attempted.load(Ordering::SeqCst), dispatcher.health().await.in_hand), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn no_deadline_is_beyond_the_end_of_time() {
    let sink = MemorySink::new();
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink.clone()).deadline(Duration::MAX);
    let dispatcher = start(builder).await;
    dispatcher.publish(event("memory://a", json!(1))).await.expect("published");
    sink.next("a").await;
}
