//! The shape of results, whose secret signs them, and what the receiver's answer means.

use crate::support::{CustomSink, Given, Home, dsn, echo, ended, lived, start};
use callback_core::{
    ErrorKind, Evidence, MemorySink, Message, MessageError, MessageId, Payload, Receipt, SinkError, Verifier,
};
use callback_dispatch::{
    AcceptError, Bare, CloudEvents, DeadLetterQuery, Dispatcher, Event, Hal, Interrupted, MemoryOutbox,
    NewSubscription, Os1, Profile, Recipient, StartError, Submission, Task, TaskState, Violations, Work, Worker,
};
use serde_json::{Value, json};
use std::time::Duration;

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

on_each_outbox!(
    work_names_the_shape_of_its_result,
    a_requests_own_secret_signs_its_result,
    what_a_profile_says_of_the_answer_counts,
    a_profile_that_changes_an_id_or_panics_harms_its_messages_alone,
    what_work_names_and_cannot_have_is_refused,
    every_validator_of_a_worker_is_asked_before_anything_is_stored,
);

over_lives_on_each_outbox!(what_names_a_profile_that_is_not_registered_waits_for_it);

fn bug() -> Result<Message, MessageError> {
    std::panic::resume_unwind(Box::new("a profile's bug"))
}

/// Takes another's word for it.
#[derive(Debug)]
struct Partner;

impl Profile for Partner {
    fn name(&self) -> &str {
        "partner"
    }

    fn shape(&self, message: Message, recipient: &Recipient) -> Result<Message, MessageError> {
        match &recipient.meta {
            Value::String(text) if text == "panic" => bug(),
            Value::String(text) if text == "id" => message.to_builder().id(MessageId::new()).build(),
            Value::String(text) if text == "unfit" => message.to_builder().subject("").build(),
            _ => message.to_builder().payload(json!({ "who": recipient.id })).build(),
        }
    }

    fn judge(&self, outcome: Result<Receipt, SinkError>) -> Result<Receipt, SinkError> {
        match outcome {
            Err(error) if error.status() == Some(409) => Ok(Receipt::new(Evidence::Status(409))),
            Ok(receipt) if receipt.status() == Some(299) => Err(SinkError::refused("not really").with_status(299)),
            other => other,
        }
    }
}

fn worker(dispatcher: &Dispatcher) -> Worker {
    dispatcher.worker("echo", Interrupted::RunAgain).run(echo).expect("registered")
}

fn work(to: &str) -> Work {
    Work::new(json!({ "orderId": "7" })).callback(dsn(to))
}

async fn work_names_the_shape_of_its_result(home: Home) {
    let sink = MemorySink::new();
    let builder = home.builder().await.sink(sink.clone()).profile(Hal).profile(CloudEvents).profile(Partner);
    let dispatcher = start(builder).await;
    let worker = worker(&dispatcher);
    let id = worker.accept(work("memory://hal").profile("hal")).await.expect("accepted").id();
    let message = sink.next("hal").await.message;
    let expected =
        json!({ "_links": { "self": { "href": format!("/tasks/{id}") } }, "UUID": id, "data": { "orderId": "7" } });
    assert_eq!((message.content_type(), message.json::<Value>().expect("JSON")), ("application/hal+json", expected));
    // What is looked up is the result, whatever was sent.
    let kept = ended(&dispatcher, id).await;
    assert_eq!(
        kept.outcome().expect("it has one").payload().parse::<Value>().expect("JSON"),
        json!({ "orderId": "7" })
    );
    worker.accept(work("memory://ce").profile("cloudevents")).await.expect("accepted");
    let message = sink.next("ce").await.message;
    assert_eq!(message.json::<Value>().expect("JSON")["data"], json!({ "orderId": "7" }));
    worker.accept(work("memory://bare").profile("bare")).await.expect("accepted");
    assert_eq!(sink.next("bare").await.message.json::<Value>().expect("JSON"), json!({ "orderId": "7" }));
}

async fn a_requests_own_secret_signs_its_result(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).profile(Os1::new("x-hmac"))).await;
    let worker = worker(&dispatcher);
    worker.accept(work("memory://own").secret(KEY)).await.expect("accepted");
    let delivered = sink.next("own").await;
    let (message, attempt) = (&delivered.message, &delivered.attempt);
    let verifier: Verifier = KEY.parse().expect("a key");
    let signature = attempt.signature().expect("a signature");
    verifier.verify(message.id(), attempt.time(), message.body(), signature, attempt.time()).expect("it verifies");
    let os1 = work("memory://os1").profile("os1").secret("any text").meta(json!({ "mine": 1 }));
    worker.accept(os1).await.expect("accepted");
    let delivered = sink.next("os1").await;
    assert_eq!(delivered.attempt.signature(), None, "it is no key, and the dispatcher has none");
    let hmac = callback_core::Secret::from("any text").hex_hmac(delivered.message.body());
    assert_eq!(delivered.message.header("x-hmac"), Some(&*hmac));
    let body: Value = delivered.message.json().expect("JSON");
    assert_eq!((&body["event"], &body["meta"]), (&json!("callback.task.completed"), &json!({ "mine": 1 })));
}

async fn what_a_profile_says_of_the_answer_counts(home: Home) {
    let sink = CustomSink::new(|given: Given| async move {
        match given.dsn.authority() {
            "conflict" => Err(SinkError::refused("it is there").with_status(409)),
            _ => Ok(Receipt::new(Evidence::Status(299))),
        }
    });
    let dispatcher = start(home.builder().await.sink(sink).profile(Partner)).await;
    let worker = worker(&dispatcher);
    for (to, profile, expected) in [
        ("custom://conflict", "partner", TaskState::Delivered),
        ("custom://conflict", "bare", TaskState::Dead),
        ("custom://taken", "partner", TaskState::Dead),
        ("custom://taken", "bare", TaskState::Delivered),
    ] {
        let id = worker.accept(work(to).profile(profile)).await.expect("accepted").id();
        assert_eq!(ended(&dispatcher, id).await.state(), expected, "{to} {profile}");
    }
}

async fn a_profile_that_changes_an_id_or_panics_harms_its_messages_alone(home: Home) {
    let sink = MemorySink::new();
    let schedule = callback_core::Schedule::new([Duration::from_millis(1)]).expect("valid");
    let dispatcher = start(home.builder().await.sink(sink.clone()).schedule(schedule).profile(Partner)).await;
    let worker = worker(&dispatcher);
    for (meta, kind, attempts) in
        [("id", ErrorKind::Refused, 1), ("unfit", ErrorKind::Refused, 1), ("panic", ErrorKind::Unavailable, 2)]
    {
        let id = worker.accept(work("memory://a").profile("partner").meta(meta)).await.expect("accepted").id();
        assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Dead, "{meta}");
        let letter = dispatcher.dead_letters().get(id).await.expect("readable").expect("it is dead");
        assert_eq!((letter.kind, letter.attempts.len()), (kind, attempts), "{meta}");
    }
    assert!(sink.take("a").is_empty());
    worker.accept(work("memory://a").profile("partner")).await.expect("accepted");
    sink.next("a").await;
}

async fn what_work_names_and_cannot_have_is_refused(home: Home) {
    let dispatcher = start(home.builder().await.sink(MemorySink::new()).profile(Os1::new("x-hmac"))).await;
    let worker = worker(&dispatcher);
    let unknown = worker.accept(work("memory://a").profile("nobody's")).await;
    assert!(matches!(unknown, Err(AcceptError::Profile(name)) if name == "nobody's"));
    let deep = (0..200).fold(json!(1), |value, _| json!([value]));
    let wrong = worker.accept(work("memory://a").meta(deep).secret("short")).await;
    let Err(AcceptError::Invalid(violations)) = wrong else { panic!("{wrong:?}") };
    assert_eq!(violations.iter().map(|it| it.pointer.as_str()).collect::<Vec<_>>(), ["/meta", "/secret"]);
}

async fn every_validator_of_a_worker_is_asked_before_anything_is_stored(home: Home) {
    let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
    let numbered = |submission: &Submission<'_>| match submission.content["orderId"].is_string() {
        true => Ok(()),
        false => Err(Violations::at("/orderId", "must be a string")),
    };
    let owned = |submission: &Submission<'_>| match (submission.owner, submission.operation) {
        (Some("acme"), "order") if submission.callback.is_some() => Ok(()),
        _ => Err(Violations::at("", "is nobody's").and("/b", "is missing")),
    };
    let builder = dispatcher.worker("echo", Interrupted::RunAgain).validator(numbered).validator(owned);
    let worker = builder.run(|task: Task| echo(task)).expect("registered");
    for refused in [Work::new(json!({ "orderId": 7 })), Work::new("no JSON")] {
        let refused = worker.accept(refused).await;
        let Err(AcceptError::Invalid(violations)) = refused else { panic!("{refused:?}") };
        assert_eq!(violations.to_string(), "/orderId must be a string; is nobody's; /b is missing");
    }
    // What a handler may be content with, and validators cannot see.
    for unreadable in [r#"{"orderId":"7","more":1e999}"#, r#"{"orderId":"7","more":"\ud83d"}"#, "{"] {
        let unreadable = Payload::new("application/JSON; charset=utf-8", unreadable);
        let refused = worker.accept(Work::new(unreadable).owner("acme").operation("order")).await;
        let Err(AcceptError::Invalid(violations)) = refused else { panic!("{refused:?}") };
        assert_eq!(violations.to_string(), "cannot be read as JSON");
    }
    home.assert_empty().await;
    worker.accept(work("memory://a").owner("acme").operation("order")).await.expect("accepted");
}

fn what_names_a_profile_that_is_not_registered_waits_for_it(home: &Home) {
    lived(async {
        let dispatcher = start(home.builder().await.sink(MemorySink::new()).profile(Hal)).await;
        let new = NewSubscription::new(dsn("memory://a")).profile("hal").once();
        dispatcher.subscriptions().create(new).await.expect("created");
        dispatcher.close(Duration::from_secs(5)).await;
    });
    lived(async {
        let (sink, schedule) =
            (MemorySink::new(), callback_core::Schedule::new([Duration::from_millis(1)]).expect("valid"));
        let dispatcher = start(home.builder().await.sink(sink.clone()).schedule(schedule)).await;
        dispatcher.publish(Event::new("x", json!(7))).await.expect("published");
        let letter = loop {
            let letters = dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("readable");
            match letters.items.into_iter().next() {
                Some(letter) => break letter,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!((letter.kind, letter.attempts.len()), (ErrorKind::Unavailable, 2));
        assert!(letter.attempts[0].reason.contains("no profile named hal is registered"), "{letter:?}");
        assert!(sink.take("a").is_empty(), "nothing is sent without its profile");
        dispatcher.close(Duration::from_secs(5)).await;
    });
    lived(async {
        let sink = MemorySink::new();
        let dispatcher = start(home.builder().await.sink(sink.clone()).profile(Hal)).await;
        let replayed = dispatcher.dead_letters().replay_all(&DeadLetterQuery::default()).await.expect("writable");
        assert_eq!(replayed, 1);
        assert_eq!(sink.next("a").await.message.json::<Value>().expect("JSON")["data"], 7);
        dispatcher.close(Duration::from_secs(5)).await;
    });
}

#[tokio::test]
async fn a_name_belongs_to_one_profile() {
    let builder = || Dispatcher::builder(MemoryOutbox::new());
    let taken = builder().profile(Hal).profile(Hal).start().await;
    assert!(matches!(taken, Err(StartError::ProfileTaken(name)) if name == "hal"));
    builder().profile(Bare).start().await.expect("the one that is there without that may be named");
}
