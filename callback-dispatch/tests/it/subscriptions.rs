//! Standing wishes for events, and who gets what.

use crate::support::{CustomSink, Home, accept, dsn, ended, receipt, start};
use callback_core::{Delivered, ErrorKind, MemorySink, SinkError, Verifier};
use callback_dispatch::{
    AcceptError, ChangeError, DeadLetterQuery, Dispatcher, Event, Hal, Interrupted, NewSubscription, Os1, Submission,
    Subscription, SubscriptionChange, SubscriptionEnd, SubscriptionQuery, SubscriptionState, Task, TaskState,
    Violations,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

on_each_outbox!(
    an_event_goes_to_all_who_want_it,
    the_id_of_an_event_is_its_own_at_each_subscriber,
    an_event_published_by_a_task_goes_out_with_its_outcome,
    one_for_one_event_ends_with_it,
    one_that_is_paused_misses_what_happens_meanwhile,
    a_lease_that_is_over_ends_it_and_one_that_is_renewed_does_not,
    a_dsn_that_is_gone_ends_its_subscriptions,
    one_for_one_event_that_is_answered_gone_ends_so,
    what_waits_for_a_cancelled_one_is_not_attempted,
    what_a_cancelled_one_has_in_hand_is_not_attempted,
    an_ordered_one_gets_its_events_numbered_and_in_order,
    a_subscriptions_own_secret_signs,
    a_rotated_secret_signs_beside_the_new_one_for_a_while,
    what_cannot_be_used_is_refused_with_all_that_is_wrong,
    an_owner_has_no_more_subscriptions_than_it_may,
    a_validator_judges_subscriptions,
    one_that_has_ended_cannot_be_changed,
    a_page_goes_on_where_the_last_one_ended,
    ten_thousand_subscribers_get_one_event,
);

fn to(name: &str) -> NewSubscription {
    NewSubscription::new(dsn(&format!("memory://{name}")))
}

fn happened(what: &str) -> Event {
    Event::new(what, json!({ "what": what }))
}

async fn create(dispatcher: &Dispatcher, new: NewSubscription) -> Subscription {
    dispatcher.subscriptions().create(new).await.expect("it is created")
}

async fn publish(dispatcher: &Dispatcher, event: Event) {
    dispatcher.publish(event).await.expect("published");
}

async fn state(dispatcher: &Dispatcher, subscription: &Subscription) -> SubscriptionState {
    dispatcher.subscriptions().get(subscription.id()).await.expect("readable").expect("it is kept").state()
}

/// Until it stands there.
async fn reaches(dispatcher: &Dispatcher, subscription: &Subscription, expected: SubscriptionState) {
    while state(dispatcher, subscription).await != expected {
        tokio::task::yield_now().await;
    }
}

fn body(delivered: &Delivered) -> Value {
    delivered.message.json().expect("JSON")
}

async fn an_event_goes_to_all_who_want_it(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    create(&dispatcher, to("all")).await;
    create(&dispatcher, to("orders").service("orders").event("order.completed").event("order.failed")).await;
    create(&dispatcher, to("parts").service("parts")).await;
    create(&dispatcher, to("acme").owner("acme")).await;
    publish(&dispatcher, happened("order.completed").service("orders")).await;
    for name in ["all", "orders", "acme"] {
        assert_eq!(body(&sink.next(name).await), json!({ "what": "order.completed" }), "{name}");
    }
    publish(&dispatcher, happened("part.broken").service("parts").owner("acme")).await;
    publish(&dispatcher, happened("last").service("parts")).await;
    let got: BTreeSet<String> =
        [sink.next("acme").await, sink.next("acme").await].iter().map(|it| body(it)["what"].to_string()).collect();
    assert_eq!(got, ["\"last\"".to_owned(), "\"part.broken\"".to_owned()].into(), "both, in no order");
    for name in ["all", "parts"] {
        assert_eq!(body(&sink.next(name).await), json!({ "what": "last" }), "{name}");
    }
    assert!(sink.take("orders").is_empty());
}

async fn the_id_of_an_event_is_its_own_at_each_subscriber(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).source("/orders")).await;
    let subscriptions = [create(&dispatcher, to("a")).await, create(&dispatcher, to("b")).await];
    let id = dispatcher.publish(happened("order.completed")).await.expect("published");
    let mut ids = BTreeSet::new();
    for (name, subscription) in ["a", "b"].into_iter().zip(&subscriptions) {
        let Delivered { message, .. } = sink.next(name).await;
        assert_eq!((message.event_id(), message.source()), (&id, "/orders"));
        assert_eq!(message.subject(), Some(&*subscription.id().to_string()));
        ids.insert(message.id().clone());
    }
    assert_eq!(ids.len(), 2);
    let named = dispatcher.publish(happened("x").id("event-7".parse().expect("valid"))).await.expect("published");
    assert_eq!((named.as_str(), sink.next("a").await.message.event_id()), ("event-7", &named));
}

async fn an_event_published_by_a_task_goes_out_with_its_outcome(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    create(&dispatcher, to("audit")).await;
    let handler = |task: Task| async move {
        task.publish(happened("order.completed")).expect("published");
        Ok::<_, Value>(json!("done"))
    };
    let worker = dispatcher.worker("orders", Interrupted::RunAgain).run(handler).expect("registered");
    let id = accept(&worker, json!(1), "memory://results").await;
    assert_eq!(body(&sink.next("audit").await), json!({ "what": "order.completed" }));
    assert_eq!(ended(&dispatcher, id).await.state(), TaskState::Delivered);
    assert!(sink.take("audit").is_empty());
}

async fn one_for_one_event_ends_with_it(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let once = create(&dispatcher, to("once").once()).await;
    create(&dispatcher, to("always")).await;
    for what in ["first", "second"] {
        publish(&dispatcher, happened(what)).await;
    }
    assert_eq!(body(&sink.next("once").await), json!({ "what": "first" }));
    let got: BTreeSet<String> =
        [sink.next("always").await, sink.next("always").await].iter().map(|it| body(it).to_string()).collect();
    assert_eq!(got.len(), 2, "both, in no order");
    reaches(&dispatcher, &once, SubscriptionState::Ended(SubscriptionEnd::Completed)).await;
    assert!(sink.take("once").is_empty());
}

async fn one_that_is_paused_misses_what_happens_meanwhile(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let subscription = create(&dispatcher, to("a")).await;
    let subscriptions = dispatcher.subscriptions();
    let paused = subscriptions.pause(subscription.id()).await.expect("paused");
    assert_eq!(paused.state(), SubscriptionState::Paused);
    publish(&dispatcher, happened("missed")).await;
    let resumed = subscriptions.resume(subscription.id()).await.expect("resumed");
    assert_eq!(resumed.state(), SubscriptionState::Active);
    publish(&dispatcher, happened("got")).await;
    assert_eq!(body(&sink.next("a").await), json!({ "what": "got" }));
}

async fn a_lease_that_is_over_ends_it_and_one_that_is_renewed_does_not(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let over = create(&dispatcher, to("over").lease(Duration::ZERO)).await;
    let renewed = create(&dispatcher, to("renewed").lease(Duration::from_secs(3_600))).await;
    assert!(renewed.expires_at().is_some());
    let change = SubscriptionChange::new().lease(None);
    let renewed = dispatcher.subscriptions().update(renewed.id(), change).await.expect("renewed");
    assert_eq!(renewed.expires_at(), None);
    publish(&dispatcher, happened("x")).await;
    sink.next("renewed").await;
    assert_eq!(state(&dispatcher, &over).await, SubscriptionState::Ended(SubscriptionEnd::Expired));
    assert!(sink.take("over").is_empty());
}

async fn a_dsn_that_is_gone_ends_its_subscriptions(home: Home) {
    let sink = MemorySink::new();
    sink.fail("gone", SinkError::gone("no more"));
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let (one, two) = (create(&dispatcher, to("gone")).await, create(&dispatcher, to("gone")).await);
    let other = create(&dispatcher, to("other")).await;
    publish(&dispatcher, happened("x").expires_in(Duration::from_secs(3_600))).await;
    for gone in [&one, &two] {
        reaches(&dispatcher, gone, SubscriptionState::Ended(SubscriptionEnd::Gone)).await;
    }
    assert_eq!(state(&dispatcher, &other).await, SubscriptionState::Active);
    let dead = dispatcher.dead_letters();
    loop {
        let letters = dead.list(&DeadLetterQuery::default()).await.expect("readable").items;
        if letters.len() + sink.take("gone").len() >= 2 {
            assert!(letters.iter().all(|letter| letter.kind == ErrorKind::Gone), "{letters:?}");
            break;
        }
    }
}

async fn one_for_one_event_that_is_answered_gone_ends_so(home: Home) {
    let sink = MemorySink::new();
    sink.fail("gone", SinkError::gone("no more"));
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let once = create(&dispatcher, to("gone").once()).await;
    publish(&dispatcher, happened("x")).await;
    let end = loop {
        if let SubscriptionState::Ended(end) = state(&dispatcher, &once).await {
            break end;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(end, SubscriptionEnd::Gone);
}

async fn what_waits_for_a_cancelled_one_is_not_attempted(home: Home) {
    let (sent, mut got) = tokio::sync::mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let _ = sent.send(given.attempt.number());
        async { Err(SinkError::unavailable("down")) }
    });
    let schedule = callback_core::Schedule::new([Duration::from_secs(3)]).expect("valid").jitter(0);
    let dispatcher = start(home.builder().await.sink(sink).schedule(schedule)).await;
    let subscription = create(&dispatcher, NewSubscription::new(dsn("custom://a"))).await;
    publish(&dispatcher, happened("x")).await;
    assert_eq!(got.recv().await, Some(1));
    dispatcher.subscriptions().cancel(subscription.id()).await.expect("cancelled");
    assert_eq!(state(&dispatcher, &subscription).await, SubscriptionState::Ended(SubscriptionEnd::Cancelled));
    // What comes due later is attempted, and nothing else was meanwhile.
    create(&dispatcher, NewSubscription::new(dsn("custom://b"))).await;
    publish(&dispatcher, happened("y")).await;
    assert_eq!((got.recv().await, got.recv().await), (Some(1), Some(2)));
    assert!(got.try_recv().is_err());
    assert!(dispatcher.dead_letters().list(&DeadLetterQuery::default()).await.expect("readable").items.len() <= 1);
}

async fn what_a_cancelled_one_has_in_hand_is_not_attempted(home: Home) {
    let (sent, mut got) = tokio::sync::mpsc::unbounded_channel();
    let (go, gate) = tokio::sync::watch::channel(false);
    let sink = CustomSink::new(move |given| {
        let _ = sent.send(given.message.json::<Value>().expect("JSON"));
        let mut gate = gate.clone();
        async move {
            let _ = gate.wait_for(|open| *open).await;
            Ok(receipt())
        }
    });
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let subscription = create(&dispatcher, NewSubscription::new(dsn("custom://a"))).await;
    for what in ["1", "2", "3"] {
        publish(&dispatcher, happened(what)).await;
    }
    // A destination of which nothing is known gets one attempt at a time; the others wait for it.
    let first = got.recv().await;
    while dispatcher.health().await.in_hand < 3 {
        tokio::task::yield_now().await;
    }
    dispatcher.subscriptions().cancel(subscription.id()).await.expect("cancelled");
    go.send(true).expect("the sink is there");
    create(&dispatcher, NewSubscription::new(dsn("custom://b")).event("last")).await;
    publish(&dispatcher, happened("last")).await;
    assert_eq!(got.recv().await, Some(json!({ "what": "last" })));
    while dispatcher.health().await.in_hand > 0 {
        tokio::task::yield_now().await;
    }
    assert!(first.is_some() && got.try_recv().is_err());
}

async fn an_ordered_one_gets_its_events_numbered_and_in_order(home: Home) {
    let sink = MemorySink::new();
    sink.fail("ordered", SinkError::unavailable("down"));
    let schedule = callback_core::Schedule::new([Duration::from_millis(1)]).expect("valid");
    let dispatcher = start(home.builder().await.sink(sink.clone()).schedule(schedule)).await;
    create(&dispatcher, to("ordered").ordered()).await;
    create(&dispatcher, to("plain")).await;
    for number in 1..=5 {
        publish(&dispatcher, happened(&format!("event.{number}")).ordering_key(number.to_string())).await;
    }
    for number in 1..=5 {
        let Delivered { message, .. } = sink.next("ordered").await;
        assert_eq!((message.event_type(), message.sequence()), (&*format!("event.{number}"), Some(number)));
        assert_eq!(sink.next("plain").await.message.sequence(), None);
    }
}

#[track_caller]
fn verifies(delivered: &Delivered, key: &str) -> bool {
    let verifier: Verifier = key.parse().expect("a key");
    let (message, attempt) = (&delivered.message, &delivered.attempt);
    let signature = attempt.signature().expect("a signature");
    verifier.verify(message.id(), attempt.time(), message.body(), signature, attempt.time()).is_ok()
}

async fn a_subscriptions_own_secret_signs(home: Home) {
    let sink = MemorySink::new();
    let service: callback_core::Signer = NEW.parse().expect("a key");
    let builder = home.builder().await.sink(sink.clone()).signer(service).profile(Hal).profile(Os1::new("x-hmac"));
    let dispatcher = start(builder.public_url("https://api.example.com/v1/".parse().expect("a URL"))).await;
    let own = create(&dispatcher, to("own").secret(OLD).profile("hal")).await;
    assert!(own.has_secret());
    assert_eq!(own.href(), format!("https://api.example.com/v1/subscriptions/{}", own.id()));
    create(&dispatcher, to("none")).await;
    let os1 = to("os1").secret("any text").profile("os1").meta(json!({ "mine": 1 }));
    create(&dispatcher, os1).await;
    publish(&dispatcher, happened("x").service("CONTAINER")).await;
    let delivered = sink.next("own").await;
    assert!(verifies(&delivered, OLD) && !verifies(&delivered, NEW));
    assert_eq!(body(&delivered)["_links"]["self"]["href"], own.href());
    assert_eq!(body(&delivered)["UUID"], own.id().to_string());
    assert!(verifies(&sink.next("none").await, NEW));
    // Beside the profile's own header, the service signs.
    let delivered = sink.next("os1").await;
    assert!(verifies(&delivered, NEW));
    let hmac = callback_core::Secret::from("any text").hex_hmac(delivered.message.body());
    assert_eq!(delivered.message.header("x-hmac"), Some(&*hmac));
    let expected = json!({ "event": "x", "service": "CONTAINER", "data": { "what": "x" }, "meta": { "mine": 1 } });
    assert_eq!(body(&delivered), expected);
}

async fn a_rotated_secret_signs_beside_the_new_one_for_a_while(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone())).await;
    let id = create(&dispatcher, to("a").secret(OLD)).await.id();
    let subscriptions = dispatcher.subscriptions();
    subscriptions.rotate_secret(id, NEW, Duration::from_secs(3_600)).await.expect("rotated");
    publish(&dispatcher, happened("both")).await;
    let both = sink.next("a").await;
    assert!(verifies(&both, OLD) && verifies(&both, NEW));
    subscriptions.rotate_secret(id, NEW, Duration::ZERO).await.expect("rotated");
    publish(&dispatcher, happened("new")).await;
    let new = sink.next("a").await;
    assert!(!verifies(&new, OLD) && verifies(&new, NEW));
    let without = subscriptions.update(id, SubscriptionChange::new().no_secret()).await.expect("changed");
    assert!(!without.has_secret());
    publish(&dispatcher, happened("none")).await;
    assert_eq!(sink.next("a").await.attempt.signature(), None);
}

#[track_caller]
fn check_violations(refused: Result<Subscription, AcceptError>, expected: &[&str]) {
    let Err(AcceptError::Invalid(violations)) = refused else { panic!("{refused:?}") };
    assert_eq!(violations.iter().map(|it| it.pointer.as_str()).collect::<Vec<_>>(), expected);
}

async fn what_cannot_be_used_is_refused_with_all_that_is_wrong(home: Home) {
    let dispatcher = start(home.builder().await.sink(MemorySink::new()).profile(Os1::new("x-hmac"))).await;
    let subscriptions = dispatcher.subscriptions();
    let wrong = to("a").service("").event("a.b").event("no type").secret("short");
    check_violations(subscriptions.create(wrong).await, &["/service", "/events/1", "/secret"]);
    let many = (0..101).fold(to("a"), |new, number| new.event(number.to_string()));
    check_violations(subscriptions.create(many).await, &["/events"]);
    check_violations(subscriptions.create(to("a").secret("whsk_x").profile("bare")).await, &["/secret"]);
    check_violations(subscriptions.create(to("a").secret("whsec_x").profile("os1")).await, &["/secret"]);
    let deep = (0..200).fold(json!(1), |value, _| json!([value]));
    check_violations(subscriptions.create(to("a").meta(deep)).await, &["/meta"]);
    let large = |bytes: usize| json!("a".repeat(bytes - 2));
    check_violations(subscriptions.create(to("a").meta(large((64 << 10) + 1))).await, &["/meta"]);
    let largest = create(&dispatcher, to("a").meta(large(64 << 10))).await.id();
    let larger = subscriptions.update(largest, SubscriptionChange::new().meta(large((64 << 10) + 1))).await;
    assert!(matches!(larger, Err(ChangeError::Invalid(_))), "{larger:?}");
    let unknown = subscriptions.create(to("a").profile("nobody's")).await;
    assert!(matches!(unknown, Err(AcceptError::Profile(name)) if name == "nobody's"));
    for owner in ["", "a\nb", &"x".repeat(256)] {
        assert!(matches!(subscriptions.create(to("a").owner(owner)).await, Err(AcceptError::Owner)), "{owner:?}");
    }
    let nowhere = subscriptions.create(NewSubscription::new(dsn("nowhere://a"))).await;
    assert!(matches!(nowhere, Err(AcceptError::Dsn(_))));
    let id = create(&dispatcher, to("a")).await.id();
    let change = SubscriptionChange::new().events(["no type"]).secret("short", Duration::ZERO);
    let refused = subscriptions.update(id, change).await;
    let Err(ChangeError::Invalid(violations)) = refused else { panic!("{refused:?}") };
    assert_eq!(violations.iter().count(), 2);
    let none: Option<&str> = None;
    subscriptions.update(id, SubscriptionChange::new().service(none).events(["a.b"])).await.expect("changed");
}

async fn an_owner_has_no_more_subscriptions_than_it_may(home: Home) {
    let dispatcher = start(home.builder().await.sink(MemorySink::new()).subscription_limit(2)).await;
    let subscriptions = dispatcher.subscriptions();
    let first = create(&dispatcher, to("a").owner("acme")).await.id();
    create(&dispatcher, to("a").owner("acme")).await;
    let more = subscriptions.create(to("a").owner("acme")).await;
    assert!(matches!(more, Err(AcceptError::TooMany { limit: 2 })), "{more:?}");
    create(&dispatcher, to("a").owner("other")).await;
    subscriptions.cancel(first).await.expect("cancelled");
    create(&dispatcher, to("a").owner("acme")).await;
}

async fn a_validator_judges_subscriptions(home: Home) {
    let known = |submission: &Submission<'_>| match submission.content["events"].as_array() {
        Some(events) if events.iter().all(|event| event.as_str().is_some_and(|it| it.starts_with("container."))) => {
            Ok(())
        }
        Some(_) => Err(Violations::at("/events", "must begin with `container.`")),
        None => Err(Violations::at("/events", "is missing").and("/service", "must be given with them")),
    };
    let owned = |submission: &Submission<'_>| match submission.owner {
        Some(_) if submission.callback.is_some() && submission.operation == "subscribe" => Ok(()),
        _ => Err(Violations::at("/owner", "is missing")),
    };
    let builder = home.builder().await.sink(MemorySink::new());
    let dispatcher = start(builder.subscription_validator(known).subscription_validator(owned)).await;
    let subscriptions = dispatcher.subscriptions();
    check_violations(subscriptions.create(to("a")).await, &["/events", "/service", "/owner"]);
    check_violations(subscriptions.create(to("a").event("x").owner("acme")).await, &["/events"]);
    create(&dispatcher, to("a").event("container.created").owner("acme")).await;
    assert_eq!(subscriptions.list(&SubscriptionQuery::default()).await.expect("readable").items.len(), 1);
}

async fn one_that_has_ended_cannot_be_changed(home: Home) {
    let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
    let subscriptions = dispatcher.subscriptions();
    let id = create(&dispatcher, to("a")).await.id();
    subscriptions.cancel(id).await.expect("cancelled");
    assert!(matches!(subscriptions.cancel(id).await, Err(ChangeError::Ended)));
    assert!(matches!(subscriptions.pause(id).await, Err(ChangeError::Ended)));
    let over = create(&dispatcher, to("a").lease(Duration::ZERO)).await.id();
    assert!(matches!(subscriptions.resume(over).await, Err(ChangeError::Ended)));
    assert!(matches!(subscriptions.cancel(over).await, Err(ChangeError::Ended)));
    let nobodys = "0193b2a4-0000-7000-8000-000000000000".parse().expect("an id");
    assert!(matches!(subscriptions.cancel(nobodys).await, Err(ChangeError::Unknown)));
    assert!(matches!(subscriptions.resume(nobodys).await, Err(ChangeError::Unknown)));
    assert!(subscriptions.get(nobodys).await.expect("readable").is_none());
}

async fn a_page_goes_on_where_the_last_one_ended(home: Home) {
    let dispatcher = start(home.builder().await.sink(MemorySink::new())).await;
    let mut created = Vec::new();
    for _ in 0..5 {
        created.push(create(&dispatcher, to("a").owner("acme")).await.id());
        create(&dispatcher, to("a").owner("other")).await;
    }
    let mut query = SubscriptionQuery::default().owner("acme").limit(2);
    let mut found = Vec::new();
    loop {
        let page = dispatcher.subscriptions().list(&query).await.expect("readable");
        found.extend(page.items.iter().map(Subscription::id));
        let Some(next) = page.next else { break };
        // As it goes through a URL.
        query = query.after(next.to_string().parse().expect("a cursor"));
    }
    assert_eq!(found, created);
}

async fn ten_thousand_subscribers_get_one_event(home: Home) {
    let (sent, mut got) = tokio::sync::mpsc::unbounded_channel();
    let sink = CustomSink::new(move |given| {
        let _ = sent.send((given.dsn.expose().to_owned(), given.message.id().clone()));
        async { Ok(receipt()) }
    });
    let dispatcher = start(home.builder().await.sink(sink)).await;
    let creating = (0..10_000_u32).map(|number| {
        let new = NewSubscription::new(dsn(&format!("custom://host{}/{number}", number % 100)));
        let new = if number % 2 == 0 { new.ordered() } else { new };
        let subscriptions = dispatcher.subscriptions();
        async move { subscriptions.create(new).await.map(drop) }
    });
    let created = futures_util::future::join_all(creating).await;
    assert!(created.iter().all(Result::is_ok));
    publish(&dispatcher, Event::new("large", vec![b'a'; 100_000])).await;
    let (mut places, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..10_000 {
        let (place, id) = got.recv().await.expect("delivered");
        assert!(places.insert(place));
        assert!(ids.insert(id));
    }
}
