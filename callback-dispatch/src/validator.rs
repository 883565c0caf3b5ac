//! Checks of one's own, which run before the acknowledgment.

use async_trait::async_trait;
use callback_core::Dsn;
use serde::Serialize;
use serde_json::Value;
use std::{fmt, sync::Arc};

/// Judges what is submitted before it is acknowledged, so that what can fail early does.
///
/// Several are asked in the order in which they were registered, all of them, and what they say is joined. Implemented for
/// every `Fn(&Submission) -> Result<(), Violations>` too.
///
/// ```
/// use callback_dispatch::{Submission, Validator, Violations};
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let known = |submission: &Submission<'_>| match submission.content["orderId"].as_str() {
///     Some(_) => Ok(()),
///     None => Err(Violations::at("/orderId", "is missing")),
/// };
/// let violations = known.validate(&Submission::new("order", &json!({}))).await.unwrap_err();
/// assert_eq!(violations.to_string(), "/orderId is missing");
/// # }
/// ```
///
/// # Cancellation
/// The future is dropped with the call that submits. A panic is the caller's.
#[async_trait]
pub trait Validator: Send + Sync + 'static {
    /// Judges one submission.
    ///
    /// # Errors
    /// All that is wrong with it.
    async fn validate(&self, submission: &Submission<'_>) -> Result<(), Violations>;
}

#[async_trait]
impl<F> Validator for F
where
    F: Fn(&Submission<'_>) -> Result<(), Violations> + Send + Sync + 'static,
{
    async fn validate(&self, submission: &Submission<'_>) -> Result<(), Violations> {
        self(submission)
    }
}

/// What is submitted: work, or a subscription.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Submission<'a> {
    /// What is asked for: the work's operation, or `subscribe`.
    pub operation: &'a str,
    /// The request as JSON; null where it says itself that it is none. Of a subscription: `callbackUrl`, `kind`, `service`, `events`, `meta`.
    pub content: &'a Value,
    /// Where callbacks go, if a destination is named.
    pub callback: Option<&'a Dsn>,
    /// On whose behalf it is asked for.
    pub owner: Option<&'a str>,
}

impl<'a> Submission<'a> {
    /// A submission without callback and owner.
    #[must_use]
    pub const fn new(operation: &'a str, content: &'a Value) -> Self {
        Self { operation, content, callback: None, owner: None }
    }

    /// Says where callbacks go.
    #[must_use]
    pub const fn callback(mut self, dsn: &'a Dsn) -> Self {
        self.callback = Some(dsn);
        self
    }

    /// Says on whose behalf it is asked for.
    #[must_use]
    pub const fn owner(mut self, owner: &'a str) -> Self {
        self.owner = Some(owner);
        self
    }
}

/// All that is wrong with a submission; one thing at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Violation {
    /// Where: a JSON Pointer (RFC 6901) into the content.
    pub pointer: String,
    /// What: words that follow the pointer, `must be a number` for example.
    pub reason: String,
}

impl Violations {
    /// One violation.
    pub fn at(pointer: impl Into<String>, reason: impl Into<String>) -> Self {
        Self(vec![Violation { pointer: pointer.into(), reason: reason.into() }])
    }

    /// The same, and one more.
    #[must_use]
    pub fn and(mut self, pointer: impl Into<String>, reason: impl Into<String>) -> Self {
        self.0.push(Violation { pointer: pointer.into(), reason: reason.into() });
        self
    }

    /// The same, and those of another.
    #[must_use]
    pub fn join(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// In the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }

    /// Joins what was found one after the other; fine if nothing was.
    pub(crate) fn all(found: impl IntoIterator<Item = Self>) -> Result<(), Self> {
        found.into_iter().reduce(Self::join).map_or(Ok(()), Err)
    }
}

/// Each with its pointer, separated by `; `.
impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, Violation { pointer, reason }) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("; ")?;
            }
            if !pointer.is_empty() {
                write!(f, "{pointer} ")?;
            }
            f.write_str(reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

/// Asks all of them.
pub(crate) async fn judge(validators: &[Arc<dyn Validator>], submission: &Submission<'_>) -> Result<(), Violations> {
    let mut found = Vec::new();
    for validator in validators {
        found.extend(validator.validate(submission).await.err());
    }
    Violations::all(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_told_one_after_the_other() {
        let violations = Violations::at("/events", "is missing").and("", "is no order");
        let joined = violations.join(Violations::at("/a~1b", "must be a number"));
        assert_eq!(joined.to_string(), "/events is missing; is no order; /a~1b must be a number");
        assert_eq!(joined.iter().count(), 3);
    }
}
