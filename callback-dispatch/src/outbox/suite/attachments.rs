//! Of destinations that come to a process.

use super::{DSN, NOW, OTHER, claim, claimed_ids, count, event, in_order, insert, kept};
use crate::{
    clock::Micros,
    outbox::{Attaching, AttachmentId, Keep, Keeping, Parked, Parking, SecretDigest, Store, Write, Written, write},
    row::{Row, Stage},
};

const UNTIL: Micros = Micros(NOW.0 + 600);
const LATER: Micros = Micros(NOW.0 + 100);
const SOON: Micros = Micros(NOW.0 + 10);

fn attaching(id: AttachmentId, presented: Option<u8>, secret: Option<u8>, now: Micros) -> Write {
    let (dsn, limit) = (DSN.parse().expect("a Dsn"), 10);
    let digest = |number: u8| SecretDigest([number; 32]);
    let (presented, secret) = (presented.map(digest), secret.map(digest));
    Write::Attach(Attaching { dsn, id, presented, secret, now, until: UNTIL, limit })
}

/// How many rows it made due.
async fn attach(store: &dyn Store, id: AttachmentId) -> u64 {
    count(store, attaching(id, None, Some(1), NOW)).await
}

async fn resumes(store: &dyn Store, presented: u8, secret: u8, now: Micros) -> bool {
    let attaching = attaching(AttachmentId::new(), Some(presented), Some(secret), now);
    match write(store, attaching).await.expect("stored") {
        Written::Count(_) => true,
        Written::Unknown => false,
        other => panic!("{other:?}"),
    }
}

/// Those whose place was taken.
async fn keep(store: &dyn Store, kept: &[(AttachmentId, Keep, Micros)]) -> Vec<AttachmentId> {
    let keeping = |&(id, state, until)| Keeping { dsn: DSN.parse().expect("a Dsn"), id, until, state };
    match write(store, Write::KeepAttached(kept.iter().map(keeping).collect())).await.expect("stored") {
        Written::Replaced(replaced) => replaced,
        other => panic!("{other:?}"),
    }
}

async fn away(store: &dyn Store) -> AttachmentId {
    let id = AttachmentId::new();
    attach(store, id).await;
    assert_eq!(keep(store, &[(id, Keep::Away, LATER)]).await, []);
    id
}

async fn park(store: &dyn Store, row: &Row, now: Micros) -> Written {
    let (id, token, dsn) = (row.id, row.token, DSN.parse().expect("a Dsn"));
    write(store, Write::Park(Parking { id, token, dsn, now, soon: SOON })).await.expect("stored")
}

async fn parked(store: &dyn Store, row: &Row, now: Micros) -> Parked {
    match park(store, row, now).await {
        Written::Parked(parked) => parked,
        other => panic!("{other:?}"),
    }
}

async fn in_hand(store: &dyn Store) -> Row {
    insert(store, &event(DSN)).await;
    claim(store).await.remove(0)
}

pub(super) async fn what_waits_for_a_dsn_is_due_when_it_is_attached(store: &dyn Store) {
    let waiting = Row { due: LATER, ..event(DSN) };
    let (first, second) = (Row { due: LATER, ..in_order(1, false) }, in_order(2, false));
    let (held, elsewhere) = (Row { held: true, due: LATER, ..event(DSN) }, Row { due: LATER, ..event(OTHER) });
    for row in [&waiting, &first, &second, &held, &elsewhere] {
        insert(store, row).await;
    }
    assert_eq!(attach(store, AttachmentId::new()).await, 2);
    assert_eq!(claim(store).await.len(), 2);
    for (row, due, is_held) in [(&waiting, NOW, true), (&first, NOW, true), (&second, Micros::NEVER, false)] {
        let row = kept(store, row.id).await;
        assert_eq!((row.due, row.held, row.attempts), (due, is_held, 0));
    }
    for row in [&held, &elsewhere] {
        assert_eq!(kept(store, row.id).await.due, LATER);
    }
}

pub(super) async fn no_more_are_due_at_once_than_are_asked_for(store: &dyn Store) {
    for _ in 0..5 {
        insert(store, &Row { due: LATER, ..event(DSN) }).await;
    }
    let rouse = || Write::Rouse { dsn: DSN.parse().expect("a Dsn"), now: NOW, limit: 3 };
    assert_eq!(count(store, rouse()).await, 3);
    assert_eq!(claim(store).await.len(), 3);
    assert_eq!(count(store, rouse()).await, 2);
    assert_eq!(count(store, rouse()).await, 0, "what is due is passed over");
}

pub(super) async fn what_goes_to_a_client_that_is_away_waits_until_its_time_is_over(store: &dyn Store) {
    away(store).await;
    let row = in_hand(store).await;
    assert_eq!(parked(store, &row, NOW).await, Parked::Away);
    let after = kept(store, row.id).await;
    assert_eq!((after.held, after.due, after.stage), (false, LATER, Stage::Delivering));
    assert_eq!((after.attempts, after.first_due, after.token), (0, row.first_due, row.token));
    assert_eq!(store.next_due(NOW).await.expect("readable"), Some(LATER));
}

pub(super) async fn what_was_passed_over_by_its_attachment_is_due_soon(store: &dyn Store) {
    let row = in_hand(store).await;
    assert_eq!(attach(store, AttachmentId::new()).await, 0, "it is in hand");
    assert_eq!(parked(store, &row, NOW).await, Parked::Here);
    let after = kept(store, row.id).await;
    assert_eq!((after.held, after.due), (false, SOON));
}

pub(super) async fn nobody_comes_back_to_what_is_over(store: &dyn Store) {
    away(store).await;
    let row = in_hand(store).await;
    assert!(!resumes(store, 1, 2, LATER).await);
    assert_eq!(parked(store, &row, LATER).await, Parked::Over);
    assert!(kept(store, row.id).await.held, "it is in hand still");
    // A clock that was set back, or another's, changes nothing: what waited is given up.
    assert!(!resumes(store, 1, 2, NOW).await);
    let ended = AttachmentId::new();
    attach(store, ended).await;
    assert_eq!(keep(store, &[(ended, Keep::Over, LATER)]).await, []);
    assert!(!resumes(store, 1, 2, NOW).await);
}

pub(super) async fn a_dsn_that_nobody_attached_is_unknown(store: &dyn Store) {
    let row = in_hand(store).await;
    assert_eq!(parked(store, &row, NOW).await, Parked::Unknown);
    assert!(kept(store, row.id).await.held, "it is in hand still");
    assert!(!resumes(store, 1, 2, NOW).await);
    assert_eq!(parked(store, &row, NOW).await, Parked::Unknown, "who was refused has it");
}

pub(super) async fn who_comes_back_shows_the_secret_or_the_one_before(store: &dyn Store) {
    away(store).await;
    assert!(!resumes(store, 2, 3, NOW).await);
    assert!(resumes(store, 1, 2, NOW).await);
    assert!(resumes(store, 1, 3, NOW).await, "nobody has heard of the second");
    assert!(!resumes(store, 2, 4, NOW).await);
    assert!(resumes(store, 3, 4, NOW).await);
    assert!(!resumes(store, 1, 5, NOW).await, "the one after was shown");
    let without = attaching(AttachmentId::new(), None, None, NOW);
    count(store, without).await;
    assert!(!resumes(store, 4, 5, NOW).await);
}

pub(super) async fn who_was_replaced_keeps_nothing(store: &dyn Store) {
    let (former, later) = (AttachmentId::new(), AttachmentId::new());
    attach(store, former).await;
    attach(store, later).await;
    let kept = [(former, Keep::Away, NOW), (later, Keep::Held, LATER)];
    assert_eq!(keep(store, &kept).await, [former]);
    assert_eq!(keep(store, &[(former, Keep::Over, NOW)]).await, [former]);
    let row = in_hand(store).await;
    assert_eq!(parked(store, &row, NOW).await, Parked::Here);
    assert!(resumes(store, 1, 2, NOW).await);
}

pub(super) async fn an_attachment_outlives_who_had_it(store: &dyn Store) {
    let id = AttachmentId::new();
    attach(store, id).await;
    assert_eq!(keep(store, &[(id, Keep::Held, LATER)]).await, []);
    let row = in_hand(store).await;
    write(store, Write::Recover).await.expect("stored");
    let row = { claim(store).await.into_iter().find(|it| it.id == row.id).expect("it is given back") };
    assert_eq!(parked(store, &row, NOW).await, Parked::Away);
    assert_eq!(kept(store, row.id).await.due, LATER);
    assert!(resumes(store, 1, 2, Micros(LATER.0 - 1)).await);
}

pub(super) async fn what_is_elsewhere_is_not_parked(store: &dyn Store) {
    away(store).await;
    let row = in_hand(store).await;
    let stale = Row { token: row.token + 1, ..row.clone() };
    assert!(matches!(park(store, &stale, NOW).await, Written::Superseded));
    assert!(kept(store, row.id).await.held);
    write(store, Write::Cancel { id: row.id, now: NOW }).await.expect("stored");
    let ended = park(store, &row, NOW).await;
    assert!(matches!(ended, Written::Superseded | Written::Unknown), "{ended:?}");
    assert!(claimed_ids(store).await.is_empty());
}

pub(super) async fn attachments_of_long_ago_are_deleted(store: &dyn Store) {
    away(store).await;
    let row = in_hand(store).await;
    let clean = |breakers_before| Write::Clean { now: NOW, before: NOW, keyed_before: NOW, breakers_before, limit: 10 };
    count(store, clean(LATER)).await;
    assert_eq!(parked(store, &row, LATER).await, Parked::Over);
    count(store, clean(Micros(LATER.0 + 1))).await;
    assert_eq!(parked(store, &row, LATER).await, Parked::Unknown);
}
