//! A clock that leaps costs no more than a retry's wait.

use crate::support::{CustomSink, Home, dsn, ended, lived, receipt, start};
use callback_core::{Schedule, SinkError};
use callback_dispatch::{Clock, Dispatcher, DispatcherBuilder, Interrupted, TaskState, Work};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::Notify;

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
