//! The keys, and their cipher.

use super::{MARK, is_id, split};
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{fmt, str::FromStr, sync::Arc};
use zeroize::Zeroizing;

/// The keys that seal what is secret in an outbox: the first one seals, all of them open.
///
/// As text: `id:key`, several of them separated by commas or white space; a key is 32 random bytes in base64, as
/// `openssl rand -base64 32` makes them, and its id has 1 to 32 of `A–Z a–z 0–9 . _ -`. Ids stand in the file in the clear.
///
/// ```
/// use callback_dispatch::SealKeys;
///
/// let keys: SealKeys = "2026-11:6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc=".parse()?;
/// assert_eq!(format!("{keys:?}"), r#"SealKeys(["2026-11"])"#);
/// # Ok::<_, callback_dispatch::SealKeyError>(())
/// ```
///
/// # What is sealed
/// Dsns, requests, results with their headers, and the reasons of failed attempts, by AES-256-GCM-SIV (RFC 8452). A value
/// is bound to its row and column: moved to another, it does not open. A row that does not open stays in the outbox, is
/// logged, and keeps no other row back.
///
/// Not sealed are ids, times, sizes, states, the kinds and statuses of failures, destinations (scheme, host and port), owners
/// and the names of workers; nor the digests by which messages of one order and repeated requests are recognized. Those are
/// SHA-256 without a key: who can guess a whole request, or a Dsn and its ordering key, can find out that it is there. A
/// value that is put back as it once was, or replaced by one that is not sealed, is not noticed: this keeps off readers of
/// the file, not writers.
///
/// # How many values a key may seal
/// Nonces are random, of 96 bits. After 2³² values the chance that one came twice is 2⁻³³; if it did, it tells whether two
/// values of one row and column are equal, and nothing else. Change the key before 2⁴⁸ values.
///
/// # How a key is changed
/// 1. Put the new key first, keep the old one behind it, and start all processes that use the outbox anew.
/// 2. Call `SqliteOutbox::reseal`: it seals by the first key what is sealed by another one, or not at all.
/// 3. Take the old key out. Should the outbox still need it, it does not open, and the error names it.
///
/// Backups need the keys of their time.
#[derive(Clone)]
pub struct SealKeys(Vec<Arc<Key>>);

struct Key {
    id: String,
    cipher: RandomizedNonceKey,
}

impl SealKeys {
    /// One key, which seals and opens.
    ///
    /// The cipher overwrites its copy when the last clone is dropped; `key` is the caller's to overwrite.
    ///
    /// # Errors
    /// [`SealKeyError::Id`].
    pub fn new(id: impl Into<String>, key: &[u8; 32]) -> Result<Self, SealKeyError> {
        Self(Vec::new()).older(id, key)
    }

    /// Adds a key that opens what it sealed before, and seals nothing.
    ///
    /// # Errors
    /// [`SealKeyError::Id`], [`SealKeyError::Twice`].
    pub fn older(mut self, id: impl Into<String>, key: &[u8; 32]) -> Result<Self, SealKeyError> {
        let (id, number) = (id.into(), self.0.len() + 1);
        if !is_id(id.as_bytes()) {
            return Err(SealKeyError::Id { number });
        }
        if self.key(&id).is_some() {
            return Err(SealKeyError::Twice { id });
        }
        let cipher = RandomizedNonceKey::new(&AES_256_GCM_SIV, key).map_err(|_| SealKeyError::Key { number })?;
        self.0.push(Arc::new(Key { id, cipher }));
        Ok(self)
    }

    /// The id of the key that seals.
    pub(crate) fn first(&self) -> &str {
        &self.0[0].id
    }

    /// Seals a value for one place: mark, length of the key's id, id, nonce, ciphertext, tag.
    pub(crate) fn seal(&self, place: &[u8], value: &[u8]) -> Result<Vec<u8>, UnsealError> {
        let Key { id, cipher } = &*self.0[0];
        let start = 2 + id.len() + NONCE_LEN;
        let mut sealed = Vec::with_capacity(start + value.len() + AES_256_GCM_SIV.tag_len());
        sealed.extend([MARK, id.len() as u8]);
        sealed.extend(id.as_bytes());
        sealed.extend([0; NONCE_LEN]);
        sealed.extend(value);
        let (nonce, tag) = cipher
            .seal_in_place_separate_tag(Aad::from(place), &mut sealed[start..])
            .map_err(|_| UnsealError::NotSealed)?;
        sealed[start - NONCE_LEN..start].copy_from_slice(nonce.as_ref());
        sealed.extend(tag.as_ref());
        Ok(sealed)
    }

    /// Opens what was sealed for this place.
    pub(crate) fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, UnsealError> {
        let (id, rest) = split(sealed).ok_or(UnsealError::Malformed)?;
        let key = self.key(id).ok_or_else(|| UnsealError::Missing { id: id.to_owned() })?;
        let refused = || UnsealError::Refused { id: id.to_owned() };
        let (nonce, ciphertext) = rest.split_first_chunk().ok_or(UnsealError::Malformed)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut value = ciphertext.to_vec();
        let length = key.cipher.open_in_place(nonce, Aad::from(place), &mut value).map_err(|_| refused())?.len();
        value.truncate(length);
        Ok(value)
    }

    fn key(&self, id: &str) -> Option<&Key> {
        self.0.iter().find(|key| key.id == id).map(|key| &**key)
    }
}

impl FromStr for SealKeys {
    type Err = SealKeyError;

    fn from_str(text: &str) -> Result<Self, SealKeyError> {
        let mut keys = Self(Vec::new());
        let items = text.split(|sign: char| sign == ',' || sign.is_ascii_whitespace()).filter(|item| !item.is_empty());
        for (number, item) in (1..).zip(items) {
            let (id, encoded) = item.split_once(':').ok_or(SealKeyError::Id { number })?;
            // Room for one block of base64 more, which the decoder wants to have.
            let mut bytes = Zeroizing::new([0; 36]);
            let length = STANDARD.decode_slice(encoded, &mut *bytes).map_err(|_| SealKeyError::Key { number })?;
            let key = bytes[..length].try_into().map_err(|_| SealKeyError::Key { number })?;
            keys = keys.older(id, key)?;
        }
        if keys.0.is_empty() { Err(SealKeyError::None) } else { Ok(keys) }
    }
}

/// The ids, no key.
impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&str> = self.0.iter().map(|key| &*key.id).collect();
        f.debug_tuple("SealKeys").field(&ids).finish()
    }
}

/// Why text is no list of keys. It never shows the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealKeyError {
    /// There is no key.
    #[error("there is no key")]
    None,
    /// A key has no id, or one that is not of 1 to 32 of `A–Z a–z 0–9 . _ -`.
    #[error("key {number} has no id of 1 to 32 letters, digits, dots, underscores or hyphens before a colon")]
    Id {
        /// Its place in the list, from 1.
        number: usize,
    },
    /// A key is not 32 bytes in base64.
    #[error("key {number} is not 32 bytes in base64")]
    Key {
        /// Its place in the list, from 1.
        number: usize,
    },
    /// Two keys have one id.
    #[error("two keys have the id {id}")]
    Twice {
        /// The id.
        id: String,
    },
}

/// Why a value was not opened, or not sealed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnsealError {
    #[error("it is sealed with the key {id}, which is not among the keys")]
    Missing { id: String },
    #[error("it is sealed with another key of the id {id}, for another place, or changed since")]
    Refused { id: String },
    #[error("it is no sealed value")]
    Malformed,
    #[error("the cipher has failed")]
    NotSealed,
}

#[cfg(test)]
mod tests {
    use super::{
        super::{LONGEST_ID, is_sealed, sealed_by},
        *,
    };
    use proptest::{collection::vec, prelude::*};

    const KEY: &str = "6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc=";

    fn keys(ids: &[(&str, u8)]) -> SealKeys {
        let add = |keys: SealKeys, (id, key): &(&str, u8)| keys.older(*id, &[*key; 32]).expect("a valid id");
        ids.iter().fold(SealKeys(Vec::new()), add)
    }

    #[track_caller]
    fn check(text: &str, expected: Result<&[&str], SealKeyError>) {
        let parsed = text.parse::<SealKeys>();
        let ids = parsed.as_ref().map(|keys| keys.0.iter().map(|key| &*key.id).collect::<Vec<_>>());
        assert_eq!(ids.map_err(Clone::clone), expected.map(<[&str]>::to_vec), "{text}");
        let told = format!("{parsed:?} {}", parsed.as_ref().map_err(ToString::to_string).err().unwrap_or_default());
        assert!(!told.contains("6Xb"), "{told}");
    }

    #[test]
    fn keys_are_read_from_text() {
        let (id, key) = (|number| SealKeyError::Id { number }, |number| SealKeyError::Key { number });
        let long = "x".repeat(LONGEST_ID);
        check(&format!("a:{KEY}"), Ok(&["a"]));
        check(&format!("{long}:{KEY}"), Ok(&[&long]));
        check(&format!("\n 2026-11:{KEY},\n2026.05_b:{KEY}\n"), Ok(&["2026-11", "2026.05_b"]));
        check("", Err(SealKeyError::None));
        check(" ,", Err(SealKeyError::None));
        check(KEY, Err(id(1)));
        check(&format!(":{KEY}"), Err(id(1)));
        check(&format!("x{long}:{KEY}"), Err(id(1)));
        check(&format!("a:{KEY} ä:{KEY}"), Err(id(2)));
        check(&format!("a:{KEY} a:{KEY}"), Err(SealKeyError::Twice { id: "a".into() }));
        check("a:", Err(key(1)));
        check("a:6Xb/", Err(key(1)));
        check(&format!("a:{}", &KEY[1..]), Err(key(1)));
        check(&format!("a:{KEY} b:6Xb/{KEY}"), Err(key(2)));
        check(&format!("a:{KEY}{KEY}"), Err(key(1)));
    }

    #[test]
    fn a_value_opens_with_its_key_at_its_place_alone() {
        let a = keys(&[("a", 1)]);
        let sealed = a.seal(b"here", b"value").expect("sealed");
        assert_eq!(a.open(b"here", &sealed).as_deref(), Ok(&b"value"[..]));
        let refused = Err(UnsealError::Refused { id: "a".into() });
        assert_eq!(a.open(b"there", &sealed), refused);
        assert_eq!(keys(&[("a", 2)]).open(b"here", &sealed), refused);
        assert_eq!(keys(&[("b", 1)]).open(b"here", &sealed), Err(UnsealError::Missing { id: "a".into() }));
        assert_eq!(keys(&[("b", 2), ("a", 1)]).open(b"here", &sealed).as_deref(), Ok(&b"value"[..]));
    }

    #[test]
    fn the_first_key_seals_and_never_twice_alike() {
        let keys = keys(&[("b", 2), ("a", 1)]);
        let (one, two) = (keys.seal(b"", b"value").expect("sealed"), keys.seal(b"", b"value").expect("sealed"));
        assert_ne!(one, two);
        assert_eq!((sealed_by(&one), keys.first()), (Some("b"), "b"));
        assert!(is_sealed(&one));
    }

    #[test]
    fn the_cipher_is_that_of_rfc_8452() {
        // RFC 8452 appendix C.2, the first vector with a plaintext of 8 bytes.
        let mut key = [0; 32];
        key[0] = 1;
        let keys = SealKeys::new("k", &key).expect("valid");
        let mut sealed = vec![MARK, 1, b'k', 3];
        sealed.extend([0; NONCE_LEN - 1]);
        let hex = "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28";
        sealed.extend((0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")));
        assert_eq!(keys.open(b"", &sealed).as_deref(), Ok(&[1, 0, 0, 0, 0, 0, 0, 0][..]));
    }

    proptest! {
        #[test]
        fn what_was_changed_or_cut_does_not_open(
            value in vec(any::<u8>(), 0..100),
            at in any::<prop::sample::Index>(),
            flip in 1..=255u8,
            cut in any::<prop::sample::Index>(),
        ) {
            let keys = keys(&[("a", 1), ("b", 2)]);
            let sealed = keys.seal(b"here", &value).expect("sealed");
            prop_assert_eq!(keys.open(b"here", &sealed), Ok(value));
            let mut changed = sealed.clone();
            changed[at.index(sealed.len())] ^= flip;
            prop_assert!(keys.open(b"here", &changed).is_err());
            prop_assert!(keys.open(b"here", &sealed[..cut.index(sealed.len())]).is_err());
        }

        #[test]
        fn what_is_no_sealed_value_does_not_open(value in vec(any::<u8>(), 0..100)) {
            let keys = keys(&[("a", 1)]);
            prop_assert!(keys.open(b"", &value).is_err());
            let mut marked = vec![MARK, 1, b'a'];
            marked.extend(value);
            prop_assert!(keys.open(b"", &marked).is_err());
        }
    }
}
