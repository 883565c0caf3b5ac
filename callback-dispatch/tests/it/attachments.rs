//! Destinations that come to us: attempted while they are attached, kept while their clients are away, and gone after that.

use crate::support::{
    CustomSink, Gate, Given, Home, accept, dsn, echo, ended, event, killed, lived, receipt, start, task,
};
use callback_core::{ErrorKind, MemorySink, Phase, Schedule, SinkError};
use callback_dispatch::{
    Attach, AttachError, Attachment, Dispatcher, DispatcherBuilder, Interrupted, Lane, MemoryOutbox, Notice, TaskState,
    TokioClock, Worker,
};
use futures_util::FutureExt;
use serde_json::{Value, json};
use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::{Instant, sleep},
};

on_each_outbox!(
    what_comes_for_a_dsn_that_is_attached_is_delivered,
    while_a_client_is_away_nothing_is_attempted_and_when_it_is_back_all_is_at_once,
    what_goes_to_a_dsn_that_nobody_has_is_gone,
    who_shows_another_secret_is_not_known,
    the_secret_before_is_good_until_the_last_one_was_shown,
    a_later_attachment_takes_the_place_of_the_former,
    what_is_ended_is_over_at_once,
    what_found_no_connection_was_no_attempt,
    what_failed_is_tried_again_as_soon_as_its_client_is_back,
    what_fails_after_its_client_came_back_is_tried_again_at_once,
    a_pause_that_was_asked_for_ends_when_the_client_is_back,
    what_says_that_it_is_gone_is_attached_no_more,
    what_says_that_it_is_gone_as_it_leaves_is_over_all_the_same,
    what_a_local_sink_does_not_serve_is_not_attached,
);

over_lives_on_each_outbox!(
    what_waits_for_a_client_outlives_a_kill,
    a_dispatcher_that_closes_lets_go_of_its_clients,
    a_process_without_the_sink_leaves_what_waits_to_others,
);

const SESSION: &str = "custom://session/address";
const HOUR: Duration = Duration::from_secs(3_600);

fn attach(secret: u8) -> Attach {
    Attach::new(Duration::from_secs(600)).secret([secret; 32])
}

/// A sink whose clients take everything, and what they are given.
fn clients() -> (CustomSink, UnboundedReceiver<Given>) {
    let (sender, given) = mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let _ = sender.send(given);
        async { Ok(receipt()) }
    });
    (sink, given)
}

/// A sink whose clients answer each attempt by its place, from 0.
fn answering(
    answer: impl Fn(usize) -> Option<SinkError> + Send + Sync + 'static,
) -> (CustomSink, UnboundedReceiver<Given>) {
    let (sender, given) = mpsc::unbounded_channel();
    let attempts = AtomicUsize::new(0);
    let sink = CustomSink::new(move |given| {
        let answer = answer(attempts.fetch_add(1, Ordering::SeqCst));
        let _ = sender.send(given);
        async { answer.map_or_else(|| Ok(receipt()), Err) }
    });
    (sink, given)
}

fn no_connection() -> SinkError {
    SinkError::unavailable("nobody is connected").with_phase(Phase::Connect)
}

fn hourly() -> Schedule {
    Schedule::new([HOUR; 9]).expect("a schedule")
}

fn worker(dispatcher: &Dispatcher) -> Worker {
    dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered")
}

async fn attached(dispatcher: &Dispatcher, secret: u8) -> Attachment {
    dispatcher.attach(&dsn(SESSION), attach(secret)).await.expect("attached")
}

async fn resumed(dispatcher: &Dispatcher, presented: u8, secret: u8) -> Attachment {
    dispatcher.resume(&dsn(SESSION), [presented; 32], attach(secret)).await.expect("attached again")
}

async fn is_unknown(dispatcher: &Dispatcher, presented: u8) -> bool {
    let resumed = dispatcher.resume(&dsn(SESSION), [presented; 32], attach(0)).await;
    matches!(resumed, Err(AttachError::Unknown))
}

async fn publish(dispatcher: &Dispatcher, payload: impl Into<Value>) {
    dispatcher.publish(event(SESSION, payload.into())).await.expect("published");
}

/// What comes next, as its payload and the number of its attempt.
async fn next(given: &mut UnboundedReceiver<Given>) -> (Value, u32) {
    let given = given.recv().await.expect("a message");
    (given.message.json().expect("JSON"), given.attempt.number())
}

async fn what_comes_for_a_dsn_that_is_attached_is_delivered(home: Home) {
    let (sink, mut given) = clients();
    let dispatcher = start(home.builder().await.local_sink(sink)).await;
    let attachment = attached(&dispatcher, 1).await;
    assert_eq!(attachment.dsn(), &dsn(SESSION));
    let id = accept(&worker(&dispatcher), 7, SESSION).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
}

async fn while_a_client_is_away_nothing_is_attempted_and_when_it_is_back_all_is_at_once(home: Home) {
    let (sink, mut given) = clients();
    let lane = Lane::default().in_flight(1);
    let dispatcher = start(home.builder().await.lane(lane).local_sink(sink)).await;
    drop(attached(&dispatcher, 1).await);
    let worker = worker(&dispatcher);
    let waiting = accept(&worker, 0, SESSION).await;
    for number in 1..20 {
        publish(&dispatcher, number).await;
    }
    // What waits holds nothing up, not in the lane of its host either.
    let other = dispatcher.attach(&dsn("custom://session/other"), attach(1)).await.expect("attached");
    let id = accept(&worker, "other", "custom://session/other").await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    assert_eq!(next(&mut given).await, (json!("other"), 1));
    assert!(given.try_recv().is_err(), "it is away");
    assert_eq!(task(&dispatcher, waiting).await.state(), TaskState::Delivering);

    let _attachment = resumed(&dispatcher, 1, 2).await;
    let mut all = Vec::new();
    for _ in 0..20 {
        all.push(next(&mut given).await);
    }
    all.sort_by_key(|(payload, _)| payload.as_u64());
    assert_eq!(all, (0..20).map(|number| (json!(number), 1)).collect::<Vec<_>>());
    assert_eq!(ended(&dispatcher, waiting).await.state(), TaskState::Delivered);
    drop(other);
}

async fn what_goes_to_a_dsn_that_nobody_has_is_gone(home: Home) {
    let (sink, mut given) = clients();
    let (sender, mut notices) = mpsc::unbounded_channel();
    let told = move |notice: &Notice| drop(sender.send(notice.clone()));
    let dispatcher = start(home.builder().await.local_sink(sink).on_notice(told)).await;
    let id = accept(&worker(&dispatcher), 7, SESSION).await;
    let task = ended(&dispatcher, id).await;
    assert_eq!(task.state(), TaskState::Dead);
    let letter = dispatcher.dead_letters().get(id).await.expect("readable").expect("a letter");
    assert_eq!((letter.kind, letter.attempts.len()), (ErrorKind::Gone, 0));
    let Some(Notice::Gone { dsn, .. }) = notices.recv().await else { panic!("it is gone") };
    assert_eq!(dsn, self::dsn(SESSION));
    assert!(given.try_recv().is_err(), "the sink was asked");
}

async fn who_shows_another_secret_is_not_known(home: Home) {
    let dispatcher = start(home.builder().await.local_sink(clients().0)).await;
    assert!(is_unknown(&dispatcher, 1).await, "it never was attached");
    let attachment = attached(&dispatcher, 1).await;
    assert!(is_unknown(&dispatcher, 2).await);
    assert!(attachment.lost().now_or_never().is_none(), "it is in force still");
    drop(attachment);
    assert!(is_unknown(&dispatcher, 2).await);
    drop(resumed(&dispatcher, 1, 3).await);
    // One that has no secret is not resumed.
    let without = Attach::new(Duration::from_secs(600));
    drop(dispatcher.attach(&dsn(SESSION), without).await.expect("attached"));
    for presented in [0, 1, 3] {
        assert!(is_unknown(&dispatcher, presented).await);
    }
}

async fn the_secret_before_is_good_until_the_last_one_was_shown(home: Home) {
    let dispatcher = start(home.builder().await.local_sink(clients().0)).await;
    drop(attached(&dispatcher, 1).await);
    drop(resumed(&dispatcher, 1, 2).await);
    // The client did not hear of the second.
    drop(resumed(&dispatcher, 1, 3).await);
    assert!(is_unknown(&dispatcher, 2).await, "nobody has heard of it");
    drop(resumed(&dispatcher, 3, 4).await);
    assert!(is_unknown(&dispatcher, 1).await, "the one after was shown");
    drop(resumed(&dispatcher, 4, 5).await);
}

async fn a_later_attachment_takes_the_place_of_the_former(home: Home) {
    let (sink, mut given) = clients();
    let dispatcher = start(home.builder().await.local_sink(sink)).await;
    let former = attached(&dispatcher, 1).await;
    let later = resumed(&dispatcher, 1, 2).await;
    former.lost().await;
    former.end().await;
    assert!(later.lost().now_or_never().is_none());
    publish(&dispatcher, 7).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
    drop(later);
    let _last = resumed(&dispatcher, 2, 3).await;
}

async fn what_is_ended_is_over_at_once(home: Home) {
    let (sink, mut given) = answering(|_| Some(no_connection()));
    let dispatcher = start(home.builder().await.local_sink(sink)).await;
    let attachment = attached(&dispatcher, 1).await;
    let worker = worker(&dispatcher);
    let waiting = accept(&worker, 7, SESSION).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
    attachment.end().await;
    assert!(is_unknown(&dispatcher, 1).await);
    assert_eq!(ended(&dispatcher, waiting).await.state(), TaskState::Dead);
    let later = accept(&worker, 8, SESSION).await;
    assert_eq!(ended(&dispatcher, later).await.state(), TaskState::Dead);
    let letter = dispatcher.dead_letters().get(later).await.expect("readable").expect("a letter");
    assert_eq!(letter.kind, ErrorKind::Gone);
}

async fn what_found_no_connection_was_no_attempt(home: Home) {
    let (sink, mut given) = answering(|attempt| (attempt == 0).then(no_connection));
    let dispatcher = start(home.builder().await.schedule(hourly()).local_sink(sink)).await;
    let attachment = attached(&dispatcher, 1).await;
    publish(&dispatcher, 7).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
    drop(attachment);
    let _attachment = resumed(&dispatcher, 1, 2).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
}

async fn what_failed_is_tried_again_as_soon_as_its_client_is_back(home: Home) {
    let lost = || SinkError::unavailable("the connection was lost").with_phase(Phase::Answer);
    let (sink, mut given) = answering(move |attempt| (attempt == 0).then(lost));
    let dispatcher = start(home.builder().await.schedule(hourly()).local_sink(sink)).await;
    let attachment = attached(&dispatcher, 1).await;
    publish(&dispatcher, 7).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
    drop(attachment);
    let _attachment = resumed(&dispatcher, 1, 2).await;
    assert_eq!(next(&mut given).await, (json!(7), 2));
}

async fn what_fails_after_its_client_came_back_is_tried_again_at_once(home: Home) {
    let (gate, mut watch) = Gate::new();
    let (sender, mut given) = mpsc::unbounded_channel();
    let waiting = gate.clone();
    let sink = CustomSink::new(move |next: Given| {
        let (gate, sender) = (waiting.clone(), sender.clone());
        async move {
            let is_first = next.attempt.number() == 1;
            let _ = sender.send(next);
            if is_first {
                gate.pass(json!("first")).await;
                return Err(SinkError::unavailable("the connection was lost").with_phase(Phase::Answer));
            }
            Ok(receipt())
        }
    });
    let dispatcher = start(home.builder().await.schedule(hourly()).local_sink(sink)).await;
    let _former = attached(&dispatcher, 1).await;
    publish(&dispatcher, 7).await;
    watch.came().await;
    let _later = resumed(&dispatcher, 1, 2).await;
    gate.open(1);
    assert_eq!(next(&mut given).await, (json!(7), 1));
    assert_eq!(next(&mut given).await, (json!(7), 2));
}

async fn a_pause_that_was_asked_for_ends_when_the_client_is_back(home: Home) {
    let later = || SinkError::throttled("later").with_retry_after(HOUR);
    let (sink, mut given) = answering(move |attempt| (attempt == 0).then(later));
    let dispatcher = start(home.builder().await.local_sink(sink)).await;
    let attachment = attached(&dispatcher, 1).await;
    publish(&dispatcher, 7).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
    drop(attachment);
    let _attachment = resumed(&dispatcher, 1, 2).await;
    assert_eq!(next(&mut given).await, (json!(7), 2));
}

async fn what_says_that_it_is_gone_is_attached_no_more(home: Home) {
    let (sink, mut given) = answering(|_| Some(SinkError::gone("it has left")));
    let dispatcher = start(home.builder().await.local_sink(sink)).await;
    let attachment = attached(&dispatcher, 1).await;
    let worker = worker(&dispatcher);
    let id = accept(&worker, 7, SESSION).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
    attachment.lost().await;
    let id = accept(&worker, 8, SESSION).await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
    assert!(is_unknown(&dispatcher, 1).await);
    assert!(given.try_recv().is_err(), "the sink was asked");
}

async fn what_says_that_it_is_gone_as_it_leaves_is_over_all_the_same(home: Home) {
    let client = Arc::new(Mutex::new(None::<Attachment>));
    let leaving = Arc::clone(&client);
    let sink = CustomSink::new(move |_| {
        drop(leaving.lock().expect("whole").take());
        async { Err(SinkError::gone("it has left")) }
    });
    let dispatcher = start(home.builder().await.local_sink(sink)).await;
    let attachment = attached(&dispatcher, 1).await;
    *client.lock().expect("whole") = Some(attachment);
    let worker = worker(&dispatcher);
    for number in 0..2 {
        let id = accept(&worker, number, SESSION).await;
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
    }
    assert!(is_unknown(&dispatcher, 1).await);
}

async fn what_a_local_sink_does_not_serve_is_not_attached(home: Home) {
    let builder = home.builder().await.sink(MemorySink::new()).local_sink(clients().0);
    let dispatcher = start(builder).await;
    let answer = async |to: &str| dispatcher.attach(&dsn(to), attach(1)).await.expect_err("refused").to_string();
    assert_eq!(answer("memory://results").await, "no local sink serves the scheme memory");
    assert_eq!(
        answer("custom://refused/address").await,
        dispatcher.check(&dsn("custom://refused")).unwrap_err().to_string()
    );
    assert!(answer("https://a.example").await.contains("https"));
    dispatcher.close(Duration::from_secs(5)).await;
    assert_eq!(answer(SESSION).await, "the dispatcher is closed");
}

fn what_waits_for_a_client_outlives_a_kill(home: &Home) {
    killed(async {
        let hanging = CustomSink::new(|_| pending());
        let dispatcher = start(home.builder().await.local_sink(hanging)).await;
        let attachment = attached(&dispatcher, 1).await;
        publish(&dispatcher, 1).await;
        let away = dispatcher.attach(&dsn("custom://session/away"), attach(1)).await.expect("attached");
        drop(away);
        dispatcher.publish(event("custom://session/away", json!(2))).await.expect("published");
        ((), (dispatcher, attachment))
    });
    lived(async {
        let (sink, mut given) = clients();
        let dispatcher = start(home.builder().await.local_sink(sink)).await;
        let _one = resumed(&dispatcher, 1, 2).await;
        assert_eq!(next(&mut given).await, (json!(1), 1));
        let _two = dispatcher.resume(&dsn("custom://session/away"), [1; 32], attach(2)).await.expect("attached again");
        assert_eq!(next(&mut given).await, (json!(2), 1));
    });
}

fn a_dispatcher_that_closes_lets_go_of_its_clients(home: &Home) {
    lived(async {
        let (sink, _given) = clients();
        let dispatcher = start(home.builder().await.local_sink(sink)).await;
        let attachment = attached(&dispatcher, 1).await;
        dispatcher.close(Duration::from_secs(5)).await;
        attachment.lost().await;
        attachment.end().await;
    });
    lived(async {
        let (sink, mut given) = clients();
        let dispatcher = start(home.builder().await.local_sink(sink)).await;
        publish(&dispatcher, 7).await;
        let _attachment = resumed(&dispatcher, 1, 2).await;
        assert_eq!(next(&mut given).await, (json!(7), 1));
        dispatcher.close(Duration::from_secs(5)).await;
    });
}

fn a_process_without_the_sink_leaves_what_waits_to_others(home: &Home) {
    killed(async {
        let (gate, mut watch) = Gate::new();
        let dispatcher = start(home.builder().await.local_sink(CustomSink::behind(&gate))).await;
        let attachment = attached(&dispatcher, 1).await;
        publish(&dispatcher, 7).await;
        watch.came().await;
        ((), (dispatcher, attachment))
    });
    lived(async {
        let sink = MemorySink::new();
        let dispatcher = start(home.builder().await.sink(sink.clone())).await;
        // It is claimed after what the life before left.
        dispatcher.publish(event("memory://results", json!(8))).await.expect("published");
        sink.next("results").await;
        dispatcher.close(Duration::from_secs(5)).await;
    });
    lived(async {
        let (sink, mut given) = clients();
        let dispatcher = start(home.builder().await.local_sink(sink)).await;
        let _attachment = resumed(&dispatcher, 1, 2).await;
        assert_eq!(next(&mut given).await, (json!(7), 1));
    });
}

/// A life in paused time.
async fn paused(
    outbox: &MemoryOutbox,
    clock: &TokioClock,
    change: impl FnOnce(DispatcherBuilder) -> DispatcherBuilder,
) -> Dispatcher {
    start(change(Dispatcher::builder(outbox.clone()).clock(*clock))).await
}

#[tokio::test(start_paused = true)]
async fn when_its_time_is_over_what_waits_is_gone() {
    let (outbox, clock) = (MemoryOutbox::new(), TokioClock::default());
    let (sink, mut given) = clients();
    let dispatcher = paused(&outbox, &clock, |builder| builder.local_sink(sink)).await;
    drop(attached(&dispatcher, 1).await);
    let id = accept(&worker(&dispatcher), 7, SESSION).await;
    sleep(Duration::from_secs(599)).await;
    assert_eq!(task(&dispatcher, id).await.state(), TaskState::Delivering);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead);
    let letter = dispatcher.dead_letters().get(id).await.expect("readable").expect("a letter");
    assert_eq!((letter.kind, letter.attempts.len()), (ErrorKind::Gone, 0));
    assert!(is_unknown(&dispatcher, 1).await);
    assert!(given.try_recv().is_err(), "the sink was asked");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_back_in_time_is_known() {
    let (outbox, clock) = (MemoryOutbox::new(), TokioClock::default());
    let (sink, mut given) = clients();
    let dispatcher = paused(&outbox, &clock, |builder| builder.local_sink(sink)).await;
    drop(attached(&dispatcher, 1).await);
    publish(&dispatcher, 7).await;
    sleep(Duration::from_secs(599)).await;
    let _attachment = resumed(&dispatcher, 1, 2).await;
    assert_eq!(next(&mut given).await, (json!(7), 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_attached_is_kept_and_two_thirds_of_its_time_are_left_to_a_process_that_was_killed() {
    for offset in [1, 199, 201, 1_000, 3_599] {
        let (outbox, clock) = (MemoryOutbox::new(), TokioClock::default());
        let dispatcher = paused(&outbox, &clock, |builder| builder.local_sink(clients().0)).await;
        let attachment = attached(&dispatcher, 1).await;
        sleep(Duration::from_secs(offset)).await;
        assert!(attachment.lost().now_or_never().is_none());
        // Without being closed, it stores nothing more.
        drop((dispatcher, attachment));
        sleep(Duration::from_secs(399)).await;
        let (sink, mut given) = clients();
        let dispatcher = paused(&outbox, &clock, |builder| builder.local_sink(sink)).await;
        publish(&dispatcher, offset).await;
        let _attachment = resumed(&dispatcher, 1, 2).await;
        assert_eq!(next(&mut given).await, (json!(offset), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_connection_it_is_tried_again_a_second_later() {
    let (outbox, clock) = (MemoryOutbox::new(), TokioClock::default());
    let (sink, mut given) = answering(|_| Some(no_connection()));
    let dispatcher = paused(&outbox, &clock, |builder| builder.local_sink(sink)).await;
    let _attachment = attached(&dispatcher, 1).await;
    publish(&dispatcher, 7).await;
    sleep(Duration::from_millis(10_500)).await;
    let mut attempts = Vec::new();
    while let Ok(given) = given.try_recv() {
        attempts.push(given.attempt.number());
    }
    assert_eq!(attempts, [1; 11]);
}

#[tokio::test(start_paused = true)]
async fn lanes_to_such_destinations_have_no_breaker() {
    let (outbox, clock) = (MemoryOutbox::new(), TokioClock::default());
    let (sink, mut given) = answering(|attempt| (attempt < 5).then(|| SinkError::timed_out("no answer")));
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let change = |builder: DispatcherBuilder| {
        let schedule = Schedule::new([Duration::from_secs(1); 9]).expect("a schedule").jitter(0);
        let builder = builder.local_sink(sink).lane(Lane::default().breaker(1, HOUR)).schedule(schedule);
        builder.on_notice(move |_| _ = count.fetch_add(1, Ordering::SeqCst))
    };
    let dispatcher = paused(&outbox, &clock, change).await;
    let _attachment = attached(&dispatcher, 1).await;
    publish(&dispatcher, 7).await;
    for number in 1..=6 {
        assert_eq!(next(&mut given).await, (json!(7), number));
    }
    assert_eq!(told.load(Ordering::SeqCst), 0, "a breaker opened");
}

#[tokio::test(start_paused = true)]
async fn what_found_no_connection_as_its_client_came_back_is_tried_again_at_once() {
    let (outbox, clock) = (MemoryOutbox::new(), TokioClock::default());
    let (gate, mut watch) = Gate::new();
    let waiting = gate.clone();
    let sink = CustomSink::new(move |_| {
        let gate = waiting.clone();
        async move {
            gate.pass(json!("attempt")).await;
            Err(no_connection())
        }
    });
    let dispatcher = paused(&outbox, &clock, |builder| builder.local_sink(sink)).await;
    let _former = attached(&dispatcher, 1).await;
    publish(&dispatcher, 7).await;
    watch.came().await;
    let _later = resumed(&dispatcher, 1, 2).await;
    let begun = Instant::now();
    gate.open(1);
    watch.came().await;
    assert!(begun.elapsed() < Duration::from_millis(500));
}
