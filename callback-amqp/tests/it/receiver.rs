//! The receiver on a real RabbitMQ: what it hands over, and what it tells the broker.

use crate::broker::{Broker, PATIENCE, Side, attempt, shared, unique};
use callback_amqp::{AmqpReceiver, AmqpReceiverBuilder, AmqpReceiverError, AmqpSink};
use callback_core::{Acknowledgment, BoxError, Dsn, ErrorKind, Message, RpcRequest, RpcResponse, Signer, Sink, TaskId};
use callback_receive::{Callback, Receiver, ReceiverBuilder, SqliteInbox};
use lapin::{
    BasicProperties, Confirmation, ExchangeKind,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A handle that no receiver made.
const NOBODY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// What a test waits for.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it comes")
}

/// A place on a broker for one receiver, and a look at it from beside.
pub(crate) struct Post<'a> {
    broker: &'a Broker,
    pub(crate) side: Side,
    pub(crate) exchange: String,
    pub(crate) queue: String,
    dead: String,
    pub(crate) sink: AmqpSink,
}

impl<'a> Post<'a> {
    pub(crate) async fn new(broker: &'a Broker) -> Self {
        let side = broker.side("").await;
        let dead = side.queue().await;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared =
            side.channel.exchange_declare(dead.as_str().into(), ExchangeKind::Fanout, durable, FieldTable::default());
        declared.await.expect("an exchange");
        let (queue, exchange) = (dead.as_str().into(), dead.as_str().into());
        let bound =
            side.channel.queue_bind(queue, exchange, "".into(), QueueBindOptions::default(), FieldTable::default());
        bound.await.expect("bound");
        side.channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { broker, side, exchange: unique("exchange"), queue: unique("receiver"), dead, sink: broker.sink() }
    }

    pub(crate) fn builder(&self) -> AmqpReceiverBuilder {
        let builder = AmqpReceiver::builder(self.broker.cluster()).exchange(&*self.exchange);
        builder.queue(&*self.queue).dead_letter_exchange(&*self.dead)
    }

    pub(crate) async fn open(&self, builder: ReceiverBuilder) -> Receiver {
        builder.open(self.builder().connect().await.expect("connected")).await.expect("it opens")
    }

    pub(crate) async fn deliver(&self, dsn: &Dsn, message: &Message) {
        self.sink.deliver(dsn, message, &attempt(PATIENCE)).await.expect("delivered");
    }

    pub(crate) async fn send(&self, dsn: &Dsn, id: &str) {
        self.deliver(dsn, &message(id)).await;
    }

    async fn send_signed(&self, dsn: &Dsn, id: &str, key: &str) {
        let (message, signer): (_, Signer) = (message(id), key.parse().expect("a key"));
        let attempt = attempt(PATIENCE).sign(&signer, &message);
        self.sink.deliver(dsn, &message, &attempt).await.expect("delivered");
    }

    /// Publishes to the queue itself, as another client does.
    async fn publish(&self, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let queue = self.queue.as_str().into();
        let sent = self.side.channel.basic_publish("".into(), queue, options, body, properties).await;
        assert_eq!(sent.expect("sent").await.expect("confirmed"), Confirmation::Ack(None));
    }

    /// The ids of the dead letters of the queue, once there are so many.
    async fn dead(&self, count: usize) -> HashSet<String> {
        let (deadline, mut ids) = (Instant::now() + PATIENCE, HashSet::new());
        while ids.len() < count {
            assert!(Instant::now() < deadline, "{ids:?} are dead, {count} should be");
            ids.extend(self.side.ids(&self.dead).await.into_keys());
            sleep(Duration::from_millis(20)).await;
        }
        ids
    }

    /// What is left in the queue after the receiver was closed.
    pub(crate) async fn left(&self) -> HashMap<String, usize> {
        self.side.ids(&self.queue).await
    }
}

pub(crate) fn message(id: &str) -> Message {
    Message::builder("test.happened").id(id.parse().expect("an id")).payload("a body").build().expect("a message")
}

/// The id of the next message, which is accepted.
pub(crate) async fn accept(callback: &mut Callback) -> String {
    let delivery = soon(callback.next()).await.expect("open");
    delivery.accept().await.expect("accepted").id().to_string()
}

pub(crate) async fn close(receiver: &Receiver) {
    receiver.close(PATIENCE).await.expect("nothing is in hand");
}

/// To a handle, by a client that knows but the queue.
fn to(callback: &Callback, id: &str) -> BasicProperties {
    let url = callback.url();
    let handle = url.rsplit('.').next().expect("a handle");
    BasicProperties::default().with_correlation_id(handle.into()).with_message_id(id.into())
}

#[tokio::test]
async fn what_is_sent_to_a_handle_is_handed_over_and_acknowledged() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let (mut one, mut two) = (receiver.spawn(), receiver.spawn());
    assert!(one.url().starts_with(&format!("amqp:///?exchange={}&routing_key={}.", post.exchange, post.queue)));
    post.send(&one.dsn(), "first").await;
    let sent = Message::builder("order.completed")
        .id("second".parse().expect("an id"))
        .source("/orders")
        .subject("Bestellung für 😀")
        .header("x-request-id", "r-1")
        .payload(json!({ "orderId": 7 }))
        .build()
        .expect("a message");
    post.deliver(&two.dsn(), &sent).await;
    let got = soon(two.next()).await.expect("open").accept().await.expect("accepted");
    assert_eq!((got.id(), got.event_type(), got.source()), (sent.id(), sent.event_type(), sent.source()));
    assert_eq!((got.subject(), got.content_type(), got.body()), (sent.subject(), sent.content_type(), sent.body()));
    assert_eq!(got.headers().collect::<Vec<_>>(), [("x-request-id", "r-1")]);
    assert_eq!(accept(&mut one).await, "first");
    // What was accepted is known, whoever sends it again.
    post.send(&one.dsn(), "first").await;
    post.send(&one.dsn(), "third").await;
    assert_eq!(accept(&mut one).await, "third");
    close(&receiver).await;
    assert!(post.left().await.is_empty(), "all was acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_handed_over_in_the_order_in_which_they_came() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder().queue(300)).await;
    let mut callback = receiver.spawn();
    let ids: Vec<String> = (0..300).map(|number| format!("m{number}")).collect();
    for id in &ids {
        post.publish(to(&callback, id), b"x").await;
    }
    let mut came = Vec::new();
    while came.len() < ids.len() {
        came.push(accept(&mut callback).await);
    }
    assert_eq!(came, ids);
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test]
async fn a_verdict_holds_up_no_other_and_closing_waits_for_it() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    post.send(&callback.dsn(), "first").await;
    post.send(&callback.dsn(), "second").await;
    let first = soon(callback.next()).await.expect("open");
    assert!(first.sender_waits());
    assert_eq!(accept(&mut callback).await, "second");
    // The broker gets the answer to what is in hand, though the receiver closes.
    let (closed, accepted) = tokio::join!(receiver.close(PATIENCE), async {
        // A receiver that did not wait would have said goodbye by then.
        sleep(Duration::from_millis(500)).await;
        first.accept().await
    });
    closed.expect("nothing is in hand");
    accepted.expect("direct");
    assert!(post.left().await.is_empty(), "both were acknowledged");
    // Nobody listens any more: what comes now waits for whoever opens the queue next.
    post.send(&callback.dsn(), "third").await;
    assert_eq!(post.left().await.into_keys().collect::<Vec<_>>(), ["third"]);
}

#[tokio::test]
async fn each_verdict_has_its_end_in_the_broker() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder().body_limit(1_000)).await;
    let (mut callback, ended) = (receiver.spawn(), receiver.spawn());
    let mut signed = receiver.spawn().verifier(KEY.parse().expect("a key"));

    post.send(&callback.dsn(), "refused").await;
    soon(callback.next()).await.expect("open").refuse("not wanted").await.expect("told");
    post.send(&callback.dsn(), "later").await;
    let later = soon(callback.next()).await.expect("open");
    later.retry_later(Duration::from_millis(300)).await.expect("told");
    post.send(&callback.dsn(), "meanwhile").await;
    assert_eq!(accept(&mut callback).await, "meanwhile");
    assert_eq!(accept(&mut callback).await, "later");

    let gone = ended.dsn();
    drop(ended);
    post.send(&gone, "ended").await;

    post.send(&signed.dsn(), "unsigned").await;
    post.send_signed(&signed.dsn(), "forged", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").await;
    post.send_signed(&signed.dsn(), "genuine", KEY).await;
    assert_eq!(accept(&mut signed).await, "genuine");

    let large = Message::builder("a").id("large".parse().expect("an id")).payload(vec![0; 1_001]).build();
    post.deliver(&callback.dsn(), &large.expect("a message")).await;
    let dead = post.dead(5).await;
    assert_eq!(dead, ["refused", "ended", "unsigned", "forged", "large"].map(str::to_owned).into());
    close(&receiver).await;
    assert!(post.left().await.is_empty(), "each has its end");
}

#[tokio::test]
async fn a_body_of_16_mib_is_a_dead_letter_and_the_next_message_is_taken() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    post.publish(to(&callback, "large"), &vec![7; 16 << 20]).await;
    post.send(&callback.dsn(), "next").await;
    assert_eq!(accept(&mut callback).await, "next");
    assert_eq!(post.dead(1).await, ["large".to_owned()].into());
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test]
async fn clients_of_their_own_name_the_handle_in_the_correlation_id() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let (mut one, mut two) = (receiver.spawn(), receiver.spawn());
    post.publish(to(&two, "plain").with_type("order.completed".into()).with_app_id("shop".into()), b"hello").await;
    post.publish(to(&one, "bare"), b"").await;
    let plain = soon(two.next()).await.expect("open").accept().await.expect("accepted");
    assert_eq!((plain.id().as_str(), plain.event_type(), plain.source()), ("plain", "order.completed", "shop"));
    assert_eq!((plain.subject(), &plain.body()[..]), (None, &b"hello"[..]));
    assert_eq!(accept(&mut one).await, "bare");
    // Without an id each is new, and acknowledged all the same.
    let url = one.url();
    let handle = url.rsplit('.').next().expect("a handle");
    for _ in 0..2 {
        post.publish(BasicProperties::default().with_correlation_id(handle.into()), b"no id").await;
    }
    assert_ne!(accept(&mut one).await, accept(&mut one).await);
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test]
async fn what_can_never_be_taken_is_a_dead_letter_at_once() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    let with = |id: &str, name: &str, value: AMQPValue| {
        let mut headers = FieldTable::default();
        headers.insert(name.into(), value);
        to(&callback, id).with_headers(headers)
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    for properties in [
        with("version", "ce-specversion", text("0.3")),
        with("attributes", "ce-specversion", text("1.0")),
        with("id", "webhook-id", text("a.b")),
        with("no-text", "webhook-signature", AMQPValue::Boolean(true)),
        with("no-utf8", "ce-specversion", AMQPValue::LongString(vec![0xc0].into())),
        BasicProperties::default().with_message_id("no-handle".into()),
        BasicProperties::default().with_message_id("no-such".into()).with_correlation_id("12345".into()),
    ] {
        post.publish(properties, b"x").await;
    }
    post.send(&callback.dsn(), "next").await;
    assert_eq!(accept(&mut callback).await, "next");
    let dead = post.dead(7).await;
    let expected = ["version", "attributes", "id", "no-text", "no-utf8", "no-handle", "no-such"];
    assert_eq!(dead, expected.map(str::to_owned).into());
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

fn for_nobody(id: &str) -> BasicProperties {
    BasicProperties::default().with_correlation_id(NOBODY.into()).with_message_id(id.into())
}

#[tokio::test]
async fn what_is_for_nobody_waits_and_holds_up_no_other() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    post.publish(for_nobody("nobody"), b"x").await;
    // It is given back after a second, and comes again, while others are served.
    for number in 0..15 {
        post.send(&callback.dsn(), &format!("m{number}")).await;
        assert_eq!(accept(&mut callback).await, format!("m{number}"));
        sleep(Duration::from_millis(100)).await;
    }
    close(&receiver).await;
    assert_eq!(post.left().await.into_keys().collect::<Vec<_>>(), ["nobody"]);
    assert!(post.side.ids(&post.dead).await.is_empty());
}

#[tokio::test]
async fn what_is_for_nobody_for_too_long_is_a_dead_letter() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let amqp = post.builder().keep_unknown(Duration::from_secs(2)).connect().await.expect("connected");
    let receiver = Receiver::builder().open(amqp).await.expect("it opens");
    post.publish(for_nobody("nobody"), b"x").await;
    assert_eq!(post.dead(1).await, ["nobody".to_owned()].into());
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test]
async fn messages_for_nobody_take_half_of_the_places_at_most() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = Receiver::builder().open(post.builder().prefetch(4).connect().await.expect("connected")).await;
    let receiver = receiver.expect("it opens");
    let mut callback = receiver.spawn();
    for number in 0..10 {
        post.publish(for_nobody(&format!("nobody-{number}")), b"x").await;
    }
    post.send(&callback.dsn(), "next").await;
    assert_eq!(accept(&mut callback).await, "next");
    let dead = post.dead(8).await;
    close(&receiver).await;
    let left: HashSet<String> = post.left().await.into_keys().collect();
    assert_eq!((dead.len(), left.len()), (8, 2));
    assert!(dead.is_disjoint(&left));
}

#[tokio::test]
async fn what_comes_while_the_process_is_down_waits_in_the_queue() {
    let Some(broker) = shared() else { return };
    let (post, folder) = (Post::new(&broker).await, tempfile::tempdir().expect("a folder"));
    let open = async || {
        let inbox = SqliteInbox::open(folder.path().join("inbox.db")).await.expect("it opens");
        post.open(Receiver::builder().inbox(inbox).verifier(KEY.parse().expect("a key"))).await
    };
    let receiver = open().await;
    let order = receiver.expect("order-42").await.expect("a name");
    let (dsn, ended) = (order.dsn(), receiver.spawn().dsn());
    close(&receiver).await;
    drop((receiver, order));
    post.send_signed(&dsn, "early", KEY).await;
    post.send_signed(&ended, "ended", KEY).await;

    let receiver = open().await;
    let mut order = receiver.expect("order-42").await.expect("a name");
    assert!(order.is_resumed());
    assert_eq!(order.dsn(), dsn, "its Dsn is the same");
    assert_eq!(accept(&mut order).await, "early");
    assert_eq!(post.dead(1).await, ["ended".to_owned()].into(), "a spawned handle ended with its process");
    // It was stored: it is known, and nobody is asked again.
    post.send_signed(&dsn, "early", KEY).await;
    post.send_signed(&dsn, "next", KEY).await;
    assert_eq!(accept(&mut order).await, "next");
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test]
async fn a_queue_has_one_listener_and_the_next_one_when_that_closes() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let first = post.open(Receiver::builder()).await;
    let mut of_first = first.spawn();
    post.send(&of_first.dsn(), "first").await;
    assert_eq!(accept(&mut of_first).await, "first");
    let next = post.open(Receiver::builder()).await;
    let mut of_next = next.spawn();
    // Long enough for it to listen, if the broker let it.
    sleep(Duration::from_millis(500)).await;
    for number in 0..4 {
        post.send(&of_next.dsn(), &format!("next-{number}")).await;
    }
    post.send(&of_first.dsn(), "second").await;
    assert_eq!(accept(&mut of_first).await, "second");
    assert!(timeout(Duration::from_millis(500), of_next.next()).await.is_err(), "its messages wait");
    close(&first).await;
    let mut came = HashSet::new();
    while came.len() < 4 {
        came.insert(accept(&mut of_next).await);
    }
    assert_eq!(came, ["next-0", "next-1", "next-2", "next-3"].map(str::to_owned).into());
    close(&next).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test]
async fn senders_are_told_another_name_of_the_broker() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let public = "amqp://orders/tenant-7".parse().expect("a Dsn");
    let amqp = post.builder().public_dsn(public).prefetch(0).connect().await.expect("connected");
    let receiver = Receiver::builder().open(amqp).await.expect("it opens");
    let mut callback = receiver.spawn();
    let url = callback.url();
    assert!(url.starts_with(&format!("amqp://orders/tenant-7?exchange={}&", post.exchange)), "{url}");
    // One at a time.
    for id in ["first", "second"] {
        post.publish(to(&callback, id), b"x").await;
    }
    assert_eq!([accept(&mut callback).await, accept(&mut callback).await], ["first", "second"]);
    close(&receiver).await;
    fails(post.builder().public_dsn("amqp:///?queue=q".parse().expect("a Dsn")).connect().await, "no query");
}

#[tokio::test]
async fn a_call_has_its_result_by_way_of_the_broker() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let receiver = post.open(Receiver::builder()).await;
    // A service: it acknowledges the call, and sends the result through the broker later.
    let service = |request: RpcRequest| {
        let sink = post.sink.clone();
        async move {
            let params = request.params.as_ref().expect("params");
            let dsn: Dsn = params["$rpc.callback"].as_str().expect("a callback").parse()?;
            let id = request.id.clone().expect("an id");
            let task = TaskId::new();
            let response = RpcResponse::success(id.clone(), json!({ "orderId": params["orderId"] }));
            let message = Message::builder("callback.rpc.completed")
                .id(task.to_string().parse()?)
                .subject(task.to_string())
                .payload(serde_json::to_value(response)?)
                .build()?;
            let to = dsn.clone();
            tokio::spawn(async move { sink.deliver(&to, &message, &attempt(PATIENCE)).await.expect("delivered") });
            Ok::<_, BoxError>(Acknowledgment::new(task, Some(dsn)).to_rpc(id))
        }
    };
    let params = json!({ "orderId": 7 });
    let call = receiver.call::<serde_json::Value>(&service, "OrderService.processOrder", &params);
    assert_eq!(soon(call).await.expect("a result"), params);
    assert_eq!(receiver.open_handles(), 0);
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test]
async fn a_queue_without_a_name_ends_with_its_receiver() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    let connect = async || AmqpReceiver::builder(broker.cluster()).exchange(&*post.exchange).connect().await;
    let amqp = connect().await.expect("connected");
    let receiver = Receiver::builder().open(amqp).await.expect("it opens");
    let mut callback = receiver.spawn();
    post.send(&callback.dsn(), "first").await;
    assert_eq!(accept(&mut callback).await, "first");
    // Declared otherwise than it is, the broker would say so.
    let url = callback.url();
    let queue = url.rsplit('=').next().and_then(|key| key.split('.').next()).expect("a queue");
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(30 * 60 * 1_000));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    post.side.channel.queue_declare(queue.into(), durable, arguments).await.expect("it ends when nobody listens");
    close(&receiver).await;
    let error = post.sink.deliver(&callback.dsn(), &message("late"), &attempt(PATIENCE)).await.expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::Unroutable);
}

impl Post<'_> {
    /// Declares the queue before the receiver does: one that gives no message more often than so many times.
    async fn declare_limited(&self, times: i32) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(times - 1));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(self.dead.as_str().into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let declared = self.side.channel.queue_declare(self.queue.as_str().into(), durable, arguments);
        declared.await.expect("a quorum queue");
    }
}

#[tokio::test]
async fn a_queue_that_is_there_is_taken_as_it_is() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    post.declare_limited(3).await;
    let receiver = post.open(Receiver::builder()).await;
    let mut callback = receiver.spawn();
    post.send(&callback.dsn(), "first").await;
    for _ in 0..3 {
        let first = soon(callback.next()).await.expect("open");
        first.retry_later(Duration::from_millis(200)).await.expect("told");
    }
    assert_eq!(post.dead(1).await, ["first".to_owned()].into(), "the broker counts");
    close(&receiver).await;
    assert!(post.left().await.is_empty());
}

#[tokio::test]
async fn what_finds_no_time_or_no_room_is_not_given_back() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    post.declare_limited(1).await;
    let receiver = post.open(Receiver::builder().queue(2).answer_within(Duration::from_millis(200))).await;
    let mut callback = receiver.spawn();
    let mut sent = HashSet::new();
    for number in 0..10 {
        let id = format!("m{number}");
        post.send(&callback.dsn(), &id).await;
        sent.insert(id);
    }
    let slow = soon(callback.next()).await.expect("open");
    // Longer than its sender would have waited, and than the first waits for room.
    sleep(Duration::from_secs(1)).await;
    let mut taken = HashSet::from([slow.accept().await.expect("direct").id().to_string()]);
    while taken.len() < sent.len() {
        taken.insert(accept(&mut callback).await);
    }
    assert_eq!(taken, sent);
    close(&receiver).await;
    assert!(post.left().await.is_empty());
    assert!(post.side.ids(&post.dead).await.is_empty(), "each was given once");
}

#[track_caller]
fn fails(result: Result<AmqpReceiver, AmqpReceiverError>, word: &str) {
    let error = result.expect_err("it cannot be used");
    let text = callback_core::SinkError::refused(error).chain();
    assert!(text.contains(word), "{text}");
}

#[tokio::test]
async fn a_receiver_that_cannot_listen_is_not_made() {
    let Some(broker) = shared() else { return };
    let post = Post::new(&broker).await;
    fails(AmqpReceiver::connect(broker.cluster(), "").await, "queue is empty");
    let cluster = |url: &str| callback_amqp::AmqpCluster::new(url.parse().expect("a Dsn"));
    fails(AmqpReceiver::connect(cluster("amqp://broker.example/"), "q").await, "user and password");
    let wrong = broker.url.replace("guest:guest", "guest:wrong");
    fails(AmqpReceiver::connect(cluster(&wrong), "q").await, "ACCESS_REFUSED");
    // There is an exchange of this name, of another kind.
    let fanout = post.builder().exchange(&*post.dead).connect().await;
    fails(fanout, "no durable topic exchange");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    fails(AmqpReceiver::connect(cluster(&format!("amqp://a:b@127.0.0.1:{port}/")), "q").await, "cannot be used");
}
