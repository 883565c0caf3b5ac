//! What every outbox promises, a clause each; and outboxes that break one, to see that it is noticed.

mod attachments;

use super::{
    Attaching, Claim, Done, Keep, Keeping, MemoryOutbox, NotQueued, OutboxError, Parked, Parking, Settle, SqliteOutbox,
    Store, Write, Written, take, write,
};
use crate::{
    AcceptError,
    clock::Micros,
    dead_letter::{Cursor, DeadLetter, DeadLetterQuery, Page},
    lane::{LaneKey, OpenBreaker, StoredConsent},
    row::{FailedRow, Order, OrderKey, Published, Request, Row, Stage, Stored},
    subscription::{Detail, FanOut, KeptSecret, SubscriptionEnd, SubscriptionId, SubscriptionQuery, SubscriptionRow},
    transaction::Connection,
    work::Context,
};
use async_trait::async_trait;
use attachments::{
    a_dsn_that_nobody_attached_is_unknown, an_attachment_outlives_who_had_it, attachments_of_long_ago_are_deleted,
    no_more_are_due_at_once_than_are_asked_for, nobody_comes_back_to_what_is_over,
    what_goes_to_a_client_that_is_away_waits_until_its_time_is_over, what_is_elsewhere_is_not_parked,
    what_waits_for_a_dsn_is_due_when_it_is_attached, what_was_passed_over_by_its_attachment_is_due_soon,
    who_comes_back_shows_the_secret_or_the_one_before, who_was_replaced_keeps_nothing,
};
use callback_core::{Destination, Dsn, ErrorKind, Message, Payload, TaskId};
use futures_util::{FutureExt, future::BoxFuture};
use std::{collections::BTreeSet, num::NonZeroU32, panic::AssertUnwindSafe, sync::Arc, time::Duration};

/// A clause: it panics on an outbox that does not keep it.
type Clause = for<'a> fn(&'a dyn Store) -> BoxFuture<'a, ()>;

macro_rules! clauses {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), |store| Box::pin($name(store)))),*] };
}

const CLAUSES: &[(&str, Clause)] = clauses![
    a_row_is_kept_as_it_was_stored,
    a_claim_takes_a_row_once,
    what_is_not_due_is_not_claimed,
    the_oldest_are_claimed_first,
    only_what_has_a_worker_here_is_claimed,
    lanes_that_are_left_out_are_not_claimed,
    what_is_held_is_not_claimed,
    an_old_token_changes_nothing,
    the_first_end_wins,
    events_are_stored_with_their_result_and_not_without,
    recovery_gives_back_what_was_held_and_counts_it,
    a_dead_letter_has_its_attempts,
    a_replay_begins_anew,
    one_of_a_key_is_due_at_a_time,
    what_a_key_held_back_has_its_age_from_its_turn_on,
    one_that_is_dead_stops_its_key_where_it_shall,
    open_breakers_are_kept,
    what_is_old_ends_in_the_lanes_that_are_named,
    what_its_key_held_back_is_as_old_in_a_lane_that_is_closed,
    the_next_due_time_is_told,
    deferred_work_waits_for_its_result,
    what_is_purged_is_gone_and_lets_its_key_go,
    what_waits_for_a_dsn_that_is_gone_is_buried,
    what_is_not_over_in_time_expires,
    what_ended_long_ago_is_deleted,
    what_is_confirmed_is_stored_and_what_is_not_never_was,
    an_event_that_is_confirmed_is_stored_and_what_nobody_wants_never_is,
    what_a_claim_took_is_given_back_unless_it_went_on,
    a_claim_takes_what_there_is_room_for_and_one_at_least,
    breakers_of_long_ago_are_deleted,
    a_consent_is_kept_until_it_was_over_long_ago,
    a_subscription_is_kept_as_it_was_stored,
    a_change_counts_if_nobody_else_changed_it,
    the_first_end_of_a_subscription_wins,
    subscriptions_are_listed_by_owner_a_page_at_a_time,
    a_page_ends_where_it_has_enough_bytes,
    an_owner_has_as_many_subscriptions_as_it_may,
    an_event_reaches_those_that_want_it_and_no_others,
    deliveries_of_an_event_share_it_and_have_ids_of_their_own,
    one_for_one_event_gets_one,
    one_for_one_event_ends_with_it_whatever_becomes_of_it,
    those_in_order_get_their_events_one_at_a_time_and_numbered,
    events_of_one_key_reach_each_one_at_a_time,
    a_dsn_that_is_gone_ends_its_subscriptions,
    a_subscription_is_kept_as_long_as_a_row_of_it,
    published_events_are_stored_with_their_result_and_not_without,
    what_waits_for_a_dsn_is_due_when_it_is_attached,
    no_more_are_due_at_once_than_are_asked_for,
    what_goes_to_a_client_that_is_away_waits_until_its_time_is_over,
    what_was_passed_over_by_its_attachment_is_due_soon,
    nobody_comes_back_to_what_is_over,
    a_dsn_that_nobody_attached_is_unknown,
    who_comes_back_shows_the_secret_or_the_one_before,
    who_was_replaced_keeps_nothing,
    an_attachment_outlives_who_had_it,
    what_is_elsewhere_is_not_parked,
    attachments_of_long_ago_are_deleted,
];

const NOW: Micros = Micros(1_000_000);
const DSN: &str = "custom://a/path";
const OTHER: &str = "custom://b/path";

fn event(dsn: &str) -> Row {
    let (id, dsn) = (TaskId::new(), dsn.parse::<Dsn>().expect("a Dsn"));
    Row {
        id,
        token: 0,
        stage: Stage::Delivering,
        held: false,
        due: NOW,
        worker: None,
        owner: Some("owner".into()),
        dsn: Some(dsn),
        starts: 0,
        attempts: 0,
        accepted_at: NOW,
        first_due: NOW,
        expires: Micros::NEVER,
        order: None,
        idempotency: None,
        subscribed: None,
        work: None,
        result: Some(message(id)),
    }
}

fn task(worker: &str) -> Row {
    let work = Request { context: Context::default(), payload: Payload::new("text/plain", "work") };
    let row = event(DSN);
    Row { stage: Stage::Accepted, worker: Some(worker.into()), work: Some(Arc::new(work)), result: None, ..row }
}

fn message(id: TaskId) -> Arc<Stored> {
    let message = Message::builder("a.b").id(id.into()).payload("result").build().expect("a message");
    Arc::new(Stored { message, failed: false, traceparent: None, service: None, kept: None })
}

fn in_order(number: u8, stops: bool) -> Row {
    let row = event(DSN);
    let key = OrderKey::new(row.dsn.as_ref().expect("a Dsn"), "key");
    Row { order: Some(Order { key, stops }), owner: Some(number.to_string().into()), ..row }
}

fn lane(dsn: &str) -> LaneKey {
    event(dsn).lane().expect("a lane")
}

async fn done(store: &dyn Store, step: Write) -> bool {
    matches!(write(store, step).await.expect("stored"), Written::Done)
}

async fn count(store: &dyn Store, step: Write) -> u64 {
    match write(store, step).await.expect("stored") {
        Written::Count(count) => count,
        other => panic!("{other:?}"),
    }
}

async fn ended(store: &dyn Store, step: Write) -> Vec<TaskId> {
    match write(store, step).await.expect("stored") {
        Written::Ended(ended) => ended,
        other => panic!("{other:?}"),
    }
}

async fn insert(store: &dyn Store, row: &Row) {
    assert!(done(store, Write::Insert(Arc::new(row.clone()))).await);
}

async fn find(store: &dyn Store, id: TaskId) -> Option<Row> {
    store.find(id).await.expect("readable")
}

async fn kept(store: &dyn Store, id: TaskId) -> Row {
    find(store, id).await.expect("the row is kept")
}

async fn claim_by(store: &dyn Store, now: Micros, workers: &[&str], left_out: Vec<LaneKey>) -> Vec<Row> {
    let workers = workers.iter().map(|name| (*name).into()).collect();
    take(store, Claim { number: 0, now, limit: 10, bytes: usize::MAX, workers, left_out, found: None }).await
}

async fn claim(store: &dyn Store) -> Vec<Row> {
    claim_by(store, NOW, &["worker"], Vec::new()).await
}

async fn claimed_ids(store: &dyn Store) -> Vec<TaskId> {
    claim(store).await.iter().map(|row| row.id).collect()
}

/// A step to `to` of a row that was claimed.
fn settle(row: &Row, to: Stage) -> Settle {
    let failed = (to == Stage::Dead).then(|| FailedRow {
        number: row.attempts + 1,
        time: NOW,
        took: Duration::from_micros(5),
        kind: ErrorKind::Refused,
        phase: None,
        status: Some(400),
        reason: "no".into(),
    });
    let (id, token, from, attempts, order) = (row.id, row.token, row.stage, row.attempts + 1, row.order);
    let kind = failed.as_ref().map(|failed| failed.kind);
    Settle { id, token, from, to, held: false, due: row.due, attempts, now: NOW, kind, failed, order }
}

fn result(row: &Row, token: u32, events: Vec<Published>) -> Write {
    let (id, order) = (row.id, row.order);
    Write::Result { id, token, to: Stage::Delivering, held: false, now: NOW, result: message(id), order, events }
}

async fn a_row_is_kept_as_it_was_stored(store: &dyn Store) {
    for row in [task("worker"), event(DSN), in_order(1, true)] {
        insert(store, &row).await;
        let kept = kept(store, row.id).await;
        assert_eq!(format!("{kept:?}"), format!("{row:?}"));
        assert_eq!(kept.dsn.map(|dsn| dsn.expose().to_owned()), Some(DSN.to_owned()));
    }
    assert!(find(store, TaskId::new()).await.is_none());
}

async fn a_claim_takes_a_row_once(store: &dyn Store) {
    let row = event(DSN);
    insert(store, &row).await;
    let claimed = claim(store).await;
    assert_eq!(claimed.iter().map(|row| (row.id, row.token, row.held)).collect::<Vec<_>>(), [(row.id, 1, true)]);
    assert!(claim(store).await.is_empty());
}

async fn what_is_not_due_is_not_claimed(store: &dyn Store) {
    insert(store, &Row { due: Micros(NOW.0 + 1), ..event(DSN) }).await;
    assert!(claim(store).await.is_empty());
}

async fn the_oldest_are_claimed_first(store: &dyn Store) {
    let rows: Vec<Row> = (0..20).map(|age| Row { due: Micros(NOW.0 - age), ..event(DSN) }).collect();
    for row in &rows {
        insert(store, row).await;
    }
    let oldest: Vec<TaskId> = rows.iter().rev().take(10).map(|row| row.id).collect();
    assert_eq!(claimed_ids(store).await, oldest);
}

async fn only_what_has_a_worker_here_is_claimed(store: &dyn Store) {
    let (here, elsewhere) = (task("worker"), task("other"));
    insert(store, &here).await;
    insert(store, &elsewhere).await;
    assert_eq!(claimed_ids(store).await, [here.id]);
    assert_eq!(store.waiting_workers().await.expect("readable"), ["other"]);
}

async fn lanes_that_are_left_out_are_not_claimed(store: &dyn Store) {
    let (left_out, taken) = (event(DSN), event(OTHER));
    let others = Row { owner: None, ..event(DSN) };
    for row in [&left_out, &taken, &others] {
        insert(store, row).await;
    }
    let claimed = claim_by(store, NOW, &[], vec![lane(DSN)]).await;
    assert_eq!(claimed.iter().map(|row| row.id).collect::<Vec<_>>(), [taken.id, others.id]);
}

async fn what_is_held_is_not_claimed(store: &dyn Store) {
    insert(store, &Row { held: true, ..event(DSN) }).await;
    assert!(claim(store).await.is_empty());
}

async fn an_old_token_changes_nothing(store: &dyn Store) {
    let (one, two) = (event(DSN), task("worker"));
    insert(store, &one).await;
    insert(store, &two).await;
    assert_eq!(claim(store).await.len(), 2);
    let before = (kept(store, one.id).await, kept(store, two.id).await);
    assert!(!done(store, Write::Settle(settle(&one, Stage::Delivered))).await);
    assert!(!done(store, result(&two, two.token, Vec::new())).await);
    assert!(!done(store, Write::Defer { id: two.id, token: two.token, events: Vec::new() }).await);
    let after = (kept(store, one.id).await, kept(store, two.id).await);
    assert_eq!(format!("{after:?}"), format!("{before:?}"));
}

async fn the_first_end_wins(store: &dyn Store) {
    let row = task("worker");
    insert(store, &row).await;
    let claimed = claim(store).await.remove(0);
    assert!(done(store, Write::Cancel { id: row.id, now: NOW }).await);
    assert!(!done(store, result(&claimed, claimed.token, Vec::new())).await);
    assert!(!done(store, Write::Settle(settle(&claimed, Stage::Delivered))).await);
    assert!(!done(store, Write::Cancel { id: row.id, now: NOW }).await);
    assert_eq!(kept(store, row.id).await.stage, Stage::Cancelled);
}

async fn events_are_stored_with_their_result_and_not_without(store: &dyn Store) {
    let (row, stored, refused) = (task("worker"), event(OTHER), event(OTHER));
    insert(store, &row).await;
    let claimed = claim(store).await.remove(0);
    assert!(!done(store, result(&claimed, 0, vec![Published::To(Arc::new(refused.clone()))])).await);
    assert!(done(store, result(&claimed, claimed.token, vec![Published::To(Arc::new(stored.clone()))])).await);
    assert!(find(store, refused.id).await.is_none());
    assert_eq!(kept(store, stored.id).await.stage, Stage::Delivering);
    assert_eq!(kept(store, row.id).await.stage, Stage::Delivering);
}

async fn recovery_gives_back_what_was_held_and_counts_it(store: &dyn Store) {
    let (running, delivering) = (task("worker"), event(DSN));
    insert(store, &running).await;
    insert(store, &delivering).await;
    claim(store).await;
    assert!(done(store, Write::Recover).await);
    let (running, delivering) = (kept(store, running.id).await, kept(store, delivering.id).await);
    assert_eq!((running.held, running.starts, running.token), (false, 1, 2));
    assert_eq!((delivering.held, delivering.starts, delivering.token), (false, 0, 2));
    assert_eq!(claim(store).await.len(), 2);
}

async fn dead(store: &dyn Store, row: &Row) -> Row {
    insert(store, row).await;
    let claimed = claim(store).await.remove(0);
    assert!(done(store, Write::Settle(settle(&claimed, Stage::Dead))).await);
    claimed
}

async fn a_dead_letter_has_its_attempts(store: &dyn Store) {
    let row = dead(store, &event(DSN)).await;
    let letters = store.dead_letters(&DeadLetterQuery::default()).await.expect("readable");
    assert_eq!(letters.items.len(), 1);
    let letter = store.dead_letter(row.id).await.expect("readable").expect("it is dead");
    assert_eq!((letter.id, &letter.message), (row.id, &row.result.expect("a message").message));
    assert_eq!(letter.attempts.iter().map(|attempt| attempt.status).collect::<Vec<_>>(), [Some(400)]);
}

async fn a_replay_begins_anew(store: &dyn Store) {
    let row = dead(store, &event(DSN)).await;
    let later = Micros(NOW.0 + 9);
    assert_eq!(count(store, Write::Replay { ids: vec![row.id], now: later }).await, 1);
    assert_eq!(count(store, Write::Replay { ids: vec![row.id], now: later }).await, 0);
    let replayed = kept(store, row.id).await;
    assert_eq!((replayed.stage, replayed.attempts, replayed.held), (Stage::Delivering, 0, false));
    assert_eq!((replayed.due, replayed.first_due), (later, later));
    assert!(replayed.token > row.token, "what was in hand before must not count");
}

async fn one_of_a_key_is_due_at_a_time(store: &dyn Store) {
    let rows: Vec<Row> = (0..3).map(|number| in_order(number, false)).collect();
    for row in &rows {
        insert(store, row).await;
    }
    for (row, end) in rows.iter().zip([Stage::Delivered, Stage::Dead, Stage::Delivered]) {
        let claimed = claim(store).await;
        assert_eq!(claimed.iter().map(|row| row.id).collect::<Vec<_>>(), [row.id]);
        assert!(done(store, Write::Settle(settle(&claimed[0], end))).await);
    }
}

async fn what_a_key_held_back_has_its_age_from_its_turn_on(store: &dyn Store) {
    type End = fn(&Row, Micros) -> Write;
    let ends: [(u8, End); 4] = [
        (0, |row, now| Write::Settle(Settle { now, ..settle(row, Stage::Dead) })),
        (1, |row, now| Write::Cancel { id: row.id, now }),
        (2, |row, now| Write::Bury { dsn: DSN.parse().expect("a Dsn"), now, limit: usize::from(row.held) }),
        (3, |row, now| Write::Settle(Settle { now, ..settle(row, Stage::Delivered) })),
    ];
    let rows: Vec<Row> = (0..5).map(|number| in_order(number, false)).collect();
    for row in &rows {
        insert(store, row).await;
    }
    for (number, end) in ends {
        let (row, next) = (&rows[usize::from(number)], &rows[usize::from(number) + 1]);
        assert_eq!(kept(store, next.id).await.first_due, next.first_due, "it waits");
        let now = Micros(NOW.0 + 1 + i64::from(number));
        let claimed = claim_by(store, now, &[], Vec::new()).await.remove(0);
        assert_eq!(claimed.id, row.id);
        // What is buried is in nobody's hands.
        let released = Settle { attempts: 0, failed: None, kind: None, ..settle(&claimed, Stage::Delivering) };
        assert!(number != 2 || done(store, Write::Settle(released)).await);
        write(store, end(&claimed, now)).await.expect("stored");
        let next = kept(store, next.id).await;
        assert_eq!((next.due, next.first_due), (now, now));
    }
}

async fn one_that_is_dead_stops_its_key_where_it_shall(store: &dyn Store) {
    let rows: Vec<Row> = (0..2).map(|number| in_order(number, true)).collect();
    insert(store, &rows[0]).await;
    insert(store, &rows[1]).await;
    let claimed = claim(store).await.remove(0);
    assert!(done(store, Write::Settle(settle(&claimed, Stage::Dead))).await);
    assert!(claim(store).await.is_empty());
    assert_eq!(count(store, Write::Replay { ids: vec![rows[0].id], now: NOW }).await, 1);
    let claimed = claim(store).await;
    assert_eq!(claimed.iter().map(|row| row.id).collect::<Vec<_>>(), [rows[0].id]);
    assert!(done(store, Write::Settle(settle(&claimed[0], Stage::Delivered))).await);
    assert_eq!(claimed_ids(store).await, [rows[1].id]);
}

async fn open_breakers_are_kept(store: &dyn Store) {
    for times in [1, 2] {
        let open = OpenBreaker { lane: lane(DSN), times, until: NOW };
        assert!(done(store, Write::OpenBreaker(open)).await);
    }
    assert!(done(store, Write::OpenBreaker(OpenBreaker { lane: lane(OTHER), times: 1, until: NOW })).await);
    assert!(done(store, Write::CloseBreaker(lane(OTHER))).await);
    let kept = store.breakers().await.expect("readable");
    assert_eq!(kept.iter().map(|it| (&it.lane, it.times, it.until)).collect::<Vec<_>>(), [(&lane(DSN), 2, NOW)]);
}

async fn what_is_old_ends_in_the_lanes_that_are_named(store: &dyn Store) {
    let old = Row { first_due: Micros(NOW.0 - 100), ..event(DSN) };
    let elsewhere = Row { first_due: Micros(NOW.0 - 100), ..event(OTHER) };
    let young = event(DSN);
    for row in [&old, &elsewhere, &young] {
        insert(store, row).await;
    }
    let age = Write::Age { lanes: vec![lane(DSN)], before: Micros(NOW.0 - 50), now: NOW, limit: 10 };
    assert_eq!(ended(store, age).await, [old.id]);
    assert_eq!(kept(store, old.id).await.stage, Stage::Dead);
    assert_eq!(kept(store, young.id).await.stage, Stage::Delivering);
    assert_eq!(kept(store, elsewhere.id).await.stage, Stage::Delivering);
}

async fn what_its_key_held_back_is_as_old_in_a_lane_that_is_closed(store: &dyn Store) {
    let rows: Vec<Row> = (1..4)
        .map(|number| Row { owner: event(DSN).owner, first_due: Micros(NOW.0 - 100), ..in_order(number, false) })
        .collect();
    for row in &rows {
        insert(store, row).await;
    }
    for row in &rows {
        let age = Write::Age { lanes: vec![lane(DSN)], before: Micros(NOW.0 - 50), now: NOW, limit: 10 };
        assert_eq!(ended(store, age).await, [row.id]);
    }
}

async fn the_next_due_time_is_told(store: &dyn Store) {
    assert_eq!(store.next_due(Micros(0)).await.expect("readable"), None);
    for due in [NOW, Micros(NOW.0 + 5), Micros::NEVER] {
        insert(store, &Row { due, ..event(DSN) }).await;
    }
    assert_eq!(store.next_due(Micros(0)).await.expect("readable"), Some(NOW));
    assert_eq!(store.next_due(NOW).await.expect("readable"), Some(Micros(NOW.0 + 5)));
    assert_eq!(store.next_due(Micros(NOW.0 + 5)).await.expect("readable"), None);
    assert_eq!(store.depth(NOW).await.expect("readable"), (3, Some(NOW)));
}

async fn deferred_work_waits_for_its_result(store: &dyn Store) {
    let row = task("worker");
    insert(store, &row).await;
    let claimed = claim(store).await.remove(0);
    assert!(done(store, Write::Defer { id: row.id, token: claimed.token, events: Vec::new() }).await);
    assert!(done(store, Write::Recover).await);
    assert!(claim_by(store, Micros(i64::MAX - 1), &["worker"], Vec::new()).await.is_empty());
    assert!(done(store, result(&claimed, claimed.token, Vec::new())).await);
    assert_eq!(claimed_ids(store).await, [row.id]);
}

async fn what_is_purged_is_gone_and_lets_its_key_go(store: &dyn Store) {
    let rows: Vec<Row> = (0..2).map(|number| in_order(number, true)).collect();
    insert(store, &rows[0]).await;
    insert(store, &rows[1]).await;
    let claimed = claim(store).await.remove(0);
    assert!(done(store, Write::Settle(settle(&claimed, Stage::Dead))).await);
    assert_eq!(count(store, Write::Purge { ids: vec![rows[0].id, rows[1].id], now: NOW }).await, 1);
    assert!(find(store, rows[0].id).await.is_none());
    assert_eq!(claimed_ids(store).await, [rows[1].id]);
}

async fn what_waits_for_a_dsn_that_is_gone_is_buried(store: &dyn Store) {
    let (free, elsewhere, held) = (event(DSN), event("custom://a/other"), Row { held: true, ..event(DSN) });
    for row in [&free, &elsewhere, &held] {
        insert(store, row).await;
    }
    let bury = Write::Bury { dsn: DSN.parse().expect("a Dsn"), now: NOW, limit: 10 };
    assert_eq!(ended(store, bury).await, [free.id]);
    let letter = store.dead_letter(free.id).await.expect("readable").expect("it is dead");
    assert_eq!(letter.kind, ErrorKind::Gone);
    assert_eq!(claimed_ids(store).await, [elsewhere.id]);
}

async fn what_is_not_over_in_time_expires(store: &dyn Store) {
    let late = Row { expires: Micros(NOW.0 - 1), ..task("worker") };
    let held = Row { expires: NOW, held: true, ..task("worker") };
    let early = Row { expires: Micros(NOW.0 + 1), ..task("worker") };
    for row in [&late, &held, &early] {
        insert(store, row).await;
    }
    assert_eq!(store.next_expiry().await.expect("readable"), Some(late.expires));
    let mut expired = ended(store, Write::Expire { now: NOW, limit: 10 }).await;
    expired.sort_unstable();
    let mut expected = [late.id, held.id];
    expected.sort_unstable();
    assert_eq!(expired, expected);
    assert_eq!(kept(store, late.id).await.stage, Stage::Expired);
    assert_eq!(store.next_expiry().await.expect("readable"), Some(early.expires));
    assert_eq!(claimed_ids(store).await, [early.id]);
}

async fn what_ended_long_ago_is_deleted(store: &dyn Store) {
    let (over, pending, letter) = (task("worker"), task("worker"), event(DSN));
    let dead = dead(store, &letter).await;
    insert(store, &over).await;
    insert(store, &pending).await;
    assert!(done(store, Write::Cancel { id: over.id, now: NOW }).await);
    let clean = |before| Write::Clean { now: NOW, before, keyed_before: before, breakers_before: before, limit: 10 };
    assert_eq!(count(store, clean(NOW)).await, 0);
    assert_eq!(count(store, clean(Micros(NOW.0 + 1))).await, 1);
    assert!(find(store, over.id).await.is_none());
    assert!(find(store, pending.id).await.is_some() && find(store, dead.id).await.is_some());
}

async fn what_is_confirmed_is_stored_and_what_is_not_never_was(store: &dyn Store) {
    let (row, lost) = (Row { held: true, ..task("worker") }, event(DSN));
    insert(store, &row).await;
    let before = kept(store, row.id).await;
    assert!(done(store, Write::Confirm { id: row.id }).await);
    assert_eq!(format!("{:?}", kept(store, row.id).await), format!("{before:?}"));
    let confirmed = write(store, Write::Confirm { id: lost.id }).await.expect("stored");
    assert!(matches!(confirmed, Written::Unknown), "{confirmed:?}");
    assert!(find(store, lost.id).await.is_none());
    insert(store, &lost).await;
    assert!(done(store, Write::Confirm { id: lost.id }).await);
}

async fn what_a_claim_took_is_given_back_unless_it_went_on(store: &dyn Store) {
    let claim = async |number| {
        let claim = Claim {
            number,
            now: NOW,
            limit: 2,
            bytes: usize::MAX,
            workers: vec!["worker".into()],
            left_out: Vec::new(),
            found: None,
        };
        take(store, claim).await
    };
    let held = Row { held: true, ..event(DSN) };
    insert(store, &held).await;
    for age in 0..4 {
        insert(store, &Row { due: Micros(NOW.0 - age), ..task("worker") }).await;
    }
    let (first, second) = (claim(7).await, claim(8).await);
    let (lost, begun) = (&first[0], &first[1]);
    let mark = Settle { held: true, attempts: 0, failed: None, ..settle(begun, Stage::Started) };
    assert!(done(store, Write::Settle(mark)).await);
    assert!(done(store, Write::GiveBack { claim: 7 }).await);
    let back = kept(store, lost.id).await;
    assert_eq!((back.held, back.token, back.starts), (false, lost.token + 1, 0));
    for row in [begun, &second[0], &second[1], &held] {
        let kept = kept(store, row.id).await;
        assert_eq!((kept.held, kept.token), (true, row.token), "{kept:?}");
    }
    assert!(!done(store, result(lost, lost.token, Vec::new())).await, "what was given back is nobody's");
    assert_eq!(claim(9).await.iter().map(|row| row.id).collect::<Vec<_>>(), [lost.id]);
}

async fn a_claim_takes_what_there_is_room_for_and_one_at_least(store: &dyn Store) {
    let large = |age: i64| {
        let row = task("worker");
        let work = Request { context: Context::default(), payload: Payload::new("text/plain", vec![b'a'; 10_000]) };
        Row { due: Micros(NOW.0 - age), work: Some(Arc::new(work)), ..row }
    };
    let rows: Vec<Row> = (0..5).map(large).collect();
    for row in &rows {
        insert(store, row).await;
    }
    let oldest: Vec<TaskId> = rows.iter().rev().map(|row| row.id).collect();
    for (bytes, expected) in [(1, &oldest[..1]), (25_000, &oldest[1..4]), (usize::MAX, &oldest[4..])] {
        let workers = vec!["worker".into()];
        let claim = Claim { number: 0, now: NOW, limit: 10, bytes, workers, left_out: Vec::new(), found: None };
        let taken: Vec<TaskId> = take(store, claim).await.iter().map(|row| row.id).collect();
        assert_eq!(taken, expected);
    }
}

async fn breakers_of_long_ago_are_deleted(store: &dyn Store) {
    for (to, until) in [(DSN, NOW), (OTHER, Micros(NOW.0 + 1))] {
        assert!(done(store, Write::OpenBreaker(OpenBreaker { lane: lane(to), times: 1, until })).await);
    }
    let clean = |breakers_before| Write::Clean { now: NOW, before: NOW, keyed_before: NOW, breakers_before, limit: 10 };
    count(store, clean(NOW)).await;
    assert_eq!(store.breakers().await.expect("readable").len(), 2);
    count(store, clean(Micros(NOW.0 + 1))).await;
    let kept = store.breakers().await.expect("readable");
    assert_eq!(kept.iter().map(|it| &it.lane).collect::<Vec<_>>(), [&lane(OTHER)]);
}

async fn a_consent_is_kept_until_it_was_over_long_ago(store: &dyn Store) {
    let consent = |dsn: &str, per_minute, until| {
        let destination = dsn.parse::<Dsn>().expect("a Dsn").destination();
        StoredConsent { destination, per_minute: NonZeroU32::new(per_minute), until }
    };
    let (limited, other) = (consent(DSN, 1, NOW), consent(OTHER, 7, Micros(NOW.0 + 1)));
    let stored = async |of: &StoredConsent| store.consent(&of.destination).await.expect("readable");
    assert_eq!(stored(&limited).await, None);
    for said in [&limited, &other] {
        assert!(done(store, Write::Consent(said.clone())).await);
        assert_eq!(stored(said).await.as_ref(), Some(said));
    }
    let unlimited = consent(DSN, 0, NOW);
    assert!(done(store, Write::Consent(unlimited.clone())).await);
    assert_eq!(stored(&limited).await.as_ref(), Some(&unlimited), "the last counts");
    let clean = |breakers_before| Write::Clean { now: NOW, before: NOW, keyed_before: NOW, breakers_before, limit: 10 };
    count(store, clean(NOW)).await;
    assert_eq!(stored(&unlimited).await.as_ref(), Some(&unlimited));
    count(store, clean(Micros(NOW.0 + 1))).await;
    assert_eq!(stored(&unlimited).await, None);
    assert_eq!(stored(&other).await.as_ref(), Some(&other));
}

fn subscription(dsn: &str) -> SubscriptionRow {
    let detail = Detail { meta: serde_json::json!({ "a": 1 }), profile: Some("hal".into()), ..Detail::default() };
    SubscriptionRow {
        id: SubscriptionId(TaskId::new()),
        revision: 0,
        owner: Some("owner".into()),
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
        detail,
    }
}

fn wanting(service: Option<&str>, events: &[&str]) -> SubscriptionRow {
    let row = subscription(DSN);
    let events = events.iter().map(|event| (*event).to_owned()).collect();
    SubscriptionRow { detail: Detail { service: service.map(str::to_owned), events, ..row.detail.clone() }, ..row }
}

fn to_all(event_type: &str, service: Option<&str>) -> FanOut {
    let id = TaskId::new();
    let message = Message::builder(event_type).id(id.into()).payload("event").build().expect("a message");
    let service = service.map(str::to_owned);
    let stored = Arc::new(Stored { message, failed: false, traceparent: None, service, kept: None });
    FanOut { id, stored, owner: None, key: None, now: NOW, expires: Micros::NEVER }
}

async fn subscribe(store: &dyn Store, row: &SubscriptionRow) {
    assert!(done(store, new_subscription(row)).await);
}

fn new_subscription(row: &SubscriptionRow) -> Write {
    Write::Subscribe { row: Arc::new(row.clone()), limit: usize::MAX }
}

async fn publish(store: &dyn Store, event: &FanOut) -> u64 {
    count(store, Write::Publish(Arc::new(event.clone()))).await
}

async fn subscribed(store: &dyn Store, row: &SubscriptionRow) -> SubscriptionRow {
    store.subscription(row.id).await.expect("readable").expect("it is kept")
}

async fn a_subscription_is_kept_as_it_was_stored(store: &dyn Store) {
    let secret = KeptSecret { secret: "secret".into(), until: 7 };
    let plain = subscription(DSN);
    let detail = Detail { topic: true, secrets: vec![secret], ..plain.detail.clone() };
    let expires = Micros(NOW.0 + 1);
    let full =
        SubscriptionRow { once: true, ordered: true, stops: true, expires, owner: None, detail, ..subscription(OTHER) };
    for row in [plain, full] {
        subscribe(store, &row).await;
        let kept = subscribed(store, &row).await;
        assert_eq!((format!("{kept:?}"), kept.kept()), (format!("{row:?}"), row.kept()));
    }
    assert!(store.subscription(subscription(DSN).id).await.expect("readable").is_none());
}

async fn a_change_counts_if_nobody_else_changed_it(store: &dyn Store) {
    let row = wanting(None, &["a.b"]);
    subscribe(store, &row).await;
    let detail = Detail { events: vec!["c.d".into()], ..row.detail.clone() };
    let changed = SubscriptionRow { revision: 1, active: true, expires: Micros(NOW.0 + 9), detail, ..row.clone() };
    assert!(done(store, Write::ChangeSubscription(Arc::new(changed.clone()))).await);
    assert!(!done(store, Write::ChangeSubscription(Arc::new(changed.clone()))).await);
    assert_eq!(format!("{:?}", subscribed(store, &row).await), format!("{changed:?}"));
    assert_eq!(publish(store, &to_all("a.b", None)).await, 0);
    assert_eq!(publish(store, &to_all("c.d", None)).await, 1);
    let paused = SubscriptionRow { revision: 2, active: false, ..changed };
    assert!(done(store, Write::ChangeSubscription(Arc::new(paused))).await);
    assert_eq!(publish(store, &to_all("c.d", None)).await, 0);
}

async fn the_first_end_of_a_subscription_wins(store: &dyn Store) {
    let row = subscription(DSN);
    subscribe(store, &row).await;
    let end = |end, now| Write::EndSubscription { id: row.id, end, now };
    assert!(done(store, end(SubscriptionEnd::Cancelled, NOW)).await);
    let again = write(store, end(SubscriptionEnd::Completed, Micros(NOW.0 + 1))).await.expect("stored");
    assert!(matches!(again, Written::Superseded), "{again:?}");
    let kept = subscribed(store, &row).await;
    assert_eq!((kept.ended, kept.ended_at), (Some(SubscriptionEnd::Cancelled), Some(NOW)));
    assert_eq!(publish(store, &to_all("a.b", None)).await, 0);
    let changed = SubscriptionRow { revision: 1, ..row.clone() };
    assert!(!done(store, Write::ChangeSubscription(Arc::new(changed))).await);
    let id = subscription(DSN).id;
    let unknown = Write::EndSubscription { id, end: SubscriptionEnd::Cancelled, now: NOW };
    assert!(matches!(write(store, unknown).await.expect("stored"), Written::Unknown));
}

async fn subscriptions_are_listed_by_owner_a_page_at_a_time(store: &dyn Store) {
    let rows: Vec<SubscriptionRow> = (0..5).map(|_| subscription(DSN)).collect();
    let other = SubscriptionRow { owner: Some("other".into()), ..subscription(DSN) };
    for row in rows.iter().chain([&other]) {
        subscribe(store, row).await;
    }
    let mut query = SubscriptionQuery::default().owner("owner").limit(2);
    let mut found = Vec::new();
    loop {
        let page = store.subscriptions(&query).await.expect("readable");
        found.extend(page.items.iter().map(|row| row.id));
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!(found, rows.iter().map(|row| row.id).collect::<Vec<_>>());
    let all = store.subscriptions(&SubscriptionQuery::default()).await.expect("readable");
    assert_eq!((all.items.len(), all.next), (6, None));
}

async fn a_page_ends_where_it_has_enough_bytes(store: &dyn Store) {
    const EACH: usize = SubscriptionQuery::BYTES / 4;
    let meta = serde_json::Value::from("a".repeat(EACH));
    let mut rows = Vec::new();
    for _ in 0..5 {
        let row = subscription(DSN);
        let detail = Detail { meta: meta.clone(), ..row.detail.clone() };
        rows.push(SubscriptionRow { detail, ..row });
    }
    for row in &rows {
        subscribe(store, row).await;
    }
    let mut query = SubscriptionQuery::default().owner("owner").limit(100);
    let (mut found, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let page = store.subscriptions(&query).await.expect("readable");
        found.extend(page.items.iter().map(|row| row.id));
        sizes.push(page.items.len());
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!((found, sizes), (rows.iter().map(|row| row.id).collect(), vec![4, 1]));
    let everybodys = store.subscriptions(&SubscriptionQuery::default()).await.expect("readable");
    assert_eq!((everybodys.items.len(), everybodys.next.is_some()), (4, true));
}

async fn an_owner_has_as_many_subscriptions_as_it_may(store: &dyn Store) {
    let subscribe = async |row: SubscriptionRow| {
        let subscribe = Write::Subscribe { row: Arc::new(row), limit: 2 };
        match write(store, subscribe).await.expect("stored") {
            Written::Done => true,
            Written::TooMany => false,
            other => panic!("{other:?}"),
        }
    };
    let ended = subscription(DSN);
    assert!(subscribe(ended.clone()).await);
    assert!(subscribe(SubscriptionRow { expires: Micros(NOW.0 + 1), ..subscription(DSN) }).await);
    assert!(!subscribe(subscription(DSN)).await);
    assert!(subscribe(SubscriptionRow { owner: Some("other".into()), ..subscription(DSN) }).await);
    for _ in 0..3 {
        assert!(subscribe(SubscriptionRow { owner: None, ..subscription(DSN) }).await, "the operator's own");
    }
    let end = Write::EndSubscription { id: ended.id, end: SubscriptionEnd::Cancelled, now: NOW };
    assert!(done(store, end).await);
    assert!(subscribe(subscription(DSN)).await, "what has ended does not count");
    let later = || SubscriptionRow { created_at: Micros(NOW.0 + 1), ..subscription(DSN) };
    assert!(subscribe(later()).await, "nor does what is over");
    assert!(!subscribe(later()).await);
}

async fn an_event_reaches_those_that_want_it_and_no_others(store: &dyn Store) {
    let all = wanting(None, &[]);
    let of_type = wanting(None, &["a.b", "c.d"]);
    let of_service = wanting(Some("orders"), &[]);
    let of_both = wanting(Some("orders"), &["a.b"]);
    let elsewhere = wanting(Some("parts"), &["a.b"]);
    let paused = SubscriptionRow { active: false, ..wanting(None, &[]) };
    let over = SubscriptionRow { expires: NOW, ..wanting(None, &[]) };
    let others = SubscriptionRow { owner: Some("other".into()), ..wanting(None, &["x.y"]) };
    for row in [&all, &of_type, &of_service, &of_both, &elsewhere, &paused, &over, &others] {
        subscribe(store, row).await;
    }
    let owned = |owner: &str| FanOut { owner: Some(owner.into()), ..to_all("x.y", None) };
    for (event, expected) in [
        (to_all("a.b", Some("orders")), vec![&all, &of_type, &of_service, &of_both]),
        (to_all("a.b", None), vec![&all, &of_type]),
        (to_all("c.d", Some("orders")), vec![&all, &of_type, &of_service]),
        (to_all("e.f", None), vec![&all]),
        (owned("other"), vec![&others]),
        (owned("owner"), vec![&all]),
        (owned("nobody"), vec![]),
    ] {
        assert_eq!(publish(store, &event).await, expected.len() as u64, "{event:?}");
        let mut reached: Vec<SubscriptionId> =
            claim(store).await.iter().map(|row| row.subscribed.as_ref().expect("it serves one").to.id).collect();
        reached.sort_unstable();
        assert_eq!(reached, expected.iter().map(|row| row.id).collect::<Vec<_>>(), "{event:?}");
    }
}

async fn deliveries_of_an_event_share_it_and_have_ids_of_their_own(store: &dyn Store) {
    let rows = [subscription(DSN), subscription(OTHER)];
    for row in &rows {
        subscribe(store, row).await;
    }
    let event = to_all("a.b", Some("orders"));
    assert_eq!(publish(store, &event).await, 2);
    let claimed = claim(store).await;
    let ids: BTreeSet<TaskId> = claimed.iter().map(|row| row.id).collect();
    assert_eq!(ids, rows.iter().map(|row| event.delivery(row)).collect());
    for row in &claimed {
        let to = &row.subscribed.as_ref().expect("it serves one").to;
        let stored = row.result.as_ref().expect("a message");
        let message = &stored.message;
        assert_eq!((message.id(), message.event_id()), (&row.id.into(), &event.id.into()));
        assert_eq!((message.subject(), message.sequence()), (Some(&*to.id.to_string()), None));
        assert_eq!((message.body(), stored.service.as_deref()), (event.stored.message.body(), Some("orders")));
        assert_eq!(row.dsn.as_ref(), Some(&to.dsn));
        assert_eq!((&row.owner, row.size()), (&to.owner, 1_024 + row.subscribed.as_ref().expect("one").share));
        assert_eq!(format!("{to:?}"), format!("{:?}", subscribed(store, to).await));
    }
    let body = |row: &Row| row.result.as_ref().expect("a message").message.body().as_ptr().addr();
    assert_eq!(body(&claimed[0]), body(&claimed[1]), "the body is read once");
    // It is one row like another from here on.
    assert!(done(store, Write::Settle(settle(&claimed[0], Stage::Dead))).await);
    let letter = store.dead_letter(claimed[0].id).await.expect("readable").expect("it is dead");
    assert_eq!((letter.message.body(), Some(&letter.dsn)), (event.stored.message.body(), claimed[0].dsn.as_ref()));
    let new = message(claimed[0].id);
    let again = Write::ReplayAsNew { id: claimed[0].id, now: NOW, result: Arc::clone(&new) };
    assert!(done(store, again).await);
    let replayed = kept(store, claimed[0].id).await;
    assert_eq!(replayed.result.expect("a message").message, new.message);
    assert_eq!(replayed.dsn, claimed[0].dsn);
}

async fn an_event_that_is_confirmed_is_stored_and_what_nobody_wants_never_is(store: &dyn Store) {
    let confirm = async |event: &FanOut| match write(store, Write::ConfirmEvent(Arc::new(event.clone()))).await {
        Ok(Written::Done) => true,
        Ok(Written::Unknown) => false,
        other => panic!("{other:?}"),
    };
    let [unwanted, lost, stored] = [(); 3].map(|()| to_all("a.b", None));
    assert_eq!(publish(store, &unwanted).await, 0);
    assert!(!confirm(&unwanted).await);
    subscribe(store, &subscription(DSN)).await;
    assert!(!confirm(&lost).await);
    assert_eq!(publish(store, &stored).await, 1);
    assert!(confirm(&stored).await);
    assert_eq!(claim(store).await.len(), 1);
    assert_eq!(publish(store, &lost).await, 1, "its id is free");
    assert!(confirm(&lost).await);
}

async fn one_for_one_event_gets_one(store: &dyn Store) {
    let row = SubscriptionRow { once: true, ..subscription(DSN) };
    subscribe(store, &row).await;
    assert_eq!(publish(store, &to_all("a.b", None)).await, 1);
    assert_eq!(publish(store, &to_all("a.b", None)).await, 0);
    let kept = subscribed(store, &row).await;
    assert_eq!((kept.spent, kept.ended), (true, None));
}

async fn one_for_one_event_ends_with_it_whatever_becomes_of_it(store: &dyn Store) {
    let row = |owner: &str| SubscriptionRow { once: true, owner: Some(owner.into()), ..subscription(DSN) };
    let [expires, waits, spared] = ["expires", "waits", "spared"].map(row);
    for row in [&expires, &waits, &spared] {
        subscribe(store, row).await;
    }
    let for_one = |row: &SubscriptionRow, expires| FanOut { owner: row.owner.clone(), expires, ..to_all("a.b", None) };
    assert_eq!(publish(store, &for_one(&expires, NOW)).await, 1);
    assert_eq!(publish(store, &for_one(&waits, Micros::NEVER)).await, 1);
    assert_eq!(ended(store, Write::Expire { now: NOW, limit: 10 }).await.len(), 1);
    let old = Micros(0);
    let clean = || Write::Clean { now: NOW, before: old, keyed_before: old, breakers_before: old, limit: 10 };
    assert_eq!(count(store, clean()).await, 1);
    let kept = subscribed(store, &expires).await;
    assert_eq!((kept.ended, kept.ended_at), (Some(SubscriptionEnd::Completed), Some(NOW)));
    assert_eq!(subscribed(store, &waits).await.ended, None);
    assert_eq!(subscribed(store, &spared).await.ended, None);
    assert_eq!(count(store, clean()).await, 0);
}

async fn those_in_order_get_their_events_one_at_a_time_and_numbered(store: &dyn Store) {
    let row = SubscriptionRow { ordered: true, ..subscription(DSN) };
    subscribe(store, &row).await;
    subscribe(store, &SubscriptionRow { ordered: true, ..subscription(OTHER) }).await;
    for key in [None, Some("1"), Some("2")] {
        let key = key.map(FanOut::key);
        assert_eq!(publish(store, &FanOut { key, ..to_all("a.b", None) }).await, 2);
    }
    for (number, end) in [(1, Stage::Delivered), (2, Stage::Dead), (3, Stage::Delivered)] {
        let claimed = claim(store).await;
        assert_eq!(claimed.len(), 2, "one of each");
        for row in &claimed {
            assert_eq!(row.result.as_ref().expect("a message").message.sequence(), Some(number));
            assert!(done(store, Write::Settle(settle(row, end))).await);
        }
    }
    assert_eq!(subscribed(store, &row).await.sequence, 3);
}

async fn events_of_one_key_reach_each_one_at_a_time(store: &dyn Store) {
    for dsn in [DSN, OTHER] {
        subscribe(store, &subscription(dsn)).await;
    }
    let keyed = |key: &str| FanOut { key: Some(FanOut::key(key)), ..to_all("a.b", None) };
    for event in [keyed("1"), keyed("1"), keyed("2"), to_all("a.b", None)] {
        assert_eq!(publish(store, &event).await, 2);
    }
    let claimed = claim(store).await;
    assert_eq!(claimed.len(), 6, "the second of the first key waits, at each");
    for row in claimed.iter().filter(|row| row.order.is_some()) {
        assert!(done(store, Write::Settle(settle(row, Stage::Delivered))).await);
    }
    let claimed = claim(store).await;
    assert_eq!(claimed.len(), 2);
    assert!(claimed.iter().all(|row| row.result.as_ref().expect("a message").message.sequence().is_none()));
}

async fn a_dsn_that_is_gone_ends_its_subscriptions(store: &dyn Store) {
    let (gone, other) = (subscription(DSN), subscription("custom://a/other"));
    for row in [&gone, &other] {
        subscribe(store, row).await;
    }
    assert_eq!(publish(store, &to_all("a.b", None)).await, 2);
    let bury = Write::Bury { dsn: DSN.parse().expect("a Dsn"), now: NOW, limit: 10 };
    assert_eq!(ended(store, bury).await.len(), 1);
    let kept = subscribed(store, &gone).await;
    assert_eq!((kept.ended, kept.ended_at), (Some(SubscriptionEnd::Gone), Some(NOW)));
    assert_eq!(subscribed(store, &other).await.ended, None);
    assert_eq!(publish(store, &to_all("a.b", None)).await, 1);
}

async fn a_subscription_is_kept_as_long_as_a_row_of_it(store: &dyn Store) {
    let (cancelled, over) = (subscription(DSN), SubscriptionRow { expires: Micros(NOW.0 + 1), ..subscription(OTHER) });
    let live =
        SubscriptionRow { detail: Detail { events: vec!["c.d".into()], ..Detail::default() }, ..subscription(DSN) };
    for row in [&cancelled, &over, &live] {
        subscribe(store, row).await;
    }
    assert_eq!(publish(store, &to_all("a.b", None)).await, 2);
    let claimed = claim(store).await;
    let end = Write::EndSubscription { id: cancelled.id, end: SubscriptionEnd::Cancelled, now: NOW };
    assert!(done(store, end).await);
    let clean = || {
        let before = Micros(NOW.0 + 2);
        Write::Clean { now: NOW, before, keyed_before: before, breakers_before: before, limit: 10 }
    };
    count(store, clean()).await;
    for row in [&cancelled, &over] {
        subscribed(store, row).await;
    }
    for row in &claimed {
        assert!(done(store, Write::Settle(settle(row, Stage::Delivered))).await);
    }
    count(store, clean()).await;
    for row in [&cancelled, &over] {
        assert!(store.subscription(row.id).await.expect("readable").is_none());
    }
    subscribed(store, &live).await;
}

async fn published_events_are_stored_with_their_result_and_not_without(store: &dyn Store) {
    subscribe(store, &subscription(OTHER)).await;
    let (row, deferred) = (task("worker"), task("worker"));
    insert(store, &row).await;
    insert(store, &deferred).await;
    let all = || vec![Published::All(Arc::new(to_all("a.b", None)))];
    let claimed = claim(store).await;
    let find = |id| claimed.iter().find(|row| row.id == id).expect("claimed");
    assert!(!done(store, result(find(row.id), 0, all())).await);
    assert_eq!(store.depth(NOW).await.expect("readable").0, 0);
    assert!(done(store, result(find(row.id), find(row.id).token, all())).await);
    // The result, and the delivery.
    assert_eq!(store.depth(NOW).await.expect("readable").0, 2);
    let token = find(deferred.id).token;
    assert!(done(store, Write::Defer { id: deferred.id, token, events: all() }).await);
    assert_eq!(claim(store).await.len(), 3);
}

/// What rows share is a database's own until a claim reads it.
async fn a_claim_counts_what_its_rows_share_once(store: &dyn Store) {
    const BODY: usize = 100_000;
    for number in 0..4 {
        let owner = Some((if number < 3 { "many" } else { "one" }).into());
        let dsn = format!("custom://host{number}/");
        subscribe(store, &SubscriptionRow { owner, ..subscription(&dsn) }).await;
    }
    let publish_at = async |age: i64, owner: Option<&str>| {
        let event = to_all("a.b", None);
        let message = event.stored.message.to_builder().payload(vec![b'a'; BODY]).build().expect("a message");
        let stored = Stored { message, failed: false, traceparent: None, service: None, kept: None };
        let (owner, now) = (owner.map(Into::into), Micros(NOW.0 - age));
        publish(store, &FanOut { stored: Arc::new(stored), owner, now, ..event }).await;
    };
    let taken = async |bytes| {
        let claim =
            Claim { number: 0, now: NOW, limit: 10, bytes, workers: Vec::new(), left_out: Vec::new(), found: None };
        take(store, claim).await.len()
    };
    publish_at(0, Some("many")).await;
    assert_eq!(taken(1).await, 1, "the first whatever its size");
    assert_eq!(taken(BODY + 3 * 1_024).await, 2, "what several share is read once");
    for age in (1..=4).rev() {
        publish_at(age, Some("one")).await;
    }
    publish_at(0, None).await;
    assert_eq!(taken(2 * BODY).await, 2, "each event counts");
    assert_eq!(taken(2 * BODY + 1).await, 2);
    assert_eq!(taken(usize::MAX).await, 4);
}

#[tokio::test]
async fn claims_of_databases_count_what_rows_share() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let outbox = SqliteOutbox::open(directory.path().join("outbox.db")).await.expect("it opens");
    a_claim_counts_what_its_rows_share_once(&outbox).await;
    outbox.close().await;
    #[cfg(feature = "postgres")]
    {
        let Some(schema) = super::postgres::tests::Schema::new().await else { return };
        let outbox = schema.started_and_unheard(super::PostgresOutbox::builder()).await;
        a_claim_counts_what_its_rows_share_once(&outbox).await;
        outbox.close().await;
    }
}

#[tokio::test]
async fn memory_keeps_every_clause() {
    for (name, clause) in CLAUSES {
        eprintln_name(name);
        clause(&MemoryOutbox::new()).await;
    }
}

#[tokio::test]
async fn sqlite_keeps_every_clause() {
    for (name, clause) in CLAUSES {
        eprintln_name(name);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let outbox = SqliteOutbox::open(directory.path().join("outbox.db")).await.expect("it opens");
        clause(&outbox).await;
        outbox.close().await;
    }
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn postgres_keeps_every_clause() {
    for (name, clause) in CLAUSES {
        eprintln_name(name);
        let Some(schema) = super::postgres::tests::Schema::new().await else { return };
        let outbox = schema.started_and_unheard(super::PostgresOutbox::builder()).await;
        clause(&outbox).await;
        outbox.close().await;
    }
}

/// Shown where a clause fails.
#[expect(clippy::print_stderr, reason = "a test says where it is")]
fn eprintln_name(name: &str) {
    eprintln!("{name}");
}

/// How an outbox may be broken.
#[derive(Clone, Copy, Debug)]
enum Fault {
    LosesInserts,
    ClaimsAgain,
    IgnoresDueTimes,
    ClaimsTheYoungest,
    IgnoresWorkers,
    IgnoresLanes,
    ForgetsHolders,
    IgnoresTokens,
    RevivesTheEnded,
    LosesEvents,
    KeepsHoldersAtRecovery,
    LosesAttempts,
    ReplaysNothing,
    IgnoresOrder,
    AgesWhatWaits,
    NeverStops,
    ForgetsBreakers,
    AgesEveryLane,
    AgesOneOfAKey,
    TellsNoDueTime,
    DefersNothing,
    PurgesNothing,
    BuriesNothing,
    ExpiresEverything,
    DeletesTooEarly,
    ConfirmsEverything,
    ConfirmsEvents,
    GivesNothingBack,
    IgnoresSizes,
    KeepsBreakers,
    KeepsConsents,
    LosesConsents,
    LosesSubscriptions,
    IgnoresRevisions,
    EndsAgain,
    ListsEverybodys,
    ListsAllAtOnce,
    IgnoresLimits,
    IgnoresWishes,
    ChangesSubjects,
    NeverSpent,
    EndsNothingSpent,
    IgnoresOrderOfAll,
    IgnoresKeysOfAll,
    EndsNothing,
    ForgetsSubscriptions,
    LosesPublished,
    RousesNothing,
    RousesAll,
    KeepsForGood,
    ParksForGood,
    IsNeverOver,
    ForgetsWhatNeverWas,
    IgnoresSecrets,
    ReplacesNobody,
    LosesSecrets,
}

/// What breaks, and the clause that must notice.
const BROKEN: &[(Fault, &str)] = &[
    (Fault::LosesInserts, "a_row_is_kept_as_it_was_stored"),
    (Fault::ClaimsAgain, "a_claim_takes_a_row_once"),
    (Fault::IgnoresDueTimes, "what_is_not_due_is_not_claimed"),
    (Fault::ClaimsTheYoungest, "the_oldest_are_claimed_first"),
    (Fault::IgnoresWorkers, "only_what_has_a_worker_here_is_claimed"),
    (Fault::IgnoresLanes, "lanes_that_are_left_out_are_not_claimed"),
    (Fault::ForgetsHolders, "what_is_held_is_not_claimed"),
    (Fault::IgnoresTokens, "an_old_token_changes_nothing"),
    (Fault::RevivesTheEnded, "the_first_end_wins"),
    (Fault::LosesEvents, "events_are_stored_with_their_result_and_not_without"),
    (Fault::KeepsHoldersAtRecovery, "recovery_gives_back_what_was_held_and_counts_it"),
    (Fault::LosesAttempts, "a_dead_letter_has_its_attempts"),
    (Fault::ReplaysNothing, "a_replay_begins_anew"),
    (Fault::IgnoresOrder, "one_of_a_key_is_due_at_a_time"),
    (Fault::AgesWhatWaits, "what_a_key_held_back_has_its_age_from_its_turn_on"),
    (Fault::NeverStops, "one_that_is_dead_stops_its_key_where_it_shall"),
    (Fault::ForgetsBreakers, "open_breakers_are_kept"),
    (Fault::AgesEveryLane, "what_is_old_ends_in_the_lanes_that_are_named"),
    (Fault::AgesOneOfAKey, "what_its_key_held_back_is_as_old_in_a_lane_that_is_closed"),
    (Fault::TellsNoDueTime, "the_next_due_time_is_told"),
    (Fault::DefersNothing, "deferred_work_waits_for_its_result"),
    (Fault::PurgesNothing, "what_is_purged_is_gone_and_lets_its_key_go"),
    (Fault::BuriesNothing, "what_waits_for_a_dsn_that_is_gone_is_buried"),
    (Fault::ExpiresEverything, "what_is_not_over_in_time_expires"),
    (Fault::DeletesTooEarly, "what_ended_long_ago_is_deleted"),
    (Fault::IgnoresSizes, "a_claim_takes_what_there_is_room_for_and_one_at_least"),
    (Fault::GivesNothingBack, "what_a_claim_took_is_given_back_unless_it_went_on"),
    (Fault::ConfirmsEverything, "what_is_confirmed_is_stored_and_what_is_not_never_was"),
    (Fault::ConfirmsEvents, "an_event_that_is_confirmed_is_stored_and_what_nobody_wants_never_is"),
    (Fault::KeepsBreakers, "breakers_of_long_ago_are_deleted"),
    (Fault::KeepsConsents, "a_consent_is_kept_until_it_was_over_long_ago"),
    (Fault::LosesConsents, "a_consent_is_kept_until_it_was_over_long_ago"),
    (Fault::LosesSubscriptions, "a_subscription_is_kept_as_it_was_stored"),
    (Fault::IgnoresRevisions, "a_change_counts_if_nobody_else_changed_it"),
    (Fault::EndsAgain, "the_first_end_of_a_subscription_wins"),
    (Fault::ListsEverybodys, "subscriptions_are_listed_by_owner_a_page_at_a_time"),
    (Fault::ListsAllAtOnce, "a_page_ends_where_it_has_enough_bytes"),
    (Fault::IgnoresLimits, "an_owner_has_as_many_subscriptions_as_it_may"),
    (Fault::IgnoresWishes, "an_event_reaches_those_that_want_it_and_no_others"),
    (Fault::ChangesSubjects, "deliveries_of_an_event_share_it_and_have_ids_of_their_own"),
    (Fault::NeverSpent, "one_for_one_event_gets_one"),
    (Fault::EndsNothingSpent, "one_for_one_event_ends_with_it_whatever_becomes_of_it"),
    (Fault::IgnoresOrderOfAll, "those_in_order_get_their_events_one_at_a_time_and_numbered"),
    (Fault::IgnoresKeysOfAll, "events_of_one_key_reach_each_one_at_a_time"),
    (Fault::EndsNothing, "a_dsn_that_is_gone_ends_its_subscriptions"),
    (Fault::ForgetsSubscriptions, "a_subscription_is_kept_as_long_as_a_row_of_it"),
    (Fault::LosesPublished, "published_events_are_stored_with_their_result_and_not_without"),
    (Fault::RousesNothing, "what_waits_for_a_dsn_is_due_when_it_is_attached"),
    (Fault::RousesAll, "no_more_are_due_at_once_than_are_asked_for"),
    (Fault::KeepsForGood, "what_goes_to_a_client_that_is_away_waits_until_its_time_is_over"),
    (Fault::ParksForGood, "what_was_passed_over_by_its_attachment_is_due_soon"),
    (Fault::IsNeverOver, "nobody_comes_back_to_what_is_over"),
    (Fault::ForgetsWhatNeverWas, "a_dsn_that_nobody_attached_is_unknown"),
    (Fault::IgnoresSecrets, "who_comes_back_shows_the_secret_or_the_one_before"),
    (Fault::ReplacesNobody, "who_was_replaced_keeps_nothing"),
    (Fault::LosesSecrets, "an_attachment_outlives_who_had_it"),
    (Fault::IgnoresTokens, "what_is_elsewhere_is_not_parked"),
    (Fault::KeepsBreakers, "attachments_of_long_ago_are_deleted"),
];

/// An outbox in memory with one fault.
#[derive(Debug)]
struct Broken {
    inner: MemoryOutbox,
    fault: Fault,
}

impl Broken {
    fn change(&self, write: Write) -> Option<Write> {
        let order = |row: &Row| match self.fault {
            Fault::IgnoresOrder => None,
            Fault::NeverStops => row.order.map(|order| Order { stops: false, ..order }),
            _ => row.order,
        };
        let current = |id| self.inner.find(id).now_or_never().and_then(Result::ok).flatten();
        Some(match (self.fault, write) {
            (Fault::LosesInserts, Write::Insert(_))
            | (Fault::ForgetsBreakers, Write::OpenBreaker(_))
            | (Fault::LosesConsents, Write::Consent(_))
            | (Fault::KeepsHoldersAtRecovery, Write::Recover)
            | (Fault::LosesSubscriptions, Write::Subscribe { .. })
            | (Fault::EndsAgain, Write::EndSubscription { .. })
            | (Fault::EndsNothingSpent, Write::Clean { .. })
            | (Fault::ReplaysNothing, Write::Replay { .. })
            | (Fault::DefersNothing, Write::Defer { .. })
            | (Fault::GivesNothingBack, Write::GiveBack { .. })
            | (Fault::ConfirmsEvents, Write::ConfirmEvent(_))
            | (Fault::ConfirmsEverything, Write::Confirm { .. }) => return None,
            (Fault::ForgetsHolders, Write::Insert(row)) => {
                Write::Insert(Arc::new(Row { held: false, ..Row::clone(&row) }))
            }
            (Fault::IgnoresOrder | Fault::NeverStops, Write::Insert(row)) => {
                Write::Insert(Arc::new(Row { order: order(&row), ..Row::clone(&row) }))
            }
            (Fault::NeverStops, Write::Settle(step)) => {
                let order = step.order.map(|order| Order { stops: false, ..order });
                Write::Settle(Settle { order, ..step })
            }
            (Fault::IgnoresDueTimes, Write::Claim(claim)) => {
                Write::Claim(Claim { number: 0, now: Micros(i64::MAX - 1), ..claim })
            }
            (Fault::ClaimsTheYoungest, Write::Claim(claim)) => Write::Claim(Claim { limit: 20, ..claim }),
            (Fault::IgnoresWorkers, Write::Claim(claim)) => {
                Write::Claim(Claim { workers: vec!["worker".into(), "other".into()], ..claim })
            }
            (Fault::IgnoresSizes, Write::Claim(claim)) => Write::Claim(Claim { bytes: usize::MAX, ..claim }),
            (Fault::IgnoresLanes, Write::Claim(claim)) => Write::Claim(Claim { left_out: Vec::new(), ..claim }),
            (Fault::IgnoresTokens, Write::Settle(step)) => {
                let token = current(step.id).map_or(step.token, |row| row.token);
                Write::Settle(Settle { token, ..step })
            }
            (Fault::RevivesTheEnded, Write::Settle(step)) => {
                let from = current(step.id).map_or(step.from, |row| row.stage);
                Write::Settle(Settle { from, ..step })
            }
            (Fault::LosesEvents, Write::Result { id, token, to, held, now, result, order, .. }) => {
                Write::Result { id, token, to, held, now, result, order, events: Vec::new() }
            }
            (Fault::IgnoresRevisions, Write::ChangeSubscription(row)) => {
                let found = self.inner.subscription(row.id).now_or_never().and_then(Result::ok).flatten();
                let revision = found.map_or(row.revision, |found| found.revision + 1);
                Write::ChangeSubscription(Arc::new(SubscriptionRow { revision, ..SubscriptionRow::clone(&row) }))
            }
            (Fault::IgnoresWishes, Write::Subscribe { row, .. }) => {
                let detail = Detail { events: Vec::new(), service: None, ..row.detail.clone() };
                new_subscription(&SubscriptionRow { detail, ..SubscriptionRow::clone(&row) })
            }
            (Fault::ChangesSubjects, Write::Publish(event)) => {
                Write::Publish(Arc::new(FanOut { id: TaskId::new(), ..FanOut::clone(&event) }))
            }
            (Fault::IgnoresLimits, Write::Subscribe { row, .. }) => new_subscription(&row),
            (Fault::NeverSpent, Write::Subscribe { row, .. }) => {
                new_subscription(&SubscriptionRow { once: false, ..SubscriptionRow::clone(&row) })
            }
            (Fault::IgnoresOrderOfAll, Write::Subscribe { row, .. }) => {
                new_subscription(&SubscriptionRow { ordered: false, ..SubscriptionRow::clone(&row) })
            }
            (Fault::IgnoresKeysOfAll, Write::Publish(event)) => {
                Write::Publish(Arc::new(FanOut { key: None, ..FanOut::clone(&event) }))
            }
            (Fault::EndsNothing, Write::Bury { now, limit, .. }) => {
                Write::Bury { dsn: "custom://nobody/".parse().expect("a Dsn"), now, limit }
            }
            (Fault::LosesPublished, Write::Result { id, token, to, held, now, result, order, .. }) => {
                Write::Result { id, token, to, held, now, result, order, events: Vec::new() }
            }
            (Fault::PurgesNothing, Write::Purge { now, .. }) => Write::Purge { ids: Vec::new(), now },
            (Fault::BuriesNothing, Write::Bury { dsn, now, .. }) => Write::Bury { dsn, now, limit: 0 },
            (Fault::ExpiresEverything, Write::Expire { limit, .. }) => {
                Write::Expire { now: Micros(i64::MAX - 1), limit }
            }
            (Fault::DeletesTooEarly, Write::Clean { now, before, breakers_before, limit, .. }) => {
                let before = Micros(before.0 + 1);
                Write::Clean { now, before, keyed_before: before, breakers_before, limit }
            }
            (Fault::KeepsBreakers | Fault::KeepsConsents, Write::Clean { now, before, keyed_before, limit, .. }) => {
                Write::Clean { now, before, keyed_before, breakers_before: Micros(i64::MIN), limit }
            }
            (Fault::RousesNothing, Write::Attach(attaching)) => Write::Attach(Attaching { limit: 0, ..attaching }),
            (Fault::RousesAll, Write::Rouse { dsn, now, .. }) => Write::Rouse { dsn, now, limit: usize::MAX },
            (Fault::KeepsForGood, Write::KeepAttached(kept)) => {
                let for_good = |it: Keeping| Keeping { until: Micros::NEVER, ..it };
                Write::KeepAttached(kept.into_iter().map(for_good).collect())
            }
            (Fault::ParksForGood, Write::Park(parking)) => Write::Park(Parking { soon: Micros::NEVER, ..parking }),
            (Fault::IsNeverOver, Write::KeepAttached(kept)) => {
                let away =
                    |it: Keeping| Keeping { state: if it.state == Keep::Over { Keep::Away } else { it.state }, ..it };
                Write::KeepAttached(kept.into_iter().map(away).collect())
            }
            (Fault::IgnoresSecrets, Write::Attach(attaching)) => {
                Write::Attach(Attaching { presented: None, ..attaching })
            }
            (Fault::LosesSecrets, Write::Attach(attaching)) => Write::Attach(Attaching { secret: None, ..attaching }),
            (Fault::IgnoresTokens, Write::Park(parking)) => {
                let token = current(parking.id).map_or(parking.token, |row| row.token);
                Write::Park(Parking { token, ..parking })
            }
            (Fault::LosesAttempts, Write::Settle(step)) => Write::Settle(Settle { failed: None, ..step }),
            (Fault::AgesEveryLane, Write::Age { before, now, limit, .. }) => {
                Write::Age { lanes: vec![lane(DSN), lane(OTHER)], before, now, limit }
            }
            // What comes second is young.
            (Fault::AgesOneOfAKey, Write::Insert(row)) if row.owner.is_some() && self.has_rows() => {
                Write::Insert(Arc::new(Row { first_due: NOW, ..Row::clone(&row) }))
            }
            (_, write) => write,
        })
    }

    fn has_rows(&self) -> bool {
        self.inner.depth(NOW).now_or_never().and_then(Result::ok).is_some_and(|(rows, _)| rows > 0)
    }
}

#[async_trait]
impl Store for Broken {
    async fn start(&self) -> Result<(), OutboxError> {
        self.inner.start().await
    }

    fn submit(&self, write: Write, done: Done) -> Result<(), NotQueued> {
        let Some(write) = self.change(write) else {
            done(Ok(Written::Done));
            return Ok(());
        };
        let (fault, inner) = (self.fault, self.inner.clone());
        self.inner.submit(
            write,
            Box::new(move |written| {
                if let (Fault::ClaimsAgain, Ok(Written::Claimed(rows))) = (fault, &written) {
                    for row in rows {
                        let back = Settle { attempts: 0, failed: None, ..settle(row, row.stage) };
                        inner.submit(Write::Settle(back), Box::new(drop)).expect("queued");
                    }
                }
                done(written.map(|written| match (fault, written) {
                    (Fault::ClaimsTheYoungest, Written::Claimed(rows)) => {
                        Written::Claimed(rows.into_iter().rev().take(10).collect())
                    }
                    (Fault::ForgetsWhatNeverWas, Written::Parked(Parked::Unknown)) => Written::Parked(Parked::Over),
                    (Fault::ReplacesNobody, Written::Replaced(_)) => Written::Replaced(Vec::new()),
                    (_, written) => written,
                }));
            }),
        )
    }

    async fn insert_in(&self, connection: Connection<'_>, row: Arc<Row>) -> Result<Written, AcceptError> {
        self.inner.insert_in(connection, row).await
    }

    async fn publish_in(&self, connection: Connection<'_>, event: &FanOut) -> Result<u64, AcceptError> {
        self.inner.publish_in(connection, event).await
    }

    async fn subscription(&self, id: SubscriptionId) -> Result<Option<SubscriptionRow>, OutboxError> {
        let found = self.inner.subscription(id).await?;
        Ok(found.filter(|row| !(matches!(self.fault, Fault::ForgetsSubscriptions) && row.ended.is_some())))
    }

    async fn subscriptions(&self, query: &SubscriptionQuery) -> Result<Page<SubscriptionRow>, OutboxError> {
        match self.fault {
            Fault::ListsEverybodys => {
                self.inner.subscriptions(&SubscriptionQuery { owner: None, ..query.clone() }).await
            }
            Fault::ListsAllAtOnce => {
                let mut all = self.inner.subscriptions(query).await?;
                while let Some(next) = all.next {
                    let more = self.inner.subscriptions(&query.clone().after(next)).await?;
                    all = Page { items: [all.items, more.items].concat(), next: more.next };
                }
                Ok(all)
            }
            _ => self.inner.subscriptions(query).await,
        }
    }

    async fn next_due(&self, after: Micros) -> Result<Option<Micros>, OutboxError> {
        if let Fault::TellsNoDueTime = self.fault { Ok(None) } else { self.inner.next_due(after).await }
    }

    async fn find(&self, id: TaskId) -> Result<Option<Row>, OutboxError> {
        let ages = matches!(self.fault, Fault::AgesWhatWaits);
        let aged = |row: Row| if ages { Row { first_due: row.accepted_at, ..row } } else { row };
        Ok(self.inner.find(id).await?.map(aged))
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    async fn others_wrote(&self) -> Result<bool, OutboxError> {
        self.inner.others_wrote().await
    }

    async fn waiting_workers(&self) -> Result<Vec<String>, OutboxError> {
        self.inner.waiting_workers().await
    }

    async fn depth(&self, now: Micros) -> Result<(u64, Option<Micros>), OutboxError> {
        self.inner.depth(now).await
    }

    async fn breakers(&self) -> Result<Vec<OpenBreaker>, OutboxError> {
        self.inner.breakers().await
    }

    async fn consent(&self, destination: &Destination) -> Result<Option<StoredConsent>, OutboxError> {
        self.inner.consent(destination).await
    }

    async fn next_expiry(&self) -> Result<Option<Micros>, OutboxError> {
        self.inner.next_expiry().await
    }

    async fn dead_letters(&self, query: &DeadLetterQuery) -> Result<Page<DeadLetter>, OutboxError> {
        self.inner.dead_letters(query).await
    }

    async fn dead_places(&self, query: &DeadLetterQuery) -> Result<Vec<Cursor>, OutboxError> {
        self.inner.dead_places(query).await
    }

    async fn dead_letter(&self, id: TaskId) -> Result<Option<DeadLetter>, OutboxError> {
        self.inner.dead_letter(id).await
    }

    async fn close(&self) {}
}

#[tokio::test]
async fn each_clause_notices_an_outbox_that_breaks_it() {
    for (name, _) in CLAUSES {
        assert!(BROKEN.iter().any(|(_, noticed_by)| noticed_by == name), "no outbox breaks {name}");
    }
    for (fault, noticed_by) in BROKEN {
        let (_, clause) = CLAUSES.iter().find(|(name, _)| name == noticed_by).expect("the clause");
        let broken = Broken { inner: MemoryOutbox::new(), fault: *fault };
        let noticed = AssertUnwindSafe(clause(&broken)).catch_unwind().await.is_err();
        assert!(noticed, "{noticed_by} does not notice {fault:?}");
    }
}
