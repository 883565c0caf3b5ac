//! What nobody may read: bodies, keys, and names of handles.

use crate::wire::{Wire, soon};
use callback_receive::{Incoming, MemoryInbox, Receiver};

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[tokio::test]
async fn debug_shows_no_body_no_key_and_no_name_of_a_handle() {
    let builder = Receiver::builder().inbox(MemoryInbox::new()).verifier(KEY.parse().expect("a key"));
    let mut printed = format!("{builder:?}");
    let (wire, receiver) = Wire::open(builder).await;
    let handle = receiver.spawn();
    let expect = receiver.expect("order-42").verifier(KEY.parse().expect("a key"));
    printed += &format!("{receiver:?} {handle:?} {expect:?} {:?}", wire.intake().await);
    let plain = Receiver::builder().inbox(MemoryInbox::new());
    let (wire, receiver) = Wire::open(plain).await;
    let mut named = receiver.expect("order-42").await.expect("a name");
    let incoming =
        Incoming::new(crate::wire::message("planted-body").build().expect("valid")).signed("1", "v1,planted");
    printed += &format!("{incoming:?} {receiver:?}");
    wire.offer(&named.url(), incoming).await;
    let delivery = soon(named.next()).await.expect("open");
    let shown = format!("{delivery:?}");
    assert!(shown.contains("bytes: 12"), "{shown}");
    printed += &shown;
    for url in [handle.url(), named.url()] {
        let name = url.rsplit('/').next().expect("a path").to_owned();
        assert!(!printed.contains(&name), "{printed}");
    }
    for secret in ["MfKQ9r8G", "v1,planted"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}
