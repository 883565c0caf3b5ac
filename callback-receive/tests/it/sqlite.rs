//! The inbox in a file: restarts, transactions, its lock.

use crate::wire::{Wire, message, soon};
use async_trait::async_trait;
use callback_core::{Dsn, Signer, Verifier};
use callback_receive::{
    HandleId, Incoming, Intake, Listener, ReceiveError, Receiver, ReceiverBuilder, SqliteInbox, Verdict,
};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("inbox.db")
    }

    async fn builder(&self) -> ReceiverBuilder {
        Receiver::builder().inbox(SqliteInbox::open(self.path()).await.expect("it opens"))
    }

    async fn open(&self) -> (Wire, Receiver) {
        Wire::open(self.builder().await).await
    }
}

async fn close(receiver: Receiver) {
    receiver.close(Duration::from_secs(10)).await.expect("nothing is in hand");
}

#[tokio::test]
async fn a_name_survives_a_restart_with_what_came_for_it() {
    let disk = Disk::new();
    let (wire, receiver) = disk.open().await;
    let callback = receiver.expect("order-42").await.expect("a name");
    let url = callback.url();
    for id in ["a", "b", "c"] {
        assert_eq!(wire.send(&url, id).await, Verdict::Accepted);
    }
    drop(callback);
    close(receiver).await;

    let (wire, receiver) = disk.open().await;
    // Before anybody expects it.
    assert_eq!(wire.send(&url, "d").await, Verdict::Accepted);
    assert_eq!(wire.send(&url, "a").await, Verdict::Duplicate);
    let mut all = receiver.resume_all().await.expect("there is an inbox");
    let [callback] = &mut all[..] else { panic!("{all:?}") };
    assert_eq!((callback.name(), callback.url()), (Some("order-42"), url.clone()));
    for id in ["a", "b", "c", "d"] {
        let message = soon(callback.next()).await.expect("open").accept().await.expect("stored");
        assert_eq!(message.id().as_str(), id);
    }
    drop(all);
    close(receiver).await;

    let (wire, receiver) = disk.open().await;
    let mut callback = receiver.expect("order-42").await.expect("a name");
    wire.send(&url, "e").await;
    let message = soon(callback.next()).await.expect("open").accept().await.expect("stored");
    assert_eq!(message.id().as_str(), "e", "what was accepted does not come again");
}

#[tokio::test]
async fn handles_of_an_earlier_life_have_ended() {
    let disk = Disk::new();
    let (_, receiver) = disk.open().await;
    let spawned = receiver.spawn();
    let url = spawned.url();
    drop(spawned);
    close(receiver).await;
    let (wire, _receiver) = disk.open().await;
    assert_eq!(wire.send(&url, "a").await, Verdict::Ended, "the key of the inbox made it");
}

#[tokio::test]
async fn an_expiry_survives_a_restart() {
    let disk = Disk::new();
    let (_, receiver) = disk.open().await;
    let callback = receiver.expect("order-42").expires_in(Duration::from_millis(500)).await.expect("a name");
    let url = callback.url();
    drop(callback);
    close(receiver).await;
    let (wire, receiver) = disk.open().await;
    let callback = receiver.expect("order-42").expires_in(Duration::from_secs(3600)).await;
    if let Ok(mut callback) = callback {
        assert!(soon(callback.next()).await.is_none(), "it counts from the first time");
    }
    while wire.send(&url, "a").await != Verdict::Ended {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_key_of_its_own_is_asked_for_after_a_restart() {
    let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key");
    let verifier: Verifier = signer.verifier();
    let disk = Disk::new();
    let (_, receiver) = disk.open().await;
    let callback = receiver.expect("partner").verifier(verifier.clone()).await.expect("a name");
    let url = callback.url();
    drop(callback);
    close(receiver).await;

    let (wire, receiver) = disk.open().await;
    let (message, now) = (message("a").build().expect("valid"), SystemTime::now());
    let signature = signer.sign(message.id(), now, message.body());
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let signed = Incoming::new(message.clone()).signed(seconds.to_string(), signature);
    assert_eq!(wire.offer(&url, signed.clone()).await, Verdict::RetryLater(None), "nothing is stored unverified");
    let callback = receiver.resume_all().await.expect("there is an inbox").remove(0).verifier(verifier);
    assert_eq!(wire.offer(&url, Incoming::new(message)).await, Verdict::Unverified);
    assert_eq!(wire.offer(&url, signed).await, Verdict::Accepted);
    drop(callback);
}

#[tokio::test]
async fn a_key_that_is_given_to_a_known_name_is_asked_for_after_a_restart() {
    let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key");
    let disk = Disk::new();
    let (_, receiver) = disk.open().await;
    drop(receiver.expect("partner").await.expect("a name"));
    let callback = receiver.expect("partner").verifier(signer.verifier()).await.expect("nobody holds it");
    let url = callback.url();
    drop(callback);
    close(receiver).await;
    let (wire, _receiver) = disk.open().await;
    assert_eq!(wire.send(&url, "a").await, Verdict::RetryLater(None), "nothing is stored unverified");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_a_handle_is_stored_in_the_order_in_which_it_was_said() {
    let verifier: Verifier = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key");
    let disk = Disk::new();
    let (_, receiver) = disk.open().await;
    for number in 0..200 {
        let callback = receiver.expect(format!("order-{number}")).await.expect("a name");
        drop(callback.verifier(verifier.clone()).expires_in(Duration::from_secs(3600)));
    }
    close(receiver).await;
    let pool = pool(&disk.path()).await;
    let without = "SELECT count(*) FROM callback_expectation WHERE expires IS NULL OR own_key = 0";
    let without: i64 = sqlx::query_scalar(without).fetch_one(&pool).await.expect("counted");
    assert_eq!(without, 0);
}

#[tokio::test]
async fn one_receiver_has_an_inbox() {
    let disk = Disk::new();
    let (_wire, _receiver) = disk.open().await;
    let error = disk.builder().await.open(Wire::new()).await.expect_err("it is taken");
    assert!(matches!(&error, ReceiveError::Inbox(error) if error.is_locked()), "{error:?}");
}

#[tokio::test]
async fn positions_are_stored_with_their_messages() {
    let disk = Disk::new();
    let (wire, receiver) = disk.open().await;
    let callback = receiver.expect("order-42").await.expect("a name");
    let record =
        |id: &str, offset| Incoming::new(message(id).build().expect("valid")).stored().position("orders/0", offset);
    assert_eq!(wire.offer(&callback.url(), record("a", 7)).await, Verdict::Accepted);
    assert_eq!(wire.offer(&callback.url(), record("a", 5)).await, Verdict::Duplicate);
    assert!(wire.intake().await.positions().is_empty(), "as of the start");
    drop(callback);
    close(receiver).await;
    let (wire, _receiver) = disk.open().await;
    assert_eq!(wire.intake().await.positions(), [("orders/0".to_owned(), 7)]);
}

/// A wire that two logs come by.
#[derive(Debug)]
struct Logs(Wire);

#[async_trait]
impl Listener for Logs {
    fn dsn(&self, handle: &HandleId) -> Dsn {
        self.0.dsn(handle)
    }

    fn begin(&self, stored: &[(String, i64)]) -> Vec<(String, i64)> {
        let is_new = |log: &&str| stored.iter().all(|(known, _)| known != log);
        ["orders/0", "orders/1"].into_iter().filter(is_new).map(|log| (log.to_owned(), 40)).collect()
    }

    async fn listen(&self, intake: Intake) {
        self.0.listen(intake).await;
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

async fn positions(wire: &Wire) -> Vec<(String, i64)> {
    let mut positions = wire.intake().await.positions();
    positions.sort();
    positions
}

#[tokio::test]
async fn where_a_log_begins_is_stored_before_the_receiver_opens() {
    let disk = Disk::new();
    let wire = Wire::new();
    let receiver = disk.builder().await.open(Logs(wire.clone())).await.expect("it opens");
    let begin = [("orders/0".to_owned(), 40), ("orders/1".to_owned(), 40)];
    assert_eq!(positions(&wire).await, begin);
    // Nothing is stored any more, as if it were killed.
    drop(receiver);
    let (wire, _receiver) = disk.open().await;
    assert_eq!(positions(&wire).await, begin);
}

#[tokio::test]
async fn what_is_passed_without_a_message_is_stored() {
    let disk = Disk::new();
    let wire = Wire::new();
    let receiver = disk.builder().await.open(Logs(wire.clone())).await.expect("it opens");
    let passed = vec![("orders/0".to_owned(), 47), ("orders/1".to_owned(), 39)];
    wire.intake().await.pass(passed.clone()).await.expect("stored");
    close(receiver).await;
    assert!(matches!(wire.intake().await.pass(passed).await, Err(ReceiveError::Closed)));
    let wire = Wire::new();
    let _receiver = disk.builder().await.open(Logs(wire.clone())).await.expect("it opens");
    assert_eq!(positions(&wire).await, [("orders/0".to_owned(), 47), ("orders/1".to_owned(), 40)]);
}

#[tokio::test]
async fn without_an_inbox_no_log_begins_and_none_is_passed() {
    let wire = Wire::new();
    let _receiver = Receiver::builder().open(Logs(wire.clone())).await.expect("it opens");
    let intake = wire.intake().await;
    assert!(intake.positions().is_empty());
    assert!(matches!(intake.pass(vec![("orders/0".to_owned(), 1)]).await, Err(ReceiveError::NoInbox)));
}

async fn pool(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let pool = SqlitePool::connect_with(options.busy_timeout(Duration::from_secs(10))).await.expect("it opens");
    sqlx::query("CREATE TABLE IF NOT EXISTS paid (orders INTEGER)").execute(&pool).await.expect("a table");
    pool
}

async fn pay(transaction: &mut sqlx::SqliteConnection) {
    sqlx::query("INSERT INTO paid VALUES (1)").execute(transaction).await.expect("inserted");
}

async fn paid(pool: &SqlitePool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM paid").fetch_one(pool).await.expect("counted")
}

#[tokio::test]
async fn what_is_accepted_in_a_transaction_shares_its_fate() {
    let disk = Disk::new();
    let (wire, receiver) = disk.open().await;
    let pool = pool(&disk.path()).await;
    let mut callback = receiver.expect("payments").await.expect("a name");
    wire.send(&callback.url(), "a").await;

    let delivery = soon(callback.next()).await.expect("open");
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
    pay(&mut transaction).await;
    delivery.accept_in(&mut transaction).await.expect("accepted");
    transaction.rollback().await.expect("rolled back");

    let delivery = soon(callback.next()).await.expect("it comes again");
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
    pay(&mut transaction).await;
    assert_eq!(delivery.accept_in(&mut transaction).await.expect("accepted").id().as_str(), "a");
    transaction.commit().await.expect("committed");
    assert_eq!(paid(&pool).await, 1);

    wire.send(&callback.url(), "b").await;
    let message = soon(callback.next()).await.expect("open").accept().await.expect("stored");
    assert_eq!(message.id().as_str(), "b", "what was committed does not come again");
    close(receiver).await;
}

#[tokio::test]
async fn what_was_accepted_in_a_transaction_is_not_accepted_again() {
    let disk = Disk::new();
    let (wire, receiver) = disk.open().await;
    let pool = pool(&disk.path()).await;
    let mut callback = receiver.expect("payments").await.expect("a name");
    wire.send(&callback.url(), "a").await;
    let delivery = soon(callback.next()).await.expect("open");
    // As another process would that had the message in hand before a crash.
    sqlx::query("UPDATE callback_inbox SET state = 1").execute(&pool).await.expect("updated");
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.expect("begun");
    pay(&mut transaction).await;
    let accepted = delivery.accept_in(&mut transaction).await;
    assert!(matches!(accepted, Err(ReceiveError::AlreadyAccepted)), "{accepted:?}");
    drop(transaction);
    assert_eq!(paid(&pool).await, 0);
    close(receiver).await;
}

#[tokio::test]
async fn a_transaction_elsewhere_is_an_error_and_the_message_comes_again() {
    let disk = Disk::new();
    let (wire, receiver) = disk.open().await;
    let elsewhere = pool(&disk.0.path().join("other.db")).await;
    let mut callback = receiver.expect("payments").await.expect("a name");
    wire.send(&callback.url(), "a").await;
    let mut transaction = elsewhere.begin().await.expect("begun");
    let refused = soon(callback.next()).await.expect("open").accept_in(&mut transaction).await;
    assert!(matches!(refused, Err(ReceiveError::NotTransactional)), "{refused:?}");
    drop(transaction);
    soon(callback.next()).await.expect("it comes again").accept().await.expect("stored");

    let mut spawned = receiver.spawn();
    let told = wire.sending(&spawned.url(), "a");
    let mut transaction = elsewhere.begin().await.expect("begun");
    let refused = soon(spawned.next()).await.expect("open").accept_in(&mut transaction).await;
    assert!(matches!(refused, Err(ReceiveError::NotTransactional)), "{refused:?}");
    assert_eq!(told.await.expect("no panic"), Verdict::RetryLater(None));
}

#[tokio::test]
async fn too_many_ids_are_forgotten_oldest_first() {
    let disk = Disk::new();
    let builder = disk.builder().await.remember(Duration::from_secs(3600), 2);
    let (wire, receiver) = Wire::open(builder).await;
    let mut callback = receiver.expect("order-42").await.expect("a name");
    let url = callback.url();
    for id in ["a", "b", "c"] {
        wire.send(&url, id).await;
        soon(callback.next()).await.expect("open").accept().await.expect("stored");
    }
    drop(callback);
    close(receiver).await;
    // The sweep runs at the start.
    let (wire, receiver) = Wire::open(disk.builder().await.remember(Duration::from_secs(3600), 2)).await;
    let pool = pool(&disk.path()).await;
    loop {
        let known: i64 =
            sqlx::query_scalar("SELECT count(*) FROM callback_inbox").fetch_one(&pool).await.expect("counted");
        if known == 2 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.send(&url, "c").await, Verdict::Duplicate);
    assert_eq!(wire.send(&url, "a").await, Verdict::Accepted, "it was forgotten");
    drop(receiver);
}
