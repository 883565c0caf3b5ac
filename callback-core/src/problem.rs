//! Problem details, RFC 9457.

use serde::{Deserialize, Serialize};

/// A problem in the members of RFC 9457 §3.1; sent as [`Problem::CONTENT_TYPE`].
///
/// ```
/// use callback_core::Problem;
///
/// let problem = Problem::from("too late, it is on the road");
/// assert_eq!(serde_json::to_string(&problem).unwrap(), r#"{"title":"too late, it is on the road"}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// A URI that names the kind of problem; absent means `about:blank`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_uri: Option<String>,
    /// The kind of problem in a few words.
    pub title: String,
    /// The HTTP status; advisory, equal to the answer's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What happened this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Problem {
    /// The media type of problem details in JSON (RFC 9457 §6.1).
    pub const CONTENT_TYPE: &str = "application/problem+json";

    /// A problem of this title.
    pub fn new(title: impl Into<String>) -> Self {
        Self { type_uri: None, title: title.into(), status: None, detail: None }
    }

    /// Adds the HTTP status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Adds what happened this time.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

impl From<&str> for Problem {
    fn from(title: &str) -> Self {
        Self::new(title)
    }
}

impl From<String> for Problem {
    fn from(title: String) -> Self {
        Self::new(title)
    }
}
