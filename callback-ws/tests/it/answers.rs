//! What a server answers to a frame, and what that means.

use crate::peer::{Peer, ack, builder, close, deliver, member, message, only_read, sink, within};
use callback_core::{ErrorKind, Evidence, Phase, Sink};
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio_tungstenite::tungstenite::Message as Frame;

#[tokio::test]
async fn an_acknowledgment_is_a_receipt() {
    let peer = Peer::acknowledging().await;
    let receipt = deliver(&sink(), &peer.dsn, "hello").await.expect("delivered");
    assert_eq!(receipt.evidence(), &Evidence::Acknowledged);
}

#[tokio::test]
async fn a_pong_is_a_receipt_where_the_server_picks_something_else() {
    for picks in [Some("cloudevents.json"), None] {
        let peer = Peer::start(picks, only_read).await;
        let sink = builder().allow_unsigned().build().expect("a sink");
        let receipt = deliver(&sink, &peer.dsn, "hello").await.expect("delivered");
        assert_eq!(receipt.evidence(), &Evidence::Pong);
    }
}

#[tokio::test]
async fn without_a_subprotocol_a_frame_is_the_body_even_an_empty_one() {
    let (sender, mut frames) = tokio::sync::mpsc::unbounded_channel();
    let peer = Peer::start(None, move |mut socket| {
        let sender = sender.clone();
        async move {
            while let Some(Ok(frame)) = socket.next().await {
                let _ = sender.send(frame);
            }
        }
    })
    .await;
    let sink = builder().allow_unsigned().build().expect("a sink");
    for body in ["hello", ""] {
        deliver(&sink, &peer.dsn, body).await.expect("delivered");
        assert_eq!(frames.recv().await.expect("a frame"), Frame::text(body));
        assert!(frames.recv().await.expect("a frame").is_ping());
    }
}

#[tokio::test]
async fn a_server_without_a_subprotocol_is_forbidden_unless_unsigned_frames_are_allowed() {
    let peer = Peer::start(None, |mut socket| async move {
        if let Some(Ok(frame)) = socket.next().await {
            assert!(!frame.is_text() && !frame.is_binary(), "it was sent a message");
        }
    })
    .await;
    let error = deliver(&sink(), &peer.dsn, "hello").await.expect_err("forbidden");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Forbidden, Some(Phase::Policy)), "{}", error.chain());
}

#[tokio::test]
async fn a_server_that_says_no_is_believed() {
    let peer = Peer::start(Some("callback.v1"), |mut socket| async move {
        while let Some(Ok(frame)) = socket.next().await {
            if frame.is_text() {
                let (id, rest) = (member(&frame, "id"), member(&frame, "body"));
                let _ = socket.send(Frame::text(format!(r#"{{"nack":"{id}",{rest}}}"#))).await;
            }
        }
    })
    .await;
    let sink = sink();
    for (answer, kind, wait) in [
        (r#""kind":"later""#, ErrorKind::Throttled, None),
        (r#""kind":"later","retryAfter":7"#, ErrorKind::Throttled, Some(7)),
        (r#""kind":"refused","reason":"planted""#, ErrorKind::Refused, None),
        (r#""kind":"gone""#, ErrorKind::Gone, None),
    ] {
        let error = deliver(&sink, &peer.dsn, answer).await.expect_err("not delivered");
        assert_eq!((error.kind(), error.retry_after()), (kind, wait.map(Duration::from_secs)), "{}", error.chain());
        assert!(!format!("{error:?} {}", error.chain()).contains("planted"));
    }
    assert_eq!(peer.connections(), 1, "a nack costs no connection");
}

#[tokio::test]
async fn a_close_code_judges_the_one_message_that_is_unacknowledged() {
    let peer = Peer::start(Some("callback.v1"), |mut socket| async move {
        if let Some(Ok(frame)) = socket.next().await {
            let code = member(&frame, "body").parse().expect("a code");
            let _ = socket.send(close(code)).await;
            while let Some(Ok(_)) = socket.next().await {}
        }
    })
    .await;
    for (code, kind) in [
        (1000, ErrorKind::Unavailable),
        (1001, ErrorKind::Unavailable),
        (1002, ErrorKind::Unavailable),
        (1003, ErrorKind::Refused),
        (1007, ErrorKind::Refused),
        (1008, ErrorKind::Refused),
        (1009, ErrorKind::TooLarge),
        (1010, ErrorKind::Unavailable),
        (1011, ErrorKind::Unavailable),
        (1012, ErrorKind::Unavailable),
        (1013, ErrorKind::Throttled),
        (3000, ErrorKind::Unavailable),
        (4999, ErrorKind::Unavailable),
    ] {
        let error = deliver(&sink(), &peer.dsn, &code.to_string()).await.expect_err("not delivered");
        assert_eq!(error.kind(), kind, "{code}: {}", error.chain());
    }
}

#[tokio::test]
async fn a_frame_that_is_not_acknowledged_ends_with_its_deadline() {
    let peer = Peer::start(Some("callback.v1"), only_read).await;
    let sink = sink();
    let error = sink.deliver(&peer.dsn, &message("hello"), &within(1)).await.expect_err("no answer");
    assert_eq!((error.kind(), error.phase()), (ErrorKind::TimedOut, Some(Phase::Answer)));
    sink.close().await.expect("closed");
}

#[tokio::test]
async fn acknowledgments_in_any_order_find_their_message() {
    let peer = Peer::start(Some("callback.v1"), |mut socket| async move {
        let mut frames = Vec::new();
        while let Some(Ok(frame)) = socket.next().await {
            frames.push(frame);
            if frames.len() == 100 {
                for frame in frames.drain(..).rev() {
                    let refused = member(&frame, "body") == "no";
                    let nack = format!(r#"{{"nack":"{}","kind":"refused"}}"#, member(&frame, "id"));
                    let _ = socket.feed(if refused { Frame::text(nack) } else { ack(&frame) }).await;
                }
                let _ = socket.flush().await;
            }
        }
    })
    .await;
    let sink = sink();
    let deliveries = (0..100).map(|number| {
        let (sink, dsn) = (sink.clone(), peer.dsn.clone());
        async move {
            let refused = number % 7 == 3;
            let ended = deliver(&sink, &dsn, if refused { "no" } else { "yes" }).await;
            assert_eq!(
                ended.map(drop).map_err(|error| error.kind()),
                if refused { Err(ErrorKind::Refused) } else { Ok(()) }
            );
        }
    });
    futures_util::future::join_all(deliveries).await;
    assert_eq!(peer.connections(), 1);
}
