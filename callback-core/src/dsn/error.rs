//! Why a text is no Dsn, or one that cannot be used.

use super::scheme::crate_of;

/// Why a text is no Dsn, or why it cannot be used. Holds nothing of the text but names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct DsnError {
    kind: DsnErrorKind,
    reason: String,
}

/// What a [`DsnError`] means to the one who named the Dsn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DsnErrorKind {
    /// The operator's policy does not let us send there.
    Forbidden,
    /// The text is malformed, or says what its sink cannot do.
    Invalid,
    /// No sink serves the scheme.
    UnknownScheme,
}

impl DsnError {
    /// A malformed Dsn. The reason is shown to the client: it holds no secret.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self { kind: DsnErrorKind::Invalid, reason: reason.into() }
    }

    /// A Dsn that the operator does not allow. The reason is shown to the client: it holds no secret.
    pub fn forbidden(reason: impl Into<String>) -> Self {
        Self { kind: DsnErrorKind::Forbidden, reason: reason.into() }
    }

    /// A Dsn whose scheme no sink serves: lists those that are, and the crate that would.
    #[must_use]
    pub fn unknown_scheme(scheme: &str, registered: &[impl AsRef<str>]) -> Self {
        let known: Vec<String> = registered.iter().map(|scheme| format!("`{}`", scheme.as_ref())).collect();
        let mut reason = format!("no sink serves the scheme `{scheme}`; registered: ");
        reason.push_str(if known.is_empty() { "none" } else { "" });
        reason.push_str(&known.join(", "));
        if let Some(crate_name) = crate_of(scheme) {
            reason.push_str(&format!("; `{scheme}` is served by the crate `{crate_name}`"));
        }
        Self { kind: DsnErrorKind::UnknownScheme, reason }
    }

    /// What the error means.
    #[must_use]
    pub fn kind(&self) -> DsnErrorKind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scheme_names_those_that_are_served_and_the_crate() {
        let error = DsnError::unknown_scheme("kafka+ssl", &["https", "wss"]);
        assert_eq!(error.kind(), DsnErrorKind::UnknownScheme);
        assert_eq!(
            error.to_string(),
            "no sink serves the scheme `kafka+ssl`; registered: `https`, `wss`; \
             `kafka+ssl` is served by the crate `callback-kafka`"
        );
        assert_eq!(
            DsnError::unknown_scheme("redis", &[] as &[&str]).to_string(),
            "no sink serves the scheme `redis`; registered: none"
        );
    }
}
