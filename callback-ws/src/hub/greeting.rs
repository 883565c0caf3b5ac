//! What a client and we say first, and the secrets in it: pure but for the randomness.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{fmt, time::Duration};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use url::Url;

/// The session was resumed over another connection.
pub(super) const ELSEWHERE: CloseCode = CloseCode::Library(4409);

/// There is no such session (any more), or the secret is another's.
pub(super) const OVER: CloseCode = CloseCode::Library(4410);

/// How many characters of base64url 128 bits are.
const CHARACTERS: usize = 22;

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    Begin,
    Resume(String),
}

/// Reads `{"resume":null}` or `{"resume":"…"}`; `None` for anything else. Unknown members are ignored.
pub(super) fn hello(text: &str) -> Option<Hello> {
    let Value::Object(mut members) = serde_json::from_str(text).ok()? else { return None };
    match members.remove("resume")? {
        Value::Null => Some(Hello::Begin),
        Value::String(secret) => Some(Hello::Resume(secret)),
        _ => None,
    }
}

/// What the client shows when it comes back: the session's address, and random bits that change each time.
pub(super) struct Secret(String);

impl Secret {
    /// That of a session that nobody else has.
    pub(super) fn begin() -> Self {
        Self(format!("{}.{}", random(), random()))
    }

    /// The next one of the same session.
    pub(super) fn next(&self) -> Self {
        Self(format!("{}.{}", self.address(), random()))
    }

    /// One that a client shows, if it is of the form.
    pub(super) fn shown(text: String) -> Option<Self> {
        let (address, bits) = text.split_once('.')?;
        let is_of_form = is_address(address) && is_address(bits) && text.len() == 2 * CHARACTERS + 1;
        is_of_form.then_some(Self(text))
    }

    pub(super) fn address(&self) -> &str {
        &self.0[..CHARACTERS]
    }

    /// What is stored of it.
    pub(super) fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// 128 random bits as base64url.
fn random() -> String {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).expect("the system has randomness");
    BASE64_URL_SAFE_NO_PAD.encode(bits)
}

/// Whether it is base64url of 128 bits at least.
pub(super) fn is_address(text: &str) -> bool {
    text.len() >= CHARACTERS && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[derive(Serialize)]
struct Welcome<'a> {
    session: String,
    resume: &'a str,
    resumed: bool,
    keep: u64,
}

/// The frame that tells a client its session.
pub(super) fn welcome(secret: &Secret, is_resumed: bool, keep: Duration) -> String {
    let session = format!("session://{}", secret.address());
    let welcome = Welcome { session, resume: &secret.0, resumed: is_resumed, keep: keep.as_secs() };
    // Texts and numbers have a JSON form.
    serde_json::to_string(&welcome).unwrap_or_default()
}

/// Whether a browser may send this as `Origin`.
pub(super) fn is_origin(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| url.origin().is_tuple() && url.origin().ascii_serialization() == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::Dsn;

    #[test]
    fn a_client_begins_or_comes_back() {
        let resume = |secret: &str| Some(Hello::Resume(secret.to_owned()));
        for (text, expected) in [
            (r#"{"resume":null}"#, Some(Hello::Begin)),
            (r#" {"more":[1],"resume":null} "#, Some(Hello::Begin)),
            (r#"{"resume":"a.b"}"#, resume("a.b")),
            (r#"{"resume":"\u0061"}"#, resume("a")),
            (r#"{"resume":""}"#, resume("")),
            ("{}", None),
            ("null", None),
            ("", None),
            ("hello", None),
            ("[]", None),
            (r#"{"resume":1}"#, None),
            (r#"{"resume":{}}"#, None),
            (r#"{"resume":null} {}"#, None),
            (r#"{"ack":"a"}"#, None),
        ] {
            assert_eq!(hello(text), expected, "{text}");
        }
        assert_eq!(hello(&"[".repeat(60_000)), None);
    }

    #[test]
    fn a_secret_is_the_address_and_bits_that_change() {
        let first = Secret::begin();
        let second = first.next();
        assert_eq!(first.address(), second.address());
        assert_ne!(first.digest(), second.digest());
        assert_ne!(first.address(), Secret::begin().address());
        assert!(is_address(first.address()) && first.address().len() == 22);
        assert!(format!("session://{}", first.address()).parse::<Dsn>().is_ok());
        let shown = Secret::shown(first.0.clone()).expect("one of ours");
        assert_eq!((shown.digest(), shown.address()), (first.digest(), first.address()));
        assert!(!format!("{first:?}").contains(first.address()));
    }

    #[test]
    fn what_is_no_secret_is_told_from_one() {
        let (a, b) = ("A".repeat(22), "_".repeat(22));
        assert!(Secret::shown(format!("{a}.{b}")).is_some());
        for text in [
            String::new(),
            ".".to_owned(),
            a.clone(),
            format!("{a}.{b}_"),
            format!("_{a}.{b}"),
            format!("{a}.{}", "_".repeat(21)),
            format!("{a}.{}.", "_".repeat(21)),
            format!("{}.{b}", "ä".repeat(11)),
            format!("{a}.{b}.{b}"),
        ] {
            assert!(Secret::shown(text.clone()).is_none(), "{text}");
        }
    }

    #[test]
    fn the_welcome_is_that_of_the_golden_file() {
        let secret = Secret("kR3mZ0wqV1c_8dXy-7LbQA.h2Tn0vJYxk6Wm9sP4aUeRg".to_owned());
        let lines = [false, true].map(|is_resumed| welcome(&secret, is_resumed, Duration::from_secs(600)) + "\n");
        assert_eq!(lines.concat(), include_str!("../../tests/golden/session.jsonl"));
    }

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        for origin in
            ["https://app.example", "http://127.0.0.1:8080", "http://[::1]:8080", "https://xn--bcher-kva.example"]
        {
            assert!(is_origin(origin), "{origin}");
        }
        for text in [
            "",
            "app.example",
            "https://app.example/",
            "https://App.example",
            "https://app.example:443",
            "null",
            "*",
            "file:///a",
        ] {
            assert!(!is_origin(text), "{text}");
        }
    }
}
