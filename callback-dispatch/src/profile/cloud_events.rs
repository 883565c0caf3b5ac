//! CloudEvents in one piece.

use super::{Profile, Recipient, put_data};
use callback_core::{Message, MessageError, Payload};
use serde_json::{Map, Value};

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
        let attributes = message.attributes().map(|(name, value)| (name.to_owned(), Value::from(&*value)));
        let mut members: Map<String, Value> = attributes.collect();
        members.insert("datacontenttype".into(), message.content_type().into());
        put_data(&mut members, &message);
        let body = Value::Object(members).to_string();
        message.to_builder().payload(Payload::new("application/cloudevents+json", body)).build()
    }
}
