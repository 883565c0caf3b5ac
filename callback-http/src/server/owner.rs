//! Whose a task is, and who may ask for it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use callback_core::TaskId;
use callback_dispatch::{Dispatcher, OutboxError, Task, Work};
use http::request::Parts;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{fmt, sync::Arc};

/// Says whose a task is, and so who may see and cancel it: the same value is given to layer and router.
///
/// A task's id is no secret. So either each request says who makes it, or each task has a secret in its URL.
#[derive(Clone)]
pub struct Owner(Kind);

#[derive(Clone)]
enum Kind {
    Hook(Hook),
    Capability,
}

type Hook = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// Where what is to be known of a capability is kept.
const CAPABILITY: &str = "callback.capability";

impl Owner {
    /// Who makes a request, from what authentication left in it: its extensions, or headers that it has checked.
    ///
    /// What it names is stored as the owner of the work. For the router a request that names nobody, or somebody else,
    /// finds nothing; to the layer it is a 403.
    pub fn hook(caller: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Kind::Hook(Arc::new(caller)))
    }

    /// Whoever has the task's URL, in which 128 random bits stand.
    ///
    /// Nobody is told apart from anybody: all callers share one space of idempotency keys. Who sends the same request under
    /// the same key gets the same acknowledgment, its URL included; who sends another learns that the key is in use. So a
    /// key must be unguessable here: 128 random bits, a UUID v4 for example. Where keys are order numbers, use
    /// [`hook`](Self::hook).
    ///
    /// Stored is a digest of them. Where the request has an idempotency key they are stored too, masked by a digest of that
    /// key, so that the same request is acknowledged with the same URL.
    #[must_use]
    pub const fn capability() -> Self {
        Self(Kind::Capability)
    }

    /// Notes on new work whose it is; none if the request does not say it.
    pub(super) fn sign(&self, parts: &Parts, work: Work, key: Option<&str>) -> Option<(Work, Option<Capability>)> {
        match &self.0 {
            Kind::Hook(caller) => Some((work.owner(caller(parts)?), None)),
            Kind::Capability => {
                let capability = Capability::new();
                let kept = capability.kept(key);
                Some((work.extension(CAPABILITY, kept), Some(capability)))
            }
        }
    }

    /// Where a task is found, which `sign` gave this capability: that of the first request, if it was known by its key.
    pub(super) async fn href(
        &self,
        tasks: &str,
        dispatcher: &Dispatcher,
        id: TaskId,
        new: Option<Capability>,
        key: Option<&str>,
    ) -> Result<String, OutboxError> {
        let capability = match key.filter(|_| new.is_some()) {
            Some(key) => dispatcher.task(id).await?.and_then(|task| self.recall(&task, key)).or(new),
            None => new,
        };
        let suffix = capability.map(|capability| format!(".{}", capability.text())).unwrap_or_default();
        Ok(format!("{tasks}/{id}{suffix}"))
    }

    /// The capability of a task that was accepted before, under this key.
    fn recall(&self, task: &Task, key: &str) -> Option<Capability> {
        match self.0 {
            Kind::Hook(_) => None,
            Kind::Capability => Capability::recall(task.extension(CAPABILITY)?, key),
        }
    }

    /// Whether who makes this request may see this task; the capability is what stands in its URL.
    #[cfg(feature = "axum")]
    pub(super) fn admits(&self, parts: &Parts, task: &Task, capability: Option<&str>) -> bool {
        match &self.0 {
            Kind::Hook(caller) => {
                capability.is_none() && task.owner().is_some_and(|owner| caller(parts).is_some_and(|it| it == owner))
            }
            Kind::Capability => {
                let kept = task.extension(CAPABILITY).and_then(|kept| kept["digest"].as_str());
                let given = capability.and_then(|text| text.parse().ok());
                // Digests are compared: how long it takes says nothing of what they are made from.
                given.zip(kept).is_some_and(|(given, kept): (Capability, _)| given.digest() == kept)
            }
        }
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Hook(_) => "Owner::hook",
            Kind::Capability => "Owner::capability",
        })
    }
}

/// 128 random bits that open one task.
pub(super) struct Capability([u8; 16]);

impl Capability {
    /// # Panics
    /// When the system has no randomness.
    fn new() -> Self {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the system has randomness");
        Self(bits)
    }

    /// As it stands in a URL.
    fn text(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    fn digest(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(self.0))
    }

    fn kept(&self, key: Option<&str>) -> Value {
        let masked = key.map(|key| BASE64_URL_SAFE_NO_PAD.encode(self.masked(key).0));
        json!({ "digest": self.digest(), "masked": masked })
    }

    fn recall(kept: &Value, key: &str) -> Option<Self> {
        let masked: Self = kept["masked"].as_str()?.parse().ok()?;
        let capability = masked.masked(key);
        (kept["digest"] == capability.digest()).then_some(capability)
    }

    /// Masks, and takes the mask off again.
    fn masked(&self, key: &str) -> Self {
        let mask = Sha256::new().chain_update(CAPABILITY).chain_update([0]).chain_update(key).finalize();
        let mut bits = self.0;
        bits.iter_mut().zip(mask).for_each(|(bit, mask)| *bit ^= mask);
        Self(bits)
    }
}

impl std::str::FromStr for Capability {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bits = Bytes::from(BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| ())?);
        bits[..].try_into().map(Self).map_err(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_capability_opens_nothing_without_the_key() {
        let capability = Capability::new();
        assert_ne!(capability.text(), Capability::new().text());
        let kept = capability.kept(Some("key"));
        assert!(!kept.to_string().contains(&capability.text()));
        let recalled = Capability::recall(&kept, "key").expect("the same");
        assert_eq!(recalled.text(), capability.text());
        assert!(Capability::recall(&kept, "another").is_none());
        assert!(Capability::recall(&capability.kept(None), "key").is_none());
    }

    #[test]
    fn a_capability_is_128_bits_in_22_characters() {
        assert_eq!(Capability::new().text().len(), 22);
        for text in ["", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAA=="] {
            assert!(text.parse::<Capability>().is_err(), "{text}");
        }
    }
}
