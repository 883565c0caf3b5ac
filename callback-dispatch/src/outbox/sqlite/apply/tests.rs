//! How SQLite goes about the statements: a scan of the outbox would make each write cost more than the last.

use super::{super::SCHEMA, attachment::*, claim::*, fan_out::*, order::*, single::*, subscription::*, *};
use crate::row::Stored;
use callback_core::Message;
use callback_store::{Database, Migrations};
use sqlx::{AssertSqlSafe, Connection, SqlitePool};
use tempfile::TempDir;

/// The sizes in which statements are prepared.
const ROWS: usize = 256 + 64 + 16 + 4 + 1;

async fn open() -> (SqlitePool, TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let migrations = Migrations::new("migrations", SCHEMA);
    let database = Database::open(directory.path().join("outbox.db"), migrations).await.expect("it opens");
    (database.reader().clone(), directory)
}

/// The plan of a statement, a step a line.
async fn plan(pool: &SqlitePool, sql: &str) -> Vec<String> {
    let lines = query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"))).fetch_all(pool).await.expect("a plan");
    lines.iter().map(|line| line.get("detail")).collect()
}

/// That the outbox is searched by this index, and never scanned or sorted.
async fn check(pool: &SqlitePool, sql: &str, expected: &str) {
    let plan = plan(pool, sql).await;
    assert!(plan.iter().any(|step| step.contains(expected)), "{expected} is not in {plan:#?}");
    let bad = |step: &&String| {
        step.starts_with("SCAN callback_")
            || step.starts_with("SCAN o")
            || step.starts_with("SCAN a")
            || step.contains("TEMP B-TREE")
    };
    assert_eq!(plan.iter().find(bad), None, "{plan:#?}");
}

#[tokio::test]
async fn steps_look_their_rows_up_by_id() {
    let (pool, _directory) = open().await;
    let rows = Rows::new(Codec::default());
    for statements in [&rows.settle, &rows.result] {
        let sizes: Vec<usize> = {
            let parts: Vec<_> = statements.split(&[(); ROWS]).map(|(sql, part)| (sql, part.len())).collect();
            for (sql, _) in &parts {
                let by_id = "SEARCH callback_outbox USING INDEX sqlite_autoindex_callback_outbox_1 (id=?)";
                check(&pool, sql.as_str(), by_id).await;
            }
            parts.iter().map(|(_, size)| *size).collect()
        };
        assert_eq!(sizes.iter().sum::<usize>(), ROWS);
    }
}

#[tokio::test]
async fn what_is_due_is_found_by_its_index() {
    let (pool, _directory) = open().await;
    check(&pool, OLDEST, "SEARCH callback_outbox USING INDEX callback_outbox_pending (held=? AND due<?)").await;
    check(&pool, NOT_BEYOND, "SEARCH callback_outbox USING INDEX callback_outbox_pending (held=? AND due>? AND due<?)")
        .await;
    check(&pool, FROM_THE_FUTURE, "SEARCH callback_outbox USING INTEGER PRIMARY KEY (rowid=?)").await;
    check(&pool, WAIT_FROM_NOW, "SEARCH a USING INDEX callback_attempt_id (id=?)").await;
    check(&pool, MORE, "SEARCH callback_outbox USING INDEX callback_outbox_pending (held=? AND due<?)").await;
    check(&pool, OLDEST, "SEARCH o USING INTEGER PRIMARY KEY (rowid=?)").await;
    check(&pool, TAKE, "SEARCH callback_outbox USING INTEGER PRIMARY KEY (rowid=?)").await;
    check(&pool, GIVE_BACK, "SEARCH callback_outbox USING INDEX callback_outbox_pending (held=?)").await;
    check(&pool, read::NEXT_DUE, "SEARCH callback_outbox USING INDEX callback_outbox_pending (held=? AND due>?").await;
}

#[tokio::test]
async fn lanes_and_workers_are_asked_one_by_one_by_their_indexes() {
    let (pool, _directory) = open().await;
    for step in [
        "SEARCH o USING COVERING INDEX callback_outbox_lane (lane>?)",
        "SEARCH i USING COVERING INDEX callback_outbox_lane (lane=? AND due<?)",
        "SEARCH o USING INTEGER PRIMARY KEY (rowid=?)",
    ] {
        check(&pool, OF_LANES, step).await;
    }
    check(&pool, OF_WORKER, "SEARCH callback_outbox USING INDEX callback_outbox_worker (worker=? AND due<?)").await;
    check(&pool, AGE, "SEARCH o USING COVERING INDEX callback_outbox_lane (lane=? AND due<?)").await;
    check(&pool, ENQUEUE, "SEARCH callback_outbox USING COVERING INDEX callback_outbox_order (order_key=? AND turn>?)")
        .await;
    check(&pool, RELEASE_NEXT, "SEARCH callback_outbox USING INDEX callback_outbox_order (order_key=? AND turn=?)")
        .await;
}

#[tokio::test]
async fn what_expires_and_what_is_old_is_found_by_its_index() {
    let (pool, _directory) = open().await;
    let expires = "INDEX callback_outbox_expires (expires<?)";
    check(&pool, EXPIRE, expires).await;
    check(&pool, read::NEXT_EXPIRY, "INDEX callback_outbox_expires").await;
    check(&pool, CLEAN, "INDEX callback_outbox_ended (ended_at<?)").await;
    let keyed = "INDEX callback_outbox_ended_keyed (ended_at<?)";
    check(&pool, CLEAN_KEYED, keyed).await;
    check(&pool, CLEAN_BREAKERS, "SEARCH callback_breaker USING COVERING INDEX callback_breaker_until (until<?)").await;
    check(&pool, CLEAN_CONSENTS, "SEARCH callback_consent USING COVERING INDEX callback_consent_until (until<?)").await;
    check(&pool, read::CONSENT, "SEARCH callback_consent USING PRIMARY KEY (destination=?)").await;
}

#[tokio::test]
async fn dead_letters_are_found_by_their_index() {
    let (pool, _directory) = open().await;
    check(&pool, read::DEAD_LETTERS, "SEARCH callback_outbox USING INDEX callback_outbox_dead").await;
    check(&pool, read::DEAD_PLACES, "SEARCH callback_outbox USING INDEX callback_outbox_dead").await;
    let by_id = "SEARCH callback_outbox USING INDEX sqlite_autoindex_callback_outbox_1 (id=?)";
    check(&pool, REPLAY, by_id).await;
    check(&pool, PURGE, by_id).await;
    let by_key = "SEARCH callback_outbox USING INDEX callback_outbox_idempotency (idempotency=?)";
    check(&pool, KNOWN, by_key).await;
    let turn = "SEARCH callback_outbox USING COVERING INDEX callback_outbox_order (order_key=?";
    check(&pool, QUEUE, turn).await;
    check(&pool, BURY, "SEARCH callback_outbox USING COVERING INDEX callback_outbox_address (address=?)").await;
    check(&pool, FORGET_ATTEMPTS, "SEARCH callback_attempt USING COVERING INDEX callback_attempt_id (id=?)").await;
    let plan = plan(&pool, read::ATTEMPTS).await;
    let by_id = "SEARCH a USING INDEX callback_attempt_id (id=?)";
    assert!(plan.iter().any(|step| step == by_id), "{plan:#?}");
}

#[tokio::test]
async fn attachments_and_what_waits_for_them_are_found_by_their_indexes() {
    let (pool, _directory) = open().await;
    let by_address = "SEARCH callback_attachment USING PRIMARY KEY (address=?)";
    for sql in [FIND, END_ATTACHED, KEEP] {
        check(&pool, sql, by_address).await;
    }
    check(&pool, ROUSE, "SEARCH callback_outbox USING INDEX callback_outbox_address (address=?)").await;
    let by_id = "SEARCH callback_outbox USING INDEX sqlite_autoindex_callback_outbox_1 (id=?)";
    for sql in [HAND, PARK] {
        check(&pool, sql, by_id).await;
    }
    let old = "SEARCH callback_attachment USING COVERING INDEX callback_attachment_until (until<?)";
    check(&pool, CLEAN_ATTACHMENTS, old).await;
}

#[tokio::test]
async fn those_who_want_an_event_are_found_by_their_index() {
    let (pool, _directory) = open().await;
    for step in [
        "SEARCH i USING PRIMARY KEY (event=? AND service=?)",
        "SEARCH s USING INDEX sqlite_autoindex_callback_subscription_1 (id=?)",
        "SEARCH o USING COVERING INDEX callback_outbox_order (order_key=?",
    ] {
        let plan = plan(&pool, FAN_OUT).await;
        assert!(plan.iter().any(|it| it.contains(step)), "{step} is not in {plan:#?}");
        assert!(!plan.iter().any(|it| it.starts_with("SCAN callback_") || it.starts_with("SCAN o")), "{plan:#?}");
    }
    let by_id = "SEARCH callback_subscription USING INDEX sqlite_autoindex_callback_subscription_1 (id=?)";
    check(&pool, GOT_IT, by_id).await;
    check(&pool, CHANGE, by_id).await;
    check(&pool, END, by_id).await;
    let of = "SEARCH callback_outbox USING INDEX callback_outbox_payload (payload=?)";
    check(&pool, GOT_IT, of).await;
    let to = "SEARCH callback_subscription USING INDEX callback_subscription_address (address=?)";
    check(&pool, END_ALL_TO, to).await;
    check(&pool, FORGET_INTERESTS_TO, "callback_subscription_address (address=?)").await;
    let interests = "callback_interest_subscription (subscription=?)";
    for sql in [FORGET_INTERESTS, FORGET_INTERESTS_TO] {
        check(&pool, sql, interests).await;
    }
    let unused = "SEARCH o USING COVERING INDEX callback_outbox_payload (payload=?)";
    check(&pool, FORGET_PAYLOADS, unused).await;
    check(&pool, CLEAN_ENDED, "INDEX callback_subscription_ended (ended_at<?)").await;
    check(&pool, CLEAN_EXPIRED, "INDEX callback_subscription_expires (expires<?)").await;
    for sql in [CLEAN_ENDED, CLEAN_EXPIRED] {
        check(&pool, sql, "SEARCH o USING COVERING INDEX callback_outbox_subscription (subscription=?)").await;
    }
    check(&pool, read::PAYLOADS, "SEARCH p USING INDEX sqlite_autoindex_callback_payload_1 (id=?)").await;
    let by_id = "SEARCH s USING INDEX sqlite_autoindex_callback_subscription_1 (id=?)";
    check(&pool, read::SUBSCRIPTIONS, by_id).await;
    check(
        &pool,
        read::PAGE,
        "SEARCH callback_subscription USING INDEX sqlite_autoindex_callback_subscription_1 (id>?)",
    )
    .await;
    let of_owner = "SEARCH callback_subscription USING INDEX callback_subscription_owner (owner=? AND id>?)";
    check(&pool, read::PAGE_OF_OWNER, of_owner).await;
    check(&pool, IS_FULL, "COVERING INDEX callback_subscription_live (owner=? AND expires>?)").await;
}

/// That of two results of one run that share a transaction one counts, and is what is kept.
async fn check_two_results(codec: Codec) {
    let (pool, directory) = open().await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(directory.path().join("outbox.db"));
    let mut connection = SqliteConnection::connect_with(&options).await.expect("another connection");
    let mut rows = Rows::new(codec.clone());
    let id = TaskId::new();
    let result = |text: &str| {
        let message = Message::builder("a.b").id(id.into()).payload(text).build().expect("a valid message");
        // The heads differ too.
        Arc::new(Stored { message, failed: text == "two", traceparent: None, service: None, kept: None })
    };
    let step = |text: &str| {
        let (to, now, events) = (Stage::Delivering, Micros(7), Vec::new());
        Write::Result { id, token: 1, to, held: true, now, result: result(text), order: None, events }
    };
    let insert = "INSERT INTO callback_outbox (id, stage, held, token, due, attempts, starts, accepted_at, first_due, expires) \
                  VALUES (?, 0, 1, 1, 0, 0, 0, 0, 0, 0)";
    query(insert).bind(&id.as_bytes()[..]).execute(&mut connection).await.expect("stored");
    let written = rows.apply(&mut connection, &[step("one"), step("two")]).await.expect("applied");
    let kept = read::find(&pool, &codec, id).await.expect("readable").expect("it is there");
    let kept = kept.result.expect("it has a result");
    let expected: &[u8] = match &written[..] {
        [Written::Done, Written::Superseded] => b"one",
        [Written::Superseded, Written::Done] => b"two",
        _ => panic!("{written:?}"),
    };
    assert_eq!((&kept.message.body()[..], kept.failed), (expected, expected == b"two"));
}

#[tokio::test]
async fn of_two_results_of_one_run_one_counts() {
    check_two_results(Codec::default()).await;
    #[cfg(feature = "seal")]
    check_two_results(Codec::sealing(crate::SealKeys::new("a", &[7; 32]).expect("a valid id"))).await;
}
