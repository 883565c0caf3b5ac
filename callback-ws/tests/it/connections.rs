//! How many connections there are, and when they end.

use crate::peer::{Peer, ack, builder, deliver, message, only_read, sink, within};
use callback_core::{ErrorKind, Phase, Sink};
use futures_util::{SinkExt, StreamExt, future::join_all};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

#[tokio::test]
async fn concurrent_deliveries_to_one_dsn_share_a_connection() {
    let peer = Peer::acknowledging().await;
    let sink = sink();
    let deliveries = (0..500).map(|_| deliver(&sink, &peer.dsn, "hello"));
    assert!(join_all(deliveries).await.iter().all(Result::is_ok));
    assert_eq!(peer.connections(), 1);
    let other = format!("{}?other", peer.dsn.expose()).parse().expect("a Dsn");
    deliver(&sink, &other, "hello").await.expect("delivered");
    assert_eq!(peer.connections(), 2);
}

#[tokio::test]
async fn what_was_not_acknowledged_when_a_connection_died_fails_and_the_next_delivery_connects_again() {
    let peer = Peer::start(Some("callback.v1"), |mut socket| async move {
        // The first of a connection is acknowledged, the second ends it.
        if let Some(Ok(frame)) = socket.next().await {
            let _ = socket.send(ack(&frame)).await;
        }
        let _ = socket.next().await;
    })
    .await;
    let sink = sink();
    for round in 1..=3 {
        deliver(&sink, &peer.dsn, "hello").await.expect("delivered");
        let error = deliver(&sink, &peer.dsn, "hello").await.expect_err("lost");
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Answer)), "{}", error.chain());
        assert_eq!(peer.connections(), round);
    }
}

#[tokio::test]
async fn beyond_the_limit_the_one_without_work_makes_room() {
    let peer = Peer::acknowledging().await;
    let sink = builder().connections(2).build().expect("a sink");
    let to = |name: &str| format!("{}?{name}", peer.dsn.expose()).parse().expect("a Dsn");
    for (name, connections) in [("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)] {
        deliver(&sink, &to(name), "hello").await.expect("delivered");
        assert_eq!(peer.connections(), connections, "{name}");
    }
}

#[tokio::test]
async fn a_connection_that_makes_room_is_cut_before_the_next_is_opened() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, highest) = (Arc::clone(&open), Arc::clone(&most));
    let peer = Peer::start(Some("callback.v1"), move |mut socket| {
        let (counted, highest) = (Arc::clone(&counted), Arc::clone(&highest));
        async move {
            highest.fetch_max(counted.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            while let Some(Ok(frame)) = socket.next().await {
                if !frame.is_text() {
                    break;
                }
                let _ = socket.send(ack(&frame)).await;
            }
            // It does not say goodbye.
            while socket.get_mut().read_u8().await.is_ok() {}
            counted.fetch_sub(1, Ordering::Relaxed);
        }
    })
    .await;
    let sink = builder().connections(1).build().expect("a sink");
    for name in ["a", "b", "a"] {
        let dsn = format!("{}?{name}", peer.dsn.expose()).parse().expect("a Dsn");
        deliver(&sink, &dsn, "hello").await.expect("delivered");
    }
    assert_eq!((most.load(Ordering::Relaxed), peer.connections()), (1, 3));
}

#[tokio::test]
async fn one_host_has_64_connections_at_most() {
    let peer = Peer::acknowledging().await;
    let sink = sink();
    let to = |number: usize| format!("{}?{number}", peer.dsn.expose()).parse().expect("a Dsn");
    for number in 0..65 {
        deliver(&sink, &to(number), "hello").await.expect("delivered");
    }
    deliver(&sink, &to(64), "hello").await.expect("delivered");
    assert_eq!(peer.connections(), 65);
    // The first one made room for the last.
    deliver(&sink, &to(0), "hello").await.expect("delivered");
    assert_eq!(peer.connections(), 66);
}

#[tokio::test]
async fn where_all_connections_have_work_a_delivery_is_throttled() {
    let silent = Peer::start(Some("callback.v1"), only_read).await;
    let sink = builder().connections(1).build().expect("a sink");
    let (attempt, hanging) = (within(20), message("hello"));
    let mut hanging = sink.deliver(&silent.dsn, &hanging, &attempt);
    assert!(futures_util::poll!(&mut hanging).is_pending());
    let other = format!("{}?other", silent.dsn.expose()).parse().expect("a Dsn");
    let error = deliver(&sink, &other, "hello").await.expect_err("no room");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Throttled, Some(Phase::Connect)));
}

#[tokio::test]
async fn a_sink_that_closes_says_goodbye() {
    let (sender, mut closes) = mpsc::unbounded_channel();
    let peer = Peer::start(Some("callback.v1"), move |mut socket| {
        let sender = sender.clone();
        async move {
            while let Some(Ok(frame)) = socket.next().await {
                if frame.is_text() {
                    let _ = socket.send(ack(&frame)).await;
                } else {
                    let _ = sender.send(frame);
                }
            }
        }
    })
    .await;
    let closing = sink();
    deliver(&closing, &peer.dsn, "hello").await.expect("delivered");
    closing.close().await.expect("closed");
    let tokio_tungstenite::tungstenite::Message::Close(Some(close)) = closes.recv().await.expect("a frame") else {
        panic!("it says goodbye")
    };
    assert_eq!(close.code, CloseCode::Normal);

    // One that is dropped has no more to say to anybody either.
    let dropped = sink();
    deliver(&dropped, &peer.dsn, "hello").await.expect("delivered");
    drop(dropped);
    assert!(closes.recv().await.expect("a frame").is_close());
}
