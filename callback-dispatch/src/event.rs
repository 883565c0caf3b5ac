//! What a service has to say without being asked.

use callback_core::{Dsn, MessageId, Payload};
use std::time::Duration;

/// Something that happened, to be sent to one destination.
///
/// ```
/// use callback_dispatch::Event;
/// use serde_json::json;
///
/// let event = Event::to("https://audit.example/in".parse()?, "order.completed", json!({ "id": 7 }));
/// assert_eq!(event.event_type(), "order.completed");
/// # Ok::<_, callback_core::DsnError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "an event is sent when it is published"]
pub struct Event {
    pub(crate) dsn: Dsn,
    pub(crate) event_type: String,
    pub(crate) payload: Payload,
    pub(crate) id: Option<MessageId>,
    pub(crate) subject: Option<String>,
    pub(crate) owner: Option<String>,
    pub(crate) ordering_key: Option<String>,
    pub(crate) expires_in: Option<Duration>,
}

impl Event {
    /// An event of this type for one destination.
    pub fn to(dsn: Dsn, event_type: impl Into<String>, payload: impl Into<Payload>) -> Self {
        Self {
            dsn,
            event_type: event_type.into(),
            payload: payload.into(),
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

    /// Sets what it is about (`ce-subject`). Default: the delivery's id.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Sets on whose behalf it is sent; chooses the key and the lane.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Keeps messages of this key to the same Dsn in order: one at a time, as they were stored.
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
