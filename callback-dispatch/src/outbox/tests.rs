//! The outboxes give the same answers, and keep the same rows.

use super::{
    Attaching, AttachmentId, Claim, Keep, Keeping, MemoryOutbox, Parking, PullIn, SecretDigest, Settle, SqliteOutbox,
    Store, Write, Written, write,
};
use crate::{
    clock::Micros,
    dead_letter::{Cursor, DeadLetterQuery},
    lane::LaneKey,
    outcome::Answer,
    row::{FailedRow, Idempotency, Kept, Order, OrderKey, Published, Request, Row, Stage, Stored, Whole},
    subscription::{Detail, FanOut, SubscriptionEnd, SubscriptionId, SubscriptionRow},
    work::Context,
};
use callback_core::{ErrorKind, Message, Payload, Phase, TaskId};
use futures_util::future::join_all;
use proptest::{collection::vec, prelude::*, sample::select};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How many rows there are at most, so that steps meet.
const ROWS: usize = 6;

/// And subscriptions.
const SUBSCRIPTIONS: usize = 3;

const WORKERS: [&str; 2] = ["one", "two"];
const DSNS: [&str; 2] = ["memory://a", "https://user:password@b.example/path?query"];
const EVENTS: [&str; 2] = ["a.b", "c.d"];
const KINDS: [ErrorKind; 3] = [ErrorKind::Refused, ErrorKind::Gone, ErrorKind::TimedOut];

/// One write, by the numbers of rows: their ids and tokens are known when it is made.
#[derive(Clone, Debug)]
enum Step {
    Insert {
        event: bool,
        held: bool,
        worker: usize,
        dsn: Option<usize>,
        owner: bool,
        due: i64,
        order: Option<(usize, bool)>,
        expires: Option<i64>,
        key: Option<(u8, u8)>,
    },
    Claim {
        number: u32,
        limit: usize,
        bytes: usize,
        workers: Vec<usize>,
        left_out: Vec<(usize, bool)>,
    },
    GiveBack {
        claim: u32,
    },
    Result {
        row: usize,
        stale: bool,
        held: bool,
        events: usize,
    },
    Defer {
        row: usize,
        stale: bool,
        events: usize,
    },
    Settle {
        row: usize,
        stale: bool,
        from: Option<Stage>,
        to: Stage,
        held: bool,
        failed: Option<usize>,
    },
    Age {
        limit: usize,
        lanes: Vec<usize>,
        before: i64,
    },
    Cancel {
        row: usize,
    },
    Confirm {
        row: usize,
    },
    Replay {
        rows: Vec<usize>,
    },
    ReplayAsNew {
        row: usize,
    },
    Purge {
        rows: Vec<usize>,
    },
    Bury {
        dsn: usize,
        limit: usize,
    },
    Expire {
        limit: usize,
    },
    Clean {
        age: i64,
    },
    Subscribe {
        dsn: usize,
        owner: bool,
        once: bool,
        ordered: bool,
        stops: bool,
        event: bool,
        service: bool,
        lease: Option<i64>,
    },
    ChangeSubscription {
        subscription: usize,
        stale: bool,
        active: bool,
        event: bool,
    },
    EndSubscription {
        subscription: usize,
    },
    Publish {
        event: bool,
        service: bool,
        owner: bool,
        key: Option<usize>,
    },
    Recover,
    /// Both from the last time on.
    PullIn {
        now: i64,
        latest: i64,
    },
    Attach {
        dsn: usize,
        presented: Option<u8>,
        secret: Option<u8>,
        keep: i64,
    },
    KeepAttached(Vec<(usize, Keep, i64)>),
    Rouse {
        dsn: usize,
    },
    Park {
        row: usize,
        stale: bool,
        soon: i64,
    },
    /// Steps of different rows that share a transaction, and its statements.
    Together(Vec<(bool, Stage, bool, Option<usize>)>),
}

fn step() -> impl Strategy<Value = Step> {
    let row = || 0..ROWS + 1;
    let to = || select(vec![Stage::Started, Stage::Delivering, Stage::Completed, Stage::Delivered, Stage::Dead]);
    let failed = || prop::option::of(0..KINDS.len());
    let from = || prop::option::weighted(0.5, select(vec![Stage::Accepted, Stage::Started, Stage::Delivering]));
    let order = || prop::option::of((0..2usize, any::<bool>()));
    let stale = || prop::bool::weighted(0.2);
    prop_oneof![
        4 => (any::<bool>(), any::<bool>(), 0..2usize, prop::option::of(0..2usize), any::<bool>(), 0..50i64, order(),
            (prop::option::of(0..30i64), prop::option::weighted(0.3, (0..2u8, 0..2u8))))
            .prop_map(|(event, held, worker, dsn, owner, due, order, (expires, key))| {
                Step::Insert { event, held, worker, dsn, owner, due, order, expires, key }
            }),
        3 => (0..3u32, 1..4usize, select(vec![1, 2_000, 1 << 20]), vec(0..2usize, 0..3), vec((0..2usize, any::<bool>()), 0..3))
            .prop_map(|(number, limit, bytes, workers, left_out)| {
                Step::Claim { number, limit, bytes, workers, left_out }
            }),
        1 => (0..3u32).prop_map(|claim| Step::GiveBack { claim }),
        3 => (row(), stale(), any::<bool>(), 0..2usize)
            .prop_map(|(row, stale, held, events)| Step::Result { row, stale, held, events }),
        1 => (row(), stale(), 0..2usize).prop_map(|(row, stale, events)| Step::Defer { row, stale, events }),
        5 => (row(), stale(), from(), to(), any::<bool>(), failed())
            .prop_map(|(row, stale, from, to, held, failed)| Step::Settle { row, stale, from, to, held, failed }),
        1 => (row(), vec(0..2usize, 0..3), 0..60i64).prop_map(|(limit, lanes, before)| Step::Age { limit, lanes, before }),
        1 => row().prop_map(|row| Step::Cancel { row }),
        1 => row().prop_map(|row| Step::Confirm { row }),
        2 => vec(row(), 0..3).prop_map(|rows| Step::Replay { rows }),
        1 => row().prop_map(|row| Step::ReplayAsNew { row }),
        1 => vec(row(), 0..2).prop_map(|rows| Step::Purge { rows }),
        1 => (0..DSNS.len(), 1..3usize).prop_map(|(dsn, limit)| Step::Bury { dsn, limit }),
        1 => (1..3usize).prop_map(|limit| Step::Expire { limit }),
        1 => (0..30i64).prop_map(|age| Step::Clean { age }),
        2 => ((0..DSNS.len(), any::<bool>(), prop::bool::weighted(0.3), any::<bool>()),
            (any::<bool>(), any::<bool>(), any::<bool>(), prop::option::weighted(0.3, 0..40i64)))
            .prop_map(|((dsn, owner, once, ordered), (stops, event, service, lease))| {
                Step::Subscribe { dsn, owner, once, ordered, stops, event, service, lease }
            }),
        1 => (0..SUBSCRIPTIONS, stale(), any::<bool>(), any::<bool>()).prop_map(|(subscription, stale, active, event)| {
            Step::ChangeSubscription { subscription, stale, active, event }
        }),
        1 => (0..SUBSCRIPTIONS + 1).prop_map(|subscription| Step::EndSubscription { subscription }),
        3 => (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2), prop::option::of(0..2usize))
            .prop_map(|(event, service, owner, key)| Step::Publish { event, service, owner, key }),
        1 => Just(Step::Recover),
        2 => (-20..20_i64, 0..20_i64).prop_map(|(now, latest)| Step::PullIn { now, latest }),
        2 => (0..DSNS.len(), prop::option::weighted(0.4, 0..2u8), prop::option::weighted(0.8, 0..2u8), 0..20i64)
            .prop_map(|(dsn, presented, secret, keep)| Step::Attach { dsn, presented, secret, keep }),
        2 => vec((0..4usize, select(vec![Keep::Held, Keep::Away, Keep::Over]), 0..20i64), 0..3)
            .prop_map(Step::KeepAttached),
        1 => (0..DSNS.len()).prop_map(|dsn| Step::Rouse { dsn }),
        3 => (row(), stale(), 0..20i64).prop_map(|(row, stale, soon)| Step::Park { row, stale, soon }),
        3 => vec((stale(), to(), any::<bool>(), failed()), 2..ROWS).prop_map(Step::Together),
    ]
}

/// All outboxes, and the time: it goes on with each write, so that no two writes are alike.
struct Outboxes {
    memory: MemoryOutbox,
    /// What is compared with memory.
    databases: Vec<Arc<dyn Store>>,
    ids: Vec<TaskId>,
    subscriptions: Vec<SubscriptionId>,
    attachments: Vec<(usize, AttachmentId)>,
    /// Whether a process that nobody heard of was found dead: it has nothing attached any more, where there are several.
    recovered: bool,
    now: i64,
}

/// One in PostgreSQL, where there is a server.
#[cfg(feature = "postgres")]
async fn postgres(outbox: super::PostgresOutboxBuilder) -> Option<Arc<dyn Store>> {
    let schema = super::postgres::tests::Schema::new().await?;
    Some(Arc::new(schema.started_and_unheard(outbox).await))
}

impl Outboxes {
    fn new(databases: Vec<Arc<dyn Store>>) -> Self {
        let (ids, subscriptions, attachments) = (Vec::new(), Vec::new(), Vec::new());
        Self { memory: MemoryOutbox::new(), databases, ids, subscriptions, attachments, recovered: false, now: 1_000 }
    }

    fn tick(&mut self) -> Micros {
        self.now += 1;
        Micros(self.now)
    }

    fn id(&self, row: usize) -> TaskId {
        // One row more than there are: nobody knows it.
        self.ids.get(row).copied().unwrap_or_else(TaskId::new)
    }

    fn ids_of(&self, rows: &[usize]) -> Vec<TaskId> {
        rows.iter().map(|row| self.id(*row)).collect::<BTreeSet<_>>().into_iter().collect()
    }

    async fn row(&self, id: TaskId) -> Option<Row> {
        self.memory.find(id).await.expect("readable")
    }

    fn lane(&self, dsn: usize, owner: bool) -> LaneKey {
        let dsn: callback_core::Dsn = DSNS[dsn].parse().expect("a valid Dsn");
        LaneKey { owner: owner.then(|| "acme".into()), destination: dsn.destination() }
    }

    fn event(&mut self) -> Published {
        Published::To(Arc::new(self.new_row(true, false, 0, Some(0), false, 0)))
    }

    fn subscription_id(&self, number: usize) -> SubscriptionId {
        // One more than there are: nobody knows it.
        self.subscriptions.get(number).copied().unwrap_or_else(|| SubscriptionId(TaskId::new()))
    }

    async fn subscription(&self, id: SubscriptionId) -> Option<SubscriptionRow> {
        self.memory.subscription(id).await.expect("readable")
    }

    fn keeping(&self, number: usize, state: Keep, until: Micros) -> Keeping {
        // One that nobody knows, if there are not so many.
        let (dsn, id) = self.attachments.get(number).copied().unwrap_or_else(|| (0, AttachmentId::new()));
        let state = if self.recovered && state == Keep::Held { Keep::Away } else { state };
        Keeping { dsn: DSNS[dsn].parse().expect("a valid Dsn"), id, until, state }
    }

    fn fan_out(&mut self, event: bool, service: bool, owner: bool, key: Option<usize>) -> Arc<FanOut> {
        let (id, now) = (TaskId::new(), self.tick());
        let message = Message::builder(EVENTS[usize::from(event)]).id(id.into()).time(now.to_system());
        let message = message.payload(format!("event {now:?}")).build().expect("a valid message");
        let service = service.then(|| "orders".to_owned());
        let stored = Arc::new(Stored { message, failed: false, traceparent: None, service, kept: None });
        let (owner, key) = (owner.then(|| "acme".into()), key.map(|key| FanOut::key(WORKERS[key])));
        Arc::new(FanOut { id, stored, owner, key, now, expires: Micros::NEVER })
    }

    fn new_row(&mut self, event: bool, held: bool, worker: usize, dsn: Option<usize>, owner: bool, due: i64) -> Row {
        let (id, now) = (TaskId::new(), self.tick());
        let mut context = Context { operation: "Order.run".into(), ..Context::default() };
        context.headers.push(("x-a".into(), "ä".into()));
        let work = Request { context, payload: Payload::new("text/x", format!("work {now:?}")) };
        Row {
            id,
            token: 0,
            stage: if event { Stage::Delivering } else { Stage::Accepted },
            held,
            due: Micros(now.0 + due),
            worker: (!event).then(|| WORKERS[worker].into()),
            owner: owner.then(|| "acme".into()),
            dsn: dsn.or_else(|| event.then_some(0)).map(|dsn| DSNS[dsn].parse().expect("a valid Dsn")),
            starts: 0,
            attempts: 0,
            accepted_at: now,
            first_due: now,
            expires: Micros::NEVER,
            order: None,
            idempotency: None,
            subscribed: None,
            work: (!event).then(|| Arc::new(work)),
            result: event.then(|| result(id, now)),
        }
    }

    async fn settle(
        &mut self,
        id: TaskId,
        stale: bool,
        from: Option<Stage>,
        to: Stage,
        held: bool,
        failed: Option<usize>,
    ) -> Write {
        let now = self.tick();
        let row = self.row(id).await;
        let stage = row.as_ref().map_or(Stage::Accepted, |row| row.stage);
        // Steps that the engine makes, and others that come from where the row is not.
        let (from, to) = match (stage, to) {
            (Stage::Accepted | Stage::Started, Stage::Started) => (stage, Stage::Started),
            (Stage::Accepted | Stage::Started, _) => (stage, stage),
            (Stage::Delivering, Stage::Delivered | Stage::Dead) => (stage, to),
            (Stage::Delivering, _) => (stage, Stage::Delivering),
            _ => (from.unwrap_or(Stage::Delivering), to),
        };
        // Whatever is given up has a reason.
        let failed = failed.or_else(|| (to == Stage::Dead).then_some(0));
        let attempts = row.as_ref().map_or(0, |row| row.attempts) + u32::from(failed.is_some());
        let failed = failed.map(|kind| FailedRow {
            number: attempts,
            time: now,
            took: Duration::from_micros(7),
            kind: KINDS[kind],
            phase: [None, Some(Phase::Connect), Some(Phase::Answer)][kind],
            status: [Some(400), None, Some(504)][kind],
            reason: format!("reason {now:?}"),
        });
        Write::Settle(Settle {
            id,
            token: row.as_ref().map_or(0, |row| row.token) + u32::from(stale),
            from,
            to,
            // What has ended is in nobody's hands.
            held: held && !to.is_ended(),
            due: now,
            attempts,
            now,
            kind: failed.as_ref().map(|failed| failed.kind),
            failed,
            order: row.and_then(|row| row.order),
        })
    }

    /// The writes of a step; several share a transaction.
    async fn writes(&mut self, step: Step) -> Vec<Write> {
        let token =
            async |outboxes: &Self, id, stale| outboxes.row(id).await.map_or(0, |row| row.token) + u32::from(stale);
        let write = match step {
            Step::Insert { .. } if self.ids.len() >= ROWS => return Vec::new(),
            Step::Insert { event, held, worker, dsn, owner, due, order, expires, key } => {
                let mut row = self.new_row(event, held, worker, dsn, owner, due);
                // Only tasks have keys.
                let half = |number| [number; 16];
                row.idempotency =
                    key.filter(|_| !event).map(|(key, request)| Idempotency { key: half(key), request: half(request) });
                row.expires = expires.map_or(Micros::NEVER, |wait| Micros(self.now + wait));
                if let (Some(dsn), Some((key, stops))) = (&row.dsn, order) {
                    row.order = Some(Order { key: OrderKey::new(dsn, WORKERS[key]), stops });
                    row.held &= !event;
                }
                self.ids.push(row.id);
                Write::Insert(Arc::new(row))
            }
            Step::Claim { number, limit, bytes, workers, left_out } => {
                let now = self.tick();
                let left_out = left_out.into_iter().map(|(dsn, owner)| self.lane(dsn, owner));
                let workers = workers.into_iter().map(|worker| WORKERS[worker].into()).collect();
                Write::Claim(Claim { number, now, limit, bytes, workers, left_out: left_out.collect(), found: None })
            }
            Step::GiveBack { claim } => Write::GiveBack { claim },
            Step::Result { row, stale, held, events } => {
                let (id, now) = (self.id(row), self.tick());
                let token = token(self, id, stale).await;
                let has_dsn = self.row(id).await.is_some_and(|row| row.dsn.is_some());
                let to = if has_dsn { Stage::Delivering } else { Stage::Completed };
                let order = self.row(id).await.and_then(|row| row.order);
                let held = held && !to.is_ended() && order.is_none();
                let events = (0..events).map(|_| self.event()).collect();
                Write::Result { id, token, to, held, now, result: result(id, now), order, events }
            }
            Step::Defer { row, stale, events } => {
                let id = self.id(row);
                let token = token(self, id, stale).await;
                Write::Defer { id, token, events: (0..events).map(|_| self.event()).collect() }
            }
            Step::Settle { row, stale, from, to, held, failed } => {
                let id = self.id(row);
                self.settle(id, stale, from, to, held, failed).await
            }
            Step::Age { limit, lanes, before } => {
                let now = self.tick();
                // No lane is named twice.
                let lanes = lanes.into_iter().collect::<BTreeSet<_>>();
                let lanes = lanes.into_iter().map(|dsn| self.lane(dsn, false)).collect();
                Write::Age { lanes, before: Micros(now.0 - before), now, limit }
            }
            Step::Cancel { row } => Write::Cancel { id: self.id(row), now: self.tick() },
            Step::Confirm { row } => {
                let id = self.id(row);
                // Memory forgets what nobody can ask for.
                if self.ids.contains(&id) && self.row(id).await.is_none() {
                    return Vec::new();
                }
                Write::Confirm { id }
            }
            Step::Replay { rows } => Write::Replay { ids: self.ids_of(&rows), now: self.tick() },
            Step::ReplayAsNew { row } => {
                let (id, now) = (self.id(row), self.tick());
                Write::ReplayAsNew { id, now, result: result(id, now) }
            }
            Step::Purge { rows } => Write::Purge { ids: self.ids_of(&rows), now: self.tick() },
            Step::Bury { dsn, limit } => {
                Write::Bury { dsn: DSNS[dsn].parse().expect("a valid Dsn"), now: self.tick(), limit }
            }
            Step::Expire { limit } => Write::Expire { now: self.tick(), limit },
            Step::Clean { age } => {
                let now = self.tick();
                let before = Micros(now.0 - age);
                // All that is old: an event that has ended, memory has forgotten already.
                Write::Clean { now, before, keyed_before: Micros(before.0 - 10), breakers_before: before, limit: 100 }
            }
            Step::Subscribe { .. } if self.subscriptions.len() >= SUBSCRIPTIONS => return Vec::new(),
            Step::Subscribe { dsn, owner, once, ordered, stops, event, service, lease } => {
                let created_at = self.tick();
                let row = SubscriptionRow {
                    id: SubscriptionId(TaskId::new()),
                    revision: 0,
                    owner: owner.then(|| "acme".into()),
                    dsn: DSNS[dsn].parse().expect("a valid Dsn"),
                    once,
                    ordered,
                    stops,
                    active: true,
                    spent: false,
                    ended: None,
                    ended_at: None,
                    created_at,
                    expires: lease.map_or(Micros::NEVER, |lease| Micros(created_at.0 + lease)),
                    sequence: 0,
                    detail: Detail {
                        events: if event { vec!["a.b".into()] } else { Vec::new() },
                        service: service.then(|| "orders".into()),
                        ..Detail::default()
                    },
                };
                self.subscriptions.push(row.id);
                Write::Subscribe { row: Arc::new(row), limit: 3 }
            }
            Step::ChangeSubscription { subscription, stale, active, event } => {
                let id = self.subscription_id(subscription);
                self.tick();
                let Some(mut row) = self.subscription(id).await else { return Vec::new() };
                row.revision += u32::from(!stale);
                row.active = active;
                row.detail.events = if event { vec!["c.d".into()] } else { Vec::new() };
                Write::ChangeSubscription(Arc::new(row))
            }
            Step::EndSubscription { subscription } => {
                let (id, now) = (self.subscription_id(subscription), self.tick());
                // Memory deletes it sooner.
                if self.subscriptions.contains(&id) && self.subscription(id).await.is_none() {
                    return Vec::new();
                }
                Write::EndSubscription { id, end: SubscriptionEnd::Cancelled, now }
            }
            Step::Publish { .. } if self.ids.len() >= 4 * ROWS => return Vec::new(),
            Step::Publish { event, service, owner, key } => Write::Publish(self.fan_out(event, service, owner, key)),
            Step::Recover => {
                self.recovered = true;
                Write::Recover
            }
            Step::Attach { dsn, presented, secret, keep } => {
                let (now, id) = (self.tick(), AttachmentId::new());
                self.attachments.push((dsn, id));
                let digest = |number: u8| SecretDigest([number; 32]);
                let (presented, secret, until) = (presented.map(digest), secret.map(digest), Micros(now.0 + keep));
                let dsn = DSNS[dsn].parse().expect("a valid Dsn");
                let attach = Write::Attach(Attaching { dsn, id, presented, secret, now, until, limit: 100 });
                if self.recovered {
                    let away = self.keeping(self.attachments.len() - 1, Keep::Away, until);
                    return vec![attach, Write::KeepAttached(vec![away])];
                }
                attach
            }
            Step::KeepAttached(kept) => {
                let now = self.tick();
                let kept = kept.into_iter().map(|(number, state, keep)| (number, (state, keep)));
                // None is named twice.
                let kept = kept.collect::<BTreeMap<_, _>>().into_iter();
                let kept = kept.map(|(number, (state, keep))| self.keeping(number, state, Micros(now.0 + keep)));
                Write::KeepAttached(kept.collect())
            }
            Step::Rouse { dsn } => {
                Write::Rouse { dsn: DSNS[dsn].parse().expect("a valid Dsn"), now: self.tick(), limit: 100 }
            }
            Step::Park { row, stale, soon } => {
                let (id, now) = (self.id(row), self.tick());
                let token = token(self, id, stale).await;
                let Some(dsn) = self.row(id).await.and_then(|row| row.dsn) else { return Vec::new() };
                Write::Park(Parking { id, token, dsn, now, soon: Micros(now.0 + soon) })
            }
            Step::PullIn { now, latest } => {
                let now = Micros(self.now + now);
                Write::PullIn(PullIn { now, latest: Micros(now.0 + latest), leapt: true })
            }
            Step::Together(steps) => {
                let mut writes = Vec::new();
                for (row, (stale, to, held, failed)) in steps.into_iter().enumerate() {
                    let id = self.id(row);
                    writes.push(self.settle(id, stale, None, to, held, failed).await);
                }
                return writes;
            }
        };
        vec![write]
    }

    /// Applies the step to all, and compares their answers and all that they keep.
    async fn check(&mut self, step: Step) {
        let told = format!("{step:?}");
        let writes = self.writes(step).await;
        let mut new: Vec<TaskId> = writes.iter().flat_map(events).collect();
        for write in &writes {
            let Write::Publish(event) = write else { continue };
            for id in &self.subscriptions {
                new.extend(
                    self.subscription(*id).await.filter(|row| event.is_for(row)).map(|row| event.delivery(&row)),
                );
            }
        }
        let memory = join_all(writes.iter().map(|step| write(&self.memory, step.clone()))).await;
        let memory: Vec<Written> = memory.into_iter().map(|written| written.expect("stored")).collect();
        for database in &self.databases {
            let written = join_all(writes.iter().map(|step| write(&**database, step.clone()))).await;
            for ((memory, written), write) in memory.iter().zip(written).zip(&writes) {
                let finds_nothing =
                    matches!(write, Write::Cancel { id, .. } | Write::Confirm { id } if !self.ids.contains(id));
                let written = written.expect("stored");
                let deletes = matches!(write, Write::Clean { .. });
                let answer = |written| answer(written, finds_nothing, deletes);
                assert_eq!(answer(memory), answer(&written), "{write:?}");
            }
        }
        self.ids.extend(new);
        for database in &self.databases {
            self.compare(&**database, &told).await;
        }
    }

    async fn compare(&self, database: &dyn Store, told: &str) {
        for id in &self.ids {
            let (memory, kept) = (self.memory.find(*id).await, database.find(*id).await);
            let (memory, kept) = (memory.expect("readable"), kept.expect("readable"));
            let kept = kept.filter(is_kept);
            assert_eq!(memory.as_ref().map(all_of), kept.as_ref().map(all_of), "after {told}");
        }
        for id in &self.subscriptions {
            let (memory, kept) = (self.memory.subscription(*id).await, database.subscription(*id).await);
            let (memory, kept) = (memory.expect("readable"), kept.expect("readable"));
            // Memory forgets its rows sooner, and so what they are of.
            let told_of = |row: &SubscriptionRow| (format!("{row:?}"), row.kept());
            if memory.is_some() || kept.as_ref().is_some_and(|row| row.ended.is_none() && row.expires == Micros::NEVER)
            {
                assert_eq!(memory.as_ref().map(told_of), kept.as_ref().map(told_of), "after {told}");
            }
        }
        for after in [0, self.now - 20, self.now, self.now + 20] {
            let (memory, kept) = (self.memory.next_due(Micros(after)).await, database.next_due(Micros(after)).await);
            assert_eq!(memory.expect("readable"), kept.expect("readable"), "after {told}");
        }
        let (memory, kept) = (self.memory.next_expiry().await, database.next_expiry().await);
        assert_eq!(memory.expect("readable"), kept.expect("readable"), "after {told}");
        let (memory, kept) = (self.memory.waiting_workers().await, database.waiting_workers().await);
        let sorted = |names: Vec<String>| names.into_iter().collect::<BTreeSet<_>>();
        assert_eq!(sorted(memory.expect("readable")), sorted(kept.expect("readable")), "after {told}");
        let all = DeadLetterQuery { limit: 3, ..DeadLetterQuery::default() };
        let destination = DSNS[0].parse::<callback_core::Dsn>().expect("a valid Dsn").destination();
        let between = (Some(Micros(1_010)), Some(Micros(self.now)));
        for query in [
            all.clone(),
            all.clone().kind(KINDS[0]),
            all.clone().destination(destination),
            DeadLetterQuery { since: between.0, until: between.1, ..all.clone() },
        ] {
            let (memory, kept) = (self.memory.dead_letters(&query).await, database.dead_letters(&query).await);
            let (memory, kept) = (memory.expect("readable"), kept.expect("readable"));
            assert_eq!(format!("{memory:#?}"), format!("{kept:#?}"), "after {told}");
            let (ours, theirs) = (self.memory.dead_places(&query).await, database.dead_places(&query).await);
            let (ours, theirs) = (ours.expect("readable"), theirs.expect("readable"));
            assert_eq!(ours, theirs, "after {told}");
            assert_eq!(ours, memory.items.iter().map(Cursor::after).collect::<Vec<_>>(), "after {told}");
        }
    }
}

fn result(id: TaskId, now: Micros) -> Arc<Stored> {
    let message = Message::builder("a.b").id(id.into()).subject("ä").header("x-b", "1").time(now.to_system());
    let message = message.payload(format!("result {now:?}")).build().expect("a valid message");
    Arc::new(Stored {
        message,
        failed: now.0 % 2 == 0,
        traceparent: (now.0 % 3 == 0).then(|| "t".into()),
        service: None,
        kept: (now.0 % 5 == 0).then(|| {
            let answer = Answer { status: Some(201), headers: vec![("location".into(), "/a".into())] };
            let whole = Whole { payload: Payload::new("text/csv", format!("a,b,{now:?}")), failed: now.0 % 2 == 0 };
            Arc::new(Kept { answer, whole: (now.0 % 10 == 0).then_some(whole) })
        }),
    })
}

/// The events that a write stores if it counts.
fn events(write: &Write) -> Vec<TaskId> {
    match write {
        Write::Result { events, .. } | Write::Defer { events, .. } => events
            .iter()
            .filter_map(|event| match event {
                Published::To(row) => Some(row.id),
                Published::All(_) => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Whether memory keeps a row too: an event that has ended can only be asked for as a dead letter.
fn is_kept(row: &Row) -> bool {
    row.work.is_some() || !row.stage.is_ended() || row.stage == Stage::Dead
}

/// An answer as far as the engine looks at it: that there is no such row is told of what never was.
fn answer(written: &Written, finds_nothing: bool, deletes: bool) -> String {
    match written {
        Written::Claimed(rows) => format!("{:#?}", rows.iter().map(all_of).collect::<Vec<_>>()),
        Written::Count(_) if deletes => String::new(),
        // They end at once: in which order they are told is each outbox's own.
        Written::Ended(ids) => format!("{:?}", ids.iter().collect::<BTreeSet<_>>()),
        Written::Unknown if !finds_nothing => format!("{:?}", Written::Superseded),
        other => format!("{other:?}"),
    }
}

/// A row with everything that its `Debug` hides.
fn all_of(row: &Row) -> String {
    let work = row.work.as_ref().map(|work| (work.head(), work.payload.body().clone()));
    let result = row.result.as_ref().map(|result| (result.head(), result.body().into_owned()));
    format!("{row:?} {work:?} {result:?} {:?}", row.dsn.as_ref().map(|dsn| dsn.expose()))
}

/// A life of memory and these.
fn live(steps: Vec<Step>, open: impl AsyncFnOnce(std::path::PathBuf) -> Vec<Arc<dyn Store>>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut outboxes = Outboxes::new(open(directory.path().join("outbox.db")).await);
        for step in steps {
            outboxes.check(step).await;
        }
        for database in outboxes.databases {
            database.close().await;
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_outboxes_give_the_same_answers_and_keep_the_same_rows(steps in vec(step(), 1..40)) {
        live(steps, async |path| {
            let sqlite: Arc<dyn Store> = Arc::new(SqliteOutbox::open(path).await.expect("it opens"));
            [
                Some(sqlite),
                #[cfg(feature = "postgres")]
                postgres(super::PostgresOutbox::builder()).await,
            ].into_iter().flatten().collect()
        });
    }

    #[cfg(feature = "seal")]
    #[test]
    fn so_they_do_when_those_in_databases_are_sealed(steps in vec(step(), 1..40)) {
        let keys = crate::SealKeys::new("a", &[7; 32]).expect("a valid id");
        live(steps, async |path| {
            let sqlite: Arc<dyn Store> = Arc::new(SqliteOutbox::open_sealed(path, keys.clone()).await.expect("it opens"));
            [
                Some(sqlite),
                #[cfg(feature = "postgres")]
                postgres(super::PostgresOutbox::builder().seal(keys)).await,
            ].into_iter().flatten().collect()
        });
    }
}
