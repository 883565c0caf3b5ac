//! What is left behind by a broker that never answers. In a process of its own, since it counts threads.

#![cfg(target_os = "linux")]

use callback_amqp::{AmqpCluster, AmqpSink};
use callback_core::{Attempt, ErrorKind, Message, Phase, Sink};
use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};
use tokio::{io::AsyncReadExt, net::TcpListener, time};

fn threads_of_lapin() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("tasks").filter_map(Result::ok);
    let names = tasks.map(|task| fs::read_to_string(task.path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("lapin")).count()
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_neither_delivery_nor_thread() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("amqp://a:b@{}/", listener.local_addr().expect("an address"));
    let broker = AmqpCluster::new(url.parse().expect("a Dsn")).queue("q");
    let sink = AmqpSink::builder().default_cluster(broker).build().expect("a sink");
    let dsn = "amqp:///?queue=q".parse().expect("a Dsn");
    let message = Message::builder("a").build().expect("a message");
    let deliver = |limit| {
        let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + Duration::from_secs(limit));
        let (sink, dsn, message) = (&sink, &dsn, &message);
        async move { sink.deliver(dsn, message, &attempt).await.expect_err("nobody answers") }
    };
    let error = deliver(1).await;
    assert_eq!((error.kind(), error.phase()), (ErrorKind::TimedOut, Some(Phase::Connect)));
    // The connection that was begun is what the next one waits for: until it is given up.
    let error = deliver(60).await;
    assert_eq!((error.kind(), error.phase()), (ErrorKind::Unavailable, Some(Phase::Connect)), "{}", error.chain());
    let (mut stream, _) = listener.accept().await.expect("it was dialled");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.expect("it was closed");
    assert_eq!(heard, b"AMQP\0\0\x09\x01");
    let deadline = Instant::now() + Duration::from_secs(30);
    while threads_of_lapin() > 0 {
        assert!(Instant::now() < deadline, "a thread is left");
        time::sleep(Duration::from_millis(50)).await;
    }
}
