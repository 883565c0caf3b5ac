//! CloudEvents in one piece.

use super::{Members, Profile, Recipient};
use callback_core::{Message, MessageError, Payload};

/// `cloudevents`: CloudEvents 1.0 in structured mode, `application/cloudevents+json` (JSON Event Format 1.0.2).
///
/// The attributes are members beside `datacontenttype` and `data`, or `data_base64`. They travel as headers too, as with
/// every message; a receiver that knows structured mode looks at the body alone.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "users name it as a value")]
pub struct CloudEvents;

impl Profile for CloudEvents {
    fn name(&self) -> &'static str {
        "cloudevents"
    }

    fn shape(&self, message: Message, _: &Recipient) -> Result<Message, MessageError> {
        let mut members = Members::default();
        message.attributes().for_each(|(name, value)| members.insert(name, &*value));
        members.insert("datacontenttype", message.content_type());
        members.insert_data(&message);
        message.to_builder().payload(Payload::new("application/cloudevents+json", members.into_body())).build()
    }
}
