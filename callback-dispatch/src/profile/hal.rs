//! The shape of the adidas API guidelines.

use super::{Members, Profile, Recipient};
use callback_core::{Message, MessageError, Payload, Receipt, SinkError};
use serde_json::json;

/// `hal`: a notification of the adidas API guidelines.
///
/// `{"_links":{"self":{"href":…}},"UUID":…,"data":…}` as `application/hal+json`; the link is to the subscription or task. A
/// receiver's 403 refuses the message for good, whatever follows it in the body.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "users name it as a value")]
pub struct Hal;

impl Profile for Hal {
    fn name(&self) -> &'static str {
        "hal"
    }

    fn shape(&self, message: Message, recipient: &Recipient) -> Result<Message, MessageError> {
        let mut members = Members::default();
        members.insert("_links", json!({ "self": { "href": recipient.href } }));
        members.insert("UUID", recipient.id.as_str());
        members.insert_data(&message);
        message.to_builder().payload(Payload::new("application/hal+json", members.into_body())).build()
    }

    fn judge(&self, outcome: Result<Receipt, SinkError>) -> Result<Receipt, SinkError> {
        outcome.map_err(|error| match error.status() {
            Some(403) => SinkError::refused(error).with_status(403),
            _ => error,
        })
    }
}
