//! The name of a handle: what makes its Dsn unguessable.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};

/// What is random, in bytes.
const RANDOM: usize = 16;

/// What shows that this receiver made it, in bytes.
const TAG: usize = 8;

/// Names a handle within its receiver: 32 characters of `A-Z a-z 0-9 _ -`, 128 bits of them random.
///
/// Who knows it may send to the handle, so `Debug` shows a digest of it; [`expose`](Self::expose) is the text that stands
/// in a Dsn.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandleId([u8; RANDOM + TAG]);

impl HandleId {
    /// The length of the text.
    pub const LEN: usize = 32;

    /// The text, as it stands in a path, a routing key or a record key.
    #[must_use]
    pub fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    pub(crate) const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl FromStr for HandleId {
    type Err = InvalidHandle;

    fn from_str(text: &str) -> Result<Self, InvalidHandle> {
        let mut bytes = [0; RANDOM + TAG];
        match BASE64_URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(length) if length == bytes.len() => Ok(Self(bytes)),
            _ => Err(InvalidHandle(())),
        }
    }
}

impl fmt::Debug for HandleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = Sha256::digest(self.0);
        write!(f, "HandleId(#{:02x}{:02x}{:02x}{:02x})", digest[0], digest[1], digest[2], digest[3])
    }
}

/// A text that names no handle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a handle has 32 characters of A-Z a-z 0-9 _ -")]
pub struct InvalidHandle(());

/// Makes names, and knows its own: what it made and nobody has any more has ended, and needs no memory.
#[derive(Clone)]
pub(crate) struct Minter(Hmac<Sha256>);

impl Minter {
    pub(crate) const KEY: usize = 32;

    pub(crate) fn new(key: &[u8; Self::KEY]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    /// A key that nobody else has.
    ///
    /// # Panics
    /// When the system has no randomness.
    pub(crate) fn random_key() -> [u8; Self::KEY] {
        let mut key = [0; Self::KEY];
        getrandom::fill(&mut key).expect("the system has randomness");
        key
    }

    /// A name that nobody else has.
    ///
    /// # Panics
    /// When the system has no randomness.
    pub(crate) fn mint(&self) -> HandleId {
        let mut bytes = [0; RANDOM + TAG];
        getrandom::fill(&mut bytes[..RANDOM]).expect("the system has randomness");
        let tag = self.0.clone().chain_update(&bytes[..RANDOM]).finalize().into_bytes();
        bytes[RANDOM..].copy_from_slice(&tag[..TAG]);
        HandleId(bytes)
    }

    /// Whether a minter of this key made it.
    pub(crate) fn made(&self, handle: &HandleId) -> bool {
        let (random, tag) = handle.0.split_at(RANDOM);
        self.0.clone().chain_update(random).verify_truncated_left(tag).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_has_one_spelling_that_every_transport_carries() {
        let handle = Minter::new(&[7; 32]).mint();
        let text = handle.expose();
        assert_eq!(text.len(), HandleId::LEN);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'));
        assert_eq!(text.parse(), Ok(handle));
        for other in ["", &text[1..], &format!("{text}A"), &format!("{text}="), &text.replace(&text[..1], "+")] {
            assert!(other.parse::<HandleId>().is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_minter_knows_its_own_names() {
        let minter = Minter::new(&Minter::random_key());
        let handle = minter.mint();
        assert!(minter.made(&handle));
        assert_ne!(minter.mint(), handle);
        assert!(!Minter::new(&Minter::random_key()).made(&handle));
        for byte in 0..handle.0.len() {
            let mut forged = handle;
            forged.0[byte] ^= 1;
            assert!(!minter.made(&forged));
        }
    }

    #[test]
    fn debug_shows_no_name() {
        let handle = Minter::new(&[7; 32]).mint();
        assert!(!format!("{handle:?}").contains(&handle.expose()[..6]));
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text: String) {
            if let Ok(handle) = text.parse::<HandleId>() {
                prop_assert_eq!(handle.expose(), text);
            }
        }
    }
}
