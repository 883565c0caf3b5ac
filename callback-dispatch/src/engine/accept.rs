//! From work or an event to a stored row that is handed on.

use super::{Engine, subscribe::check_text};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::transaction::Connection;
use crate::{
    AcceptError, Event, OutboxError, Work,
    clock::Micros,
    failpoint, measure,
    outbox::{NotQueued, Write, Written},
    row::{Idempotency, Order, OrderKey, Published, Request, Row, Stage, Stored},
    subscription::FanOut,
};
use callback_core::{Acknowledgment, Dsn, Message, MessageId, TaskId};
use futures_util::FutureExt;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// What an overloaded dispatcher tells its clients to wait.
const OVERLOADED: Duration = Duration::from_secs(1);

/// How deep an extension is nested at most: JSON is not read back beyond 127, the request around it included.
pub(super) const DEEPEST: usize = 100;

impl Engine {
    /// Stores a task and hands it on.
    pub(crate) async fn accept(self: &Arc<Self>, worker: &Arc<str>, work: Work) -> Result<Acknowledgment, AcceptError> {
        let row = self.task_row(worker, work)?;
        let dsn = row.dsn.clone();
        Ok(Acknowledgment::new(self.insert(row).await?, dsn))
    }

    /// Stores an event and hands it on.
    pub(crate) async fn publish(self: &Arc<Self>, event: Event) -> Result<MessageId, AcceptError> {
        match self.event(event)? {
            Published::To(row) => Ok(self.insert(Arc::unwrap_or_clone(row)).await?.into()),
            Published::All(event) => {
                let id = event.stored.message.event_id().clone();
                self.store_for_all(event).await?;
                Ok(id)
            }
        }
    }

    /// Stores an event with a delivery to each subscription that wants it.
    async fn store_for_all(self: &Arc<Self>, event: Arc<FanOut>) -> Result<(), AcceptError> {
        self.check_open()?;
        let overloaded = AcceptError::Overloaded { retry_after: OVERLOADED };
        let Some(waiting) = self.accepting.take(1_024 + event.stored.message.body().len()) else {
            return Err(overloaded);
        };
        let waiting = (waiting, self.writes.take_anyway(1));
        let (sender, receiver) = oneshot::channel();
        let (engine, published) = (Arc::clone(self), Arc::clone(&event));
        // What goes on is woken where the commit is known, so that a caller who gives up delays nothing.
        let done = Box::new(move |result: Result<Written, OutboxError>| {
            match result {
                Ok(written) => {
                    if let Written::Count(count) = written {
                        engine.published(&published, count);
                    }
                    let _ = sender.send(Ok(()));
                }
                Err(error) if error.is_unknown() => {
                    let (tasks, runtime) = (engine.tasks.clone(), engine.runtime.clone());
                    let ask = engine.ask_event(published, error, sender);
                    // What is not known waits, too: its number is bounded.
                    tasks.spawn_on(ask.map(|()| drop(waiting)), &runtime);
                }
                Err(error) => _ = sender.send(Err(AcceptError::Outbox(error))),
            }
        });
        self.store.submit(Write::Publish(event), done).map_err(|refused| match refused {
            NotQueued::Full => overloaded,
            NotQueued::Closed => AcceptError::Closed,
        })?;
        let closed = || Err(AcceptError::Outbox(OutboxError::unknown("the outbox was closed")));
        receiver.await.unwrap_or_else(|_| closed())
    }

    /// Has an event delivered that is stored, with so many deliveries.
    pub(super) fn published(&self, event: &FanOut, deliveries: u64) {
        measure::published(deliveries);
        self.expiring.expect(event.expires);
        self.look_again();
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
        match self.event(event)? {
            Published::To(row) => Ok(self.insert_in(connection, Arc::unwrap_or_clone(row)).await?.into()),
            Published::All(event) => {
                if self.closing.is_cancelled() {
                    return Err(AcceptError::Closed);
                }
                self.store.publish_in(connection, &event).await?;
                Ok(event.stored.message.event_id().clone())
            }
        }
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
        if context.profile.is_some() || context.meta.is_some() || context.secret.is_some() {
            self.check_recipient(&context)?;
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
            subscribed: None,
            work: Some(Arc::new(work)),
            result: None,
        })
    }

    /// What an event becomes: a delivery to one Dsn, or one to each subscription that wants it.
    pub(crate) fn event(&self, event: Event) -> Result<Published, AcceptError> {
        let Event { dsn, service, event_type, payload, id: event_id, subject, owner, ordering_key, expires_in } = event;
        self.check_size(payload.body().len())?;
        dsn.as_ref().map_or(Ok(()), |dsn| self.check(dsn))?;
        if let Some(service) = &service {
            check_text("/service", service).map_err(AcceptError::Invalid)?;
        }
        let (id, now) = (TaskId::new(), self.now());
        let mut message =
            Message::builder(event_type).id(id.into()).source(&self.source).time(now.to_system()).payload(payload);
        if dsn.is_some() {
            message = message.subject(subject.unwrap_or_else(|| id.to_string()));
        }
        if let Some(event_id) = event_id {
            message = message.event_id(event_id);
        }
        let stored =
            Arc::new(Stored { message: message.build()?, failed: false, traceparent: None, service, kept: None });
        let owner = owner.map(Arc::from);
        let expires = expires_in.map_or(Micros::NEVER, |wait| now.after(wait));
        let Some(dsn) = dsn else {
            let key = ordering_key.as_deref().map(FanOut::key);
            return Ok(Published::All(Arc::new(FanOut { id, stored, owner, key, now, expires })));
        };
        Ok(Published::To(Arc::new(Row {
            id,
            token: 0,
            stage: Stage::Delivering,
            held: false,
            due: now,
            worker: None,
            owner,
            order: ordering_key.map(|key| self.order(&dsn, &key)),
            dsn: Some(dsn),
            starts: 0,
            attempts: 0,
            accepted_at: now,
            first_due: now,
            expires,
            idempotency: None,
            work: None,
            result: Some(stored),
            subscribed: None,
        })))
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
        self.check_open()?;
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

pub(super) fn is_nested_within(value: &Value, depth: usize) -> bool {
    let mut inner: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(values) => Box::new(values.iter()),
        Value::Object(members) => Box::new(members.values()),
        _ => return true,
    };
    depth > 0 && inner.all(|value| is_nested_within(value, depth - 1))
}
