use super::*;
use crate::{
    AmqpCluster,
    fake::{Answer, Asked, CHANNEL_OPEN, EXCHANGE_DECLARE, Fake, PUBLISH, QUEUE_DECLARE},
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

fn links(sink: &AmqpSink) -> Vec<Arc<Link>> {
    sink.0.links.lock().expect("no panic").by_place.values().map(|(link, _)| Arc::clone(link)).collect()
}

#[tokio::test]
async fn a_frame_is_no_larger_than_ours_whatever_the_broker_asks_for() {
    for (asked, found) in [(0, 131_072), (u32::MAX, 131_072), (16_384, 16_384)] {
        let fake = Fake::start(asked, |_| Answer::Usual).await;
        let sink = sink(&fake);
        deliver(&sink, "q").await.expect("delivered");
        assert_eq!(links(&sink)[0].connected().await.expect("connected").frame_max(), found, "{asked} asked for");
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
    let retry = within(PATIENCE, &sink, "mute", &unlucky);
    let others = async {
        // A confirm that is there at once is believed when the next one comes. So few do not make for another channel.
        for _ in 0..20 {
            if within(Duration::from_millis(200), &sink, "q", &message()).await.is_ok() {
                return;
            }
        }
        panic!("the publisher is deaf");
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
    assert_eq!(fake.connections(), 1);
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

/// Limits that a test can wait for.
fn impatient(mut sink: AmqpSink) -> AmqpSink {
    let (open, confirm) = (Duration::from_millis(300), Duration::from_millis(400));
    Arc::get_mut(&mut sink.0).expect("not shared yet").limits = Limits { open, confirm, ..Limits::DEFAULT };
    sink
}

#[tokio::test]
async fn what_is_never_confirmed_gives_its_place_back() {
    let fake = Fake::start(0, mute).await;
    let sink = impatient(sink(&fake));
    let error = deliver(&sink, "mute").await.expect_err("never confirmed");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Answer)));
    // Whether somebody waits for it or not; a window is full, and more than that waits.
    let soon = Duration::from_millis(50);
    join_all((0..1_500).map(|_| async { within(soon, &sink, "mute", &message()).await.expect_err("no confirm") }))
        .await;
    timeout(PATIENCE, links(&sink)[0].settled()).await.expect("all places are given back");
    deliver(&sink, "q").await.expect("delivered");
    assert_eq!(fake.connections(), 1);
}

#[tokio::test]
async fn a_broker_that_opens_no_channel_is_given_up() {
    let has_opened = std::sync::atomic::AtomicBool::new(false);
    let fake = Fake::start(0, move |asked: &Asked| match asked.method {
        CHANNEL_OPEN if !has_opened.swap(true, std::sync::atomic::Ordering::Relaxed) => Answer::Silence,
        _ => Answer::Usual,
    })
    .await;
    let sink = impatient(sink(&fake));
    let error = deliver(&sink, "q").await.expect_err("no channel");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Connect)));
    deliver(&sink, "q").await.expect("delivered");
    assert_eq!(fake.connections(), 2);
}

#[tokio::test]
async fn bodies_of_one_broker_leave_room_for_those_of_another() {
    let (silent, fake) = (Fake::start(0, mute).await, Fake::start(0, mute).await);
    let cluster = |fake: &Fake| AmqpCluster::new(dsn(&fake.url)).queue("*");
    let builder = AmqpSink::builder().default_cluster(cluster(&fake)).cluster("silent", cluster(&silent));
    let sink = builder.build().expect("a sink");
    let link = {
        let dsn = dsn("amqp://silent/?queue=mute");
        let (broker, address) = sink.judge(&dsn).expect("open");
        sink.link(&dsn, &broker, &address).expect("a link")
    };
    // As many bytes as the silent broker may hold.
    let _held = link.room(usize::MAX).await.expect("room");
    let to_silent = dsn("amqp://silent/?queue=mute");
    let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + Duration::from_millis(100));
    assert_eq!(sink.deliver(&to_silent, &message(), &attempt).await.expect_err("no room").kind(), ErrorKind::TimedOut);
    deliver(&sink, "q").await.expect("delivered");
}

#[tokio::test]
async fn a_culprit_elsewhere_does_not_cost_a_message() {
    // 501 is an error of connections; 406 would be one of this message, were it the channel that closed.
    for code in [501, 406] {
        let fake = Fake::start(0, move |asked: &Asked| match (asked.method, &*asked.name) {
            (PUBLISH, "culprit") => Answer::CloseConnection(code),
            (PUBLISH, "mute") => Answer::Silence,
            _ => Answer::Usual,
        })
        .await;
        let sink = sink(&fake);
        let culprit = async {
            // The other is published first, alone on its channel.
            deliver(&sink, "exchange=e&routing_key=k").await.expect("delivered");
            deliver(&sink, "exchange=e&routing_key=culprit").await
        };
        for error in <[_; 2]>::from(tokio::join!(deliver(&sink, "mute"), culprit)).map(Result::unwrap_err) {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{code}: {}", error.chain());
        }
    }
}

#[tokio::test]
async fn what_was_never_published_is_not_given_up() {
    for (method, to) in [(CHANNEL_OPEN, "q"), (EXCHANGE_DECLARE, "exchange=e&routing_key=k")] {
        for answer in [|| Answer::CloseChannel(406), || Answer::CloseConnection(501), || Answer::CloseConnection(406)] {
            let fake =
                Fake::start(0, move |asked: &Asked| if asked.method == method { answer() } else { Answer::Usual })
                    .await;
            let error = deliver(&sink(&fake), to).await.expect_err("no channel");
            assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Connect)));
        }
    }
}

/// The broker closes the channel while the others are being published on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_closed_channel_does_not_take_goes_on_another() {
    for _ in 0..20 {
        let has_closed = std::sync::atomic::AtomicBool::new(false);
        let fake = Fake::start(0, move |asked: &Asked| match asked.method {
            PUBLISH if asked.name == "q" && !has_closed.swap(true, std::sync::atomic::Ordering::Relaxed) => {
                Answer::CloseChannel(404)
            }
            _ => Answer::Usual,
        })
        .await;
        let sink = sink(&fake);
        deliver(&sink, "first").await.expect("delivered");
        for result in join_all((0..256).map(|_| deliver(&sink, "q"))).await {
            // 404 is about the exchange: it is believed by all that went on this channel.
            if let Err(error) = result {
                assert_eq!(error.kind(), ErrorKind::Unroutable, "{}", error.chain());
            }
        }
        assert_eq!(fake.connections(), 1);
    }
}

#[tokio::test]
async fn a_queue_that_is_declared_slowly_holds_up_nobody() {
    let fake = Fake::start(0, |asked: &Asked| match asked.method {
        QUEUE_DECLARE if asked.name == "slow" => Answer::Silence,
        _ => Answer::Usual,
    })
    .await;
    let cluster = AmqpCluster::new(dsn(&fake.url)).queue("*").declare_queues();
    let sink = AmqpSink::builder().default_cluster(cluster).build().expect("a sink");
    deliver(&sink, "known").await.expect("delivered");
    let slow = join_all((0..10).map(|_| deliver(&sink, "slow")));
    let others = async {
        for queue in ["known", "unknown"] {
            deliver(&sink, queue).await.expect("delivered");
        }
    };
    tokio::select! {
        biased;
        results = slow => panic!("{results:?}"),
        () = others => {}
    }
}

/// Delivers to this Dsn.
async fn to(sink: &AmqpSink, text: &str) -> Result<Receipt, SinkError> {
    let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + PATIENCE);
    sink.deliver(&dsn(text), &message(), &attempt).await
}

/// Every name is the fake's.
#[derive(Debug)]
struct Here;

#[async_trait]
impl callback_core::Resolver for Here {
    async fn resolve(&self, _: &str) -> std::io::Result<Vec<std::net::IpAddr>> {
        Ok(vec![std::net::Ipv4Addr::LOCALHOST.into()])
    }
}

/// Takes brokers that clients name, and turns a host into the fake's URL by that name.
fn of_clients(fake: &Fake) -> (AmqpSink, impl Fn(&str) -> String) {
    let policy = Policy::default().allow(callback_core::Rule::loopback()).allow("amqp:".parse().expect("a rule"));
    let sink = AmqpSink::builder().unregistered(policy.resolver(Here)).build().expect("a sink");
    let url = fake.url.clone();
    (sink, move |host: &str| url.replace("127.0.0.1", host))
}

#[tokio::test]
async fn brokers_of_clients_make_room_for_one_another() {
    let fake = Fake::start(0, |_| Answer::Usual).await;
    let (sink, url) = of_clients(&fake);
    let of = |number: usize| format!("{}v{number}?queue=q", url(&format!("h{}.example", number / OF_ONE_HOST)));
    for number in 0..70 {
        to(&sink, &of(number)).await.expect("delivered");
        // The first one is used again and again, and stays.
        to(&sink, &of(0)).await.expect("delivered");
    }
    assert_eq!((links(&sink).len(), fake.connections()), (UNREGISTERED, 70));
    // All are in use: nobody is thrown out.
    let held = links(&sink);
    let error = to(&sink, &of(99)).await.expect_err("one too many");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Throttled, Some(Phase::Connect)));
    drop(held);
    to(&sink, &of(99)).await.expect("delivered");
}

#[tokio::test]
async fn one_host_of_clients_leaves_room_for_the_others() {
    let fake = Fake::start(0, |_| Answer::Usual).await;
    let (sink, url) = of_clients(&fake);
    to(&sink, &format!("{}?queue=q", url("quiet.example"))).await.expect("delivered");
    for number in 0..20 {
        let user = url("busy.example").replace("a:b@", &format!("a{number}:b@"));
        to(&sink, &format!("{user}?queue=q")).await.expect("delivered");
    }
    assert_eq!((links(&sink).len(), fake.connections()), (1 + OF_ONE_HOST, 21));
    let held = links(&sink);
    let error = to(&sink, &format!("{}v?queue=q", url("busy.example"))).await.expect_err("one too many");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Throttled, Some(Phase::Connect)));
    to(&sink, &format!("{}?queue=q", url("other.example"))).await.expect("delivered");
    drop(held);
}

#[tokio::test]
async fn vhosts_that_clients_choose_have_a_bound_and_the_cluster_s_own_a_place() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("amqp://a:b@{}/own", listener.local_addr().expect("an address"));
    drop(listener);
    let sink = AmqpSink::builder().default_cluster(AmqpCluster::new(dsn(&url)).queue("*").vhost("*")).build();
    let sink = sink.expect("a sink");
    for vhost in std::iter::once("own".to_owned()).chain((0..300).map(|number| format!("v{number}"))) {
        assert_eq!(
            to(&sink, &format!("amqp:///{vhost}?queue=q")).await.expect_err("nobody").kind(),
            ErrorKind::Unavailable
        );
    }
    assert_eq!(links(&sink).len(), VHOSTS + 1);
    let own = Place::Registered { name: String::new(), vhost: "own".to_owned() };
    assert!(sink.0.links.lock().expect("no panic").by_place.contains_key(&own));
}

#[tokio::test]
async fn a_connection_without_work_is_closed_and_made_again() {
    let fake = Fake::start(0, |_| Answer::Usual).await;
    let mut sink = sink(&fake);
    let limits = Limits { idle: Duration::from_millis(50), ..Limits::DEFAULT };
    Arc::get_mut(&mut sink.0).expect("not shared yet").limits = limits;
    deliver(&sink, "q").await.expect("delivered");
    timeout(PATIENCE, fake.goodbye()).await.expect("closed");
    deliver(&sink, "q").await.expect("delivered");
    assert_eq!(fake.connections(), 2);
}

#[tokio::test]
async fn an_error_of_one_channel_ends_no_other() {
    let opened = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let fake = Fake::start(0, move |asked: &Asked| match asked.method {
        EXCHANGE_DECLARE => Answer::CloseChannel(404),
        CHANNEL_OPEN => {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Answer::Usual
        }
        _ => Answer::Usual,
    })
    .await;
    let mut sink = sink(&fake);
    let limits = Limits { idle: Duration::from_secs(1), ..Limits::DEFAULT };
    Arc::get_mut(&mut sink.0).expect("not shared yet").limits = limits;
    deliver(&sink, "exchange=e&routing_key=k").await.expect_err("not there");
    for _ in 0..20 {
        deliver(&sink, "q").await.expect("delivered");
    }
    assert_eq!(opened.load(std::sync::atomic::Ordering::Relaxed), 2, "one for the exchange, one for all messages");
    // And it is closed as any that has no work.
    timeout(PATIENCE, fake.goodbye()).await.expect("closed");
}
