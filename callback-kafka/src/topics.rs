//! The topics that librdkafka was asked for: it forgets none, so those that may not exist are counted.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError, RwLock},
};

/// Topics of a cluster from which a receipt came, by any producer: as many as the cluster has.
#[derive(Debug, Default)]
pub(crate) struct Receipted(RwLock<HashSet<String>>);

impl Receipted {
    pub(crate) fn has(&self, topic: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(topic)
    }

    pub(crate) fn insert(&self, topic: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned());
    }
}

/// Topics that one producer was asked for before any receipt came from them.
#[derive(Debug, Default)]
pub(crate) struct Asked(Mutex<HashSet<String>>);

impl Asked {
    /// Remembers a topic; whether so many have no receipt still.
    pub(crate) fn reach(&self, bound: usize, topic: &str, receipted: &Receipted) -> bool {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(topic.to_owned());
        if asked.len() >= bound {
            asked.retain(|topic| !receipted.has(topic));
        }
        asked.len() >= bound
    }
}
