//! What a service has to say without being asked.

use callback_core::{Dsn, MessageId, Payload};
use std::time::Duration;

/// Something that happened, to be sent to the subscriptions that want it, or to one destination.
///
/// However many get it, it is stored once. Each delivery has an id of its own; the event's id, `ce-id`, is that of
/// [`publish`](crate::Dispatcher::publish).
///
/// ```
/// use callback_dispatch::Event;
/// use serde_json::json;
///
/// let event = Event::new("order.completed", json!({ "id": 7 })).service("orders");
/// assert_eq!(event.event_type(), "order.completed");
/// let direct = Event::to("https://audit.example/in".parse()?, "order.completed", json!({ "id": 7 }));
/// # Ok::<_, callback_core::DsnError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "an event is sent when it is published"]
pub struct Event {
    /// Where it goes, whoever else wants it; with none, to all subscriptions that want it.
    pub(crate) dsn: Option<Dsn>,
    pub(crate) service: Option<String>,
    pub(crate) event_type: String,
    pub(crate) payload: Payload,
    pub(crate) id: Option<MessageId>,
    pub(crate) subject: Option<String>,
    pub(crate) owner: Option<String>,
    pub(crate) ordering_key: Option<String>,
    pub(crate) expires_in: Option<Duration>,
}

impl Event {
    /// An event of this type for all subscriptions that want it.
    pub fn new(event_type: impl Into<String>, payload: impl Into<Payload>) -> Self {
        Self::of(None, event_type.into(), payload.into())
    }

    /// An event of this type for one destination, and for no subscription.
    pub fn to(dsn: Dsn, event_type: impl Into<String>, payload: impl Into<Payload>) -> Self {
        Self::of(Some(dsn), event_type.into(), payload.into())
    }

    const fn of(dsn: Option<Dsn>, event_type: String, payload: Payload) -> Self {
        Self {
            dsn,
            service: None,
            event_type,
            payload,
            id: None,
            subject: None,
            owner: None,
            ordering_key: None,
            expires_in: None,
        }
    }

    /// Sets the event's id (`ce-id`). Default: the delivery's.
    pub fn id(mut self, id: MessageId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the service that it is of: 1 to 255 bytes without control characters.
    ///
    /// Subscriptions that name a service get its events alone.
    pub fn service(mut self, service: impl Into<String>) -> Self {
        self.service = Some(service.into());
        self
    }

    /// Sets what it is about (`ce-subject`), for one destination. Default: the delivery's id.
    ///
    /// Who gets it by a subscription finds the subscription's id there.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Sets on whose behalf it is sent; chooses the key and the lane.
    ///
    /// Of the subscriptions, only this owner's get it then; without one, everybody's do.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Keeps messages of this key to the same Dsn, or to the same subscription, in order: one at a time, as they were stored.
    ///
    /// One that fails holds back its key alone, until it is delivered or dead; [`Lane::stop_when_dead`] says what is then.
    ///
    /// [`Lane::stop_when_dead`]: crate::Lane::stop_when_dead
    pub fn ordering_key(mut self, key: impl Into<String>) -> Self {
        self.ordering_key = Some(key.into());
        self
    }

    /// Gives it up if it is not delivered by then: it is not attempted any more, and is no dead letter. Default: never.
    ///
    /// An attempt that has begun goes on.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_in = Some(time);
        self
    }

    /// What happened.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The body.
    #[must_use]
    pub const fn payload(&self) -> &Payload {
        &self.payload
    }
}
