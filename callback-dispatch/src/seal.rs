//! Encryption at rest.

#[cfg(feature = "seal")]
mod keys;
#[cfg(not(feature = "seal"))]
mod no_keys;

#[cfg(feature = "seal")]
pub use keys::{SealKeyError, SealKeys};
#[cfg(not(feature = "seal"))]
pub(crate) use no_keys::SealKeys;

/// Begins a sealed value, and no text in UTF-8.
///
/// What follows: the length of the key's id, the id, the nonce, the ciphertext, the tag.
const MARK: u8 = 0xFF;

/// The longest id, in bytes.
const LONGEST_ID: usize = 32;

/// Whether it is meant to be a sealed value, and no text.
pub(crate) fn is_sealed(value: &[u8]) -> bool {
    value.first() == Some(&MARK)
}

/// The id of the key that sealed this; none if it is no sealed value.
pub(crate) fn sealed_by(value: &[u8]) -> Option<&str> {
    split(value).map(|(id, _)| id)
}

fn split(sealed: &[u8]) -> Option<(&str, &[u8])> {
    let rest = sealed.strip_prefix(&[MARK])?;
    let (&length, rest) = rest.split_first()?;
    let (id, rest) = rest.split_at_checked(length.into())?;
    is_id(id).then(|| str::from_utf8(id).ok()).flatten().map(|id| (id, rest))
}

fn is_id(id: &[u8]) -> bool {
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(valid)
}
