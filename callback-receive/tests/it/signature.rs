//! Whose messages are taken, and what is said of the others, and where.

use crate::wire::{Wire, message, soon};
use callback_core::{Message, Signer, Verifier};
use callback_receive::{Incoming, MemoryInbox, Receiver, Verdict};
use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tracing_subscriber::fmt::MakeWriter;

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn verifier(keys: &str) -> Verifier {
    keys.parse().expect("valid keys")
}

fn signed_at(key: &str, id: &str, time: SystemTime) -> Incoming {
    let message: Message = message(id).build().expect("valid");
    let signer: Signer = key.parse().expect("a valid key");
    let signature = signer.sign(message.id(), time, message.body());
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    Incoming::new(message).signed(seconds.to_string(), signature)
}

fn signed(key: &str, id: &str) -> Incoming {
    signed_at(key, id, SystemTime::now())
}

/// Whether a message is handed over to a handle; all others are unverified.
async fn check(keys: &str, incoming: Incoming, is_taken: bool) {
    let (wire, receiver) = Wire::open(Receiver::builder().verifier(verifier(keys))).await;
    let mut callback = receiver.spawn();
    let (sender, url) = (wire.clone(), callback.url());
    let told = tokio::spawn(async move { sender.offer(&url, incoming).await });
    if is_taken {
        soon(callback.next()).await.expect("open").accept().await.expect("direct");
        assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    } else {
        assert_eq!(soon(told).await.expect("no panic"), Verdict::Unverified);
    }
}

#[tokio::test]
async fn only_what_is_signed_by_a_key_is_taken() {
    check(KEY, signed(KEY, "a"), true).await;
    check(KEY, signed(OTHER, "a"), false).await;
    check(KEY, Incoming::new(message("a").build().expect("valid")), false).await;
    check(&format!("{OTHER} {KEY}"), signed(KEY, "a"), true).await;
}

#[tokio::test]
async fn age_is_judged_on_live_transports_alone() {
    let old = SystemTime::now() - Duration::from_secs(86_400);
    check(KEY, signed_at(KEY, "a", old), false).await;
    check(KEY, signed_at(KEY, "a", old).stored(), true).await;
    check(KEY, signed_at(OTHER, "a", old).stored(), false).await;
}

#[tokio::test]
async fn a_replay_is_a_duplicate() {
    let (wire, receiver) = Wire::open(Receiver::builder().verifier(verifier(KEY))).await;
    let mut callback = receiver.spawn();
    let (sender, url, incoming) = (wire.clone(), callback.url(), signed(KEY, "a"));
    let replay = incoming.clone();
    let told = tokio::spawn(async move { sender.offer(&url, incoming).await });
    soon(callback.next()).await.expect("open").accept().await.expect("direct");
    told.await.expect("no panic");
    assert_eq!(wire.offer(&callback.url(), replay).await, Verdict::Duplicate);
    let forged = signed(OTHER, "a");
    assert_eq!(wire.offer(&callback.url(), forged).await, Verdict::Unverified, "ids are told to nobody without a key");
}

#[tokio::test]
async fn a_handle_may_have_keys_of_its_own() {
    let (wire, receiver) = Wire::open(Receiver::builder().verifier(verifier(KEY)).inbox(MemoryInbox::new())).await;
    let spawned = receiver.spawn().verifier(verifier(OTHER));
    assert_eq!(wire.offer(&spawned.url(), signed(KEY, "a")).await, Verdict::Unverified);
    let named = receiver.expect("partner").verifier(verifier(OTHER)).await.expect("a name");
    assert_eq!(wire.offer(&named.url(), signed(KEY, "a")).await, Verdict::Unverified);
    assert_eq!(wire.offer(&named.url(), signed(OTHER, "a")).await, Verdict::Accepted);
}

#[tokio::test]
async fn what_was_signed_may_be_other_than_the_body() {
    let envelope = "{\"data\":1}";
    let incoming = signed(KEY, "a");
    check(KEY, incoming.clone().signed_content(envelope), false).await;
    let (id, now) = ("a".parse().expect("an id"), SystemTime::now());
    let signer: Signer = KEY.parse().expect("a key");
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs().to_string();
    let incoming = incoming.signed(seconds, signer.sign(&id, now, envelope.as_bytes()));
    check(KEY, incoming.clone(), false).await;
    check(KEY, incoming.signed_content(envelope), true).await;
}

#[tokio::test]
async fn an_ended_handle_is_judged_by_the_key_of_its_receiver() {
    let (wire, receiver) = Wire::open(Receiver::builder().verifier(verifier(KEY))).await;
    let callback = receiver.spawn().verifier(verifier(OTHER));
    let url = callback.url();
    drop(callback);
    assert_eq!(wire.offer(&url, signed(OTHER, "a")).await, Verdict::Unverified);
    assert_eq!(wire.offer(&url, signed(KEY, "a")).await, Verdict::Ended);
}

#[tokio::test]
async fn what_an_ended_handle_took_under_a_key_of_its_own_is_known() {
    let builder = Receiver::builder().verifier(verifier(KEY)).inbox(MemoryInbox::new());
    let (wire, receiver) = Wire::open(builder).await;
    let mut spawned = receiver.spawn().verifier(verifier(OTHER));
    let url = spawned.url();
    let told = tokio::spawn({
        let (wire, url) = (wire.clone(), url.clone());
        async move { wire.offer(&url, signed(OTHER, "a")).await }
    });
    spawned.next().await.expect("open").accept().await.expect("direct");
    assert_eq!(told.await.expect("no panic"), Verdict::Accepted);
    drop(spawned);
    assert_eq!(wire.offer(&url, signed(OTHER, "a")).await, Verdict::Duplicate);
    assert_eq!(wire.offer(&url, signed(OTHER, "b")).await, Verdict::Unverified);

    let named = receiver.expect("partner").verifier(verifier(OTHER)).await.expect("a name");
    let url = named.url();
    assert_eq!(wire.offer(&url, signed(OTHER, "a")).await, Verdict::Accepted);
    named.finish().await.expect("the inbox works");
    assert_eq!(wire.offer(&url, signed(OTHER, "a")).await, Verdict::Duplicate);
    assert_eq!(wire.offer(&url, signed(OTHER, "b")).await, Verdict::Unverified);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn skew_is_told_apart_from_forgery_in_the_log_and_not_in_the_answer() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    // While there is one subscriber alone, `tracing` asks the thread that comes first, which may have none, for all of them.
    let _other = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _guard = tracing::subscriber::set_default(subscriber);
    let (wire, receiver) = Wire::open(Receiver::builder().verifier(verifier(KEY))).await;
    let callback = receiver.spawn();
    let logged = async |incoming: Incoming| {
        log.0.lock().expect("not poisoned").clear();
        assert_eq!(wire.offer(&callback.url(), incoming).await, Verdict::Unverified);
        String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("text")
    };
    let old = SystemTime::now() - Duration::from_secs(1_000);
    let text = logged(signed_at(KEY, "a", old)).await;
    assert!(text.contains("a clock is wrong") && text.contains("seconds=100"), "{text}");
    let text = logged(signed_at(OTHER, "a", old)).await;
    assert!(text.contains("forged") && !text.contains("clock is wrong"), "{text}");
    let text = logged(signed(OTHER, "a")).await;
    assert!(text.contains("forged"), "{text}");
}
