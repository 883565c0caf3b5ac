//! The network that fails on demand.

use callback_core::conformance::{Fault, Proxy};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server that sends back each byte, and a proxy in front of it; the channel gets what the server was sent.
async fn echo() -> (Proxy, mpsc::UnboundedReceiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let proxy = Proxy::start(listener.local_addr().expect("bound").to_string()).await.expect("a free port");
    let (sender, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    let _ = sender.send(byte);
                    if stream.write_u8(byte).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (proxy, received)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.expect("the proxy listens")
}

/// Whether a byte comes back; none does where the connection ends.
async fn comes_back(stream: &mut TcpStream, byte: u8) -> bool {
    let talk = async {
        stream.write_u8(byte).await?;
        stream.read_u8().await
    };
    timeout(PATIENCE, talk).await.expect("an answer or an end").is_ok_and(|back| back == byte)
}

#[tokio::test]
async fn what_is_said_is_passed_on() {
    let (proxy, _received) = echo().await;
    let mut stream = connect(&proxy).await;
    assert!(comes_back(&mut stream, 1).await);
    assert!(comes_back(&mut stream, 2).await);
}

#[tokio::test]
async fn a_disconnect_cuts_what_is_there_and_nothing_later() {
    let (proxy, _received) = echo().await;
    let mut stream = connect(&proxy).await;
    assert!(comes_back(&mut stream, 1).await);
    proxy.inject(Fault::Disconnect).expect("a fault of the network");
    assert!(!comes_back(&mut stream, 2).await);
    assert!(comes_back(&mut connect(&proxy).await, 3).await);
}

#[tokio::test]
async fn an_outage_lasts_until_it_is_healed() {
    let (proxy, _received) = echo().await;
    let mut stream = connect(&proxy).await;
    assert!(comes_back(&mut stream, 1).await);
    proxy.inject(Fault::Outage).expect("a fault of the network");
    assert!(!comes_back(&mut stream, 2).await);
    assert!(!comes_back(&mut connect(&proxy).await, 3).await);
    proxy.heal();
    assert!(comes_back(&mut connect(&proxy).await, 4).await);
}

#[tokio::test]
async fn a_stall_withholds_what_the_server_says() {
    let (proxy, mut received) = echo().await;
    let mut stream = connect(&proxy).await;
    proxy.inject(Fault::Stall).expect("a fault of the network");
    stream.write_u8(1).await.expect("sent");
    assert_eq!(timeout(PATIENCE, received.recv()).await.expect("passed on"), Some(1));
    timeout(Duration::from_millis(50), stream.read_u8()).await.expect_err("nothing is said");
    proxy.heal();
    assert_eq!(timeout(PATIENCE, stream.read_u8()).await.expect("said").expect("connected"), 1);
}

#[tokio::test]
async fn what_a_server_does_is_none_of_the_networks() {
    let (proxy, _received) = echo().await;
    proxy.inject(Fault::Refuse).expect_err("a server refuses");
    proxy.inject(Fault::Throttle(None)).expect_err("a server throttles");
}

#[tokio::test]
async fn a_proxy_that_is_dropped_ends_its_connections() {
    let (proxy, _received) = echo().await;
    let mut stream = connect(&proxy).await;
    assert!(comes_back(&mut stream, 1).await);
    drop(proxy);
    assert!(!comes_back(&mut stream, 2).await);
}

#[tokio::test]
async fn every_connection_is_counted() {
    let (proxy, _received) = echo().await;
    assert_eq!(proxy.connections().await.expect("a port"), 0);
    let _stream = connect(&proxy).await;
    // It counts as soon as it is made, and a question does not.
    assert_eq!(proxy.connections().await.expect("a port"), 1);
    proxy.inject(Fault::Outage).expect("a fault of the network");
    assert!(!comes_back(&mut connect(&proxy).await, 1).await);
    assert_eq!(proxy.connections().await.expect("a port"), 2);
}
