//! From work or an event to a stored row that is handed on.

use super::Engine;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::transaction::Connection;
use crate::{
    AcceptError, Event, OutboxError, Work,
    clock::Micros,
    failpoint, measure,
    outbox::{NotQueued, Write, Written},
    row::{Idempotency, Order, OrderKey, Request, Row, Stage, Stored},
};
use callback_core::{Acknowledgment, Dsn, Message, MessageId, TaskId};
use futures_util::FutureExt;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// What an overloaded dispatcher tells its clients to wait.
const OVERLOADED: Duration = Duration::from_secs(1);

/// How deep an extension is nested at most: JSON is not read back beyond 127, the request around it included.
const DEEPEST: usize = 100;

impl Engine {
    /// Stores a task and hands it on.
    pub(crate) async fn accept(self: &Arc<Self>, worker: &Arc<str>, work: Work) -> Result<Acknowledgment, AcceptError> {
        let row = self.task_row(worker, work)?;
        let dsn = row.dsn.clone();
        Ok(Acknowledgment::new(self.insert(row).await?, dsn))
    }

    /// Stores an event and hands it on.
    pub(crate) async fn publish(self: &Arc<Self>, event: Event) -> Result<MessageId, AcceptError> {
        let row = self.event_row(event)?;
        Ok(self.insert(row).await?.into())
    }

    /// Stores a task in a transaction of the user's own; nothing is handed on.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) async fn accept_in(
        &self,
        connection: Connection<'_>,
        worker: &Arc<str>,
        work: Work,
    ) -> Result<Acknowledgment, AcceptError> {
        let row = self.task_row(worker, work)?;
        let dsn = row.dsn.clone();
        Ok(Acknowledgment::new(self.insert_in(connection, row).await?, dsn))
    }

    /// Stores an event in a transaction of the user's own; nothing is handed on.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) async fn publish_in(&self, connection: Connection<'_>, event: Event) -> Result<MessageId, AcceptError> {
        let row = self.event_row(event)?;
        Ok(self.insert_in(connection, row).await?.into())
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    async fn insert_in(&self, connection: Connection<'_>, row: Row) -> Result<TaskId, AcceptError> {
        if self.closing.is_cancelled() {
            return Err(AcceptError::Closed);
        }
        let new = row.id;
        match self.store.insert_in(connection, Arc::new(row)).await? {
            Written::Known { id, same: true } => Ok(id),
            Written::Known { same: false, .. } => Err(AcceptError::Conflict),
            _ => Ok(new),
        }
    }

    fn task_row(&self, worker: &Arc<str>, work: Work) -> Result<Row, AcceptError> {
        let Work { payload, dsn, owner, ordering_key, context, expires_in, idempotency_key } = work;
        self.check_size(payload.body().len())?;
        if let Some(dsn) = &dsn {
            self.check(dsn)?;
        }
        if context.extensions.values().any(|value| !is_nested_within(value, DEEPEST)) {
            return Err(AcceptError::Extension);
        }
        let id = TaskId::new();
        if context.correlation_id.is_some() || !context.pass_on.is_empty() {
            // What its result could not carry is refused before the acknowledgment.
            let mut message = Message::builder("callback").id(id.into());
            for (name, value) in &context.pass_on {
                message = message.header(name, value);
            }
            if let Some(correlation_id) = &context.correlation_id {
                message = message.correlation_id(correlation_id);
            }
            message.build()?;
        }
        let now = self.now();
        let work = Request { context, payload };
        let idempotency =
            idempotency_key.map(|key| Idempotency::new(worker, owner.as_deref(), &key, &work, dsn.as_ref()));
        Ok(Row {
            id,
            token: 0,
            stage: Stage::Accepted,
            held: false,
            due: now,
            worker: Some(Arc::clone(worker)),
            owner: owner.map(Arc::from),
            order: dsn.as_ref().zip(ordering_key).map(|(dsn, key)| self.order(dsn, &key)),
            dsn,
            starts: 0,
            attempts: 0,
            accepted_at: now,
            first_due: now,
            expires: expires_in.map_or(Micros::NEVER, |wait| now.after(wait)),
            idempotency,
            work: Some(Arc::new(work)),
            result: None,
        })
    }

    pub(crate) fn event_row(&self, event: Event) -> Result<Row, AcceptError> {
        let Event { dsn, event_type, payload, id: event_id, subject, owner, ordering_key, expires_in } = event;
        self.check_size(payload.body().len())?;
        self.check(&dsn)?;
        let (id, now) = (TaskId::new(), self.now());
        let mut message = Message::builder(event_type)
            .id(id.into())
            .source(&self.source)
            .subject(subject.unwrap_or_else(|| id.to_string()))
            .time(now.to_system())
            .payload(payload);
        if let Some(event_id) = event_id {
            message = message.event_id(event_id);
        }
        let stored = Stored { message: message.build()?, failed: false, traceparent: None };
        Ok(Row {
            id,
            token: 0,
            stage: Stage::Delivering,
            held: false,
            due: now,
            worker: None,
            owner: owner.map(Arc::from),
            order: ordering_key.map(|key| self.order(&dsn, &key)),
            dsn: Some(dsn),
            starts: 0,
            attempts: 0,
            accepted_at: now,
            first_due: now,
            expires: expires_in.map_or(Micros::NEVER, |wait| now.after(wait)),
            idempotency: None,
            work: None,
            result: Some(Arc::new(stored)),
        })
    }

    /// What keeps a message behind those of the same key.
    fn order(&self, dsn: &Dsn, key: &str) -> Order {
        Order { key: OrderKey::new(dsn, key), stops: self.lanes.bounds().stops(&dsn.destination()) }
    }

    fn check_size(&self, bytes: usize) -> Result<(), AcceptError> {
        if bytes > self.body_limit { Err(AcceptError::TooLarge { limit: self.body_limit }) } else { Ok(()) }
    }

    /// Stores a new row, unless the request is known; its id, or that of the known one.
    async fn insert(self: &Arc<Self>, mut row: Row) -> Result<TaskId, AcceptError> {
        if self.closing.is_cancelled() {
            return Err(AcceptError::Closed);
        }
        if self.outage.is_on() {
            return Err(AcceptError::Outbox(OutboxError::not_stored("results wait to be stored first")));
        }
        let overloaded = AcceptError::Overloaded { retry_after: OVERLOADED };
        let Some(waiting) = self.accepting.take(row.size()) else { return Err(overloaded) };
        let waiting = (waiting, self.writes.take_anyway(1));
        let place = self.reserve(&row);
        row.held = place.is_some();
        let row = Arc::new(row);
        let (sender, receiver) = oneshot::channel();
        let (engine, stored, lease) = (Arc::clone(self), Arc::clone(&row), self.store.lease());
        // The hand-over happens where the commit is known, so that a caller who gives up loses nothing.
        let done = Box::new(move |result: Result<Written, OutboxError>| {
            match result {
                Ok(Written::Known { id, same }) => {
                    drop(place);
                    let _ = sender.send(if same { Ok(id) } else { Err(AcceptError::Conflict) });
                }
                Ok(_) => {
                    measure::accepted(&stored);
                    failpoint::reach("after-insert");
                    let id = stored.id;
                    engine.expiring.expect(stored.expires);
                    engine.hand_over(stored, place, lease);
                    let _ = sender.send(Ok(id));
                }
                Err(error) if error.is_unknown() => {
                    let tasks = engine.tasks.clone();
                    let runtime = engine.runtime.clone();
                    let ask = engine.ask((stored, place, lease), error, sender);
                    // What is not known waits, too: its number is bounded.
                    tasks.spawn_on(ask.map(|()| drop(waiting)), &runtime);
                }
                Err(error) => _ = sender.send(Err(AcceptError::Outbox(error))),
            }
        });
        self.store.submit(Write::Insert(row), done).map_err(|refused| match refused {
            NotQueued::Full => overloaded,
            NotQueued::Closed => AcceptError::Closed,
        })?;
        let closed = || Err(AcceptError::Outbox(OutboxError::unknown("the outbox was closed")));
        receiver.await.unwrap_or_else(|_| closed())
    }
}

fn is_nested_within(value: &Value, depth: usize) -> bool {
    let mut inner: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(values) => Box::new(values.iter()),
        Value::Object(members) => Box::new(members.values()),
        _ => return true,
    };
    depth > 0 && inner.all(|value| is_nested_within(value, depth - 1))
}
