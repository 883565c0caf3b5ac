//! What an outbox keeps of one task or event.

use crate::{
    clock::Micros,
    lane::LaneKey,
    outcome::Answer,
    subscription::{FanOut, SubscriptionRow},
    work::Context,
};
use bytes::Bytes;
use callback_core::{Dsn, ErrorKind, Message, MessageId, Payload, Phase, TaskId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

/// One task or event, from its acceptance to its end.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: TaskId,
    /// Grows with each claim; what carries an older one is not stored.
    pub(crate) token: u32,
    pub(crate) stage: Stage,
    /// Whether a process has it in hand. What nobody holds is claimed when it is due.
    pub(crate) held: bool,
    pub(crate) due: Micros,
    /// The worker whose handler runs it; none for an event.
    pub(crate) worker: Option<Arc<str>>,
    pub(crate) owner: Option<Arc<str>>,
    pub(crate) dsn: Option<Dsn>,
    /// How many starts of a process found it unfinished in the hands of a dead one.
    pub(crate) starts: u32,
    /// Failed attempts of this delivery.
    pub(crate) attempts: u32,
    pub(crate) accepted_at: Micros,
    /// When the delivery was first due: its age counts from here. With an order, when it became the first of its key.
    pub(crate) first_due: Micros,
    /// When the task ends by itself; never, if nobody asked for it.
    pub(crate) expires: Micros,
    /// Messages of one key are attempted one at a time, in the order in which they were stored.
    pub(crate) order: Option<Order>,
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) work: Option<Arc<Request>>,
    pub(crate) result: Option<Arc<Stored>>,
    /// Whose subscription it serves.
    pub(crate) subscribed: Option<Subscribed>,
}

/// A subscription that a delivery serves.
#[derive(Clone)]
pub(crate) struct Subscribed {
    pub(crate) to: Arc<SubscriptionRow>,
    /// How many bytes of event and subscription count as this delivery's in memory: others share the event's.
    pub(crate) share: usize,
}

impl fmt::Debug for Subscribed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)
    }
}

/// What an event becomes.
#[derive(Clone, Debug)]
pub(crate) enum Published {
    /// A delivery to one Dsn.
    To(Arc<Row>),
    /// A delivery to each subscription that wants it.
    All(Arc<FanOut>),
}

impl Published {
    pub(crate) fn expires(&self) -> Micros {
        match self {
            Self::To(row) => row.expires,
            Self::All(event) => event.expires,
        }
    }
}

impl Row {
    pub(crate) fn lane(&self) -> Option<LaneKey> {
        Some(LaneKey { owner: self.owner.clone(), destination: self.dsn.as_ref()?.destination() })
    }

    /// The client's trace (W3C Trace Context), where it named one.
    pub(crate) fn traceparent(&self) -> Option<&str> {
        let of_result = self.result.as_ref().and_then(|result| result.traceparent.as_deref());
        of_result.or_else(|| self.work.as_ref()?.context.traceparent.as_deref())
    }

    /// About how many bytes it takes in memory.
    pub(crate) fn size(&self) -> usize {
        let work = self.work.as_ref().map_or(0, |work| work.context.size() + work.payload.body().len());
        let result = self.result.as_ref().map_or(0, |result| {
            let headers = result.message.headers().map(|(name, value)| name.len() + value.len());
            let body = self.subscribed.as_ref().map_or_else(|| result.message.body().len(), |it| it.share);
            headers.sum::<usize>() + body + result.kept.as_ref().map_or(0, |kept| kept.size())
        });
        1_024 + work + result
    }
}

/// How a message is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) key: OrderKey,
    /// Whether it holds back the others when it is dead, too.
    pub(crate) stops: bool,
}

/// What messages of one ordering key to one Dsn have in common: a digest of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct OrderKey(pub(crate) [u8; 16]);

impl OrderKey {
    pub(crate) fn new(dsn: &Dsn, key: &str) -> Self {
        Self(digest([dsn.expose(), key]))
    }
}

/// A client's name for a request, so that it may be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Idempotency {
    /// A digest of worker, caller and key: its scope.
    pub(crate) key: [u8; 16],
    /// A digest of the request: another request under the same key is refused.
    pub(crate) request: [u8; 16],
}

impl Idempotency {
    pub(crate) fn new(worker: &str, owner: Option<&str>, key: &str, request: &Request, dsn: Option<&Dsn>) -> Self {
        let payload = &request.payload;
        let dsn = dsn.map_or("", Dsn::expose);
        let parts =
            [request.context.operation.as_bytes(), payload.content_type().as_bytes(), payload.body(), dsn.as_bytes()];
        Self {
            key: digest([worker, owner.map_or("0", |_| "1"), owner.unwrap_or_default(), key]),
            request: digest(parts),
        }
    }
}

/// The first half of SHA-256 over the parts, each after its length.
pub(crate) fn digest(parts: impl IntoIterator<Item: AsRef<[u8]>>) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize()[..16]);
    half
}

/// Where a row stands. The numbers are what a database keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Stage {
    Accepted = 0,
    /// Accepted, with the mark that a run has begun.
    Started = 1,
    Deferred = 2,
    Delivering = 3,
    Completed = 10,
    Delivered = 11,
    Dead = 12,
    Cancelled = 13,
    Expired = 14,
}

impl Stage {
    pub(crate) const ALL: [Self; 9] = [
        Self::Accepted,
        Self::Started,
        Self::Deferred,
        Self::Delivering,
        Self::Completed,
        Self::Delivered,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    pub(crate) const fn number(self) -> i64 {
        self as i64
    }

    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.number() == number)
    }

    pub(crate) const fn is_ended(self) -> bool {
        self as u8 >= Self::Completed as u8
    }

    /// Whether its result is still to come.
    pub(crate) const fn is_open(self) -> bool {
        matches!(self, Self::Accepted | Self::Started | Self::Deferred)
    }
}

/// A request as it is stored: what the handler sees.
#[derive(Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) context: Context,
    pub(crate) payload: Payload,
}

/// What is to be delivered, as it is stored.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) message: Message,
    pub(crate) failed: bool,
    pub(crate) traceparent: Option<String>,
    /// The service that an event is of.
    pub(crate) service: Option<String>,
    /// Of a task: what is no part of the message.
    pub(crate) kept: Option<Arc<Kept>>,
}

/// What is kept of an outcome beside its message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) answer: Answer,
    /// The outcome itself, where it is too large for a message, which is a failure then.
    pub(crate) whole: Option<Whole>,
}

/// An outcome that no message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) payload: Payload,
    pub(crate) failed: bool,
}

impl Kept {
    /// About how many bytes it takes in memory.
    pub(crate) fn size(&self) -> usize {
        self.answer.size() + self.whole.as_ref().map_or(0, |whole| whole.payload.body().len())
    }
}

#[derive(Serialize, Deserialize)]
struct RequestHead {
    content_type: String,
    #[serde(flatten)]
    context: Context,
}

impl Request {
    /// The part beside the body, as JSON.
    pub(crate) fn head(&self) -> String {
        let head = RequestHead { content_type: self.payload.content_type().to_owned(), context: self.context.clone() };
        // Strings, numbers and JSON values under string keys have a JSON form.
        serde_json::to_string(&head).unwrap_or_default()
    }

    pub(crate) fn from_parts(head: &str, body: Vec<u8>) -> Result<Self, String> {
        let head: RequestHead = serde_json::from_str(head).map_err(|error| error.to_string())?;
        Ok(Self { context: head.context, payload: Payload::new(head.content_type, body) })
    }
}

#[derive(Serialize, Deserialize)]
struct StoredHead {
    id: MessageId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_id: Option<MessageId>,
    #[serde(rename = "type")]
    event_type: String,
    source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    time: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
    content_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(default)]
    failed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sequence: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<KeptHead>,
}

#[derive(Serialize, Deserialize)]
struct KeptHead {
    #[serde(flatten)]
    answer: Answer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole: Option<WholeHead>,
}

/// The body itself stands behind that of the message.
#[derive(Serialize, Deserialize)]
struct WholeHead {
    content_type: String,
    failed: bool,
    bytes: usize,
}

impl Stored {
    /// What is stored of it for its delivery alone.
    pub(crate) fn without_kept(&self) -> Self {
        let (traceparent, service) = (self.traceparent.clone(), self.service.clone());
        Self { message: self.message.clone(), failed: self.failed, traceparent, service, kept: None }
    }

    /// The body of the message, and that of the outcome where no message carries it.
    pub(crate) fn body(&self) -> Cow<'_, [u8]> {
        let message = self.message.body();
        match self.kept.as_ref().and_then(|kept| kept.whole.as_ref()) {
            None => Cow::Borrowed(message),
            Some(whole) => Cow::Owned([&message[..], &whole.payload.body()[..]].concat()),
        }
    }

    /// The part beside the body, as JSON.
    pub(crate) fn head(&self) -> String {
        let message = &self.message;
        let head = StoredHead {
            id: message.id().clone(),
            event_id: (message.event_id() != message.id()).then(|| message.event_id().clone()),
            event_type: message.event_type().to_owned(),
            source: message.source().to_owned(),
            subject: message.subject().map(str::to_owned),
            correlation_id: message.correlation_id().map(str::to_owned),
            time: Micros::from(message.time()).0,
            headers: message.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            content_type: message.content_type().to_owned(),
            traceparent: self.traceparent.clone(),
            failed: self.failed,
            service: self.service.clone(),
            sequence: message.sequence(),
            kept: self.kept.as_ref().map(|kept| KeptHead {
                answer: kept.answer.clone(),
                whole: kept.whole.as_ref().map(|whole| WholeHead {
                    content_type: whole.payload.content_type().to_owned(),
                    failed: whole.failed,
                    bytes: whole.payload.body().len(),
                }),
            }),
        };
        serde_json::to_string(&head).unwrap_or_default()
    }

    pub(crate) fn from_parts(head: &str, body: impl Into<Bytes>) -> Result<Self, String> {
        let head: StoredHead = serde_json::from_str(head).map_err(|error| error.to_string())?;
        let mut body = body.into();
        let kept = head.kept.map(|kept| {
            let whole = kept.whole.map(|whole| {
                let at = body.len().checked_sub(whole.bytes).ok_or("a part of the body is missing")?;
                let payload = Payload::new(whole.content_type, body.split_off(at));
                Ok::<_, String>(Whole { payload, failed: whole.failed })
            });
            Ok::<_, String>(Arc::new(Kept { answer: kept.answer, whole: whole.transpose()? }))
        });
        let kept = kept.transpose()?;
        let mut message = Message::builder(head.event_type)
            .id(head.id)
            .source(head.source)
            .time(Micros(head.time).to_system())
            .payload(Payload::new(head.content_type, body));
        if let Some(id) = head.event_id {
            message = message.event_id(id);
        }
        if let Some(subject) = head.subject {
            message = message.subject(subject);
        }
        if let Some(id) = head.correlation_id {
            message = message.correlation_id(id);
        }
        for (name, value) in head.headers {
            message = message.header(name, value);
        }
        if let Some(sequence) = head.sequence {
            message = message.sequence(sequence);
        }
        let message = message.build().map_err(|error| error.to_string())?;
        Ok(Self { message, failed: head.failed, traceparent: head.traceparent, service: head.service, kept })
    }
}

/// One failed attempt, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailedRow {
    pub(crate) number: u32,
    pub(crate) time: Micros,
    pub(crate) took: Duration,
    pub(crate) kind: ErrorKind,
    pub(crate) phase: Option<Phase>,
    pub(crate) status: Option<u16>,
    pub(crate) reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_is_read_back_as_it_was() {
        let mut context = Context { operation: "Order.run".into(), ..Context::default() };
        context.headers.push(("x-a".into(), "1".into()));
        context.extensions.insert("customer".into(), json!({ "id": 7 }));
        context.time_limit = Some(Duration::from_millis(1_500));
        let request = Request { context, payload: Payload::from(json!([1])) };
        let back = Request::from_parts(&request.head(), request.payload.body().to_vec()).expect("readable");
        assert_eq!(back, request);
    }

    #[test]
    fn whatever_a_request_may_hold_has_a_size() {
        let long = "x".repeat(10_000);
        let mut context = Context { operation: long.clone(), ..Context::default() };
        context.headers.push((long.clone(), long.clone()));
        context.pass_on.push((long.clone(), long.clone()));
        context.extensions.insert(long.clone(), json!([{ long.clone(): [long, 7, null] }]));
        assert_eq!(context.size() / 10_000, 8);
    }

    #[test]
    fn a_result_is_read_back_as_it_was() {
        let message = Message::builder("a.b")
            .event_id("e".parse().expect("valid"))
            .source("/orders")
            .subject("s")
            .correlation_id("ray")
            .header("x-request-id", "r")
            .sequence(7)
            .payload("text")
            .build()
            .expect("valid");
        let (traceparent, service) = (Some("t".into()), Some("container".into()));
        let mut stored = Stored { message, failed: true, traceparent, service, kept: None };
        let back = Stored::from_parts(&stored.head(), stored.body().into_owned()).expect("readable");
        assert_eq!(back.message, stored.message);
        assert_eq!((back.failed, back.traceparent), (true, Some("t".into())));
        assert_eq!((back.service.as_deref(), back.kept), (Some("container"), None));

        let answer = Answer { status: Some(201), headers: vec![("location".into(), "/orders/7".into())] };
        for whole in [None, Some(Whole { payload: Payload::new("text/csv", "a,b"), failed: false })] {
            let kept = Kept { answer: answer.clone(), whole };
            stored.kept = Some(Arc::new(kept.clone()));
            let back = Stored::from_parts(&stored.head(), stored.body().into_owned()).expect("readable");
            assert_eq!((&back.message, back.kept.as_deref()), (&stored.message, Some(&kept)));
        }
        let error = Stored::from_parts(&stored.head(), "a").expect_err("cut short");
        assert_eq!(error, "a part of the body is missing");
    }

    #[test]
    fn stages_and_numbers_mirror_each_other() {
        for stage in Stage::ALL {
            assert_eq!(Stage::from_number(stage.number()), Some(stage));
        }
        assert_eq!(Stage::from_number(99), None);
    }
}
