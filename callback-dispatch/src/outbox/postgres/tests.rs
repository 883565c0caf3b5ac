//! What processes do that share a database, and what becomes of one that is cut off.

use super::{
    PostgresOutbox, Store,
    apply::{By, apply},
    is_durable,
    lease::Process,
};
use crate::{
    Dispatcher, Event, Interrupted, OutboxError, Task, TaskState, Work,
    clock::Micros,
    outbox::{Claim, Settle, Write, Written, codec::Codec, take, write},
    row::{FailedRow, Order, OrderKey, Published, Request, Row, Stage, Stored},
    subscription::{Detail, FanOut, SubscriptionId, SubscriptionRow},
    transaction::Connection,
    work::Context,
};
use callback_core::{ErrorKind, MemorySink, Message, Payload, TaskId};
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection};
use std::{
    collections::BTreeSet,
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// A schema of a test's own, in the server that `CALLBACK_TEST_POSTGRES` names.
pub(crate) struct Schema {
    url: String,
}

impl Schema {
    /// None without a server, which fails where `CI` is set.
    #[expect(clippy::print_stdout, reason = "a skip is told")]
    pub(crate) async fn new() -> Option<Self> {
        let Ok(server) = env::var("CALLBACK_TEST_POSTGRES") else {
            assert!(env::var_os("CI").is_none(), "CALLBACK_TEST_POSTGRES is not set");
            println!("skipped: CALLBACK_TEST_POSTGRES is not set");
            return None;
        };
        let name = format!("test_{}", TaskId::new().to_string().replace('-', "_"));
        let mut connection = PgConnection::connect(&server).await.expect("the server can be reached");
        connection.execute(AssertSqlSafe(format!("CREATE SCHEMA {name}"))).await.expect("a schema can be made");
        let separator = if server.contains('?') { '&' } else { '?' };
        Some(Self { url: format!("{server}{separator}options=-csearch_path%3D{name}") })
    }

    /// A connection with nothing of ours on it.
    pub(crate) async fn stranger(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the server can be reached")
    }

    /// The outbox of one process.
    pub(crate) async fn open(&self) -> PostgresOutbox {
        PostgresOutbox::connect(&self.url).await.expect("the outbox can be opened")
    }

    /// The outbox of one more process that may have something in hand.
    pub(crate) async fn started(&self) -> PostgresOutbox {
        let outbox = self.open().await;
        outbox.start().await.expect("started");
        outbox
    }

    /// The outbox of a process that has not been heard of: each recovery gives back what it has in hand.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn started_and_unheard(&self, outbox: super::PostgresOutboxBuilder) -> PostgresOutbox {
        let outbox = outbox.lease(Duration::from_secs(3_600)).connect(&self.url).await.expect("it opens");
        outbox.start().await.expect("started");
        self.end_all_leases().await;
        outbox
    }

    /// Makes the database believe that nobody was heard of for longer than a lease.
    pub(crate) async fn end_all_leases(&self) {
        let over = "UPDATE callback_process SET alive_until = now() - interval '1 second'";
        self.stranger().await.execute(over).await.expect("writable");
    }
}

const NOW: Micros = Micros(1_000_000);

fn task(worker: &str) -> Row {
    Row {
        id: TaskId::new(),
        token: 0,
        stage: Stage::Accepted,
        held: false,
        due: Micros(0),
        worker: Some(worker.into()),
        owner: None,
        dsn: Some("https://user:hunter2@a.example/path".parse().expect("a valid Dsn")),
        starts: 0,
        attempts: 0,
        accepted_at: Micros(0),
        first_due: Micros(0),
        expires: Micros::NEVER,
        order: None,
        idempotency: None,
        subscribed: None,
        work: Some(Arc::new(Request { context: Context::default(), payload: Payload::from("work") })),
        result: None,
    }
}

async fn insert(outbox: &PostgresOutbox, row: &Row) -> Result<Written, OutboxError> {
    write(outbox, Write::Insert(Arc::new(row.clone()))).await
}

async fn claim(outbox: &PostgresOutbox) -> Vec<Row> {
    let claim = Claim {
        number: 0,
        now: NOW,
        limit: 256,
        bytes: usize::MAX,
        workers: vec!["a".into()],
        left_out: Vec::new(),
        found: None,
    };
    take(outbox, claim).await
}

fn step(row: &Row, to: Stage, reason: Option<&str>) -> Settle {
    let failed = reason.map(|reason| FailedRow {
        number: 1,
        time: NOW,
        took: Duration::ZERO,
        kind: ErrorKind::Refused,
        phase: None,
        status: None,
        reason: reason.to_owned(),
    });
    Settle {
        id: row.id,
        token: row.token,
        from: row.stage,
        to,
        held: false,
        due: NOW,
        attempts: 1,
        now: NOW,
        kind: Some(ErrorKind::Refused),
        failed,
        order: None,
    }
}

async fn settle(outbox: &PostgresOutbox, row: &Row, to: Stage, reason: Option<&str>) -> Written {
    write(outbox, Write::Settle(step(row, to, reason))).await.expect("stored")
}

fn result(row: &Row) -> Arc<Stored> {
    let message = Message::builder("a.b").id(row.id.into()).payload("result").build().expect("a valid message");
    Arc::new(Stored { message, failed: false, traceparent: None, service: None, kept: None })
}

async fn find(outbox: &PostgresOutbox, row: &Row) -> Row {
    outbox.find(row.id).await.expect("readable").expect("stored")
}

#[tokio::test]
async fn a_row_is_claimed_by_one_process() {
    let Some(schema) = Schema::new().await else { return };
    let (one, two) = (schema.started().await, schema.started().await);
    let rows: Vec<Row> = (0..200).map(|_| task("a")).collect();
    for inserted in join_all(rows.iter().map(|row| insert(&one, row))).await {
        inserted.expect("stored");
    }
    let claims = join_all([claim(&one), claim(&two), claim(&one), claim(&two)]).await;
    let claimed: Vec<TaskId> = claims.iter().flatten().map(|row| row.id).collect();
    let different: BTreeSet<TaskId> = claimed.iter().copied().collect();
    assert_eq!((claimed.len(), different.len()), (200, 200));
    assert!(claims.iter().flatten().all(|row| row.held && row.token == 1));
}

#[tokio::test]
async fn a_process_whose_lease_is_over_loses_its_rows_and_its_late_marks_are_not_stored() {
    let Some(schema) = Schema::new().await else { return };
    let (stopped, other) = (schema.started().await, schema.started().await);
    let row = task("a");
    insert(&stopped, &row).await.expect("stored");
    let before = claim(&stopped).await.remove(0);
    write(&other, Write::Recover).await.expect("stored");
    assert!(claim(&other).await.is_empty(), "the first has a lease");

    schema.end_all_leases().await;
    other.0.process.renew(&other.0.pool).await.expect("renewed");
    write(&other, Write::Recover).await.expect("stored");
    let after = claim(&other).await.remove(0);
    assert_eq!((before.token, before.starts, after.token, after.starts), (1, 0, 3, 1));

    assert!(matches!(settle(&stopped, &before, Stage::Delivered, None).await, Written::Superseded));
    let late = Write::Result {
        id: row.id,
        token: before.token,
        to: Stage::Delivering,
        held: false,
        now: NOW,
        result: result(&row),
        order: None,
        events: vec![Published::To(Arc::new(task("a")))],
    };
    assert!(matches!(write(&stopped, late).await.expect("stored"), Written::Superseded));
    let kept = find(&other, &row).await;
    assert_eq!((kept.stage, kept.token, kept.held), (Stage::Accepted, 3, true));
    assert!(matches!(settle(&other, &after, Stage::Accepted, None).await, Written::Done));
    assert_eq!(claim(&other).await.len(), 1, "nothing was published with the late result");
}

#[tokio::test]
async fn a_process_that_was_stopped_goes_on_under_another_id() {
    let Some(schema) = Schema::new().await else { return };
    let (stopped, other) = (schema.started().await, schema.started().await);
    let (former, lease) = (stopped.0.process.id(), stopped.lease());
    schema.end_all_leases().await;
    other.0.process.renew(&other.0.pool).await.expect("renewed");
    write(&other, Write::Recover).await.expect("stored");

    // What it stores before it knows is nobody's, though its holder was never seen among the living again.
    let row = Row { held: true, ..task("a") };
    insert(&stopped, &row).await.expect("stored");
    assert!(claim(&other).await.is_empty());
    write(&other, Write::Recover).await.expect("stored");
    assert_eq!(claim(&other).await.len(), 1);

    stopped.0.process.renew(&stopped.0.pool).await.expect("registered");
    assert_ne!(stopped.0.process.id(), former);
    assert!(!stopped.is_leased(lease), "what it took before may be another's");
    assert!(stopped.is_leased(stopped.lease()));
    insert(&stopped, &task("a")).await.expect("stored");
    assert_eq!(claim(&stopped).await.len(), 1);
    write(&other, Write::Recover).await.expect("stored");
    assert!(claim(&other).await.is_empty(), "it is alive again");
}

#[tokio::test]
async fn a_lease_that_ended_is_renewed_where_nobody_took_notice() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let former = outbox.0.process.id();
    schema.end_all_leases().await;
    outbox.0.process.renew(&outbox.0.pool).await.expect("renewed");
    assert_eq!(outbox.0.process.id(), former);
    write(&outbox, Write::Recover).await.expect("stored");
    assert!(outbox.is_leased(outbox.lease()));
}

/// What it stored in between has no holder, though it is known by its id still.
#[tokio::test]
async fn a_lease_that_is_renewed_too_late_is_another_one() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.open().await;
    let late = Process::new(Duration::ZERO);
    late.register(&outbox.0.pool).await.expect("registered");
    let (id, lease) = (late.id(), late.lease());
    late.renew(&outbox.0.pool).await.expect("renewed");
    assert_eq!((late.id(), late.holder()), (id, None));
    assert_ne!(late.lease(), lease);

    let process = Process::new(Duration::from_secs(3_600));
    process.register(&outbox.0.pool).await.expect("registered");
    let (id, lease) = (process.id(), process.lease());
    process.renew(&outbox.0.pool).await.expect("renewed");
    assert_eq!((process.id(), process.holder(), process.lease()), (id, id, lease));
    assert!(process.is_leased(lease));
}

#[tokio::test]
async fn what_a_process_has_in_hand_is_free_when_it_closes_or_is_dropped() {
    let Some(schema) = Schema::new().await else { return };
    let other = schema.started().await;
    let closed = schema.started().await;
    insert(&closed, &task("a")).await.expect("stored");
    assert_eq!(claim(&closed).await.len(), 1);
    closed.close().await;
    assert_eq!(claim(&other).await.len(), 1);

    let dropped = schema.started().await;
    insert(&dropped, &task("a")).await.expect("stored");
    assert_eq!(claim(&dropped).await.len(), 1);
    drop(dropped);
    while claim(&other).await.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_cannot_renew_its_lease_begins_nothing() {
    let Some(schema) = Schema::new().await else { return };
    let lease = PostgresOutbox::builder().lease(Duration::from_secs(1));
    let outbox = lease.connect(&schema.url).await.expect("the outbox can be opened");
    let sink = MemorySink::new();
    let dispatcher = Dispatcher::builder(outbox.clone()).sink(sink.clone()).start().await.expect("started");
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let handler = move |_: Task| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, String>("done") }
    };
    let worker = dispatcher.worker("a", Interrupted::RunAgain).run(handler).expect("registered");

    let mut stranger = schema.stranger().await;
    let mut lock = stranger.begin().await.expect("a transaction");
    lock.execute("LOCK TABLE callback_process IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    while outbox.is_leased(outbox.lease()) {
        tokio::task::yield_now().await;
    }
    let id = worker.accept(Work::new("work")).await.expect("accepted").id();
    let to = "memory://events".parse().expect("a valid Dsn");
    dispatcher.publish(Event::to(to, "a.b", "event")).await.expect("published");
    while find_all_held(&schema).await > 0
        || dispatcher.task(id).await.expect("readable").expect("known").state() != TaskState::Accepted
    {
        tokio::task::yield_now().await;
    }
    assert!(sink.take("events").is_empty());
    assert_eq!(runs.load(Ordering::SeqCst), 0);

    lock.rollback().await.expect("unlocked");
    dispatcher.wait(id).await.expect("readable");
    sink.next("events").await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    dispatcher.close(Duration::ZERO).await;
}

async fn find_all_held(schema: &Schema) -> i64 {
    let held = "SELECT count(*) FROM callback_outbox WHERE holder IS NOT NULL";
    sqlx::query_scalar(held).fetch_one(&mut schema.stranger().await).await.expect("readable")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_one_key_are_due_one_at_a_time_whichever_process_stores_and_delivers_them() {
    const EACH: usize = 40;
    let Some(schema) = Schema::new().await else { return };
    let delivered = AtomicUsize::new(0);
    let store_and_deliver = async |outbox: PostgresOutbox| {
        let store = async {
            for _ in 0..EACH {
                insert(&outbox, &in_order()).await.expect("stored");
            }
        };
        let deliver = async {
            while delivered.load(Ordering::SeqCst) < 2 * EACH {
                let Some(row) = claim(&outbox).await.pop() else { continue };
                let due = "SELECT count(*) FROM callback_outbox WHERE stage = 3 AND due < 9223372036854775807";
                let due: i64 = sqlx::query_scalar(due).fetch_one(&outbox.0.pool).await.expect("readable");
                assert_eq!(due, 1, "another of the key is due");
                let step = Settle { order: row.order, ..step(&row, Stage::Delivered, None) };
                assert!(matches!(write(&outbox, Write::Settle(step)).await.expect("stored"), Written::Done));
                delivered.fetch_add(1, Ordering::SeqCst);
            }
        };
        futures_util::join!(store, deliver);
    };
    let (one, two) = (schema.started().await, schema.started().await);
    futures_util::join!(store_and_deliver(one), store_and_deliver(two));
    assert_eq!(delivered.load(Ordering::SeqCst), 2 * EACH);
}

#[tokio::test]
async fn a_row_whose_transaction_is_open_is_not_said_to_be_unknown() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.open().await;
    let mut stranger = schema.stranger().await;
    for commits in [true, false] {
        let (row, other) = (task("a"), task("a"));
        let mut open = stranger.begin().await.expect("a transaction");
        outbox.insert_in(Connection::Postgres(&mut open), Arc::new(row.clone())).await.expect("stored");
        let both = [Write::Confirm { id: row.id }, Write::Insert(Arc::new(other.clone()))];
        let both = join_all(both.into_iter().map(|step| write(&outbox, step))).await;
        assert!(matches!(both[0], Ok(Written::NotYet)), "it may be stored yet: {both:?}");
        assert!(matches!(both[1], Ok(Written::Done)), "what shares its transaction is stored: {both:?}");
        if commits {
            open.commit().await.expect("committed");
        } else {
            open.rollback().await.expect("rolled back");
        }
        let known = write(&outbox, Write::Confirm { id: row.id }).await.expect("stored");
        assert!(matches!((commits, &known), (true, Written::Done) | (false, Written::Unknown)), "{known:?}");
        let kept = outbox.find(row.id).await.expect("readable").map(|row| row.stage);
        assert_eq!(kept, commits.then_some(Stage::Accepted));
    }
}

#[tokio::test]
async fn an_event_whose_transaction_is_open_is_not_said_to_be_unknown() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.open().await;
    subscribe(&outbox, &subscription("custom://a/")).await;
    for commits in [true, false] {
        let event = to_all();
        let mut stranger = schema.stranger().await;
        let mut open = stranger.begin().await.expect("a transaction");
        let published = outbox.publish_in(Connection::Postgres(&mut open), &event).await.expect("stored");
        assert_eq!(published, 1);
        let confirm = || write(&outbox, Write::ConfirmEvent(Arc::new(event.clone())));
        assert!(matches!(confirm().await, Ok(Written::NotYet)), "it may be stored yet");
        if commits {
            open.commit().await.expect("committed");
        } else {
            open.rollback().await.expect("rolled back");
        }
        let known = confirm().await.expect("stored");
        assert!(matches!((commits, &known), (true, Written::Done) | (false, Written::Unknown)), "{known:?}");
    }
}

#[tokio::test]
async fn what_a_claim_took_is_given_back_once_its_transaction_is_over() {
    let Some(schema) = Schema::new().await else { return };
    let (outbox, other) = (schema.started().await, schema.started().await);
    for commits in [true, false] {
        let row = task("a");
        insert(&outbox, &row).await.expect("stored");
        let (codec, holder) = (Codec::default(), outbox.0.process.holder());
        let by = By { codec: &codec, holder, locks: &[] };
        let claim = Claim {
            number: 7,
            now: NOW,
            limit: 9,
            bytes: usize::MAX,
            workers: vec!["a".into()],
            left_out: Vec::new(),
            found: None,
        };
        let mut open = outbox.0.pool.begin().await.expect("a transaction");
        apply(&mut open, by, &[Write::Claim(claim)]).await.expect("claimed");

        let early = write(&outbox, Write::GiveBack { claim: 7 }).await.expect("stored");
        assert!(matches!(early, Written::NotYet), "it may be stored yet: {early:?}");
        assert!(matches!(write(&outbox, Write::GiveBack { claim: 6 }).await, Ok(Written::Done)), "it is another");
        if commits {
            open.commit().await.expect("committed");
            assert!(matches!(write(&other, Write::GiveBack { claim: 7 }).await, Ok(Written::Done)));
            assert!(find(&outbox, &row).await.held, "it is of another process");
        } else {
            open.rollback().await.expect("rolled back");
        }
        assert!(matches!(write(&outbox, Write::GiveBack { claim: 7 }).await, Ok(Written::Done)));
        let back = find(&outbox, &row).await;
        assert_eq!((back.held, back.token, back.starts), (false, if commits { 2 } else { 0 }, 0));
        write(&outbox, Write::Cancel { id: row.id, now: NOW }).await.expect("stored");
    }
}

/// Takes as long as a write is tried that another keeps back: five seconds.
#[tokio::test]
async fn who_waits_for_anothers_lock_fails_alone() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.open().await;
    let (locked, free) = (task("a"), task("a"));
    insert(&outbox, &locked).await.expect("stored");
    let mut stranger = schema.stranger().await;
    let mut lock = stranger.begin().await.expect("a transaction");
    let keep = sqlx::query("SELECT 1 FROM callback_outbox WHERE id = $1 FOR UPDATE");
    keep.bind(super::apply::uuid(locked.id)).execute(&mut *lock).await.expect("locked");
    let both = [Write::Cancel { id: locked.id, now: NOW }, Write::Insert(Arc::new(free.clone()))];
    let both = join_all(both.into_iter().map(|step| write(&outbox, step))).await;
    assert!(both[0].as_ref().is_err_and(|error| !error.is_unknown() && !error.is_outage()));
    assert!(matches!(both[1], Ok(Written::Done)));
    lock.rollback().await.expect("unlocked");
}

#[tokio::test]
async fn where_all_is_locked_it_is_an_outage_and_is_told_soon() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.open().await;
    let mut stranger = schema.stranger().await;
    let mut lock = stranger.begin().await.expect("a transaction");
    lock.execute("LOCK TABLE callback_outbox IN ACCESS EXCLUSIVE MODE").await.expect("locked");
    let rows: Vec<Row> = (0..500).map(|_| task("a")).collect();
    let mut stored: FuturesUnordered<_> = rows.iter().map(|row| insert(&outbox, row)).collect();
    let first = stored.next().await.expect("an answer");
    assert!(first.is_err_and(|error| error.is_outage() && !error.is_unknown()));
    lock.rollback().await.expect("unlocked");
    while let Some(stored) = stored.next().await {
        assert!(stored.as_ref().map_or_else(OutboxError::is_outage, Written::is_done), "{stored:?}");
    }
    insert(&outbox, &task("a")).await.expect("stored");
}

/// A message of one key.
fn in_order() -> Row {
    let row = Row { stage: Stage::Delivering, work: None, worker: None, ..task("a") };
    let key = OrderKey::new(row.dsn.as_ref().expect("a Dsn"), "key");
    Row { order: Some(Order { key, stops: false }), result: Some(result(&row)), ..row }
}

#[tokio::test]
async fn what_waits_for_a_key_lets_the_others_pass_and_keeps_its_order() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let mut stranger = schema.stranger().await;
    let mut open = stranger.begin().await.expect("a transaction");
    let first = in_order();
    outbox.insert_in(Connection::Postgres(&mut open), Arc::new(first.clone())).await.expect("stored");
    let later: Vec<Row> = (0..600).map(|_| in_order()).collect();
    let mut waiting = Box::pin(join_all(later.iter().map(|row| insert(&outbox, row))));
    for _ in 0..20 {
        assert!(futures_util::poll!(&mut waiting).is_pending(), "its key is taken");
        insert(&outbox, &task("a")).await.expect("nothing else waits");
    }
    open.commit().await.expect("committed");
    assert!(waiting.await.iter().all(Result::is_ok));
    for row in [&first].into_iter().chain(&later[..3]) {
        let claimed = claim(&outbox).await.into_iter().filter(|row| row.order.is_some()).collect::<Vec<Row>>();
        assert_eq!(claimed.iter().map(|row| row.id).collect::<Vec<_>>(), [row.id]);
        let step = Settle { order: row.order, ..step(&claimed[0], Stage::Delivered, None) };
        assert!(matches!(write(&outbox, Write::Settle(step)).await.expect("stored"), Written::Done));
    }
}

#[tokio::test]
async fn what_waits_for_a_key_is_answered_when_the_outbox_closes() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let mut stranger = schema.stranger().await;
    let mut open = stranger.begin().await.expect("a transaction");
    outbox.insert_in(Connection::Postgres(&mut open), Arc::new(in_order())).await.expect("stored");
    let row = in_order();
    let mut waiting = Box::pin(insert(&outbox, &row));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    outbox.close().await;
    assert!(waiting.await.is_err_and(|error| !error.is_unknown()));
}

#[tokio::test]
async fn what_ends_by_itself_waits_for_nobodys_key() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let row = Row { expires: Micros(1), ..in_order() };
    let other = Row { expires: Micros(2), ..task("a") };
    insert(&outbox, &row).await.expect("stored");
    insert(&outbox, &other).await.expect("stored");
    let mut stranger = schema.stranger().await;
    let mut open = stranger.begin().await.expect("a transaction");
    outbox.insert_in(Connection::Postgres(&mut open), Arc::new(in_order())).await.expect("stored");
    let lane = row.lane().expect("a lane");
    let dsn = row.dsn.clone().expect("a Dsn");
    let ended = async |ends: Write| match write(&outbox, ends).await.expect("stored") {
        Written::Ended(ids) => ids,
        other => panic!("{other:?}"),
    };
    let age = || Write::Age { lanes: vec![lane.clone()], before: NOW, now: NOW, limit: 10 };
    assert!(ended(age()).await.is_empty());
    assert!(ended(Write::Bury { dsn, now: NOW, limit: 10 }).await.is_empty());
    assert_eq!(ended(Write::Expire { now: NOW, limit: 10 }).await, [other.id]);
    open.rollback().await.expect("rolled back");
    assert_eq!(ended(age()).await, [row.id]);
}

#[tokio::test]
async fn what_a_process_has_in_hand_expires_by_its_own_hand() {
    let Some(schema) = Schema::new().await else { return };
    let (owner, other) = (schema.started().await, schema.started().await);
    let (held, free) = (Row { expires: Micros(1), held: true, ..task("a") }, Row { expires: Micros(2), ..task("a") });
    insert(&owner, &held).await.expect("stored");
    insert(&owner, &free).await.expect("stored");
    assert_eq!(owner.next_expiry().await.expect("readable"), Some(held.expires));
    assert_eq!(other.next_expiry().await.expect("readable"), Some(free.expires));
    let expire = async |outbox| match write(outbox, Write::Expire { now: NOW, limit: 10 }).await.expect("stored") {
        Written::Ended(ids) => ids,
        other => panic!("{other:?}"),
    };
    assert_eq!(expire(&other).await, [free.id]);
    assert_eq!(other.next_expiry().await.expect("readable"), None);
    assert_eq!(expire(&owner).await, [held.id]);
}

#[tokio::test]
async fn a_transaction_by_an_old_snapshot_may_not_join_a_key() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let mut stranger = schema.stranger().await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut open = stranger.begin().await.expect("a transaction");
        open.execute(AssertSqlSafe(format!("SET TRANSACTION ISOLATION LEVEL {level}"))).await.expect("set");
        let refused = outbox.insert_in(Connection::Postgres(&mut open), Arc::new(in_order())).await;
        assert!(refused.is_err_and(|error| crate::engine::chain(&error).contains("READ COMMITTED")), "{level}");
        let unordered = outbox.insert_in(Connection::Postgres(&mut open), Arc::new(task("a"))).await;
        assert!(unordered.is_ok(), "{unordered:?}");
        open.commit().await.expect("committed");
    }
}

#[tokio::test]
async fn what_the_outbox_writes_sees_others_whatever_the_databases_default() {
    let Some(schema) = Schema::new().await else { return };
    let url = format!("{}%20-cdefault_transaction_isolation%3Dserializable", schema.url);
    let outbox = PostgresOutbox::connect(&url).await.expect("it opens");
    let mut transaction = outbox.0.pool.begin_with(super::apply::BEGIN_BATCH).await.expect("a transaction");
    assert!(super::apply::sees_others(&mut transaction).await.expect("readable"));
}

#[tokio::test]
async fn one_bad_write_fails_alone() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.open().await;
    let rows: Vec<Row> = (0..50).map(|_| task("a")).collect();
    insert(&outbox, &rows[31]).await.expect("stored");
    let stored = join_all(rows.iter().map(|row| insert(&outbox, row))).await;
    let failed: Vec<usize> = stored.iter().enumerate().filter(|(_, it)| it.is_err()).map(|(place, _)| place).collect();
    assert_eq!(failed, [31]);
    assert!(stored[31].as_ref().is_err_and(|error| !error.is_unknown()));
    for row in &rows {
        find(&outbox, row).await;
    }
}

#[tokio::test]
async fn text_with_a_nul_is_stored_and_read_back() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let mut row = Row { owner: Some("\0\u{1}".into()), ..task("a") };
    let context = Context { operation: "\0".into(), ..Context::default() };
    row.work = Some(Arc::new(Request { context, payload: Payload::from("\0") }));
    insert(&outbox, &row).await.expect("stored");
    let strange = Row { worker: Some("b\0".into()), ..task("b") };
    insert(&outbox, &strange).await.expect("stored");
    assert_eq!(outbox.waiting_workers().await.expect("readable").len(), 2);
    let kept = claim(&outbox).await.remove(0);
    assert_eq!((&kept.owner, &kept.work), (&row.owner, &row.work));

    let delivering = Write::Result {
        id: row.id,
        token: kept.token,
        to: Stage::Delivering,
        held: true,
        now: NOW,
        result: result(&row),
        order: None,
        events: Vec::new(),
    };
    write(&outbox, delivering).await.expect("stored");
    let kept = find(&outbox, &row).await;
    assert!(matches!(settle(&outbox, &kept, Stage::Dead, Some("it said \0")).await, Written::Done));
    let letter = outbox.dead_letter(row.id).await.expect("readable").expect("dead");
    assert_eq!(letter.attempts[0].reason, "it said \0");
}

#[tokio::test]
async fn a_connection_lost_in_the_commit_leaves_the_outcome_unknown() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.open().await;
    let mut stranger = schema.stranger().await;
    let end = "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS \
               $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$; \
               CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON callback_outbox DEFERRABLE INITIALLY DEFERRED \
               FOR EACH ROW EXECUTE FUNCTION lose()";
    stranger.execute(end).await.expect("writable");
    let error = insert(&outbox, &task("a")).await.expect_err("the connection is lost");
    assert!(error.is_unknown(), "{error:?}");
    stranger.execute("DROP TRIGGER lose ON callback_outbox").await.expect("writable");
    insert(&outbox, &task("a")).await.expect("there is another connection");
}

#[tokio::test]
async fn connections_that_were_lost_are_opened_again() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let row = task("a");
    insert(&outbox, &row).await.expect("stored");
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&outbox.0.pool).await.expect("readable");
    let mut stranger = schema.stranger().await;
    sqlx::query("SELECT pg_terminate_backend($1, 5000)").bind(pid).execute(&mut stranger).await.expect("ended");
    find(&outbox, &row).await;
    assert_eq!(claim(&outbox).await.len(), 1);
    outbox.0.process.renew(&outbox.0.pool).await.expect("renewed");
}

#[tokio::test]
async fn an_error_quotes_nothing_of_a_row() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.open().await;
    let refuse = "ALTER TABLE callback_outbox ADD CHECK (worker <> 'a')";
    schema.stranger().await.execute(refuse).await.expect("writable");
    let error = insert(&outbox, &task("a")).await.expect_err("refused");
    let told = format!("{error:?} {}", crate::engine::chain(&error));
    assert!(told.contains("23514") && !told.contains("hunter2"), "{told}");
}

#[tokio::test]
async fn many_may_open_a_new_database_at_once() {
    let Some(schema) = Schema::new().await else { return };
    join_all((0..8).map(|_| schema.open())).await;
}

#[tokio::test]
async fn a_role_that_reads_and_writes_may_open_what_another_has_made() {
    let Some(schema) = Schema::new().await else { return };
    let role = format!("role_{}", TaskId::new().to_string().replace('-', "_"));
    let url = format!("{}%20-crole%3D{role}", schema.url);
    let mut stranger = schema.stranger().await;
    let name: String = sqlx::query_scalar("SELECT current_schema()").fetch_one(&mut stranger).await.expect("readable");
    let grant = |what: &str| AssertSqlSafe(format!("GRANT {what} {name} TO {role}"));
    stranger.execute(AssertSqlSafe(format!("CREATE ROLE {role}"))).await.expect("a role");
    stranger.execute(grant("USAGE ON SCHEMA")).await.expect("granted");
    PostgresOutbox::connect(&url).await.expect_err("there are no tables, and it may not make them");

    schema.open().await;
    stranger.execute(grant("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA")).await.expect("granted");
    let outbox = PostgresOutbox::connect(&url).await.expect("it opens");
    outbox.start().await.expect("started");
    insert(&outbox, &task("a")).await.expect("stored");
    assert_eq!(claim(&outbox).await.len(), 1);
    outbox.close().await;
    let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    stranger.execute(AssertSqlSafe(drop)).await.expect("dropped");
}

#[tokio::test]
async fn tables_of_another_version_are_not_opened() {
    let Some(schema) = Schema::new().await else { return };
    schema.open().await;
    for change in [
        "UPDATE callback_dispatch_migrations SET version = 99",
        "UPDATE callback_dispatch_migrations SET version = 1, checksum = ''",
    ] {
        schema.stranger().await.execute(change).await.expect("writable");
        PostgresOutbox::connect(&schema.url).await.expect_err("another version");
    }
}

#[tokio::test]
async fn a_session_that_may_lose_what_it_stored_is_refused_unless_it_is_allowed() {
    let Some(schema) = Schema::new().await else { return };
    let url = format!("{}%20-csynchronous_commit%3Doff", schema.url);
    let error = PostgresOutbox::connect(&url).await.expect_err("not durable");
    let told = crate::engine::chain(&error);
    assert!(told.contains("fsync=on and synchronous_commit=off"), "{told}");
    PostgresOutbox::builder().allow_lost_commits().connect(&url).await.expect("it is allowed");
    PostgresOutbox::connect(&url.replace("off", "local")).await.expect("local is durable");
}

#[test]
fn only_what_a_crash_keeps_is_durable() {
    for commit in ["on", "local", "remote_write", "remote_apply"] {
        assert!(is_durable("on", commit), "{commit}");
        assert!(!is_durable("off", commit), "{commit}");
    }
    assert!(!is_durable("on", "off"));
}

#[tokio::test]
async fn an_outbox_has_one_dispatcher_a_database_has_many() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    assert!(outbox.start().await.is_err_and(|error| error.is_locked()));
    schema.started().await;
}

#[cfg(feature = "seal")]
#[tokio::test]
async fn a_sealed_database_needs_its_keys_and_is_sealed_anew_by_another() {
    let Some(schema) = Schema::new().await else { return };
    let (old, new) = ([1; 32], [2; 32]);
    let open = async |keys: crate::SealKeys| PostgresOutbox::builder().seal(keys).connect(&schema.url).await;
    let keys = crate::SealKeys::new("old", &old).expect("a valid id");
    let row = task("a");
    insert(&schema.open().await, &row).await.expect("stored");
    let outbox = open(keys).await.expect("what is plain stays readable");
    outbox.start().await.expect("started");
    let sealed = Row { result: Some(result(&row)), stage: Stage::Delivering, ..task("a") };
    insert(&outbox, &sealed).await.expect("stored");
    assert!(matches!(settle(&outbox, &sealed, Stage::Dead, Some("secret reason")).await, Written::Done));
    assert!(PostgresOutbox::connect(&schema.url).await.is_err_and(|error| error.is_sealed()));
    let other = crate::SealKeys::new("old", &new).expect("a valid id");
    assert!(open(other).await.is_err_and(|error| error.is_sealed()), "another key under its id");

    let both = crate::SealKeys::new("new", &new).and_then(|keys| keys.older("old", &old)).expect("valid ids");
    let changed = open(both).await.expect("it has all keys").reseal().await.expect("resealed");
    assert_eq!(changed, 3, "two rows and an attempt");
    let outbox = open(crate::SealKeys::new("new", &new).expect("a valid id")).await.expect("the old key may go");
    assert_eq!(find(&outbox, &row).await.work, row.work);
    let letter = outbox.dead_letter(sealed.id).await.expect("readable").expect("dead");
    assert_eq!(letter.attempts[0].reason, "secret reason");
    let plain = "SELECT count(*) FROM callback_outbox WHERE get_byte(dsn, 0) <> 255";
    let plain: i64 = sqlx::query_scalar(plain).fetch_one(&outbox.0.pool).await.expect("readable");
    assert_eq!(plain, 0);
}

fn subscription(dsn: &str) -> SubscriptionRow {
    SubscriptionRow {
        id: SubscriptionId(TaskId::new()),
        revision: 0,
        owner: None,
        dsn: dsn.parse().expect("a Dsn"),
        once: false,
        ordered: false,
        stops: false,
        active: true,
        spent: false,
        ended: None,
        ended_at: None,
        created_at: NOW,
        expires: Micros::NEVER,
        sequence: 0,
        detail: Detail::default(),
    }
}

async fn subscribe(outbox: &PostgresOutbox, row: &SubscriptionRow) {
    let subscribe = Write::Subscribe { row: Arc::new(row.clone()), limit: usize::MAX };
    assert!(write(outbox, subscribe).await.expect("stored").is_done());
}

fn to_all() -> FanOut {
    let id = TaskId::new();
    let message = Message::builder("a.b").id(id.into()).payload("event").build().expect("a message");
    let stored = Arc::new(Stored { message, failed: false, traceparent: None, service: None, kept: None });
    FanOut { id, stored, owner: None, key: None, now: NOW, expires: Micros::NEVER }
}

/// What the ordering keys of a subscription are locked by.
fn lock_of(row: &SubscriptionRow) -> i64 {
    let key = to_all().order_key(row).expect("it is in order").0;
    i64::from_be_bytes(*key.first_chunk().expect("it has sixteen bytes"))
}

#[tokio::test]
async fn an_event_joins_no_key_that_another_may_be_leaving() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let first = SubscriptionRow { ordered: true, ..subscription("https://a.example/") };
    let mut second = SubscriptionRow { ordered: true, active: false, ..subscription("https://b.example/") };
    while lock_of(&second) == lock_of(&first) {
        second.id = SubscriptionId(TaskId::new());
    }
    subscribe(&outbox, &first).await;
    subscribe(&outbox, &second).await;
    let mut holder = schema.stranger().await;
    let mut held = holder.begin().await.expect("a transaction");
    let lock = |key: i64| AssertSqlSafe(format!("SELECT pg_advisory_xact_lock({key})"));
    held.execute(lock(lock_of(&first))).await.expect("locked");

    let mut user = schema.stranger().await;
    let mut open = user.begin().await.expect("a transaction");
    let event = to_all();
    let mut publishing = Box::pin(outbox.publish_in(Connection::Postgres(&mut open), &event));
    let mut watcher = schema.stranger().await;
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                 AND objid::bigint = $1 & 4294967295 AND classid::bigint = $1 >> 32";
    let key = lock_of(&first);
    let waiting = async {
        let waits = || sqlx::query_scalar::<_, i64>(waits).bind(key);
        while waits().fetch_one(&mut watcher).await.expect("readable") == 0 {}
    };
    tokio::select! {
        _ = &mut publishing => panic!("it waits for the first key"),
        () = waiting => {}
    }
    // Meanwhile the second gets events again, and what it got before is about to leave its key.
    let resumed = SubscriptionRow { revision: 1, active: true, ..second.clone() };
    assert!(write(&outbox, Write::ChangeSubscription(Arc::new(resumed))).await.expect("stored").is_done());
    let mut leaver = schema.stranger().await;
    let mut leaving = leaver.begin().await.expect("a transaction");
    leaving.execute(lock(lock_of(&second))).await.expect("locked");
    held.rollback().await.expect("rolled back");
    assert_eq!(publishing.await.expect("published"), 1, "nothing joins the second key unseen");
    open.commit().await.expect("committed");
    leaving.rollback().await.expect("rolled back");
    let Written::Count(count) = write(&outbox, Write::Publish(Arc::new(to_all()))).await.expect("stored") else {
        panic!("a count")
    };
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_subscription_is_kept_for_an_event_whose_transaction_is_open() {
    let Some(schema) = Schema::new().await else { return };
    let outbox = schema.started().await;
    let row = SubscriptionRow { expires: NOW.after(Duration::from_secs(1)), ..subscription("https://a.example/") };
    subscribe(&outbox, &row).await;
    let mut user = schema.stranger().await;
    let mut open = user.begin().await.expect("a transaction");
    let published = outbox.publish_in(Connection::Postgres(&mut open), &to_all()).await;
    assert_eq!(published.expect("published"), 1);
    let late = NOW.after(Duration::from_secs(60));
    let clean = || Write::Clean { now: late, before: late, keyed_before: late, breakers_before: late, limit: 10 };
    write(&outbox, clean()).await.expect("stored");
    open.commit().await.expect("committed");
    write(&outbox, clean()).await.expect("stored");
    let claimed = claim(&outbox).await;
    assert_eq!(claimed.len(), 1, "it can be read");
    assert!(matches!(settle(&outbox, &claimed[0], Stage::Delivered, None).await, Written::Done));
    write(&outbox, clean()).await.expect("stored");
    write(&outbox, clean()).await.expect("stored");
    assert!(outbox.subscription(row.id).await.expect("readable").is_none());
}
