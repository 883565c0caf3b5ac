//! The shape of a message, and what its receiver's answer means.

mod cloud_events;
mod hal;
mod os1;

pub use cloud_events::CloudEvents;
pub use hal::Hal;
pub use os1::Os1;

use callback_core::{Message, MessageError, Receipt, Secret, SinkError};
use serde::Serialize;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use std::{collections::BTreeMap, fmt};

/// Gives messages the shape that a receiver wants, and says what its answer means.
///
/// A profile is registered by its name with [`DispatcherBuilder::profile`](crate::DispatcherBuilder::profile), and named by
/// work and subscriptions, which are stored: it acts at each attempt, perhaps after a restart. Both functions are pure. What
/// names a profile that is not registered any more waits, and is tried again by the schedule.
///
/// ```
/// use callback_core::{Message, MessageError};
/// use callback_dispatch::{Profile, Recipient};
/// use serde_json::json;
///
/// #[derive(Debug)]
/// struct Partner;
///
/// impl Profile for Partner {
///     fn name(&self) -> &str {
///         "partner"
///     }
///
///     fn shape(&self, message: Message, recipient: &Recipient) -> Result<Message, MessageError> {
///         message.to_builder().payload(json!({ "what": message.event_type(), "who": recipient.id })).build()
///     }
/// }
/// ```
pub trait Profile: fmt::Debug + Send + Sync + 'static {
    /// The name under which it is registered.
    fn name(&self) -> &str;

    /// Makes the message that is signed and sent. Its ids stay: they are what receivers deduplicate by.
    ///
    /// # Errors
    /// When the shape cannot be sent; the message is dead then.
    fn shape(&self, message: Message, recipient: &Recipient) -> Result<Message, MessageError>;

    /// Says what the receiver's answer means. Default: what the sink says.
    ///
    /// # Errors
    /// When the message was not accepted.
    fn judge(&self, outcome: Result<Receipt, SinkError>) -> Result<Receipt, SinkError> {
        outcome
    }

    /// Whether it signs by the recipient's secret itself, so that this may be any text. Default: no.
    fn uses_secret(&self) -> bool {
        false
    }
}

/// For whom a message is shaped.
#[derive(Clone)]
#[non_exhaustive]
pub struct Recipient {
    /// The id of the subscription, or of the task whose result it is.
    pub id: String,
    /// Where subscription or task are served: `/subscriptions/{id}` or `/tasks/{id}` under the dispatcher's
    /// [public URL](crate::DispatcherBuilder::public_url), relative if that is not set.
    pub href: String,
    /// The service that the event is of.
    pub service: Option<String>,
    /// The client's own value; null if there is none.
    pub meta: Value,
    /// The newest secret of the subscription or the request.
    pub secret: Option<Secret>,
}

/// Neither meta nor secret are printed.
impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipient").field("id", &self.id).field("service", &self.service).finish_non_exhaustive()
    }
}

/// The message as it is: `bare`, the default. It need not be registered.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "users name it as a value")]
pub struct Bare;

impl Bare {
    pub(crate) const NAME: &str = "bare";
}

impl Profile for Bare {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn shape(&self, message: Message, _: &Recipient) -> Result<Message, MessageError> {
        Ok(message)
    }
}

/// The members of an object, each as the JSON that is sent.
#[derive(Default, Serialize)]
#[serde(transparent)]
struct Members(BTreeMap<&'static str, Box<RawValue>>);

impl Members {
    fn insert(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.insert(name, to_raw_value(&value.into()).expect("a value has a JSON form"));
    }

    /// Puts the body into it as CloudEvents does (JSON Event Format 1.0.2 §3.1): JSON as `data`, as it is spelled; text as a
    /// string, other bytes in base64 as `data_base64`.
    fn insert_data(&mut self, message: &Message) {
        // Not by a `Value`, which is another number where a number is long.
        if is_json(message.content_type())
            && let Ok(json) = serde_json::from_slice(message.body())
        {
            self.0.insert("data", json);
            return;
        }
        let is_text = media_type(message.content_type()).starts_with("text/");
        match str::from_utf8(message.body()).ok().filter(|_| is_text) {
            Some(text) => self.insert("data", text),
            None => self.insert("data_base64", base64(message.body())),
        }
    }

    fn into_body(self) -> Vec<u8> {
        serde_json::to_vec(&self).expect("names and JSON have a JSON form")
    }
}

/// A content type without its parameters, in lower case.
fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether a content type is one of JSON.
pub(crate) fn is_json(content_type: &str) -> bool {
    let media_type = media_type(content_type);
    media_type.ends_with("/json") || media_type.ends_with("+json")
}

/// Base64 with padding (RFC 4648 §4).
fn base64(bytes: &[u8]) -> String {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests;
