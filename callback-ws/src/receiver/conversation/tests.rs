use super::{super::seats::Seats, *};
use async_trait::async_trait;
use callback_core::Dsn;
use callback_receive::{Callback, Listener, Receiver, ReceiverBuilder};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::{
    io::{DuplexStream, duplex},
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::sleep,
};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How large the pipe between the two is, in bytes.
const PIPE: usize = 16 << 10;

/// A listener that only gives its intake away.
#[derive(Debug)]
struct Plug(Mutex<Option<oneshot::Sender<Intake>>>);

#[async_trait]
impl Listener for Plug {
    fn dsn(&self, handle: &HandleId) -> Dsn {
        format!("ws://127.0.0.1/{}", handle.expose()).parse().expect("a Dsn")
    }

    async fn listen(&self, intake: Intake) {
        let sender = self.0.lock().expect("not poisoned").take().expect("called once");
        let _ = sender.send(intake);
        std::future::pending::<()>().await;
    }

    async fn close(&self) {}
}

/// The peer of a conversation, and the code that waits.
struct Scene {
    peer: WebSocketStream<DuplexStream>,
    callback: Callback,
    seats: Arc<Seats>,
    memory: Arc<Semaphore>,
    closing: CancellationToken,
    conversation: JoinHandle<()>,
    _receiver: Receiver,
}

async fn scene(subprotocol: Subprotocol) -> Scene {
    scene_of(subprotocol, Receiver::builder(), 1 << 20).await
}

async fn scene_of(subprotocol: Subprotocol, builder: ReceiverBuilder, memory: usize) -> Scene {
    let (sender, intake) = oneshot::channel();
    let receiver = builder.open(Plug(Mutex::new(Some(sender)))).await.expect("it opens");
    let callback = receiver.spawn();
    let intake = intake.await.expect("it listens");
    let handle = callback.url().rsplit('/').next().expect("a path").parse().expect("a handle");
    let closing = CancellationToken::new();
    let seats = Arc::new(Seats::new(1, closing.clone()));
    let memory = Arc::new(Semaphore::new(memory));
    let (near, far) = duplex(PIPE);
    let config = WebSocketConfig::default().max_message_size(Some(100_000)).max_frame_size(Some(100_000));
    let stream = Metered::new(near, Arc::clone(&memory));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let seat = seats.enter().await;
    let message_time = Duration::from_secs(30);
    let talk = Talk { subprotocol, handle, intake, seat, closing: closing.clone(), message_time };
    let conversation = tokio::spawn(converse(socket, talk));
    let peer = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
    Scene { peer, callback, seats, memory, closing, conversation, _receiver: receiver }
}

fn message(id: &str) -> Frame {
    Frame::text(json!({ "id": id, "type": "a.b", "body": id }).to_string())
}

fn event(id: &str) -> Frame {
    let event = json!({ "specversion": "1.0", "id": id, "webhookid": id, "source": "/", "type": "a.b", "data": id });
    Frame::text(event.to_string())
}

impl Scene {
    async fn send(&mut self, frame: Frame) {
        self.peer.send(frame).await.expect("it is open");
    }

    async fn delivery(&mut self) -> callback_receive::Delivery {
        timeout(PATIENCE, self.callback.next()).await.expect("it comes").expect("open")
    }

    /// The next frame that is no ping.
    async fn next(&mut self) -> Frame {
        loop {
            match timeout(PATIENCE, self.peer.next()).await.expect("it comes") {
                Some(Ok(Frame::Ping(_))) => {}
                Some(Ok(frame)) => return frame,
                other => panic!("the end: {other:?}"),
            }
        }
    }

    async fn answer(&mut self) -> Value {
        let frame = self.next().await;
        serde_json::from_str(frame.to_text().expect("a text")).expect("JSON")
    }

    /// The code of the close, without a pong or an answer before it.
    async fn closed(&mut self) -> u16 {
        let frame = self.next().await;
        let Frame::Close(Some(close)) = frame else { panic!("{frame:?}") };
        close.code.into()
    }
}

#[tokio::test]
async fn messages_are_answered_out_of_order() {
    let mut scene = scene(Subprotocol::CallbackV1).await;
    for id in ["a", "b", "c"] {
        scene.send(message(id)).await;
    }
    let (a, b, c) = (scene.delivery().await, scene.delivery().await, scene.delivery().await);
    b.accept().await.expect("direct");
    assert_eq!(scene.answer().await, json!({ "ack": "b" }));
    c.refuse("no").await.expect("direct");
    assert_eq!(scene.answer().await, json!({ "nack": "c", "kind": "refused", "reason": "no" }));
    a.retry_later(Duration::from_secs(7)).await.expect("direct");
    let later = json!({ "nack": "a", "kind": "later", "reason": "not now", "retryAfter": 7 });
    assert_eq!(scene.answer().await, later);
}

#[tokio::test]
async fn nothing_is_read_while_256_messages_have_no_answer() {
    let mut scene = scene_of(Subprotocol::CallbackV1, Receiver::builder().queue(1_000), 1 << 20).await;
    for number in 0..300 {
        // The pipe has room for all.
        scene.send(message(&number.to_string())).await;
    }
    let mut deliveries = Vec::new();
    for _ in 0..WINDOW {
        deliveries.push(scene.delivery().await);
    }
    tokio::task::yield_now().await;
    assert!(scene.callback.next().now_or_never().is_none(), "no more are offered");
    deliveries.remove(100).accept().await.expect("direct");
    assert_eq!(scene.answer().await, json!({ "ack": "100" }));
    assert_eq!(scene.delivery().await.message().id().as_str(), "256");
}

#[tokio::test]
async fn a_pong_waits_for_the_verdicts_on_all_that_came_before_its_ping() {
    let mut scene = scene(Subprotocol::CloudEvents).await;
    scene.send(Frame::Ping(b"0"[..].into())).await;
    assert_eq!(scene.next().await, Frame::Pong(b"0"[..].into()), "nothing is open");
    scene.send(event("a")).await;
    scene.send(event("b")).await;
    scene.send(Frame::Ping(b"1"[..].into())).await;
    let (a, b) = (scene.delivery().await, scene.delivery().await);
    b.accept().await.expect("direct");
    tokio::task::yield_now().await;
    assert!(scene.peer.next().now_or_never().is_none(), "one has no verdict");
    a.accept().await.expect("direct");
    assert_eq!(scene.next().await, Frame::Pong(b"1"[..].into()));
}

#[tokio::test]
async fn what_is_not_taken_ends_the_connection_and_its_ping_has_no_pong() {
    for is_pinged_before in [true, false] {
        let mut scene = scene(Subprotocol::CloudEvents).await;
        scene.send(event("a")).await;
        if is_pinged_before {
            scene.send(Frame::Ping(b"1"[..].into())).await;
        }
        let delivery = scene.delivery().await;
        tokio::task::yield_now().await;
        delivery.refuse("no").await.expect("direct");
        if !is_pinged_before {
            scene.send(Frame::Ping(b"1"[..].into())).await;
        }
        loop {
            match scene.next().await {
                Frame::Pong(payload) => assert_eq!(&payload[..], b"not taken", "it answers no ping"),
                Frame::Close(close) => break assert_eq!(close.expect("a code").code, CloseCode::Policy),
                frame => panic!("{frame:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_closing_receiver_answers_what_is_under_way() {
    let mut scene = scene(Subprotocol::CallbackV1).await;
    scene.send(message("a")).await;
    let delivery = scene.delivery().await;
    scene.closing.cancel();
    tokio::task::yield_now().await;
    scene.send(message("b")).await;
    delivery.accept().await.expect("direct");
    assert_eq!(scene.answer().await, json!({ "ack": "a" }));
    assert_eq!(scene.closed().await, 1001);
    assert!(scene.callback.next().now_or_never().is_none(), "nothing is offered any more");
}

#[tokio::test]
async fn a_closing_receiver_lets_the_pong_go_for_what_it_has_taken() {
    let mut scene = scene(Subprotocol::CloudEvents).await;
    scene.send(event("a")).await;
    scene.send(Frame::Ping(b"1"[..].into())).await;
    let delivery = scene.delivery().await;
    tokio::task::yield_now().await;
    scene.closing.cancel();
    tokio::task::yield_now().await;
    delivery.accept().await.expect("direct");
    assert_eq!(scene.next().await, Frame::Pong(b"1"[..].into()));
}

#[tokio::test]
async fn before_a_close_that_judges_a_message_the_others_are_answered() {
    let mut scene = scene_of(Subprotocol::CallbackV1, Receiver::builder().body_limit(100), 1 << 20).await;
    scene.send(message("a")).await;
    let delivery = scene.delivery().await;
    let large = json!({ "id": "b", "type": "a.b", "body": "x".repeat(101) });
    scene.send(Frame::text(large.to_string())).await;
    tokio::task::yield_now().await;
    delivery.accept().await.expect("direct");
    assert_eq!(scene.answer().await, json!({ "ack": "a" }));
    assert_eq!(scene.closed().await, 1009);
}

#[tokio::test]
async fn what_is_no_message_ends_the_connection_with_its_code() {
    for (frame, code) in [
        (Frame::text("hello"), 1008),
        (Frame::text(r#"{"ack":"a"}"#), 1008),
        (Frame::binary(&b"\0"[..]), 1008),
        (Frame::text("x".repeat(100_001)), 1009),
    ] {
        for subprotocol in [Subprotocol::CallbackV1, Subprotocol::CloudEvents] {
            let mut scene = scene(subprotocol).await;
            let (peer, sent) = (&mut scene.peer, frame.clone());
            // The pipe is smaller than the largest frame: it reads on after the close.
            let sending = async { peer.send(sent).await };
            let _ = timeout(Duration::from_secs(5), sending).await;
            loop {
                match scene.next().await {
                    Frame::Pong(payload) => assert_eq!(&payload[..], b"not taken"),
                    Frame::Close(close) => break assert_eq!(u16::from(close.expect("a code").code), code),
                    frame => panic!("{frame:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_refused_and_the_connection_stays() {
    let mut scene = scene(Subprotocol::CallbackV1).await;
    scene.send(Frame::text(r#"{"id":"a","type":"a.b"}"#)).await;
    let reason = "there must be one of body and body_base64";
    assert_eq!(scene.answer().await, json!({ "nack": "a", "kind": "refused", "reason": reason }));
    scene.send(message("b")).await;
    scene.delivery().await.accept().await.expect("direct");
    assert_eq!(scene.answer().await, json!({ "ack": "b" }));
}

#[tokio::test]
async fn messages_have_a_budget_of_memory() {
    let mut scene = scene_of(Subprotocol::CallbackV1, Receiver::builder(), 1_000).await;
    scene.send(message("a")).await;
    let delivery = scene.delivery().await;
    assert!(scene.memory.available_permits() < 1_000, "it counts until it has its verdict");
    let large = json!({ "id": "b", "type": "a.b", "body": "x".repeat(2_000) });
    scene.send(Frame::text(large.to_string())).await;
    tokio::task::yield_now().await;
    delivery.accept().await.expect("direct");
    assert_eq!(scene.answer().await, json!({ "ack": "a" }));
    assert_eq!(scene.closed().await, 1013);
    drop(scene.peer);
    timeout(PATIENCE, scene.conversation).await.expect("it ends").expect("no panic");
    assert_eq!(scene.memory.available_permits(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_ping_is_cut_off() {
    let Scene { peer, conversation, .. } = scene(Subprotocol::CallbackV1).await;
    let start = Instant::now();
    conversation.await.expect("no panic");
    assert_eq!(start.elapsed().as_secs(), 40);
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_stays() {
    let mut scene = scene(Subprotocol::CallbackV1).await;
    // Reading answers.
    assert!(timeout(Duration::from_secs(3_600), scene.peer.next()).await.is_ok_and(|frame| frame.is_some()));
    let listening = async { while let Some(Ok(_)) = scene.peer.next().await {} };
    assert!(timeout(Duration::from_secs(3_600), listening).await.is_err(), "it is open");
    assert!(!scene.conversation.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_byte_by_byte_has_a_time() {
    let scene = scene(Subprotocol::CallbackV1).await;
    let Scene { peer, conversation, callback, .. } = scene;
    let mut stream = peer.into_inner();
    let start = Instant::now();
    // The head of a text of 100 bytes, its mask, and then a byte a second.
    stream.write_all(&[0x81, 0x80 | 100, 0, 0, 0, 0]).await.expect("room");
    let dripping = async {
        while stream.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = dripping => {}
        ended = conversation => ended.expect("no panic"),
    }
    assert!((30..35).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    drop(callback);
}

#[tokio::test(start_paused = true)]
async fn parts_between_pongs_are_one_message_that_has_a_time() {
    let scene = scene(Subprotocol::CallbackV1).await;
    let Scene { peer, conversation, .. } = scene;
    let mut stream = peer.into_inner();
    let start = Instant::now();
    // A first part without the final bit, then a further part and a pong each second.
    stream.write_all(&[0x01, 0x81, 0, 0, 0, 0, b'x']).await.expect("room");
    let dripping = async {
        while stream.write_all(&[0x00, 0x81, 0, 0, 0, 0, b'x', 0x8a, 0x80, 0, 0, 0, 0]).await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = dripping => {}
        ended = conversation => ended.expect("no panic"),
    }
    assert!((30..35).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_cut_off() {
    let Scene { peer, conversation, mut callback, .. } = scene(Subprotocol::CallbackV1).await;
    let (mut sink, stream) = peer.split();
    let start = Instant::now();
    // Each has an answer that is longer than itself, and nobody reads them.
    let sending = async { while sink.send(Frame::text(r#"{"id":"a"}"#)).await.is_ok() {} };
    tokio::select! {
        () = sending => {}
        ended = conversation => ended.expect("no panic"),
    }
    assert!((30..=40).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(callback.next().now_or_never().is_none());
    drop(stream);
}

#[tokio::test]
async fn who_pings_and_does_not_read_is_cut_off() {
    let Scene { mut peer, conversation, .. } = scene(Subprotocol::CallbackV1).await;
    let pinging = async { while peer.send(Frame::Ping(vec![0; 125].into())).await.is_ok() {} };
    pinging.await;
    conversation.await.expect("no panic");
}

#[tokio::test]
async fn who_has_to_go_is_told() {
    let mut scene = scene(Subprotocol::CallbackV1).await;
    // It says goodbye before another has its seat.
    let seats = Arc::clone(&scene.seats);
    let entering = tokio::spawn(async move { seats.enter().await });
    assert_eq!(scene.closed().await, 1001);
    entering.await.expect("no panic");
    scene.conversation.await.expect("no panic");
}

#[tokio::test]
async fn who_has_work_does_not_have_to_go() {
    let mut scene = scene(Subprotocol::CallbackV1).await;
    scene.send(message("a")).await;
    let delivery = scene.delivery().await;
    let mut entering = std::pin::pin!(scene.seats.enter());
    assert!(futures_util::future::poll_immediate(entering.as_mut()).await.is_none());
    tokio::task::yield_now().await;
    assert!(scene.peer.next().now_or_never().is_none());
    delivery.accept().await.expect("direct");
    let frame = scene.peer.next().await.expect("open").expect("a frame");
    assert_eq!(frame, Frame::text(r#"{"ack":"a"}"#));
    entering.await;
}
