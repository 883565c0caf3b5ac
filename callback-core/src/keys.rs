//! Whose key signs a message.

use crate::{Destination, Dsn, Signer};
use std::{collections::HashMap, fmt, sync::Arc};

/// Says which key signs a message, by who asked for it and where it goes.
///
/// A symmetric secret belongs to one receiver, so the key that says most about the receiver is taken: the first that
/// is registered of
///
/// 1. this caller at this destination (hosts that many customers share),
/// 2. this destination: whoever sends there, that host verifies by this key,
/// 3. this caller: his own receivers, wherever they are,
/// 4. the service.
///
/// A destination goes before a caller because the destination verifies: it knows its own key, and not the key of
/// whoever named it. A secret that came with a subscription or a request is nearer still; who has one does not ask here.
///
/// By default nothing is registered, and messages go out unsigned. The service's key should be Ed25519 (`whsk_`), whose
/// public half everybody may know. **One `whsec_` as the service's key is a setting for development**: every receiver
/// holds it, so every receiver can forge messages to every other; [`is_shared_secret`](Self::is_shared_secret) tells.
///
/// ```
/// use callback_core::Keys;
///
/// # fn main() -> Result<(), callback_core::KeyError> {
/// let keys = Keys::new()
///     .service("whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc=".parse()?)
///     .caller("acme", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?);
/// assert!(!keys.is_shared_secret());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Keys(Arc<Inner>);

#[derive(Clone, Default)]
struct Inner {
    anywhere: Scope,
    destinations: HashMap<Destination, Scope>,
}

/// The keys of one destination, or of all.
#[derive(Clone, Default)]
struct Scope {
    anyone: Option<Signer>,
    callers: HashMap<String, Signer>,
}

impl Keys {
    /// No keys: nothing is signed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Signs by this key wherever none of the others is registered.
    #[must_use]
    pub fn service(mut self, signer: Signer) -> Self {
        self.inner().anywhere.anyone = Some(signer);
        self
    }

    /// Signs by this key what this caller asked for.
    #[must_use]
    pub fn caller(mut self, caller: impl Into<String>, signer: Signer) -> Self {
        self.inner().anywhere.callers.insert(caller.into(), signer);
        self
    }

    /// Signs by this key what goes to this destination.
    #[must_use]
    pub fn destination(mut self, destination: Destination, signer: Signer) -> Self {
        self.inner().destinations.entry(destination).or_default().anyone = Some(signer);
        self
    }

    /// Signs by this key what this caller sends to this destination.
    #[must_use]
    pub fn caller_destination(mut self, caller: impl Into<String>, destination: Destination, signer: Signer) -> Self {
        self.inner().destinations.entry(destination).or_default().callers.insert(caller.into(), signer);
        self
    }

    /// The key that signs what `caller` sends to `dsn`; without one it stays unsigned.
    #[must_use]
    pub fn signer(&self, caller: Option<&str>, dsn: &Dsn) -> Option<&Signer> {
        let Inner { anywhere, destinations } = &*self.0;
        let there = if destinations.is_empty() { None } else { destinations.get(&dsn.destination()) };
        there.and_then(|scope| scope.signer(caller)).or_else(|| anywhere.signer(caller))
    }

    /// Whether the service's key is a secret that its receivers share.
    ///
    /// Every one of them can then forge messages to every other: a program should say so when it starts.
    #[must_use]
    pub fn is_shared_secret(&self) -> bool {
        self.0.anywhere.anyone.as_ref().is_some_and(Signer::is_symmetric)
    }

    /// The public halves of the service's keys, as served at `/.well-known/callback-keys`.
    #[must_use]
    pub fn public_keys(&self) -> Vec<String> {
        self.0.anywhere.anyone.as_ref().map(Signer::public_keys).unwrap_or_default()
    }

    fn inner(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }
}

impl Scope {
    fn signer(&self, caller: Option<&str>) -> Option<&Signer> {
        caller.and_then(|caller| self.callers.get(caller)).or(self.anyone.as_ref())
    }
}

/// The service's key, and no other.
impl From<Signer> for Keys {
    fn from(signer: Signer) -> Self {
        Self::new().service(signer)
    }
}

/// Whether there is a service's key, and how many others; no key.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("service", &self.0.anywhere.anyone)
            .field("callers", &self.0.anywhere.callers.len())
            .field("destinations", &self.0.destinations.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MessageId;
    use std::time::UNIX_EPOCH;

    const SEED: &str = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc=";

    /// A key for each letter.
    fn key(letter: char) -> Signer {
        format!("whsec_{}", letter.to_string().repeat(32)).parse().expect("valid key")
    }

    fn keys() -> Keys {
        let shared: Destination = "https://shared.example:443".parse().expect("valid destination");
        let own: Destination = "https://own.example:443".parse().expect("valid destination");
        Keys::new().service(key('S')).caller("acme", key('A')).destination(own, key('D')).caller_destination(
            "acme",
            shared,
            key('B'),
        )
    }

    #[track_caller]
    fn check(keys: &Keys, caller: Option<&str>, dsn: &str, expected: Option<char>) {
        let sign = |signer: &Signer| signer.sign(&"id".parse::<MessageId>().expect("valid id"), UNIX_EPOCH, b"");
        let dsn: Dsn = dsn.parse().expect("valid Dsn");
        let signed = keys.signer(caller, &dsn).map(sign);
        assert_eq!(signed, expected.map(|letter| sign(&key(letter))), "{caller:?} {dsn:?}");
    }

    #[test]
    fn the_key_nearest_to_the_receiver_signs() {
        let keys = keys();
        check(&keys, Some("acme"), "https://shared.example/a", Some('B'));
        check(&keys, Some("other"), "https://shared.example/a", Some('S'));
        check(&keys, None, "https://shared.example/a", Some('S'));
        check(&keys, Some("acme"), "https://own.example/a", Some('D'));
        check(&keys, None, "https://own.example/a", Some('D'));
        check(&keys, Some("acme"), "https://elsewhere.example/a", Some('A'));
        check(&keys, Some("other"), "https://elsewhere.example/a", Some('S'));
        check(&keys, None, "https://elsewhere.example/a", Some('S'));
    }

    #[test]
    fn nothing_is_signed_by_default() {
        check(&Keys::default(), Some("acme"), "https://own.example/a", None);
        check(&Keys::new().caller("acme", key('A')), None, "https://own.example/a", None);
    }

    #[test]
    fn registering_leaves_clones_alone() {
        let before = keys();
        let after = before.clone().service(key('T'));
        check(&before, None, "https://elsewhere.example/a", Some('S'));
        check(&after, None, "https://elsewhere.example/a", Some('T'));
    }

    #[test]
    fn a_shared_secret_is_told() {
        assert!(keys().is_shared_secret());
        assert!(!Keys::from(SEED.parse::<Signer>().expect("valid key")).caller("acme", key('A')).is_shared_secret());
        assert!(!Keys::new().caller("acme", key('A')).is_shared_secret());
        assert!(keys().public_keys().is_empty());
        assert_eq!(
            Keys::from(SEED.parse::<Signer>().expect("valid key")).public_keys(),
            ["whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="]
        );
    }

    #[test]
    fn no_key_is_printed() {
        assert_eq!(
            format!("{:?}", keys()),
            r#"Keys { service: Some(Signer { versions: ["v1"], .. }), callers: 1, destinations: 2 }"#
        );
    }
}
