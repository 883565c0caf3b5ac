//! What an outbox keeps of a subscription, and what becomes of an event for it.

use super::{SubscriptionEnd, SubscriptionId, SubscriptionState};
use crate::{
    clock::Micros,
    row::{OrderKey, Stored, digest},
};
use callback_core::{Dsn, MessageError, Secret, TaskId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, sync::Arc};

/// A subscription, from its creation to its end.
#[derive(Clone)]
pub(crate) struct SubscriptionRow {
    pub(crate) id: SubscriptionId,
    /// Grows with each change that is made by who has read it.
    pub(crate) revision: u32,
    pub(crate) owner: Option<Arc<str>>,
    pub(crate) dsn: Dsn,
    pub(crate) once: bool,
    pub(crate) ordered: bool,
    /// Whether one of its messages that is dead holds back the later ones.
    pub(crate) stops: bool,
    pub(crate) active: bool,
    /// Whether it has got the one event that it may get.
    pub(crate) spent: bool,
    pub(crate) ended: Option<SubscriptionEnd>,
    pub(crate) ended_at: Option<Micros>,
    pub(crate) created_at: Micros,
    pub(crate) expires: Micros,
    /// The number of its last ordered message.
    pub(crate) sequence: u32,
    pub(crate) detail: Detail,
}

/// What no outbox looks into, and what may be secret: kept as JSON, with the Dsn.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Detail {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) events: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<String>,
    #[serde(default)]
    pub(crate) topic: bool,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(crate) meta: Value,
    /// Newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<KeptSecret>,
}

/// A secret, and until when it signs beside a newer one.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeptSecret {
    #[serde(with = "text")]
    pub(crate) secret: Secret,
    pub(crate) until: i64,
}

/// A secret in what is stored; nowhere else has it a form.
mod text {
    use callback_core::Secret;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(secret: &Secret, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
        String::deserialize(from).map(Secret::from)
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    dsn: String,
    #[serde(flatten)]
    detail: Detail,
}

impl SubscriptionRow {
    /// The part that may be secret, as JSON.
    pub(crate) fn kept(&self) -> String {
        let kept = Kept { dsn: self.dsn.expose().to_owned(), detail: self.detail.clone() };
        // Strings, numbers and JSON values under string keys have a JSON form.
        serde_json::to_string(&kept).unwrap_or_default()
    }

    pub(crate) fn read_kept(text: &str) -> Result<(Dsn, Detail), String> {
        let Kept { dsn, detail } = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Ok((dsn.parse().map_err(|error: callback_core::DsnError| error.to_string())?, detail))
    }

    pub(crate) fn state(&self, now: Micros) -> SubscriptionState {
        match self.ended {
            Some(end) => SubscriptionState::Ended(end),
            None if self.expires <= now => SubscriptionState::Ended(SubscriptionEnd::Expired),
            None if self.active => SubscriptionState::Active,
            None => SubscriptionState::Paused,
        }
    }

    /// What an outbox finds it by: each pair of an event type and a service, empty where any is wanted.
    pub(crate) fn interests(&self) -> Vec<(&str, &str)> {
        let service = self.detail.service.as_deref().unwrap_or_default();
        match &self.detail.events[..] {
            [] => vec![("", service)],
            events => events.iter().map(|event| (event.as_str(), service)).collect(),
        }
    }

    /// What tells its messages from those of others: in their ids, and in their ordering keys.
    pub(crate) fn number(&self) -> i64 {
        low(self.id.0)
    }

    /// Those that sign, newest first.
    pub(crate) fn secrets(&self, now: Micros) -> impl Iterator<Item = &Secret> {
        self.detail.secrets.iter().filter(move |kept| now.0 < kept.until).map(|kept| &kept.secret)
    }
}

/// Neither meta nor secrets are printed.
impl fmt::Debug for SubscriptionRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionRow")
            .field("id", &self.id)
            .field("revision", &self.revision)
            .field("owner", &self.owner)
            .field("dsn", &self.dsn)
            .field("once", &self.once)
            .field("ordered", &self.ordered)
            .field("stops", &self.stops)
            .field("active", &self.active)
            .field("spent", &self.spent)
            .field("ended", &self.ended)
            .field("ended_at", &self.ended_at)
            .field("created_at", &self.created_at)
            .field("expires", &self.expires)
            .field("sequence", &self.sequence)
            .field("service", &self.detail.service)
            .field("events", &self.detail.events)
            .field("profile", &self.detail.profile)
            .finish_non_exhaustive()
    }
}

impl SubscriptionEnd {
    const ALL: [Self; 4] = [Self::Cancelled, Self::Completed, Self::Gone, Self::Expired];

    /// What a database keeps.
    pub(crate) const fn number(self) -> i64 {
        match self {
            Self::Cancelled => 1,
            Self::Completed => 2,
            Self::Gone => 3,
            Self::Expired => 4,
        }
    }

    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.number() == number)
    }
}

/// An event for all who want it: stored once, with a delivery for each of them.
#[derive(Clone, Debug)]
pub(crate) struct FanOut {
    /// The message, but for what differs: delivery id, subject, sequence. Its delivery's id is that of the event here.
    pub(crate) id: TaskId,
    pub(crate) stored: Arc<Stored>,
    /// Whose subscriptions may get it; everybody's, with none.
    pub(crate) owner: Option<Arc<str>>,
    /// What keeps it behind others of the same key, for each subscription.
    pub(crate) key: Option<i64>,
    pub(crate) now: Micros,
    pub(crate) expires: Micros,
}

/// The part of an id in which its numbers are added: 62 bits, so that no sum leaves an `i64`.
pub(crate) const LOW: i64 = (1 << 62) - 1;

/// The bits of an id's variant (RFC 9562 §4.1).
pub(crate) const VARIANT: i64 = i64::MIN;

/// In how many parts the keys of subscriptions are locked: so many locks an event takes, however many want it in order.
pub(crate) const LOCKS: i64 = 1_024;

/// Begins the ordering keys of subscriptions.
pub(crate) const ORDER: &[u8; 6] = b"subscr";

impl FanOut {
    /// An ordering key's number.
    pub(crate) fn key(key: &str) -> i64 {
        let half = digest([key]);
        let mut number = [0; 8];
        number.copy_from_slice(&half[..8]);
        i64::from_be_bytes(number) & LOW
    }

    pub(crate) fn event_type(&self) -> &str {
        self.stored.message.event_type()
    }

    /// Empty where it is of no service.
    pub(crate) fn service(&self) -> &str {
        self.stored.service.as_deref().unwrap_or_default()
    }

    /// The first half of each of its deliveries' ids.
    pub(crate) fn head(&self) -> [u8; 8] {
        let mut head = [0; 8];
        head.copy_from_slice(&self.id.as_bytes()[..8]);
        head
    }

    /// What the second half of each of its deliveries' ids begins from.
    pub(crate) fn low(&self) -> i64 {
        low(self.id)
    }

    /// Whether this subscription gets it.
    pub(crate) fn is_for(&self, row: &SubscriptionRow) -> bool {
        let wants = |(event, service): (&str, &str)| {
            (event.is_empty() || event == self.event_type()) && (service.is_empty() || service == self.service())
        };
        row.active
            && !row.spent
            && row.ended.is_none()
            && row.expires > self.now
            && (self.owner.is_none() || self.owner == row.owner)
            && row.interests().into_iter().any(wants)
    }

    /// The id of its delivery to this subscription: the same however often it is asked for.
    pub(crate) fn delivery(&self, row: &SubscriptionRow) -> TaskId {
        let low = ((self.low() + row.number()) & LOW) | VARIANT;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.head());
        id[8..].copy_from_slice(&low.to_be_bytes());
        TaskId::from_bytes(id)
    }

    /// What orders its delivery to this subscription, if anything does.
    pub(crate) fn order_key(&self, row: &SubscriptionRow) -> Option<OrderKey> {
        // All of an ordered one are of one key, whatever the event's.
        let key = if row.ordered { 0 } else { self.key? };
        let mut half = [0; 16];
        half[..6].copy_from_slice(ORDER);
        half[6..8].copy_from_slice(&((row.number() & (LOCKS - 1)) as u16).to_be_bytes());
        half[8..].copy_from_slice(&((row.number() + key) & LOW).to_be_bytes());
        Some(OrderKey(half))
    }
}

/// The message of an event for one subscription.
pub(crate) fn message_for(
    event: &Stored,
    delivery: TaskId,
    to: SubscriptionId,
    sequence: Option<u32>,
) -> Result<Stored, MessageError> {
    let message = &event.message;
    let mut message = message.to_builder().event_id(message.event_id().clone()).id(delivery.into());
    if let Some(sequence) = sequence {
        message = message.sequence(sequence);
    }
    Ok(Stored {
        message: message.subject(to.to_string()).build()?,
        failed: event.failed,
        traceparent: event.traceparent.clone(),
        service: event.service.clone(),
        kept: None,
    })
}

fn low(id: TaskId) -> i64 {
    let mut low = [0; 8];
    low.copy_from_slice(&id.as_bytes()[8..]);
    i64::from_be_bytes(low) & LOW
}
