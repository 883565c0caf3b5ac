//! One try to deliver a message.

use crate::{Message, Signer};
use std::{
    borrow::Cow,
    fmt,
    time::{Instant, SystemTime},
};

/// One try: its number, time, deadline, signature and trace.
///
/// The fields are private, so the contract of [`Sink`](crate::Sink) can grow here.
#[derive(Clone)]
pub struct Attempt {
    number: u32,
    time: SystemTime,
    deadline: Instant,
    signature: Option<String>,
    traceparent: Option<String>,
}

impl Attempt {
    /// The attempt of this number, counted from 1, made at `time`, over by `deadline`.
    #[must_use]
    pub const fn new(number: u32, time: SystemTime, deadline: Instant) -> Self {
        Self { number, time, deadline, signature: None, traceparent: None }
    }

    /// Signs the message for this attempt: Standard Webhooks, over id, attempt time and body.
    #[must_use]
    pub fn sign(mut self, signer: &Signer, message: &Message) -> Self {
        self.signature = Some(signer.sign(message.id(), self.time, message.body()));
        self
    }

    /// Says which trace the attempt belongs to: the value of a `traceparent` (W3C Trace Context §3.2).
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }

    /// The attempt's number, from 1.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// When the attempt is made; part of what is signed, in whole seconds.
    #[must_use]
    pub const fn time(&self) -> SystemTime {
        self.time
    }

    /// When the attempt must be over.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The signatures, as `webhook-signature` carries them; none where no key is set.
    #[must_use]
    pub fn signature(&self) -> Option<&str> {
        self.signature.as_deref()
    }

    /// The trace, as `traceparent` carries it.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    /// What each transport sends of this attempt, by the names of HTTP headers.
    ///
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature` (Standard Webhooks), `callback-attempt`, `traceparent`.
    pub fn headers<'a>(&'a self, message: &'a Message) -> impl Iterator<Item = (&'static str, Cow<'a, str>)> {
        let seconds = self.time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        [
            ("webhook-id", Some(Cow::Borrowed(message.id().as_str()))),
            ("webhook-timestamp", Some(Cow::Owned(seconds.to_string()))),
            ("webhook-signature", self.signature().map(Cow::Borrowed)),
            ("callback-attempt", Some(Cow::Owned(self.number.to_string()))),
            ("traceparent", self.traceparent().map(Cow::Borrowed)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("number", &self.number)
            .field("time", &self.time)
            .field("signed", &self.signature.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn headers_are_those_of_standard_webhooks() {
        let message = Message::builder("a").id("msg_1".parse().expect("valid")).build().expect("valid");
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_614_265_330_999);
        let attempt = Attempt::new(2, time, Instant::now()).with_traceparent("00-a-b-01");
        let headers: Vec<String> = attempt.headers(&message).map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(
            headers,
            ["webhook-id: msg_1", "webhook-timestamp: 1614265330", "callback-attempt: 2", "traceparent: 00-a-b-01"]
        );
    }
}
