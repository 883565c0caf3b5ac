//! What clients and operators get wrong.

use crate::broker::{PATIENCE, attempt, deliver, deliver_until, own, shared, sink, to_queue};
use callback_amqp::{AmqpCluster, AmqpSink};
use callback_core::{Dsn, DsnErrorKind, ErrorKind, Message, Phase, Policy, Rule, Sink};
use futures_util::future::join_all;

fn dsn(text: &str) -> Dsn {
    text.parse().expect("a Dsn")
}

fn cluster() -> AmqpCluster {
    AmqpCluster::new(dsn("amqp://shop:secret@broker.example/shop"))
}

#[track_caller]
fn refused(sink: &AmqpSink, text: &str, kind: DsnErrorKind, reason: &str) {
    let error = sink.check(&dsn(text)).expect_err("it is not open");
    assert_eq!(error.kind(), kind, "{text}: {error}");
    assert!(error.to_string().contains(reason), "{text}: {error}");
}

#[test]
fn a_dsn_names_what_the_operator_opened_and_nothing_else() {
    let orders = cluster().queue("results.*").exchange("events").vhost("tenant-*");
    let sink = AmqpSink::builder().default_cluster(cluster()).cluster("orders", orders).build().expect("a sink");
    for text in [
        "amqp://orders/?queue=results.a",
        "amqp://orders/shop?queue=results.a",
        "amqp://orders/tenant-7?queue=results.a",
        "amqp://orders/?exchange=events&routing_key=anything",
    ] {
        sink.check(&dsn(text)).expect(text);
    }
    use DsnErrorKind::{Forbidden, Invalid};
    refused(&sink, "amqp:///?queue=results.a", Forbidden, "the queue is not open");
    refused(&sink, "amqp://orders/?queue=accounts", Forbidden, "the queue is not open");
    refused(&sink, "amqp://orders/?exchange=amq.topic&routing_key=k", Forbidden, "the exchange is not open");
    refused(&sink, "amqp://orders/%2F?queue=results.a", Forbidden, "the vhost is not open");
    refused(&sink, "amqps://orders/?queue=results.a", Forbidden, "without TLS");
    refused(&sink, "amqp://orders:5672/?queue=results.a", Forbidden, "no cluster of this name");
    refused(&sink, "amqp://broker.example/?queue=results.a", Forbidden, "no cluster of this name");
    refused(&sink, "amqp://me:too@orders/?queue=results.a", Invalid, "neither user nor password");
    refused(&sink, "amqp://orders/?queue=results.a&heartbeat=1", Invalid, "unknown parameter \"heartbeat\"");
    refused(&sink, "https://orders/?queue=results.a", Invalid, "amqp or amqps");
    let none = AmqpSink::builder().cluster("orders", cluster()).build().expect("a sink");
    refused(&none, "amqp:///?queue=q", Forbidden, "no default cluster");
}

#[tokio::test]
async fn what_check_refuses_is_not_delivered_either() {
    let sink = sink(cluster().queue("a"));
    for (text, kind) in [
        ("amqp:///?queue=b", ErrorKind::Forbidden),
        ("amqp://other/?queue=a", ErrorKind::Forbidden),
        ("amqp:///?queue=a&unknown=1", ErrorKind::Refused),
    ] {
        let error = deliver(&sink, &dsn(text)).await.expect_err("refused");
        assert_eq!((error.kind(), error.phase()), (kind, Some(Phase::Policy)), "{text}");
    }
}

#[tokio::test]
async fn a_host_of_a_client_is_dialled_where_the_policy_opens_it() {
    let loopback = Policy::default().allow(Rule::loopback());
    let sink = AmqpSink::builder().unregistered(loopback.clone()).build().expect("a sink");
    refused(&sink, "amqp://a:b@127.0.0.1/?queue=q", DsnErrorKind::Forbidden, "registered clusters only");
    let opened = |policy: Policy| policy.allow("amqp:".parse().expect("a rule"));
    let sink = AmqpSink::builder().unregistered(opened(Policy::default())).build().expect("a sink");
    refused(&sink, "amqp://a:b@127.0.0.1/?queue=q", DsnErrorKind::Forbidden, "loopback addresses are not open");
    refused(&sink, "amqp://broker.example/?queue=q", DsnErrorKind::Invalid, "user and password are missing");
    let error = deliver(&sink, &dsn("amqp://a:b@127.0.0.1.nip.invalid/?queue=q")).await.expect_err("no such name");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Resolve)), "{}", error.chain());

    let Some(broker) = shared() else { return };
    let side = broker.side("").await;
    let queue = side.queue().await;
    let sink = AmqpSink::builder().unregistered(opened(loopback)).build().expect("a sink");
    deliver(&sink, &dsn(&format!("{}?queue={queue}", broker.url))).await.expect("delivered");
    assert!(side.next(&queue).await.is_some());
    let wrong = broker.url.replace("guest:guest", "guest:wrong");
    let error = deliver(&sink, &dsn(&format!("{wrong}?queue={queue}"))).await.expect_err("not let in");
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.chain());
}

#[tokio::test]
async fn a_wrong_password_lets_nobody_in() {
    let Some(broker) = shared() else { return };
    let url = broker.url.replace("guest:guest", "guest:planted");
    let sink = sink(AmqpCluster::new(dsn(&url)).queue("*"));
    let error = deliver(&sink, &to_queue("q")).await.expect_err("not let in");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unauthorized, Some(Phase::Connect)), "{}", error.chain());
    assert!(!format!("{error:?} {} {sink:?}", error.chain()).contains("planted"));
}

#[tokio::test]
async fn a_permission_that_is_missing_is_unauthorized() {
    let Some(broker) = shared() else { return };
    let (side, user) = (broker.side("").await, crate::broker::unique("user"));
    let queue = side.queue().await;
    broker.control(&["add_user", &user, "password"]).await;
    broker.control(&["set_permissions", &user, "", "nothing", ""]).await;
    let url = broker.url.replace("guest:guest", &format!("{user}:password"));
    let sink = sink(AmqpCluster::new(dsn(&url)).queue("*"));
    let error = deliver(&sink, &to_queue(&queue)).await.expect_err("not let in");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unauthorized, Some(Phase::Answer)), "{}", error.chain());
}

#[tokio::test]
async fn a_message_that_is_larger_than_the_broker_takes_pays_alone() {
    let Some(broker) = own().await else { return };
    broker.control(&["eval", "application:set_env(rabbit, max_message_size, 10000)."]).await;
    let side = broker.side("").await;
    let (queue, sink) = (side.queue().await, broker.sink());
    let to_it = to_queue(&queue);
    let large = Message::builder("a").payload(bytes::Bytes::from(vec![0; 20_000])).build().expect("valid");
    let error = sink.deliver(&to_it, &large, &attempt(PATIENCE)).await.expect_err("too large");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::TooLarge, Some(Phase::Answer)), "{}", error.chain());

    // Among others, it is found by the second try at the latest, and the others come through.
    let culprit = async {
        for _ in 0..20 {
            let error = sink.deliver(&to_it, &large, &attempt(PATIENCE)).await.expect_err("too large");
            if error.kind() == ErrorKind::TooLarge {
                return;
            }
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
        }
        panic!("the culprit is never found");
    };
    let others = join_all((0..300).map(|_| deliver_until(&sink, &to_it)));
    let ((), others) = futures_util::future::join(culprit, others).await;
    for kinds in others {
        assert!(kinds.iter().all(|kind| *kind == ErrorKind::Unavailable), "{kinds:?}");
    }
    broker.control(&["eval", "application:set_env(rabbit, max_message_size, 134217728)."]).await;
}
