//! Destinations that are asked before anything is sent to them.

use crate::support::{CustomSink, Home, dsn, event, receipt, start};
use callback_core::{Consent, Consented, Dsn, ErrorKind, Phase, Schedule, SinkError, async_trait};
use callback_dispatch::{DeadLetterQuery, Dispatcher, DispatcherBuilder, MemoryOutbox, StartError, TokioClock};
use serde_json::json;
use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep},
};

on_each_outbox!(a_destination_is_asked_once_and_its_consent_outlives_the_dispatcher);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

type Answer = Box<dyn Fn(&Dsn) -> Result<Consented, SinkError> + Send + Sync>;

/// Answers for destinations as it is told to; the Dsns that it was asked for.
#[derive(Clone)]
struct Asked {
    answer: Arc<Answer>,
    dsns: Arc<Mutex<Vec<Dsn>>>,
}

impl Asked {
    fn answering(answer: impl Fn(&Dsn) -> Result<Consented, SinkError> + Send + Sync + 'static) -> Self {
        Self { answer: Arc::new(Box::new(answer)), dsns: Arc::default() }
    }

    fn consenting() -> Self {
        Self::answering(|_| Ok(Consented::new()))
    }

    fn allowing(per_minute: u32) -> Self {
        Self::answering(move |_| Ok(Consented::new().per_minute(NonZeroU32::new(per_minute))))
    }

    fn times(&self) -> usize {
        self.dsns.lock().expect("not poisoned").len()
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

#[async_trait]
impl Consent for Asked {
    fn schemes(&self) -> &[&str] {
        &["custom"]
    }

    async fn ask(&self, dsn: &Dsn, _deadline: std::time::Instant) -> Result<Consented, SinkError> {
        self.dsns.lock().expect("not poisoned").push(dsn.clone());
        yield_now().await;
        (self.answer)(dsn)
    }
}

/// A sink that takes everything, and the Dsns that were delivered to, each with its second.
fn sink() -> (CustomSink, mpsc::UnboundedReceiver<(Dsn, f64)>) {
    let (sender, delivered) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let sink = CustomSink::new(move |given| {
        let _ = sender.send((given.dsn, begun.elapsed().as_secs_f64()));
        async { Ok(receipt()) }
    });
    (sink, delivered)
}

/// In paused time, with a retry each second.
fn paused(sink: CustomSink, asked: &Asked) -> DispatcherBuilder {
    let every_second = std::iter::repeat_n(Duration::from_secs(1), 99);
    let schedule = Schedule::new(every_second).expect("a schedule").jitter(0).give_up_after(DAY);
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink).consent(asked.clone());
    builder.schedule(schedule).clock(TokioClock::default())
}

async fn publish(dispatcher: &Dispatcher, to: &str) {
    dispatcher.publish(event(to, json!(1))).await.expect("published");
}

async fn a_destination_is_asked_once_and_its_consent_outlives_the_dispatcher(home: Home) {
    let asked = Asked::allowing(60_000);
    for _ in 0..2 {
        let (sink, mut delivered) = sink();
        let dispatcher = start(home.builder().await.sink(sink).consent(asked.clone())).await;
        for path in ["custom://a/1", "custom://a/2", "custom://a/3"] {
            publish(&dispatcher, path).await;
        }
        for _ in 0..3 {
            delivered.recv().await.expect("a delivery");
        }
        dispatcher.close(Duration::from_secs(5)).await;
    }
    assert_eq!(asked.times(), 1, "one for all its Dsns, and for the next dispatcher");
}

#[tokio::test(start_paused = true)]
async fn each_destination_is_asked_for_itself_and_each_once_however_many_messages_come() {
    let ((sink, mut delivered), asked) = (sink(), Asked::consenting());
    let dispatcher = start(paused(sink, &asked)).await;
    for number in 0..20 {
        // Of a caller each, so that they are attempted at once.
        let event = event(&format!("custom://{}/", number % 2), json!(1)).owner(format!("caller {number}"));
        dispatcher.publish(event).await.expect("published");
    }
    for _ in 0..20 {
        delivered.recv().await.expect("a delivery");
    }
    assert_eq!(asked.times(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_asked_needs_no_consent() {
    let (sink, asked) = (callback_core::MemorySink::new(), Asked::answering(|_| Err(SinkError::unauthorized("no"))));
    let builder = Dispatcher::builder(MemoryOutbox::new()).sink(sink.clone()).consent(asked.clone());
    let dispatcher = start(builder.clock(TokioClock::default())).await;
    publish(&dispatcher, "memory://a").await;
    sink.next("a").await;
    assert_eq!(asked.times(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_delivered_to_who_does_not_consent_and_all_of_it_once_he_does() {
    let consents = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&consents);
    let asked = Asked::answering(move |_| match now.load(Ordering::SeqCst) {
        true => Ok(Consented::new()),
        false => Err(SinkError::unauthorized("no").with_status(405).with_phase(Phase::Answer)),
    });
    let (sink, mut delivered) = sink();
    let dispatcher = start(paused(sink, &asked)).await;
    for _ in 0..10 {
        publish(&dispatcher, "custom://a/").await;
    }
    sleep(Duration::from_secs(21)).await;
    assert!(delivered.is_empty());
    // Ten messages, each tried each second; asked was every five seconds.
    assert!((4..=6).contains(&asked.times()), "{}", asked.times());
    consents.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        delivered.recv().await.expect("a delivery");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dsn_that_is_refused_keeps_no_other_of_its_host_from_being_asked_for() {
    let asked = Asked::answering(|dsn| match dsn.path() {
        "/good" => Ok(Consented::new()),
        _ => Err(SinkError::unauthorized("no").with_status(405)),
    });
    let (sink, mut delivered) = sink();
    let dispatcher = start(paused(sink, &asked)).await;
    publish(&dispatcher, "custom://a/bad").await;
    sleep(Duration::from_millis(100)).await;
    publish(&dispatcher, "custom://a/good").await;
    let (first, second) = delivered.recv().await.expect("a delivery");
    assert_eq!((first, second.round() as u64), (dsn("custom://a/good"), 0));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_fails_the_attempt_as_unauthorized() {
    let asked = Asked::answering(|_| Err(SinkError::unauthorized("not to you").with_status(405)));
    let ((sink, delivered), once) = (sink(), Schedule::new([]).expect("a schedule"));
    let dispatcher = start(paused(sink, &asked).schedule(once)).await;
    publish(&dispatcher, "custom://a/").await;
    let dead = loop {
        let page = dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("readable");
        match page.items.into_iter().next() {
            Some(letter) => break letter,
            None => sleep(Duration::from_millis(10)).await,
        }
    };
    let attempt = &dead.attempts[0];
    assert_eq!((attempt.kind, attempt.status), (ErrorKind::Unauthorized, Some(405)));
    assert!(attempt.reason.contains("not to you") && delivered.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_keeps_the_question_from_its_destination_opens_the_breaker() {
    let asked = Asked::answering(|_| Err(SinkError::unavailable("refused").with_phase(Phase::Connect)));
    let (sink, delivered) = sink();
    let dispatcher = start(paused(sink, &asked)).await;
    publish(&dispatcher, "custom://a/").await;
    sleep(Duration::from_secs(30)).await;
    assert!(delivered.is_empty());
    assert_eq!(asked.times(), 5, "after five in a row it is closed for 30 s");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_panics_fails_its_attempt() {
    let times = Arc::new(AtomicUsize::new(0));
    let asked = Asked::answering(move |_| match times.fetch_add(1, Ordering::SeqCst) {
        0 => panic!("a fault of the question's own"),
        _ => Ok(Consented::new()),
    });
    let (sink, mut delivered) = sink();
    let dispatcher = start(paused(sink, &asked)).await;
    publish(&dispatcher, "custom://a/").await;
    let (_, second) = delivered.recv().await.expect("a delivery");
    assert_eq!((second.round() as u64, asked.times()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_consent_is_asked_for_again_when_it_is_old() {
    let ((sink, mut delivered), asked) = (sink(), Asked::consenting());
    let dispatcher = start(paused(sink, &asked).consent_age(2 * DAY)).await;
    for (after, times) in [(Duration::ZERO, 1), (DAY, 1), (DAY, 2), (DAY, 2), (DAY, 3)] {
        sleep(after).await;
        publish(&dispatcher, "custom://a/").await;
        delivered.recv().await.expect("a delivery");
        assert_eq!(asked.times(), times);
    }
}

#[tokio::test(start_paused = true)]
async fn a_consent_that_is_withdrawn_counts_no_more() {
    let times = Arc::new(AtomicUsize::new(0));
    let asked = Asked::answering(move |_| match times.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(Consented::new()),
        _ => Err(SinkError::unauthorized("not any more").with_status(200)),
    });
    let (sink, mut delivered) = sink();
    let dispatcher = start(paused(sink, &asked)).await;
    publish(&dispatcher, "custom://a/").await;
    delivered.recv().await.expect("a delivery");
    sleep(DAY).await;
    publish(&dispatcher, "custom://a/").await;
    sleep(Duration::from_secs(60)).await;
    assert!(delivered.is_empty() && asked.times() > 2, "{}", asked.times());
}

/// When six messages to one destination arrive that allows twelve a minute.
async fn seconds_of_six(outbox: MemoryOutbox, asked: &Asked) -> Vec<u64> {
    let (sink, mut delivered) = sink();
    let builder = Dispatcher::builder(outbox).sink(sink).consent(asked.clone()).clock(TokioClock::default());
    let dispatcher = start(builder).await;
    for number in 0..6 {
        // Of several callers: it is the host's.
        let event = event("custom://a/", json!(number)).owner(format!("caller {}", number % 3));
        dispatcher.publish(event).await.expect("published");
    }
    let mut seconds = Vec::new();
    for _ in 0..6 {
        seconds.push(delivered.recv().await.expect("a delivery").1.round() as u64);
    }
    dispatcher.close(Duration::from_secs(5)).await;
    seconds
}

#[tokio::test(start_paused = true)]
async fn a_destination_gets_as_many_requests_a_minute_as_it_allows() {
    let (outbox, asked) = (MemoryOutbox::new(), Asked::allowing(12));
    assert_eq!(seconds_of_six(outbox.clone(), &asked).await, [0, 5, 10, 15, 20, 25]);
    assert_eq!(seconds_of_six(outbox, &asked).await, [0, 5, 10, 15, 20, 25], "what is stored counts, too");
    assert_eq!(asked.times(), 1);
}

#[tokio::test]
async fn one_asks_for_each_scheme() {
    let builder = Dispatcher::builder(MemoryOutbox::new()).consent(Asked::consenting()).consent(Asked::consenting());
    assert!(matches!(builder.start().await, Err(StartError::ConsentTaken(scheme)) if scheme == "custom"));
}
