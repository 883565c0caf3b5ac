//! An event of CloudEvents 1.0 in structured mode, in JSON.

use super::{Attributes, Malformed, delivery_id};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use callback_core::Payload;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What JSON Event Format 1.0.2 §3 has, with the extensions that carry a webhook's id and signature where it has no headers.
#[derive(Deserialize)]
struct Event {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    event_type: String,
    time: Option<String>,
    subject: Option<String>,
    datacontenttype: Option<String>,
    correlationid: Option<String>,
    sequence: Option<Text>,
    sequencetype: Option<String>,
    webhookid: Option<String>,
    webhooktimestamp: Option<Text>,
    webhooksignature: Option<String>,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

/// A text, or a number that stands for one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Number(u64),
    Text(String),
}

impl Text {
    fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// An event that was read.
pub(super) struct Structured {
    pub(super) attributes: Attributes<'static>,
    pub(super) payload: Payload,
    /// Timestamp and signature of its own, over its data.
    pub(super) signed: Option<(String, String)>,
}

/// Reads an event.
pub(super) fn read(json: &[u8]) -> Result<Structured, Malformed> {
    let event: Event =
        serde_json::from_slice(json).map_err(|_| Malformed::Content("the body is no event of CloudEvents".into()))?;
    if event.specversion != "1.0" {
        return Err(Malformed::Content("specversion must be 1.0".into()));
    }
    let content_type = event.datacontenttype.unwrap_or_else(|| "application/json".to_owned());
    let body = match (event.data, event.data_base64) {
        (Some(data), None) => of_data(&data, &content_type)?,
        (None, Some(text)) => match BASE64_STANDARD.decode(text) {
            Ok(bytes) => bytes.into(),
            Err(_) => return Err(Malformed::Content("data_base64 is no base64".into())),
        },
        (None, None) => Bytes::new(),
        (Some(_), Some(_)) => {
            return Err(Malformed::Content("there must be one of data and data_base64 at most".into()));
        }
    };
    let attributes = Attributes {
        delivery: event.webhookid.as_deref().map(delivery_id).transpose()?,
        id: event.id.into(),
        source: event.source.into(),
        event_type: event.event_type.into(),
        time: event.time.map(Into::into),
        subject: event.subject.map(Into::into),
        correlation: event.correlationid.map(Into::into),
        sequence: event.sequence.map(|number| number.into_text().into()),
        sequence_type: event.sequencetype.map(Into::into),
    };
    let timestamp = event.webhooktimestamp.map(Text::into_text).unwrap_or_default();
    let signed = event.webhooksignature.map(|signature| (timestamp, signature));
    Ok(Structured { attributes, payload: Payload::new(content_type, body), signed })
}

/// JSON data is the value as it was written; of another type, a text is the data (JSON Event Format 1.0.2 §3.1.1).
fn of_data(data: &RawValue, content_type: &str) -> Result<Bytes, Malformed> {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media == "application/json" || media == "text/json" || media.ends_with("+json") {
        return Ok(Bytes::copy_from_slice(data.get().as_bytes()));
    }
    let text: String = serde_json::from_str(data.get())
        .map_err(|_| Malformed::Content("data must be a text, for its content type".into()))?;
    Ok(text.into())
}
