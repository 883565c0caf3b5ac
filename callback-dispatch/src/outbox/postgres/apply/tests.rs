//! How PostgreSQL goes about the statements: a scan of the outbox would make each write cost more than the last.

use super::{
    super::{lease, read, tests::Schema},
    attachment::{ATTACH, CLEAN_ATTACHMENTS, END_ATTACHED, FIND, HAND, KEEP, PARK, ROUSE},
    claim::{CLAIM, CLAIM_LANES, CLAIM_WORKER, GIVE_BACK, MORE},
    fan_out::{FAN_OUT, FORGET_PAYLOADS, GOT_IT, LOCK_WANTING, LOCKS_OF_WANTING},
    order::{ENQUEUE, QUEUE, RELEASE_NEXT},
    single::{AGE, CLEAN, CLEAN_KEYED, EXPIRE, KNOWN, NOT_BEYOND, PURGE, REPLAY, WAIT_FROM_NOW},
    subscription::{
        CHANGE, DELETE_UNUSED, END, END_ALL_TO, END_SPENT, FORGET_INTERESTS, IS_FULL, LOCK_ENDED, LOCK_EXPIRED,
    },
    *,
};
use sqlx::{AssertSqlSafe, Connection, Executor};

/// What stands for each parameter: many values of the array types.
fn values(sql: &str, types: &str) -> String {
    let value = |name: &str| match name {
        "uuids" => "array_fill(gen_random_uuid(), ARRAY[256])".to_owned(),
        "one" => "ARRAY[gen_random_uuid()]".to_owned(),
        "numbers" => "array_fill(1::bigint, ARRAY[256])".to_owned(),
        "stages" => "array_fill(3, ARRAY[256])".to_owned(),
        "texts" => "array_fill('a'::text, ARRAY[256])".to_owned(),
        "bools" => "array_fill(true, ARRAY[256])".to_owned(),
        "bodies" => "array_fill('a'::bytea, ARRAY[256])".to_owned(),
        "name" => "'a'".to_owned(),
        "id" => "gen_random_uuid()".to_owned(),
        number => number.to_owned(),
    };
    let values: Vec<String> = types.split(' ').filter(|it| !it.is_empty()).map(value).collect();
    let parameters = (1..=32).rev().find(|number| sql.contains(&format!("${number}"))).unwrap_or(0);
    assert_eq!(values.len(), parameters, "{sql}");
    if values.is_empty() { String::new() } else { format!("({})", values.join(", ")) }
}

/// The plan of a prepared statement, after `begin`.
async fn plan(connection: &mut PgConnection, begin: &'static str, sql: &str, types: &str) -> String {
    let mut transaction = connection.begin_with(begin).await.expect("a transaction");
    transaction.execute(AssertSqlSafe(format!("PREPARE asked AS {sql}"))).await.expect("a statement");
    let explain = AssertSqlSafe(format!("EXPLAIN EXECUTE asked{}", values(sql, types)));
    let lines: Vec<String> = query_scalar(explain).fetch_all(&mut *transaction).await.expect("a plan");
    transaction.execute("DEALLOCATE asked").await.expect("a statement");
    lines.join("\n")
}

/// That the outbox is searched by this index, and never scanned or sorted.
#[track_caller]
fn check(plan: &str, index: &str, condition: &str) {
    let lines: Vec<&str> = plan.lines().map(str::trim).collect();
    let scan = format!(" using {index} on callback_outbox");
    let is_searched =
        |pair: &[&str]| pair[0].contains(&scan) && pair[1].starts_with("Index Cond") && pair[1].contains(condition);
    assert!(lines.windows(2).any(is_searched), "{index} with {condition} is not in\n{plan}");
    for bad in ["Seq Scan on callback_outbox", "Seq Scan on callback_attempt", "Bitmap", "Sort", "Join Filter"] {
        assert!(!plan.contains(bad), "{bad} is in\n{plan}");
    }
}

/// Lines in the outbox, of all that one may find there.
async fn fill(connection: &mut PgConnection) {
    let fill = "INSERT INTO callback_outbox (id, stage, holder, token, due, attempts, starts, accepted_at, first_due, \
                                             expires, ended_at, worker, destination, lane, order_key, turn) \
                SELECT gen_random_uuid(), (ARRAY[0, 3, 11, 12])[1 + n % 4], CASE WHEN n % 8 = 0 THEN 1 END, 0, n, 0, 0, \
                       n, n, n, n, 'a' || n % 10, 'a', n % 100, decode(md5((n % 1000)::text), 'hex'), \
                       CASE WHEN n % 4 = 1 THEN n END \
                FROM generate_series(1, 20000) AS n";
    connection.execute(fill).await.expect("writable");
}

#[tokio::test]
async fn what_is_written_is_looked_up_by_index_with_statistics_and_without() {
    let Some(schema) = Schema::new().await else { return };
    schema.open().await;
    let mut connection = schema.stranger().await;
    connection.execute("ALTER TABLE callback_outbox SET (autovacuum_enabled = false)").await.expect("writable");
    fill(&mut connection).await;
    for statistics in ["SELECT 1", "ANALYZE callback_outbox"] {
        connection.execute(statistics).await.expect("statistics");
        let mut check_all = async |sql, types, expected: &[(&str, &str)]| {
            let plan = plan(&mut connection, BEGIN, sql, types).await;
            expected.iter().for_each(|(index, condition)| check(&plan, index, condition));
        };
        let by_id = &[("callback_outbox_id_key", "id = v.id")];
        check_all(SETTLE, "uuids numbers stages stages numbers numbers numbers numbers texts", by_id).await;
        check_all(RESULT, "uuids numbers stages numbers numbers numbers bodies bodies", by_id).await;
        let taken = ("callback_outbox_pkey", "seq = taken.seq");
        let due = ("callback_outbox_pending", "due <= ");
        check_all(
            CLAIM,
            "20000 texts numbers 256 1024 1 1 9000",
            &[due, ("callback_outbox_pkey", "seq = looked.seq"), taken],
        )
        .await;
        check_all(MORE, "20000 1024", &[due]).await;
        let lanes = [("callback_outbox_lane", "lane > "), ("callback_outbox_lane", "lane = l"), taken];
        check_all(CLAIM_LANES, "20000 numbers 256 0 100 16 1 1 9000", &lanes).await;
        check_all(CLAIM_WORKER, "name 20000 256 1 1 9000", &[("callback_outbox_worker", "worker = 'a'"), taken]).await;
        let aged = ("callback_outbox_pkey", "seq = aged.seq");
        check_all(AGE, "20000 numbers 20000 256", &[("callback_outbox_lane", "lane = l"), aged]).await;
        let beyond = ("callback_outbox_pkey", "seq = beyond.seq");
        check_all(NOT_BEYOND, "19000 20000", &[("callback_outbox_pending", "due > "), beyond]).await;
        let waiting = ("callback_outbox_pkey", "seq = waiting.seq");
        check_all(WAIT_FROM_NOW, "19000 20000", &[("callback_outbox_pending", "due > "), waiting]).await;
        check_all(
            RELEASE_NEXT,
            "bodies numbers 1 false",
            &[("callback_outbox_order", "order_key = v.key"), ("callback_outbox_pkey", "seq = ANY")],
        )
        .await;
        check_all(GIVE_BACK, "1 1", &[("callback_outbox_held", "holder = ")]).await;
        check_all(lease::GIVE_BACK, "", &[("callback_outbox_held", "holder = ANY")]).await;
        let by_ids = &[("callback_outbox_id_key", "id = ANY")];
        check_all(REPLAY, "1 one NULL NULL", by_ids).await;
        check_all(PURGE, "one", by_ids).await;
        check_all(KNOWN, "name", &[("callback_outbox_idempotency", "idempotency = ")]).await;
        let turn = ("callback_outbox_order", "order_key = ");
        check_all(QUEUE, "1 id name", &[("callback_outbox_id_key", "id = "), turn]).await;
        let over = ("callback_outbox_pkey", "seq = over.seq");
        check_all(EXPIRE, "20000 256 1", &[("callback_outbox_expires", "expires <= "), over]).await;
        let old = ("callback_outbox_pkey", "seq = old.seq");
        check_all(CLEAN, "20000 256", &[("callback_outbox_ended", "ended_at < "), old]).await;
        check_all(CLEAN_KEYED, "20000 256", &[("callback_outbox_ended_keyed", "ended_at < "), old]).await;
        // It sorts what is new, and nothing else.
        let enqueue = plan(&mut connection, BEGIN, ENQUEUE, "uuids bodies 1").await.replace("Sort", "");
        check(&enqueue, "callback_outbox_order", "order_key = new.key");
        check(&enqueue, "callback_outbox_id_key", "id = placed.id");
    }
}

/// That none of the tables is scanned, and each of these indexes is searched.
#[track_caller]
fn check_indexes(plan: &str, indexes: &[&str]) {
    for index in indexes {
        assert!(plan.contains(&format!(" using {index} on ")), "{index} is not in\n{plan}");
    }
    assert!(!plan.contains("Seq Scan on callback_"), "{plan}");
}

#[tokio::test]
async fn those_who_want_an_event_are_found_by_their_index() {
    let Some(schema) = Schema::new().await else { return };
    schema.open().await;
    let mut connection = schema.stranger().await;
    fill(&mut connection).await;
    let fill = "WITH new AS (INSERT INTO callback_subscription (id, number, revision, owner, destination, lane, address, \
                    once, ordered, stops, active, spent, ended, ended_at, created_at, expires, sequence, detail) \
                SELECT gen_random_uuid(), n, 0, 'a' || n % 10, 'a', n, decode(md5(n::text), 'hex'), false, n % 2 = 0, \
                       false, true, false, CASE WHEN n % 4 = 0 THEN 1 END, CASE WHEN n % 4 = 0 THEN n END, n, n, 0, '' \
                FROM generate_series(1, 20000) AS n RETURNING id, number) \
                INSERT INTO callback_interest (event, service, subscription) SELECT 'a' || number % 100, '', id FROM new";
    connection.execute(fill).await.expect("writable");
    connection.execute("ANALYZE callback_subscription, callback_interest").await.expect("statistics");
    let mut check_all = async |sql, types, indexes: &[&str]| {
        let plan = plan(&mut connection, BEGIN, sql, types).await;
        check_indexes(&plan, indexes);
    };
    let wanting = ["callback_interest_pkey", "callback_subscription_id_key"];
    check_all(LOCK_WANTING, "name name NULL 1 true", &wanting).await;
    check_all(LOCKS_OF_WANTING, "name name NULL 1 true 0 1023", &wanting).await;
    let order = [&wanting[..], &["callback_outbox_order"]].concat();
    check_all(FAN_OUT, "name name NULL 1 name 1 1 1 1 1 id NULL 0 1023 numbers", &order).await;
    check_all(GOT_IT, "id", &["callback_subscription_id_key", "callback_outbox_payload"]).await;
    check_all(FORGET_PAYLOADS, "one", &["callback_payload_id_key", "callback_outbox_payload"]).await;
    check_all(CHANGE, "1 true 1 name id 1", &["callback_subscription_id_key"]).await;
    check_all(END, "1 1 id", &["callback_subscription_id_key"]).await;
    check_all(END_ALL_TO, "1 1 name", &["callback_subscription_address"]).await;
    check_all(FORGET_INTERESTS, "one", &["callback_interest_subscription"]).await;
    let unused = "callback_outbox_subscription";
    check_all(END_SPENT, "2 1000 200", &["callback_subscription_spent", unused]).await;
    check_all(LOCK_ENDED, "1000 200", &["callback_subscription_ended", unused]).await;
    check_all(DELETE_UNUSED, "one", &["callback_subscription_id_key", unused]).await;
    check_all(LOCK_EXPIRED, "1000 200", &["callback_subscription_expires", unused]).await;
    check_all(read::PAYLOADS, "one", &["callback_payload_id_key"]).await;
    check_all(read::SUBSCRIPTIONS, "one", &["callback_subscription_id_key"]).await;
    check_all(read::PAGE, "id 100 1000", &["callback_subscription_id_key", "callback_subscription_pkey"]).await;
    check_all(read::PAGE_OF_OWNER, "id 100 1000 name", &["callback_subscription_owner"]).await;
    check_all(IS_FULL, "name 1 10000", &["callback_subscription_live"]).await;
}

#[tokio::test]
async fn attachments_and_what_waits_for_them_are_found_by_their_indexes() {
    let Some(schema) = Schema::new().await else { return };
    schema.open().await;
    let mut connection = schema.stranger().await;
    fill(&mut connection).await;
    let fill = "UPDATE callback_outbox SET address = decode(md5((seq % 1000)::text), 'hex'); \
                INSERT INTO callback_attachment (address, id, holder, until) \
                SELECT decode(md5(n::text), 'hex'), gen_random_uuid(), n % 3, n FROM generate_series(1, 20000) AS n";
    connection.execute(fill).await.expect("writable");
    for statistics in ["SELECT 1", "ANALYZE callback_outbox, callback_attachment"] {
        connection.execute(statistics).await.expect("statistics");
        let mut check_all = async |sql, types, indexes: &[&str]| {
            let plan = plan(&mut connection, BEGIN, sql, types).await;
            check_indexes(&plan, indexes);
        };
        let by_address = ["callback_attachment_pkey"];
        check_all(FIND, "name 1", &by_address).await;
        check_all(END_ATTACHED, "name", &by_address).await;
        check_all(KEEP, "bodies uuids numbers bools bools 1", &by_address).await;
        check_all(ATTACH, "name id 1 1 name name", &[]).await;
        check_all(CLEAN_ATTACHMENTS, "100 200", &["callback_attachment_until", "callback_attachment_pkey"]).await;
        check_all(ROUSE, "name 1 20000 100", &["callback_outbox_address", "callback_outbox_pkey"]).await;
        for (sql, types) in [(HAND, "id"), (PARK, "id 1 1")] {
            check_all(sql, types, &["callback_outbox_id_key"]).await;
        }
    }
}

#[tokio::test]
async fn what_is_read_is_found_by_index_in_a_large_outbox() {
    let Some(schema) = Schema::new().await else { return };
    schema.open().await;
    let mut connection = schema.stranger().await;
    fill(&mut connection).await;
    connection.execute("ANALYZE callback_outbox").await.expect("statistics");
    let due = plan(&mut connection, "BEGIN", read::NEXT_DUE, "10000 20000").await;
    check(&due, "callback_outbox_pending", "due > ");
    let dead = plan(&mut connection, "BEGIN", read::DEAD_LETTERS, "name NULL 10000 id 20000 100").await;
    check(&dead, "callback_outbox_dead", "ROW(ended_at, id) > ");
    let places = plan(&mut connection, "BEGIN", read::DEAD_PLACES, "name NULL 10000 id 20000 100").await;
    check(&places, "callback_outbox_dead", "ROW(ended_at, id) > ");
    let workers = plan(&mut connection, "BEGIN", read::WAITING_WORKERS, "").await;
    check(&workers, "callback_outbox_worker", "worker IS NOT NULL");
}
