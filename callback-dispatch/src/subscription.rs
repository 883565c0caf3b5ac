//! Standing wishes for events.

mod row;

pub(crate) use row::{Detail, FanOut, KeptSecret, SubscriptionRow, message_for};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) use row::{LOCKS, LOW, ORDER, VARIANT};

use crate::{AcceptError, ChangeError, Cursor, OutboxError, Page, clock::Micros, engine::Engine};
use callback_core::{Dsn, InvalidId, Secret, TaskId};
use serde_json::Value;
use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Names one subscription: a UUID version 7. It is no capability.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub(crate) TaskId);

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubscriptionId({self})")
    }
}

impl FromStr for SubscriptionId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse().map(Self)
    }
}

/// A wish for events that is not stored yet.
///
/// ```
/// use callback_dispatch::NewSubscription;
///
/// let new = NewSubscription::new("https://audit.example/in".parse()?).event("order.completed").ordered();
/// # Ok::<_, callback_core::DsnError>(())
/// ```
#[derive(Clone)]
#[must_use = "a subscription counts when it is created"]
pub struct NewSubscription {
    pub(crate) dsn: Dsn,
    pub(crate) topic: bool,
    pub(crate) once: bool,
    pub(crate) ordered: bool,
    pub(crate) service: Option<String>,
    pub(crate) events: Vec<String>,
    pub(crate) lease: Option<Duration>,
    pub(crate) meta: Value,
    pub(crate) owner: Option<String>,
    pub(crate) profile: Option<String>,
    pub(crate) secret: Option<Secret>,
}

impl NewSubscription {
    /// A wish for all events, continuous and without end, to be sent there.
    pub const fn new(dsn: Dsn) -> Self {
        Self {
            dsn,
            topic: false,
            once: false,
            ordered: false,
            service: None,
            events: Vec::new(),
            lease: None,
            meta: Value::Null,
            owner: None,
            profile: None,
            secret: None,
        }
    }

    /// The same for a topic of the operator's: the client consumes it, and finds its messages by the subscription's id.
    pub const fn topic(topic: Dsn) -> Self {
        let mut new = Self::new(topic);
        new.topic = true;
        new
    }

    /// Takes one event, the first that is published, and ends when that is delivered or dead, or has expired.
    pub const fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// Sends its events one at a time, in the order in which they were published, each with a CloudEvents `sequence`.
    ///
    /// One that fails holds back the later ones, until it is delivered or dead. Whether a dead one stops them is what
    /// [`Lane::stop_when_dead`](crate::Lane::stop_when_dead) says when the subscription is created.
    pub const fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// Asks for events of this service alone. Default: all.
    pub fn service(mut self, service: impl Into<String>) -> Self {
        self.service = Some(service.into());
        self
    }

    /// Asks for events of this type, exactly; may be called several times, up to 100. Default: all.
    pub fn event(mut self, event_type: impl Into<String>) -> Self {
        self.events.push(event_type.into());
        self
    }

    /// Ends it after this time. Default: never.
    pub const fn lease(mut self, time: Duration) -> Self {
        self.lease = Some(time);
        self
    }

    /// Keeps a value of the client's, which its profile may send back: nested 100 deep at most, and 64 KiB as JSON.
    pub fn meta(mut self, meta: impl Into<Value>) -> Self {
        self.meta = meta.into();
        self
    }

    /// Sets on whose behalf it is made; chooses the key and the lane, and who sees it: 1 to 255 bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Sets the shape of its messages: the name of a registered [`Profile`](crate::Profile). Default `bare`.
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.profile = Some(name.into());
        self
    }

    /// Sets the secret that signs its messages, instead of the dispatcher's keys: `whsec_…`, of this receiver alone.
    ///
    /// Any other text, where the profile [uses it](crate::Profile::uses_secret). It is never given back.
    pub fn secret(mut self, secret: impl Into<Secret>) -> Self {
        self.secret = Some(secret.into());
        self
    }
}

/// Neither meta nor secret are printed.
impl fmt::Debug for NewSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewSubscription")
            .field("dsn", &self.dsn)
            .field("service", &self.service)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

/// A stored wish for events, as it was when it was read. Cheap to clone.
#[derive(Clone)]
pub struct Subscription {
    row: Arc<SubscriptionRow>,
    href: String,
    state: SubscriptionState,
}

/// Whether a subscription gets events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubscriptionState {
    /// It gets what is published.
    Active,
    /// It gets nothing of what is published meanwhile; what was published before goes on.
    Paused,
    /// It gets nothing any more.
    Ended(SubscriptionEnd),
}

/// Why a subscription ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SubscriptionEnd {
    /// It was cancelled.
    Cancelled,
    /// It was for one event, and that is delivered, or dead, or has expired.
    Completed,
    /// Its destination said that this very Dsn is no more (410).
    Gone,
    /// Its lease is over.
    Expired,
}

impl Subscription {
    pub(crate) fn new(row: Arc<SubscriptionRow>, href: String, now: Micros) -> Self {
        let state = row.state(now);
        Self { row, href, state }
    }

    /// Its id: the `subject` of its messages.
    #[must_use]
    pub fn id(&self) -> SubscriptionId {
        self.row.id
    }

    /// Where its messages go.
    #[must_use]
    pub fn dsn(&self) -> &Dsn {
        &self.row.dsn
    }

    /// Whether it goes to a topic of the operator's.
    #[must_use]
    pub fn is_topic(&self) -> bool {
        self.row.detail.topic
    }

    /// Where it is served: `/subscriptions/{id}` under the dispatcher's public URL, relative if that is not set.
    #[must_use]
    pub fn href(&self) -> &str {
        &self.href
    }

    /// Whether it takes one event and no more.
    #[must_use]
    pub fn is_once(&self) -> bool {
        self.row.once
    }

    /// Whether its messages are sent in order.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.row.ordered
    }

    /// Of which service it wants events; of all if none is named.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.row.detail.service.as_deref()
    }

    /// Of which types it wants events; of all if none is named.
    #[must_use]
    pub fn events(&self) -> &[String] {
        &self.row.detail.events
    }

    /// The client's own value; null if there is none.
    #[must_use]
    pub fn meta(&self) -> &Value {
        &self.row.detail.meta
    }

    /// On whose behalf it was made.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.row.owner.as_deref()
    }

    /// The shape of its messages, if one is named.
    #[must_use]
    pub fn profile(&self) -> Option<&str> {
        self.row.detail.profile.as_deref()
    }

    /// Whether it has a secret of its own. The secret itself is never given back.
    #[must_use]
    pub fn has_secret(&self) -> bool {
        !self.row.detail.secrets.is_empty()
    }

    /// Whether it got events when it was read.
    #[must_use]
    pub const fn state(&self) -> SubscriptionState {
        self.state
    }

    /// When it was created.
    #[must_use]
    pub fn created_at(&self) -> SystemTime {
        self.row.created_at.to_system()
    }

    /// When its lease is over, if it has one.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        (self.row.expires != Micros::NEVER).then(|| self.row.expires.to_system())
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.row.id)
            .field("dsn", &self.row.dsn)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// What changes of a subscription; the rest stays.
///
/// What was published before goes out as it was wished for then, but by the secret, profile and meta of later.
#[derive(Clone, Default)]
#[must_use = "nothing changes until it is given to `update`"]
pub struct SubscriptionChange {
    pub(crate) active: Option<bool>,
    pub(crate) service: Option<Option<String>>,
    pub(crate) events: Option<Vec<String>>,
    pub(crate) lease: Option<Option<Duration>>,
    pub(crate) meta: Option<Value>,
    pub(crate) secret: Option<Option<(Secret, Duration)>>,
}

impl SubscriptionChange {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives it events again.
    pub const fn resume(mut self) -> Self {
        self.active = Some(true);
        self
    }

    /// Gives it no event of those that are published until it is resumed.
    pub const fn pause(mut self) -> Self {
        self.active = Some(false);
        self
    }

    /// Asks for events of this service alone; of all with none.
    pub fn service(mut self, service: Option<impl Into<String>>) -> Self {
        self.service = Some(service.map(Into::into));
        self
    }

    /// Asks for events of these types alone; of all if there is none.
    pub fn events<T: Into<String>>(mut self, event_types: impl IntoIterator<Item = T>) -> Self {
        self.events = Some(event_types.into_iter().map(Into::into).collect());
        self
    }

    /// Ends it so much later than now; never with none.
    pub const fn lease(mut self, time: Option<Duration>) -> Self {
        self.lease = Some(time);
        self
    }

    /// Replaces the client's own value: nested 100 deep at most, and 64 KiB as JSON.
    pub fn meta(mut self, meta: impl Into<Value>) -> Self {
        self.meta = Some(meta.into());
        self
    }

    /// Replaces the secret; for the time of `overlap` the former one signs too, beside it.
    ///
    /// A profile that sends a signature of its own uses the new secret at once.
    pub fn secret(mut self, secret: impl Into<Secret>, overlap: Duration) -> Self {
        self.secret = Some(Some((secret.into(), overlap)));
        self
    }

    /// Takes its secrets away: the dispatcher's keys sign.
    pub fn no_secret(mut self) -> Self {
        self.secret = Some(None);
        self
    }
}

/// Neither meta nor secret are printed.
impl fmt::Debug for SubscriptionChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionChange")
            .field("active", &self.active)
            .field("service", &self.service)
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

/// Which subscriptions are meant. Default: all, those that have ended and are kept included.
#[derive(Clone, Debug)]
#[must_use]
pub struct SubscriptionQuery {
    pub(crate) owner: Option<String>,
    pub(crate) limit: usize,
    pub(crate) after: Option<SubscriptionId>,
}

impl Default for SubscriptionQuery {
    fn default() -> Self {
        Self { owner: None, limit: 100, after: None }
    }
}

impl SubscriptionQuery {
    /// How many bytes a page has before its last subscription, as they are kept.
    pub(crate) const BYTES: usize = 4 << 20;

    /// Only those of this owner.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// At most so many on a page. Default 100; 1 to 1,000. A page ends before, once it has about 4 MiB.
    pub const fn limit(mut self, limit: usize) -> Self {
        self.limit = match limit {
            0 => 1,
            1..=1_000 => limit,
            _ => 1_000,
        };
        self
    }

    /// Goes on where a page ended.
    pub const fn after(mut self, cursor: Cursor) -> Self {
        self.after = Some(SubscriptionId(cursor.id));
        self
    }
}

/// Creates, changes and ends subscriptions: [`Dispatcher::subscriptions`](crate::Dispatcher::subscriptions). Cheap to clone.
///
/// They are stored in the outbox, and outlive the process. One that has ended is kept for the dispatcher's retention, and
/// for as long as a message of it is.
///
/// ```
/// use callback_core::MemorySink;
/// use callback_dispatch::{Dispatcher, Event, MemoryOutbox, NewSubscription};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sink = MemorySink::new();
/// let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(sink.clone()).start().await?;
/// let audit = NewSubscription::new("memory://audit".parse()?).event("order.completed");
/// let subscription = dispatcher.subscriptions().create(audit).await?;
///
/// dispatcher.publish(Event::new("order.completed", json!({ "id": 7 }))).await?;
/// let delivered = sink.next("audit").await;
/// assert_eq!(delivered.message.subject(), Some(&*subscription.id().to_string()));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Subscriptions(Arc<Engine>);

impl Subscriptions {
    pub(crate) const fn of(engine: Arc<Engine>) -> Self {
        Self(engine)
    }

    /// Stores a subscription. It gets what is published once this resolved.
    ///
    /// # Errors
    /// When it was not accepted: its Dsn, profile or secret cannot be used, a validator or a limit of its members
    /// refuses it ([`AcceptError::Invalid`]), its owner has as many as it may have ([`AcceptError::TooMany`]), or the outbox
    /// failed.
    pub async fn create(&self, new: NewSubscription) -> Result<Subscription, AcceptError> {
        self.0.subscribe(new).await
    }

    /// The subscription of this id.
    ///
    /// # Errors
    /// When the outbox cannot be read.
    pub async fn get(&self, id: SubscriptionId) -> Result<Option<Subscription>, OutboxError> {
        let row = self.0.store.subscription(id).await?;
        Ok(row.map(|row| self.0.subscription(row)))
    }

    /// A page of them, by their ids: oldest first.
    ///
    /// # Errors
    /// When the outbox cannot be read.
    pub async fn list(&self, query: &SubscriptionQuery) -> Result<Page<Subscription>, OutboxError> {
        let Page { items, next } = self.0.store.subscriptions(query).await?;
        Ok(Page { items: items.into_iter().map(|row| self.0.subscription(row)).collect(), next })
    }

    /// Changes a subscription; as it is then.
    ///
    /// # Errors
    /// When there is none, it has ended, the change cannot be used, or the outbox failed.
    pub async fn update(&self, id: SubscriptionId, change: SubscriptionChange) -> Result<Subscription, ChangeError> {
        self.0.change_subscription(id, change).await
    }

    /// Replaces the secret; for the time of `overlap` the former one signs too, beside it.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn rotate_secret(
        &self,
        id: SubscriptionId,
        secret: impl Into<Secret> + Send,
        overlap: Duration,
    ) -> Result<Subscription, ChangeError> {
        self.update(id, SubscriptionChange::new().secret(secret, overlap)).await
    }

    /// Gives it no event of those that are published until it is resumed. Idempotent.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn pause(&self, id: SubscriptionId) -> Result<Subscription, ChangeError> {
        self.update(id, SubscriptionChange::new().pause()).await
    }

    /// Gives it events again. Idempotent.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn resume(&self, id: SubscriptionId) -> Result<Subscription, ChangeError> {
        self.update(id, SubscriptionChange::new().resume()).await
    }

    /// Ends it: it gets nothing any more, and of what waits for it nothing more is attempted.
    ///
    /// An attempt that has begun goes on, and so does what another process has in hand at that moment.
    ///
    /// # Errors
    /// When there is none, it has ended, or the outbox failed.
    ///
    /// # Cancellation
    /// If the future is dropped, it may be cancelled all the same.
    pub async fn cancel(&self, id: SubscriptionId) -> Result<(), ChangeError> {
        self.0.cancel_subscription(id).await
    }
}
