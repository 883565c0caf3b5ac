//! The keys that sign.

use super::{KeyError, PRIVATE, PUBLIC, SYMMETRIC, Verifier, decode, head, parse_keys, parse_symmetric, unix_seconds};
use crate::MessageId;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{SigningKey, ed25519::signature::MultipartSigner as _};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use std::{fmt, str::FromStr, sync::Arc, time::SystemTime};

/// Signs messages by one or several keys: Standard Webhooks 1.0.0.
///
/// Read from keys separated by white space. Each adds one signature, so that while keys rotate receivers of the old
/// and of the coming key are both served:
///
/// - `whsec_` + base64 of 24 to 64 random bytes: HMAC-SHA256, `v1`. Belongs to one receiver; whoever can verify can
///   also sign.
/// - `whsk_` + base64 of 32 bytes (an Ed25519 seed) or 64 (seed and public key, as Svix writes it): `v1a`. Receivers
///   verify by the [public half](Self::public_keys).
///
/// ```
/// use callback_core::{MessageId, Signer};
/// use std::time::{Duration, UNIX_EPOCH};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?;
/// let id: MessageId = "msg_p5jXN8AQM9LWM0D4loKWxJek".parse()?;
/// let time = UNIX_EPOCH + Duration::from_secs(1614265330);
/// assert_eq!(
///     signer.sign(&id, time, br#"{"test": 2432232314}"#),
///     "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Signer {
    keys: Arc<[Key]>,
}

impl Signer {
    /// Signs a message for an attempt at `time`; the value of `webhook-signature`.
    ///
    /// Covers `{id}.{whole Unix seconds}.{body}`; one signature a key, in the order of the keys, a space between.
    /// `webhook-timestamp` has to carry the same seconds.
    #[must_use]
    pub fn sign(&self, id: &MessageId, time: SystemTime, body: &[u8]) -> String {
        let head = head(id.as_str(), unix_seconds(time));
        let mut signatures = String::with_capacity(self.keys.iter().map(Key::room).sum());
        for key in &*self.keys {
            if !signatures.is_empty() {
                signatures.push(' ');
            }
            key.sign(head.as_bytes(), body, &mut signatures);
        }
        signatures
    }

    /// Whether a key is symmetric, so that whoever verifies by it can also forge.
    #[must_use]
    pub fn is_symmetric(&self) -> bool {
        self.keys.iter().any(|key| matches!(key, Key::Symmetric(_)))
    }

    /// The public halves of the asymmetric keys, as `whpk_` texts for receivers.
    ///
    /// Empty if every key is symmetric.
    #[must_use]
    pub fn public_keys(&self) -> Vec<String> {
        self.keys
            .iter()
            .filter_map(|key| match key {
                Key::Symmetric(_) => None,
                Key::Asymmetric(key) => Some(format!("{PUBLIC}{}", STANDARD.encode(key.verifying_key().as_bytes()))),
            })
            .collect()
    }

    /// What verifies the signatures of these keys.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier::new(self.keys.iter().map(|key| match key {
            Key::Symmetric(keyed) => keyed.clone().into(),
            Key::Asymmetric(key) => key.verifying_key().into(),
        }))
    }
}

impl FromStr for Signer {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(Self { keys: parse_keys(text, Key::parse)? })
    }
}

/// The versions of its signatures; no key.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions: Vec<&str> = self.keys.iter().map(Key::version).collect();
        f.debug_struct("Signer").field("versions", &versions).finish_non_exhaustive()
    }
}

enum Key {
    /// The state of the hash once the key is in it, cloned for each signature.
    Symmetric(Hmac<Sha256>),
    Asymmetric(Box<SigningKey>),
}

impl Key {
    fn parse(text: &str) -> Result<Self, KeyError> {
        if let Some(base64) = text.strip_prefix(SYMMETRIC) {
            return parse_symmetric(base64).map(Self::Symmetric);
        }
        let Some(base64) = text.strip_prefix(PRIVATE) else {
            return Err(KeyError::new("a signer takes whsec_ and whsk_ keys"));
        };
        let bytes = decode(base64)?;
        let key = if let Ok(seed) = <&[u8; 32]>::try_from(bytes.as_slice()) {
            SigningKey::from_bytes(seed)
        } else if let Ok(pair) = <&[u8; 64]>::try_from(bytes.as_slice()) {
            SigningKey::from_keypair_bytes(pair)
                .map_err(|_| KeyError::new("the halves of a whsk_ key belong together"))?
        } else {
            return Err(KeyError::new("a whsk_ key has 32 or 64 bytes"));
        };
        Ok(Self::Asymmetric(Box::new(key)))
    }

    const fn version(&self) -> &'static str {
        match self {
            Self::Symmetric(_) => "v1",
            Self::Asymmetric(_) => "v1a",
        }
    }

    /// The length of a signature with its version and a space.
    const fn room(&self) -> usize {
        match self {
            Self::Symmetric(_) => "v1, ".len() + 44,
            Self::Asymmetric(_) => "v1a, ".len() + 88,
        }
    }

    fn sign(&self, head: &[u8], body: &[u8], signatures: &mut String) {
        signatures.push_str(self.version());
        signatures.push(',');
        match self {
            Self::Symmetric(keyed) => {
                let tag = keyed.clone().chain_update(head).chain_update(body).finalize().into_bytes();
                STANDARD.encode_string(tag, signatures);
            }
            Self::Asymmetric(key) => {
                STANDARD.encode_string(key.multipart_sign(&[head, body]).to_bytes(), signatures);
            }
        }
    }
}
