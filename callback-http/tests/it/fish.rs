//! What seed 4's library broke (`fish` 0.0.3), each as a test of what happens here.

use crate::{
    client::{answer, open, place, posting, raw, request, send, serve},
    receiver::PATIENCE,
};
use callback_http::{HttpReceiver, HttpReceiverError};
use callback_receive::Receiver;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

#[tokio::test]
async fn a_handle_takes_more_than_one_callback() {
    let (receiver, _) = open(Receiver::builder()).await;
    let mut orders = receiver.spawn();
    for id in ["a", "b", "c"] {
        let told = posting(&orders.url(), id, id);
        let delivery = timeout(PATIENCE, orders.next()).await.expect("it comes").expect("open");
        assert_eq!(delivery.accept().await.expect("direct").body(), id);
        assert_eq!(told.await.expect("no panic").status, 200);
    }
}

#[tokio::test]
async fn an_unknown_or_ended_handle_is_no_200() {
    let (receiver, _) = open(Receiver::builder()).await;
    let (other, _) = open(Receiver::builder()).await;
    let handle = receiver.spawn();
    let url = handle.url();
    let foreign = other.spawn().url();
    let strange =
        format!("{}/{}", url.rsplit_once('/').expect("a path").0, foreign.rsplit_once('/').expect("a path").1);
    assert_eq!(send("POST", &strange, &[], "x").await.status, 404);
    drop(handle);
    let ended = send("POST", &url, &[], "x").await;
    assert_eq!((ended.status, ended.header("content-type")), (410, Some("application/problem+json")));
}

#[tokio::test]
async fn a_missing_or_malformed_handle_is_answered() {
    let (receiver, address) = open(Receiver::builder()).await;
    let url = receiver.spawn().url();
    for path in ["/", "/in", "/in/", "/in/x", "/in/x/y", "/other/path?_async_webhook_id=1", "/in/%00"] {
        assert_eq!(send("POST", &format!("http://{address}{path}"), &[], "x").await.status, 404, "{path}");
    }
    for bad in [format!("{url}x"), format!("{url}/"), url[..url.len() - 1].to_owned(), url.replace("/in/", "/")] {
        assert_eq!(send("POST", &bad, &[], "x").await.status, 404, "{bad}");
    }
    assert_eq!(raw(address, b"POST\r\n\r\n").await.expect("it answers").status, 400);
}

#[tokio::test]
async fn another_method_is_not_a_callback() {
    let (receiver, _) = open(Receiver::builder()).await;
    let handle = receiver.spawn();
    for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH"] {
        let told = send(method, &handle.url(), &[], "").await;
        assert_eq!((told.status, told.header("allow")), (405, Some("post, options")), "{method}");
    }
}

#[tokio::test]
async fn nothing_is_answered_before_the_body_is_here_and_the_code_has_spoken() {
    let (receiver, address) = open(Receiver::builder()).await;
    let mut handle = receiver.spawn();
    let bytes = request("POST", &handle.url(), &[], &"x".repeat(1 << 20));
    let (first, rest) = bytes.split_at(64 << 10);
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(first).await.expect("it reads");
    assert!(futures_util::future::poll_immediate(handle.next()).await.is_none());
    stream.write_all(rest).await.expect("it reads");
    let delivery = timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
    assert_eq!(delivery.message().body().len(), 1 << 20);
    assert!(stream.try_read(&mut [0; 1]).is_err(), "nothing was said yet");
    delivery.accept().await.expect("direct");
    assert_eq!(answer(&mut stream).await.expect("it answers").status, 200);
    let bytes = request("POST", &handle.url(), &[], &"x".repeat((1 << 20) + 1));
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // It may be cut short: the answer is there before the body is.
    let _ = stream.write_all(&bytes[..1024]).await;
    assert_eq!(answer(&mut stream).await.expect("it answers").status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_and_an_arrival_at_the_same_moment_harm_nobody() {
    let (receiver, _) = open(Receiver::builder()).await;
    for round in 0..300 {
        let handle = receiver.spawn();
        let url = handle.url();
        let told = posting(&url, "a", "x");
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(handle);
        assert_eq!(told.await.expect("no panic").status, 410, "nobody had it");
    }
    let mut handle = receiver.spawn();
    let told = posting(&handle.url(), "a", "x");
    handle.next().await.expect("open").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic").status, 200);
    assert_eq!(receiver.open_handles(), 1);
}

#[tokio::test]
async fn a_handle_may_outlive_its_receiver() {
    let (receiver, _) = open(Receiver::builder()).await;
    let mut handle = receiver.spawn();
    receiver.close(PATIENCE).await.expect("nothing is in hand");
    assert!(handle.next().await.is_none());
    drop(handle);
}

#[tokio::test]
async fn a_port_in_use_is_an_error() {
    let (_receiver, address) = open(Receiver::builder()).await;
    let error = HttpReceiver::bind(&address.to_string(), "http://127.0.0.1").await.expect_err("it is taken");
    assert!(matches!(error, HttpReceiverError::Bind(_)), "{error:?}");
}

#[tokio::test]
async fn port_0_and_a_proxy_give_urls_that_can_be_used() {
    let (receiver, address) = open(Receiver::builder()).await;
    assert_eq!(place(&receiver.spawn().url()).0, address);

    let proxied = HttpReceiver::builder().path("/").bind("127.0.0.1:0", "https://broker.example/callbacks/").await;
    let (receiver, address) = serve(proxied.expect("a free port"), Receiver::builder()).await;
    let mut handle = receiver.spawn();
    let url = handle.url();
    let name = url.strip_prefix("https://broker.example/callbacks/").expect("the base URL").to_owned();
    let told = posting(&format!("http://{address}/{name}"), "a", "x");
    handle.next().await.expect("open").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic").status, 200);
}

#[tokio::test]
async fn a_restart_loses_nothing_that_was_expected_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inbox.db");
    let inbox = callback_receive::SqliteInbox::open(&path).await.expect("it opens");
    let (receiver, address) = open(Receiver::builder().inbox(inbox)).await;
    let handle = receiver.expect("order-42").await.expect("a name");
    let url = handle.url();
    assert_eq!(posting(&url, "a", "early").await.expect("no panic").status, 200);
    receiver.close(PATIENCE).await.expect("nothing is in hand");
    drop((handle, receiver));

    let inbox = callback_receive::SqliteInbox::open(&path).await.expect("it opens");
    let base = format!("http://{address}/in");
    let http = HttpReceiver::bind(&address.to_string(), &base).await.expect("the port is free again");
    let (receiver, _) = serve(http, Receiver::builder().inbox(inbox)).await;
    let mut handle = receiver.expect("order-42").await.expect("a name");
    assert!(handle.is_resumed());
    assert_eq!(handle.url(), url);
    assert_eq!(posting(&url, "b", "late").await.expect("no panic").status, 200);
    for body in ["early", "late"] {
        let delivery = timeout(PATIENCE, handle.next()).await.expect("it comes").expect("open");
        assert_eq!(delivery.accept().await.expect("stored").body(), body);
    }
}
