//! The keys that verify.

use super::{KeyError, PUBLIC, SYMMETRIC, decode, head, parse_keys, parse_symmetric, unix_seconds};
use crate::MessageId;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What a header may hold; rotation needs two. Bounds what one hostile request costs.
const MAX_SIGNATURES: usize = 16;

/// Checks the signatures of messages by one or several keys: Standard Webhooks 1.0.0.
///
/// Read from keys separated by white space: `whsec_` (the [`Signer`](crate::Signer)'s own) and `whpk_` (base64 of an
/// Ed25519 public key). Each signature is tried with each key, in constant time; other versions than `v1` and `v1a`
/// are skipped. One match is enough. At most 16 signatures are looked at.
///
/// It has no memory, since a retry is not a replay: whoever acts on a message remembers its id.
///
/// ```
/// use callback_core::{Verifier, VerifyError};
/// use std::time::{Duration, UNIX_EPOCH};
///
/// # fn main() -> Result<(), callback_core::KeyError> {
/// let verifier: Verifier = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?;
/// let now = UNIX_EPOCH + Duration::from_secs(1614265333);
/// let verify = |body| {
///     let signatures = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
///     verifier.verify_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", signatures, body, now)
/// };
/// assert_eq!(verify(br#"{"test": 2432232314}"#), Ok(()));
/// assert_eq!(verify(b"{}"), Err(VerifyError::Mismatch));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Verifier {
    keys: Arc<[Key]>,
    tolerance: Duration,
}

impl Verifier {
    pub(super) fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        Self::of(keys.into_iter().collect())
    }

    const fn of(keys: Arc<[Key]>) -> Self {
        Self { keys, tolerance: Duration::from_mins(5) }
    }

    /// How far a message's time may lie from the clock's, either way.
    ///
    /// In whole seconds; 5 minutes by default, as the libraries of Standard Webhooks have it.
    #[must_use]
    pub const fn tolerance(mut self, tolerance: Duration) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Checks a message that a live transport brings: its time, then its signatures.
    ///
    /// `time` is the message's own, `now` the clock's.
    ///
    /// # Errors
    /// See [`VerifyError`].
    pub fn verify(
        &self,
        id: &MessageId,
        time: SystemTime,
        body: &[u8],
        signatures: &str,
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        self.check(id, unix_seconds(time), body, signatures, Some(now))
    }

    /// Checks a message from a broker or an inbox, where it may have waited for days.
    ///
    /// Its age is not judged: the receiver's memory of ids keeps replays off.
    ///
    /// # Errors
    /// See [`VerifyError`]; never [`VerifyError::Stale`].
    pub fn verify_stored(
        &self,
        id: &MessageId,
        time: SystemTime,
        body: &[u8],
        signatures: &str,
    ) -> Result<(), VerifyError> {
        self.check(id, unix_seconds(time), body, signatures, None)
    }

    /// Does what [`verify`](Self::verify) does, by the headers as they came.
    ///
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature`; an empty text stands for a header that is not there.
    ///
    /// # Errors
    /// See [`VerifyError`].
    pub fn verify_headers(
        &self,
        id: &str,
        timestamp: &str,
        signatures: &str,
        body: &[u8],
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        let (id, seconds) = parse_headers(id, timestamp)?;
        self.check(&id, seconds, body, signatures, Some(now))
    }

    /// Does what [`verify_stored`](Self::verify_stored) does, by the headers as they came.
    ///
    /// # Errors
    /// See [`VerifyError`]; never [`VerifyError::Stale`].
    pub fn verify_stored_headers(
        &self,
        id: &str,
        timestamp: &str,
        signatures: &str,
        body: &[u8],
    ) -> Result<(), VerifyError> {
        let (id, seconds) = parse_headers(id, timestamp)?;
        self.check(&id, seconds, body, signatures, None)
    }

    fn check(
        &self,
        id: &MessageId,
        seconds: u64,
        body: &[u8],
        signatures: &str,
        now: Option<SystemTime>,
    ) -> Result<(), VerifyError> {
        match signatures.split_ascii_whitespace().take(MAX_SIGNATURES + 1).count() {
            0 => return Err(VerifyError::Missing),
            1..=MAX_SIGNATURES => {}
            _ => return Err(VerifyError::Malformed),
        }
        if now.is_some_and(|now| unix_seconds(now).abs_diff(seconds) > self.tolerance.as_secs()) {
            return Err(VerifyError::Stale);
        }
        let head = head(id.as_str(), seconds);
        let (tags, points) = (values(signatures, "v1"), values(signatures, "v1a"));
        let matches = |key: &Key| match key {
            Key::Symmetric(keyed) => {
                !tags.is_empty() && {
                    let hashed = keyed.clone().chain_update(&head).chain_update(body);
                    tags.iter().any(|tag| hashed.clone().verify_slice(tag).is_ok())
                }
            }
            Key::Asymmetric(key) => {
                !points.is_empty() && {
                    let content = [head.as_bytes(), body].concat();
                    points
                        .iter()
                        .filter_map(|point| Signature::from_slice(point).ok())
                        .any(|signature| key.verify_strict(&content, &signature).is_ok())
                }
            }
        };
        if self.keys.iter().any(matches) { Ok(()) } else { Err(VerifyError::Mismatch) }
    }
}

fn parse_headers(id: &str, timestamp: &str) -> Result<(MessageId, u64), VerifyError> {
    if id.is_empty() || timestamp.is_empty() {
        return Err(VerifyError::Missing);
    }
    match (id.parse(), timestamp.parse()) {
        (Ok(id), Ok(seconds)) => Ok((id, seconds)),
        _ => Err(VerifyError::Malformed),
    }
}

/// The signatures of this version, decoded.
fn values(signatures: &str, version: &str) -> Vec<Vec<u8>> {
    signatures
        .split_ascii_whitespace()
        .filter_map(|entry| entry.split_once(','))
        .filter(|(its, _)| *its == version)
        .filter_map(|(_, value)| STANDARD.decode(value).ok())
        .collect()
}

impl FromStr for Verifier {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse_keys(text, Key::parse).map(Self::of)
    }
}

/// The number of keys and the tolerance; no key.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("keys", &self.keys.len())
            .field("tolerance", &self.tolerance)
            .finish_non_exhaustive()
    }
}

pub(super) enum Key {
    Symmetric(Hmac<Sha256>),
    Asymmetric(Box<VerifyingKey>),
}

impl Key {
    fn parse(text: &str) -> Result<Self, KeyError> {
        if let Some(base64) = text.strip_prefix(SYMMETRIC) {
            return parse_symmetric(base64).map(Self::Symmetric);
        }
        let Some(base64) = text.strip_prefix(PUBLIC) else {
            return Err(KeyError::new("a verifier takes whsec_ and whpk_ keys"));
        };
        let bytes = decode(base64)?;
        let bytes = <&[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::new("a whpk_ key has 32 bytes"))?;
        match VerifyingKey::from_bytes(bytes) {
            Ok(key) if !key.is_weak() => Ok(key.into()),
            _ => Err(KeyError::new("a whpk_ key is a strong point of Ed25519")),
        }
    }
}

impl From<Hmac<Sha256>> for Key {
    fn from(keyed: Hmac<Sha256>) -> Self {
        Self::Symmetric(keyed)
    }
}

impl From<VerifyingKey> for Key {
    fn from(key: VerifyingKey) -> Self {
        Self::Asymmetric(Box::new(key))
    }
}

/// Why a message is not taken for what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The id or the timestamp cannot be read, or there are more than 16 signatures.
    #[error("the id, the timestamp or the list of signatures is malformed")]
    Malformed,
    /// No signature was made by one of the keys for this id, time and body.
    #[error("no signature matches")]
    Mismatch,
    /// There is no id, no timestamp, or no signature.
    #[error("the id, the timestamp or the signature is missing")]
    Missing,
    /// The time lies further from the clock's than is tolerated.
    #[error("the timestamp is too far from the clock's")]
    Stale,
}
