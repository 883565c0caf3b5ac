//! How a sink is set up.

use crate::{WsSink, dial::Dialler, tls};
use callback_core::{BoxError, Policy};
use std::fmt;

/// How many connections a sink holds by default.
const CONNECTIONS: usize = 1024;

/// Builds a [`WsSink`].
#[derive(Clone)]
#[must_use]
pub struct WsSinkBuilder {
    policy: Policy,
    roots: Option<Vec<u8>>,
    origin: Option<String>,
    allow_unsigned: bool,
    connections: usize,
}

impl Default for WsSinkBuilder {
    fn default() -> Self {
        Self { policy: Policy::default(), roots: None, origin: None, allow_unsigned: false, connections: CONNECTIONS }
    }
}

impl WsSinkBuilder {
    /// Sets who may send where. Default: [`Policy::default`], public addresses over `wss` alone.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Trusts these certificates, in PEM, instead of the system's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Sets the `Origin` of the handshake (RFC 6454 §7), `https://orders.example` for example. Default: none is sent.
    pub fn origin(mut self, origin: impl Into<String>) -> Self {
        self.origin = Some(origin.into());
        self
    }

    /// Also delivers to servers that pick no subprotocol: a frame is the body alone, without id and signature.
    ///
    /// Default: such a server is `Forbidden`, since it could tell neither a repetition nor a forgery.
    pub const fn allow_unsigned(mut self) -> Self {
        self.allow_unsigned = true;
        self
    }

    /// Sets how many connections there are at once. Default: 1,024. To one host and port there are at most 64.
    ///
    /// For a further one the one without work that was used longest ago is closed; where all have work, a delivery is
    /// `Throttled`.
    pub const fn connections(mut self, limit: usize) -> Self {
        self.connections = limit;
        self
    }

    /// Makes the sink. Does no I/O but reading the system's certificates.
    ///
    /// # Errors
    /// When there are no root certificates, those given cannot be read, or no header can carry the origin.
    pub fn build(self) -> Result<WsSink, WsSinkError> {
        if let Some(origin) = &self.origin
            && (origin.is_empty() || !origin.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(WsSinkError::Origin);
        }
        let tls = tls::config(self.roots.as_deref()).map_err(WsSinkError::Roots)?;
        let Self { policy, origin, allow_unsigned, connections, .. } = self;
        Ok(WsSink::with(Dialler { policy, tls, origin, allow_unsigned }, connections))
    }
}

impl fmt::Debug for WsSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsSinkBuilder")
            .field("policy", &self.policy)
            .field("origin", &self.origin)
            .field("allow_unsigned", &self.allow_unsigned)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

/// Why a sink could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WsSinkError {
    /// No header can carry the origin.
    #[error("an origin has printable ASCII characters only: `https://orders.example`")]
    Origin,
    /// There are no usable root certificates: install `ca-certificates`, or give your own.
    #[error("no usable root certificates: install ca-certificates, or give your own")]
    Roots(#[source] BoxError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused() {
        for origin in ["", "https://a b", "https://a\r\nb: c", "ä"] {
            assert!(matches!(WsSink::builder().origin(origin).build(), Err(WsSinkError::Origin)), "{origin:?}");
        }
        for roots in ["", "none", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"] {
            let built = WsSink::builder().root_certificates(roots).build();
            assert!(matches!(built, Err(WsSinkError::Roots(_))), "{roots:?}");
        }
    }
}
