//! Servers that send what no server should.

use crate::peer::{Peer, acknowledge, builder, deliver, sink};
use callback_core::ErrorKind;
use futures_util::{SinkExt, StreamExt};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{io::AsyncWriteExt, sync::mpsc};
use tokio_tungstenite::tungstenite::Message as Frame;

#[tokio::test]
async fn garbage_ends_a_connection_and_the_next_one_is_as_good_as_the_first() {
    for garbage in [&[0xff; 100][..], b"\x81\x02\xff\xfe", b"\x81\x85aaaaaaaaa", b"\x09\x00", b"HTTP/1.1 400\r\n\r\n"] {
        let connections = Arc::new(AtomicUsize::new(0));
        let peer = Peer::start(Some("callback.v1"), move |mut socket| {
            let is_first = connections.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if is_first {
                    let _ = socket.next().await;
                    let _ = socket.get_mut().write_all(&garbage.repeat(40)).await;
                    while let Some(Ok(_)) = socket.next().await {}
                } else {
                    acknowledge(socket).await;
                }
            }
        })
        .await;
        let sink = sink();
        let error = deliver(&sink, &peer.dsn, "hello").await.expect_err("garbage");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{garbage:?}: {}", error.chain());
        deliver(&sink, &peer.dsn, "hello").await.expect("delivered");
    }
}

#[tokio::test]
async fn a_frame_of_100_mib_is_not_read() {
    let (sender, mut written) = mpsc::unbounded_channel();
    for picks in [Some("callback.v1"), Some("cloudevents.json"), None] {
        let sender = sender.clone();
        let peer = Peer::start(picks, move |mut socket| {
            let sender = sender.clone();
            async move {
                let _ = socket.next().await;
                let stream = socket.get_mut();
                let mut sent = stream.write_all(b"\x81\x7f\0\0\0\0\x06\x40\0\0").await.map_or(0, |()| 10);
                while sent < 100 << 20 {
                    match stream.write_all(&[b'x'; 64 << 10]).await {
                        Ok(()) => sent += 64 << 10,
                        Err(_) => break,
                    }
                }
                let _ = sender.send(sent);
            }
        })
        .await;
        let sink = builder().allow_unsigned().build().expect("a sink");
        let ended = deliver(&sink, &peer.dsn, "hello").await;
        if picks.is_some() {
            assert_eq!(ended.expect_err("no answer").kind(), ErrorKind::Unavailable);
        }
        // What the sockets' buffers hold, and no more.
        let sent: usize = written.recv().await.expect("it ends");
        assert!(sent < 32 << 20, "{sent} bytes were taken");
    }
}

#[tokio::test]
async fn a_server_that_talks_without_end_is_not_listened_to_alone() {
    let peer = Peer::start(None, |socket| async move {
        let (mut writing, mut reading) = socket.split();
        let reading = tokio::spawn(async move { while let Some(Ok(_)) = reading.next().await {} });
        while writing.send(Frame::text("x".repeat(1_000))).await.is_ok() {}
        reading.abort();
    })
    .await;
    let sink = builder().allow_unsigned().build().expect("a sink");
    for _ in 0..20 {
        deliver(&sink, &peer.dsn, "hello").await.expect("delivered");
    }
}
