//! One frame that a server cannot bear, among many that it can.

use crate::peer::{Peer, ack, builder, close, deliver_at_last, member};
use callback_core::ErrorKind;
use futures_util::{SinkExt, StreamExt, future::join_all};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Delivers 256 messages at once, one of which makes the server close with this code; under `callback.v1` or by pongs.
async fn check(picks: Option<&'static str>, code: u16, expected: ErrorKind) {
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    let peer = Peer::start(picks, move |mut socket| {
        let counted = Arc::clone(&counted);
        async move {
            while let Some(Ok(frame)) = socket.next().await {
                let body = match picks {
                    Some("callback.v1") if frame.is_text() => member(&frame, "body"),
                    None if frame.is_text() => frame.to_text().expect("a text").to_owned(),
                    _ => continue,
                };
                if body == "poison" {
                    let _ = socket.send(close(code)).await;
                    while let Some(Ok(_)) = socket.next().await {}
                    return;
                }
                counted.fetch_add(1, Ordering::Relaxed);
                if picks.is_some() {
                    let _ = socket.send(ack(&frame)).await;
                }
            }
        }
    })
    .await;
    let sink = builder().allow_unsigned().build().expect("a sink");
    let deliveries = (0..256).map(|number| {
        let (sink, dsn) = (sink.clone(), peer.dsn.clone());
        tokio::spawn(async move {
            let is_poison = number == 100;
            let ended = deliver_at_last(&sink, &dsn, if is_poison { "poison" } else { "food" }).await;
            (is_poison, ended.map_err(|error| error.kind()))
        })
    });
    for ended in join_all(deliveries).await {
        let (is_poison, ended) = ended.expect("no panic");
        assert_eq!(ended.map(drop), if is_poison { Err(expected) } else { Ok(()) }, "{picks:?} {code}");
    }
    assert!(accepted.load(Ordering::Relaxed) >= 255);
}

#[tokio::test]
async fn one_poison_frame_among_256_costs_nobody_else_a_message() {
    for (code, expected) in [
        (1003, ErrorKind::Refused),
        (1007, ErrorKind::Refused),
        (1008, ErrorKind::Refused),
        (1009, ErrorKind::TooLarge),
    ] {
        check(Some("callback.v1"), code, expected).await;
    }
    check(None, 1009, ErrorKind::TooLarge).await;
}
