//! Signatures of messages: Standard Webhooks 1.0.0, `v1` (HMAC-SHA256) and `v1a` (Ed25519).

mod secret;
mod signer;
mod verifier;

pub use secret::Secret;
pub use signer::Signer;
pub use verifier::{Verifier, VerifyError};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _};
use sha2::Sha256;
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use zeroize::Zeroizing;

const SYMMETRIC: &str = "whsec_";
const PRIVATE: &str = "whsk_";
const PUBLIC: &str = "whpk_";

/// A text that holds no key of the kind asked for; says why, and nothing of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct KeyError {
    reason: &'static str,
}

impl KeyError {
    const fn new(reason: &'static str) -> Self {
        Self { reason }
    }
}

/// Reads keys separated by white space; at least one.
fn parse_keys<K>(text: &str, parse: impl Fn(&str) -> Result<K, KeyError>) -> Result<Arc<[K]>, KeyError> {
    let keys = text.split_whitespace().map(parse).collect::<Result<Arc<[K]>, KeyError>>()?;
    if keys.is_empty() { Err(KeyError::new("there is no key")) } else { Ok(keys) }
}

/// The keyed state of a `whsec_` key, given without its prefix.
fn parse_symmetric(base64: &str) -> Result<Hmac<Sha256>, KeyError> {
    let bytes = decode(base64)?;
    if (24..=64).contains(&bytes.len()) {
        Ok(keyed(&bytes))
    } else {
        Err(KeyError::new("a whsec_ key has 24 to 64 bytes"))
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn decode(base64: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    STANDARD.decode(base64).map(Zeroizing::new).map_err(|_| KeyError::new("a key is padded base64 after its prefix"))
}

/// What is signed, up to the body.
fn head(id: &str, seconds: u64) -> String {
    format!("{id}.{seconds}.")
}

/// Whole Unix seconds, as `webhook-timestamp` carries them; a time before 1970 counts as 0.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;
    use proptest::prelude::*;
    use std::{fmt::Debug, time::Duration};

    /// The values of the reference implementations of Standard Webhooks.
    struct Vector {
        sign_with: &'static str,
        verify_with: &'static str,
        id: &'static str,
        seconds: u64,
        body: &'static str,
        signature: &'static str,
    }

    const LIBRARY: Vector = Vector {
        sign_with: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        verify_with: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
        seconds: 1_614_265_330,
        body: r#"{"test": 2432232314}"#,
        signature: "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    };

    const SIMULATOR: Vector = Vector {
        sign_with: "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        verify_with: "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        id: "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        seconds: 1_649_367_553,
        body: r#"{"email":"test@example.com","username":"test_user"}"#,
        signature: "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    };

    const ASYMMETRIC: Vector = Vector {
        sign_with: "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==",
        verify_with: "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=",
        signature: "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==",
        ..LIBRARY
    };

    const VECTORS: [Vector; 3] = [LIBRARY, SIMULATOR, ASYMMETRIC];

    /// The first half of the private key above: what it grows from.
    const SEED: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc=";

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn signer(keys: &str) -> Signer {
        keys.parse().expect("valid keys")
    }

    fn verifier(keys: &str) -> Verifier {
        keys.parse().expect("valid keys")
    }

    impl Vector {
        fn id(&self) -> MessageId {
            self.id.parse().expect("valid id")
        }

        fn sign(&self, keys: &str) -> String {
            signer(keys).sign(&self.id(), at(self.seconds), self.body.as_bytes())
        }

        #[track_caller]
        fn check(&self, keys: &str, signatures: &str, expected: Result<(), VerifyError>) {
            self.check_at(keys, signatures, self.seconds, expected);
        }

        #[track_caller]
        fn check_at(&self, keys: &str, signatures: &str, now: u64, expected: Result<(), VerifyError>) {
            let (verifier, timestamp) = (verifier(keys), self.seconds.to_string());
            let (id, time, body) = (self.id(), at(self.seconds), self.body.as_bytes());
            assert_eq!(verifier.verify(&id, time, body, signatures, at(now)), expected, "{signatures:?} at {now}");
            assert_eq!(verifier.verify_headers(self.id, &timestamp, signatures, body, at(now)), expected);
        }
    }

    #[test]
    fn the_vectors_of_the_standard_hold() {
        for vector in VECTORS {
            assert_eq!(vector.sign(vector.sign_with), vector.signature);
            vector.check(vector.verify_with, vector.signature, Ok(()));
        }
        assert_eq!(LIBRARY.sign(SEED), ASYMMETRIC.signature);
    }

    #[test]
    fn another_id_time_body_or_key_does_not_match() {
        for vector in VECTORS {
            let mismatch = Err(VerifyError::Mismatch);
            Vector { id: "msg_other", ..vector }.check(vector.verify_with, vector.signature, mismatch);
            Vector { seconds: vector.seconds + 1, ..vector }.check(vector.verify_with, vector.signature, mismatch);
            Vector { body: "{}", ..vector }.check(vector.verify_with, vector.signature, mismatch);
            vector.check("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", vector.signature, mismatch);
            vector.check("whpk_JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=", vector.signature, mismatch);
        }
    }

    #[test]
    fn what_is_no_signature_does_not_match() {
        let mismatch = Err(VerifyError::Mismatch);
        for vector in VECTORS {
            let (version, value) = vector.signature.split_once(',').expect("a signature");
            vector.check(vector.verify_with, &format!("{version},"), mismatch);
            vector.check(vector.verify_with, version, mismatch);
            vector.check(vector.verify_with, value, mismatch);
            vector.check(vector.verify_with, &format!("v2,{value}"), mismatch);
            vector.check(vector.verify_with, &format!("{version},{}", &value[..value.len() - 4]), mismatch);
            vector.check(vector.verify_with, &format!("{version},AAAA{value}"), mismatch);
            vector.check(vector.verify_with, &format!("{version},{}", &value[1..]), mismatch);
        }
    }

    #[test]
    fn a_version_cannot_be_taken_for_the_other() {
        let swapped = ASYMMETRIC.signature.replace("v1a,", "v1,");
        ASYMMETRIC.check(ASYMMETRIC.verify_with, &swapped, Err(VerifyError::Mismatch));
        let swapped = LIBRARY.signature.replace("v1,", "v1a,");
        LIBRARY.check(LIBRARY.verify_with, &swapped, Err(VerifyError::Mismatch));
    }

    #[test]
    fn one_valid_signature_among_others_is_enough() {
        for vector in VECTORS {
            let other = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc=";
            vector.check(vector.verify_with, &format!("{other} v2,aaaa {} {other}", vector.signature), Ok(()));
        }
    }

    #[test]
    fn a_header_may_hold_sixteen_signatures() {
        let list = |others: usize| "v1a,AAAA ".repeat(others) + LIBRARY.signature;
        LIBRARY.check(LIBRARY.verify_with, &list(15), Ok(()));
        LIBRARY.check(LIBRARY.verify_with, &list(16), Err(VerifyError::Malformed));
    }

    #[test]
    fn a_message_is_fresh_for_five_minutes_either_way() {
        for (shift, expected) in [(300, Ok(())), (301, Err(VerifyError::Stale))] {
            LIBRARY.check_at(LIBRARY.verify_with, LIBRARY.signature, LIBRARY.seconds + shift, expected);
            LIBRARY.check_at(LIBRARY.verify_with, LIBRARY.signature, LIBRARY.seconds - shift, expected);
        }
    }

    #[test]
    fn tolerance_is_settable() {
        let strict = verifier(LIBRARY.verify_with).tolerance(Duration::from_secs(1));
        let verify = |now| {
            strict.verify(&LIBRARY.id(), at(LIBRARY.seconds), LIBRARY.body.as_bytes(), LIBRARY.signature, at(now))
        };
        assert_eq!(verify(LIBRARY.seconds + 1), Ok(()));
        assert_eq!(verify(LIBRARY.seconds + 2), Err(VerifyError::Stale));
    }

    #[test]
    fn what_was_stored_is_never_stale() {
        let verifier = verifier(LIBRARY.verify_with);
        let (id, body) = (LIBRARY.id(), LIBRARY.body.as_bytes());
        assert_eq!(verifier.verify_stored(&id, at(LIBRARY.seconds), body, LIBRARY.signature), Ok(()));
        assert_eq!(verifier.verify_stored(&id, at(0), body, LIBRARY.signature), Err(VerifyError::Mismatch));
        assert_eq!(verifier.verify_stored_headers(LIBRARY.id, "1614265330", LIBRARY.signature, body), Ok(()));
        assert_eq!(verifier.verify_stored_headers(LIBRARY.id, "", LIBRARY.signature, body), Err(VerifyError::Missing));
    }

    #[track_caller]
    fn check_headers(id: &str, timestamp: &str, signatures: &str, expected: VerifyError) {
        let verified = verifier(LIBRARY.verify_with).verify_headers(
            id,
            timestamp,
            signatures,
            LIBRARY.body.as_bytes(),
            at(LIBRARY.seconds),
        );
        assert_eq!(verified, Err(expected), "{id:?} {timestamp:?} {signatures:?}");
    }

    #[test]
    fn a_header_that_is_missing_or_malformed_is_told_apart() {
        let (id, signature) = (LIBRARY.id, LIBRARY.signature);
        check_headers("", "1614265330", signature, VerifyError::Missing);
        check_headers(id, "", signature, VerifyError::Missing);
        check_headers(id, "1614265330", "", VerifyError::Missing);
        check_headers(id, "1614265330", "  ", VerifyError::Missing);
        check_headers("a.b", "1614265330", signature, VerifyError::Malformed);
        for hostile in ["now", " 1614265330", "1614265330.0", "-1", "-9223372036854775808", "99999999999999999999"] {
            check_headers(id, hostile, signature, VerifyError::Malformed);
        }
        for far in ["0", "9223372036854775807", "18446744073709551615"] {
            check_headers(id, far, signature, VerifyError::Stale);
        }
    }

    #[test]
    fn keys_rotate_without_a_gap() {
        let both = format!("{}  {}\n{}", LIBRARY.sign_with, SIMULATOR.sign_with, ASYMMETRIC.sign_with);
        let signatures = LIBRARY.sign(&both);
        assert_eq!(
            signatures.split(' ').map(|entry| entry.split_once(',').map(|(version, _)| version)).collect::<Vec<_>>(),
            [Some("v1"), Some("v1"), Some("v1a")]
        );
        for vector in VECTORS {
            LIBRARY.check(vector.verify_with, &signatures, Ok(()));
            let old_and_current = format!("{} {}", SIMULATOR.verify_with, vector.verify_with);
            LIBRARY.check(&old_and_current, &LIBRARY.sign(vector.sign_with), Ok(()));
        }
    }

    #[test]
    fn a_verifier_comes_from_its_signer() {
        for vector in VECTORS {
            let verified = signer(vector.sign_with).verifier().verify_stored(
                &vector.id(),
                at(vector.seconds),
                vector.body.as_bytes(),
                vector.signature,
            );
            assert_eq!(verified, Ok(()));
        }
    }

    #[test]
    fn only_public_keys_are_published() {
        let both = format!("{} {}", LIBRARY.sign_with, ASYMMETRIC.sign_with);
        assert_eq!(signer(&both).public_keys(), [ASYMMETRIC.verify_with]);
        assert_eq!(signer(SEED).public_keys(), [ASYMMETRIC.verify_with]);
        assert!(signer(LIBRARY.sign_with).public_keys().is_empty());
        assert!(signer(&both).is_symmetric());
        assert!(!signer(SEED).is_symmetric());
    }

    #[track_caller]
    fn check_key<K: std::str::FromStr<Err = KeyError> + Debug>(text: &str, expected: Result<(), &str>) {
        match (text.parse::<K>(), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(reason)) => assert_eq!(error.to_string(), reason, "{text:?}"),
            (parsed, _) => panic!("{text:?} gives {parsed:?}"),
        }
    }

    #[test]
    fn keys_are_checked_when_they_are_read() {
        let of = |prefix: &str, length: usize| format!("{prefix}{}", STANDARD.encode(vec![7; length]));
        let length = Err("a whsec_ key has 24 to 64 bytes");
        for (bytes, expected) in [(0, length), (23, length), (24, Ok(())), (64, Ok(())), (65, length), (4096, length)] {
            check_key::<Signer>(&of("whsec_", bytes), expected);
            check_key::<Verifier>(&of("whsec_", bytes), expected);
        }
        for (bytes, expected) in [
            (31, Err("a whsk_ key has 32 or 64 bytes")),
            (32, Ok(())),
            (64, Err("the halves of a whsk_ key belong together")),
            (65, Err("a whsk_ key has 32 or 64 bytes")),
        ] {
            check_key::<Signer>(&of("whsk_", bytes), expected);
        }
        check_key::<Verifier>(&of("whpk_", 31), Err("a whpk_ key has 32 bytes"));
        check_key::<Verifier>(
            "whpk_AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            Err("a whpk_ key is a strong point of Ed25519"),
        );
        check_key::<Verifier>(
            "whpk_AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            Err("a whpk_ key is a strong point of Ed25519"),
        );
        check_key::<Signer>("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", Err("a key is padded base64 after its prefix"));
        check_key::<Signer>("whsec_ä", Err("a key is padded base64 after its prefix"));
        for none in ["", " \n"] {
            check_key::<Signer>(none, Err("there is no key"));
            check_key::<Verifier>(none, Err("there is no key"));
        }
        check_key::<Signer>(ASYMMETRIC.verify_with, Err("a signer takes whsec_ and whsk_ keys"));
        check_key::<Verifier>(ASYMMETRIC.sign_with, Err("a verifier takes whsec_ and whpk_ keys"));
        check_key::<Signer>("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", Err("a signer takes whsec_ and whsk_ keys"));
        check_key::<Signer>(&format!("{} rest", LIBRARY.sign_with), Err("a signer takes whsec_ and whsk_ keys"));
    }

    #[test]
    fn no_key_is_printed() {
        let both = format!("{} {}", LIBRARY.sign_with, ASYMMETRIC.sign_with);
        let broken = format!("{}*", LIBRARY.sign_with);
        let printed = format!(
            "{:?} {:?} {:?} {:?} {}",
            signer(&both),
            signer(&both).verifier(),
            Secret::from(both),
            broken.parse::<Signer>().expect_err("no base64"),
            broken.parse::<Verifier>().expect_err("no base64"),
        );
        for planted in [LIBRARY.sign_with, ASYMMETRIC.sign_with, ASYMMETRIC.verify_with] {
            let value = planted.split_once('_').expect("a prefix").1;
            assert!(!printed.contains(&value[..8]), "{printed}");
        }
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(id: String, timestamp: String, signatures: String, body: Vec<u8>, now: u32) {
            let verifier = verifier(&format!("{} {}", LIBRARY.verify_with, ASYMMETRIC.verify_with));
            prop_assert!(verifier.verify_headers(&id, &timestamp, &signatures, &body, at(now.into())).is_err());
            prop_assert!(verifier.verify_stored_headers(&id, &timestamp, &signatures, &body).is_err());
        }

        #[test]
        fn hostile_values_in_well_formed_headers_never_panic(
            timestamp: i64,
            signatures in "(v1a?,[A-Za-z0-9+/]{0,90}={0,2} ?){1,4}",
            body: Vec<u8>,
        ) {
            let verifier = verifier(&format!("{} {}", LIBRARY.verify_with, ASYMMETRIC.verify_with));
            let timestamp = timestamp.to_string();
            prop_assert!(verifier.verify_headers("a", &timestamp, &signatures, &body, at(0)).is_err());
            prop_assert!(verifier.verify_stored_headers("a", &timestamp, &signatures, &body).is_err());
        }

        #[test]
        fn what_is_signed_verifies(seconds: u32, body: Vec<u8>) {
            let signer = signer(&format!("{} {SEED}", LIBRARY.sign_with));
            let (id, time) = (MessageId::new(), at(seconds.into()));
            for signature in signer.sign(&id, time, &body).split(' ') {
                prop_assert_eq!(signer.verifier().verify(&id, time, &body, signature, time), Ok(()));
            }
        }
    }
}
