//! Who signs, and that it verifies.

use crate::support::{Home, dsn, event, start};
use callback_core::{Delivered, Keys, MemorySink, Signer, Verifier, VerifyError};
use serde_json::json;

const SERVICE: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ACME: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

on_each_outbox!(
    a_message_is_signed_by_the_service,
    a_caller_gets_signatures_by_his_own_key,
    without_a_signer_nothing_is_signed,
    each_attempt_is_signed_anew,
);

#[track_caller]
fn check(delivered: &Delivered, keys: &str, expected: Result<(), VerifyError>) {
    let verifier: Verifier = keys.parse().expect("valid keys");
    let (message, attempt) = (&delivered.message, &delivered.attempt);
    let signature = attempt.signature().expect("a signature");
    assert_eq!(verifier.verify(message.id(), attempt.time(), message.body(), signature, attempt.time()), expected);
}

fn signer(keys: &str) -> Signer {
    keys.parse().expect("valid keys")
}

async fn a_message_is_signed_by_the_service(home: Home) {
    let sink = MemorySink::new();
    let dispatcher = start(home.builder().await.sink(sink.clone()).signer(signer(SERVICE))).await;
    dispatcher.publish(event("memory://a", json!(1))).await.expect("published");
    let delivered = sink.next("a").await;
    check(&delivered, SERVICE, Ok(()));
    check(&delivered, ACME, Err(VerifyError::Mismatch));
}

async fn a_caller_gets_signatures_by_his_own_key(home: Home) {
    let sink = MemorySink::new();
    let keys = Keys::new().service(signer(SERVICE)).caller("acme", signer(ACME));
    let dispatcher = start(home.builder().await.sink(sink.clone()).signer(keys)).await;
    for (owner, keys) in [("acme", ACME), ("somebody else", SERVICE)] {
        dispatcher.publish(event("memory://a", json!(1)).owner(owner)).await.expect("published");
        check(&sink.next("a").await, keys, Ok(()));
    }
}

async fn without_a_signer_nothing_is_signed(home: Home) {
    let sink = MemorySink::new();
    let keys = Keys::new().destination(dsn("memory://signed").destination(), signer(SERVICE));
    let dispatcher = start(home.builder().await.sink(sink.clone()).signer(keys)).await;
    dispatcher.publish(event("memory://unsigned", json!(1))).await.expect("published");
    assert_eq!(sink.next("unsigned").await.attempt.signature(), None);
    dispatcher.publish(event("memory://signed", json!(1))).await.expect("published");
    check(&sink.next("signed").await, SERVICE, Ok(()));
}

async fn each_attempt_is_signed_anew(home: Home) {
    let sink = MemorySink::new();
    sink.fail("a", callback_core::SinkError::unavailable("down"));
    let schedule = callback_core::Schedule::new([std::time::Duration::from_millis(1_100)]).expect("valid").jitter(0);
    let dispatcher = start(home.builder().await.sink(sink.clone()).signer(signer(SERVICE)).schedule(schedule)).await;
    let begun = std::time::SystemTime::now();
    dispatcher.publish(event("memory://a", json!(1))).await.expect("published");
    let delivered = sink.next("a").await;
    // The second attempt carries its own time, in another second than the first: what it signed is checked by that.
    assert!(delivered.attempt.time() > begun + std::time::Duration::from_secs(1));
    check(&delivered, SERVICE, Ok(()));
}
