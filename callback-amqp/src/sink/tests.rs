use super::*;
use crate::{
    AmqpCluster,
    fake::{Answer, Asked, EXCHANGE_DECLARE, Fake, PUBLISH},
};
use std::time::{Instant, SystemTime};

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(15);

fn sink(fake: &Fake) -> AmqpSink {
    let cluster = AmqpCluster::new(dsn(&fake.url)).queue("*").exchange("*").vhost("*");
    AmqpSink::builder().default_cluster(cluster).build().expect("a sink")
}

fn dsn(text: &str) -> Dsn {
    text.parse().expect("a Dsn")
}

fn message() -> Message {
    Message::builder("a").payload("a body").build().expect("a message")
}

/// Delivers to a queue, or to an exchange by `exchange=…&routing_key=…`.
async fn within(limit: Duration, sink: &AmqpSink, to: &str, message: &Message) -> Result<Receipt, SinkError> {
    let to = if to.contains('=') { to.to_owned() } else { format!("queue={to}") };
    let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + limit);
    sink.deliver(&dsn(&format!("amqp:///?{to}")), message, &attempt).await
}

async fn deliver(sink: &AmqpSink, to: &str) -> Result<Receipt, SinkError> {
    within(PATIENCE, sink, to, &message()).await
}

#[tokio::test]
async fn a_frame_is_no_larger_than_ours_whatever_the_broker_asks_for() {
    for (asked, found) in [(0, 131_072), (u32::MAX, 131_072), (4_096, 4_096)] {
        let fake = Fake::start(asked, |_| Answer::Usual).await;
        let sink = sink(&fake);
        deliver(&sink, "q").await.expect("delivered");
        let links: Vec<Arc<Link>> = sink.0.links.lock().expect("no panic").values().cloned().collect();
        assert_eq!(links[0].connected().await.expect("connected").frame_max(), found, "{asked} asked for");
        assert_eq!(fake.connections(), 1);
    }
}

fn mute(asked: &Asked) -> Answer {
    if asked.method == PUBLISH && asked.name == "mute" { Answer::Silence } else { Answer::Usual }
}

#[tokio::test]
async fn a_message_that_is_never_confirmed_and_its_retry_hold_up_nobody() {
    let fake = Fake::start(0, mute).await;
    let (sink, unlucky) = (sink(&fake), message());
    for _ in 0..3 {
        let error = within(Duration::from_millis(100), &sink, "mute", &unlucky).await.expect_err("no confirm");
        assert_eq!((error.kind(), error.phase()), (ErrorKind::TimedOut, Some(Phase::Answer)));
    }
    // The same channel, while one retry waits.
    let retry = within(Duration::from_secs(60), &sink, "mute", &unlucky);
    let others = async {
        for _ in 0..10 {
            deliver(&sink, "q").await.expect("delivered");
        }
    };
    tokio::select! {
        biased;
        result = retry => panic!("{result:?}"),
        () = others => {}
    }
}

#[tokio::test]
async fn exchanges_that_are_made_up_shut_out_nobody() {
    let fake = Fake::start(0, |asked: &Asked| match asked.method {
        EXCHANGE_DECLARE if asked.name.starts_with("made-up") => Answer::CloseChannel(404),
        _ => Answer::Usual,
    })
    .await;
    let sink = sink(&fake);
    for number in 0..300 {
        let result = deliver(&sink, &format!("exchange=made-up-{number}&routing_key=k")).await;
        assert_eq!(result.expect_err("not there").kind(), ErrorKind::Unroutable, "{number}");
    }
    deliver(&sink, "exchange=e&routing_key=k").await.expect("delivered");
}

#[tokio::test]
async fn the_default_exchange_has_its_place_beside_all_others() {
    let fake = Fake::start(0, |_| Answer::Usual).await;
    let sink = sink(&fake);
    for number in 0..256 {
        deliver(&sink, &format!("exchange=e{number}&routing_key=k")).await.expect("delivered");
    }
    let error = deliver(&sink, "exchange=one-more&routing_key=k").await.expect_err("one too many");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Throttled, Some(Phase::Connect)));
    deliver(&sink, "q").await.expect("delivered");
}
