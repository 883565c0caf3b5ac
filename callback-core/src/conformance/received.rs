//! What arrived.

use crate::{Attempt, Message, MessageId};
use bytes::Bytes;
use std::collections::BTreeMap;

/// One message as the far end has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub(super) id: MessageId,
    pub(super) body: Bytes,
    pub(super) headers: Option<BTreeMap<String, String>>,
}

impl Received {
    /// A message of this delivery id and body.
    #[must_use]
    pub fn new(id: MessageId, body: impl Into<Bytes>) -> Self {
        Self { id, body: body.into(), headers: None }
    }

    /// Shows all that came along, under the names that it has in HTTP, whatever the case: `webhook-signature`,
    /// `ce-type`, `content-type`, `x-request-id`.
    ///
    /// Without this the clauses on signature and attributes are skipped.
    #[must_use]
    pub fn with_headers<N: AsRef<str>, V: Into<String>>(mut self, headers: impl IntoIterator<Item = (N, V)>) -> Self {
        let lower = |(name, value): (N, V)| (name.as_ref().to_ascii_lowercase(), value.into());
        self.headers = Some(headers.into_iter().map(lower).collect());
        self
    }

    /// What a sink of this process was given.
    #[must_use]
    pub fn from_parts(message: &Message, attempt: &Attempt) -> Self {
        Self::new(message.id().clone(), message.body().clone()).with_headers(headers(message, attempt))
    }
}

/// All headers of a delivery by their names in HTTP, values not encoded (protocol §4).
pub(super) fn headers(message: &Message, attempt: &Attempt) -> Vec<(String, String)> {
    let attempts = attempt.headers(message).map(|(name, value)| (name.to_owned(), value.into_owned()));
    let attributes = message.attributes().map(|(name, value)| (format!("ce-{name}"), value.into_owned()));
    let content_type = ("content-type".to_owned(), message.content_type().to_owned());
    let others = message.headers().map(|(name, value)| (name.to_owned(), value.to_owned()));
    attempts.chain(attributes).chain([content_type]).chain(others).collect()
}
