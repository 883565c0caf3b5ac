//! The shape of Delhivery OS1.

use super::{Members, Profile, Recipient};
use callback_core::{Message, MessageError, Payload, Receipt, SinkError};

/// `os1`: a callback of Delhivery OS1.
///
/// `{"event":…,"service":…,"data":…,"meta":…}` as JSON; `service` and `meta` only where there are any. A secret signs the
/// body: lower-case hex of HMAC-SHA256 under the header that the operator names, by the newest secret. A receiver accepts by
/// 200 and 202 alone: any other 2xx refuses the message for good.
#[derive(Clone, Debug)]
pub struct Os1 {
    signature_header: String,
}

impl Os1 {
    /// Signs under this header: `x-coreos-hmac-signature`, for example.
    ///
    /// A name that no message can carry makes its messages dead.
    pub fn new(signature_header: impl Into<String>) -> Self {
        Self { signature_header: signature_header.into() }
    }
}

impl Profile for Os1 {
    fn name(&self) -> &'static str {
        "os1"
    }

    fn shape(&self, message: Message, recipient: &Recipient) -> Result<Message, MessageError> {
        let mut members = Members::default();
        members.insert("event", message.event_type());
        if let Some(service) = &recipient.service {
            members.insert("service", service.as_str());
        }
        members.insert_data(&message);
        if !recipient.meta.is_null() {
            members.insert("meta", recipient.meta.clone());
        }
        let payload = Payload::new("application/json", members.into_body());
        let mut shaped = message.to_builder();
        if let Some(secret) = &recipient.secret {
            shaped = shaped.header(&self.signature_header, secret.hex_hmac(payload.body()));
        }
        shaped.payload(payload).build()
    }

    fn judge(&self, outcome: Result<Receipt, SinkError>) -> Result<Receipt, SinkError> {
        match outcome {
            Ok(receipt) => match receipt.status() {
                Some(status) if status != 200 && status != 202 => {
                    Err(SinkError::refused("only 200 and 202 accept").with_status(status))
                }
                _ => Ok(receipt),
            },
            failed => failed,
        }
    }

    fn uses_secret(&self) -> bool {
        true
    }
}
