//! What is asked for.

use crate::{Interrupted, subscription::KeptSecret};
use callback_core::{Dsn, Payload, Secret};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, time::Duration};

/// A piece of work to be accepted: the request, and where its result shall go.
///
/// Everything that its handler will see is in it, and is stored; nothing else is.
///
/// ```
/// use callback_dispatch::Work;
/// use serde_json::json;
///
/// let work = Work::new(json!({ "orderId": "12345" }))
///     .callback("https://example.com/order/callback".parse()?)
///     .operation("OrderService.processOrder");
/// # Ok::<_, callback_core::DsnError>(())
/// ```
#[derive(Clone)]
#[must_use = "work is done when a worker accepts it"]
pub struct Work {
    pub(crate) payload: Payload,
    pub(crate) dsn: Option<Dsn>,
    pub(crate) owner: Option<String>,
    pub(crate) ordering_key: Option<String>,
    pub(crate) context: Context,
    pub(crate) expires_in: Option<Duration>,
    pub(crate) idempotency_key: Option<String>,
}

/// What is stored of a request beside its body.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Context {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) operation: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) extensions: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pass_on: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) traceparent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) time_limit: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interrupted: Option<Interrupted>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) meta: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<KeptSecret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result_limit: Option<usize>,
}

impl Work {
    /// Work with this request as its payload.
    pub fn new(payload: impl Into<Payload>) -> Self {
        Self {
            payload: payload.into(),
            dsn: None,
            owner: None,
            ordering_key: None,
            context: Context::default(),
            expires_in: None,
            idempotency_key: None,
        }
    }

    /// Sets where the result goes. Default: it is stored, and nothing is sent.
    pub fn callback(mut self, dsn: Dsn) -> Self {
        self.dsn = Some(dsn);
        self
    }

    /// Sets what is asked for: a JSON-RPC method, for example.
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.context.operation = operation.into();
        self
    }

    /// Sets on whose behalf the work is done; chooses the key and the lane.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Keeps results of this key to the same Dsn in order: one at a time, as they were stored.
    ///
    /// One that fails holds back its key alone, until it is delivered or dead; [`Lane::stop_when_dead`] says what is then.
    /// Runs are not ordered.
    ///
    /// [`Lane::stop_when_dead`]: crate::Lane::stop_when_dead
    pub fn ordering_key(mut self, key: impl Into<String>) -> Self {
        self.ordering_key = Some(key.into());
        self
    }

    /// Keeps a header of the request for the handler.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.context.headers.push((name.into(), value.into()));
        self
    }

    /// Keeps a value beside the request for the handler, under a name: nested 100 deep at most.
    pub fn extension(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.context.extensions.insert(name.into(), value.into());
        self
    }

    /// Sends a header with the result: `x-request-id`, for example.
    ///
    /// `traceparent` becomes the trace of the delivery. A header that no message can carry is refused by `accept`.
    pub fn pass_on(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let (name, value) = (name.into().to_ascii_lowercase(), value.into());
        if name == "traceparent" {
            self.context.traceparent = is_traceparent(&value).then_some(value);
        } else {
            self.context.pass_on.push((name, value));
        }
        self
    }

    /// Sets the client's correlation id, sent as `correlationid`: 1 to 128 printable ASCII characters.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.context.correlation_id = Some(id.into());
        self
    }

    /// Limits the run. Default: the worker's limit.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.context.time_limit = Some(limit);
        self
    }

    /// Ends the task as [`Expired`](crate::TaskState::Expired) if it is not over by then: run, and delivery. Default: never.
    ///
    /// Its run is dropped, and its Dsn is not told. Counts from the acceptance.
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_in = Some(time);
        self
    }

    /// Names the request, so that it may be sent again: the same is acknowledged with the same task, and done once.
    ///
    /// A key is of its worker and [`owner`](Self::owner). The same request has the same operation, payload and Dsn; another
    /// under the key is refused as [`Conflict`](crate::AcceptError::Conflict). A key is kept as long as its task, and 24 h
    /// after its end at least; in memory, as long as the task.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Sets the shape of its result: the name of a registered [`Profile`](crate::Profile). Default `bare`.
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.context.profile = Some(name.into());
        self
    }

    /// Keeps a value of the client's, which the profile may send back: nested 100 deep at most.
    pub fn meta(mut self, meta: impl Into<Value>) -> Self {
        self.context.meta = Some(meta.into());
        self
    }

    /// Sets the secret that signs its result, instead of the dispatcher's keys: `whsec_…`, of this receiver alone.
    ///
    /// Any other text, where the profile [uses it](crate::Profile::uses_secret). The handler does not see it.
    pub fn secret(mut self, secret: impl Into<Secret>) -> Self {
        self.context.secret = Some(KeptSecret { secret: secret.into(), until: i64::MAX });
        self
    }

    /// Keeps a result that is larger than a message may be, up to this many bytes. Default: none is kept.
    ///
    /// Whoever looks the task up finds it; its Dsn gets [`Failure::Kept`](crate::Failure::Kept). For where tasks are served.
    pub fn result_limit(mut self, bytes: usize) -> Self {
        self.context.result_limit = Some(bytes);
        self
    }

    /// Says what becomes of the work if a crash cuts it short. Default: the worker's choice.
    pub fn interrupted(mut self, interrupted: Interrupted) -> Self {
        self.context.interrupted = Some(interrupted);
        self
    }
}

impl Context {
    /// About how many bytes it takes in memory.
    pub(crate) fn size(&self) -> usize {
        let pairs = self.headers.iter().chain(&self.pass_on).map(|(name, value)| name.len() + value.len());
        let extensions = self.extensions.iter().map(|(name, value)| name.len() + size(value));
        self.operation.len()
            + pairs.sum::<usize>()
            + extensions.sum::<usize>()
            + self.meta.as_ref().map_or(0, size)
            + self.secret.as_ref().map_or(0, |kept| kept.secret.expose().len())
    }
}

fn size(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(size).sum(),
            Value::Object(members) => members.iter().map(|(name, value)| name.len() + size(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

/// Neither payload, headers nor extensions are printed.
impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("operation", &self.context.operation)
            .field("dsn", &self.dsn)
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("operation", &self.operation).finish_non_exhaustive()
    }
}

/// A `traceparent` of W3C Trace Context §3.2; anything else is not passed on.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zeros = |part: &str| part.bytes().all(|byte| byte == b'0');
    match text.split('-').collect::<Vec<_>>()[..] {
        [version, trace, parent, flags] => {
            hex(version, 2)
                && version != "ff"
                && hex(trace, 32)
                && !zeros(trace)
                && hex(parent, 16)
                && !zeros(parent)
                && hex(flags, 2)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_traceparent_is_passed_on() {
        let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(valid));
        for text in [
            "",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(!is_traceparent(text), "{text}");
        }
    }
}
