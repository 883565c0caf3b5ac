//! Text that must not leak.

use super::keyed;
use hmac::Mac as _;
use std::{
    fmt::{self, Write as _},
    ops::Deref as _,
};
use zeroize::Zeroizing;

/// Text that must not leak: no `Debug`, `Display` or error shows it.
///
/// Its memory is overwritten when it is dropped.
///
/// ```
/// use callback_core::Secret;
///
/// let secret = Secret::from("open sesame");
/// assert_eq!(secret.expose(), "open sesame");
/// assert_eq!(format!("{secret:?}"), "Secret(***)");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.deref()
    }

    /// The HMAC-SHA256 of `body` under this text, in lower-case hex.
    ///
    /// What the os1 profile sends. It covers neither id nor time, so it keeps no replay off; a
    /// [`Signer`](crate::Signer) does.
    #[must_use]
    pub fn hex_hmac(&self, body: &[u8]) -> String {
        let tag = keyed(self.expose().as_bytes()).chain_update(body).finalize().into_bytes();
        tag.iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hex_hmac_is_that_of_rfc_4231() {
        // RFC 4231 §4.3, test case 2.
        assert_eq!(
            Secret::from("Jefe").hex_hmac(b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
