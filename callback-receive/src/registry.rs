//! All handles of a receiver, by their names.

use crate::{
    HandleId,
    named::Named,
    slot::Slot,
    sync::{Mutex, lock},
};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

const SHARDS: usize = 16;

/// A map in parts, so that senders do not wait for each other.
pub(crate) struct Registry([Mutex<Shard>; SHARDS]);

type Shard = HashMap<HandleId, Handle, BuildHasherDefault<Random>>;

/// The first bytes of a name are its hash: they are random, and no name gets in that this receiver did not make. What is
/// written last counts: before an array comes its length.
#[derive(Default)]
struct Random(u64);

impl Hasher for Random {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(bytes) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*bytes);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Clone)]
pub(crate) enum Handle {
    /// It dies with its `Callback`.
    Spawned(Arc<Slot>),
    /// It has a name, and an inbox.
    Named(Arc<Named>),
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    pub(crate) fn insert(&self, id: HandleId, handle: Handle) {
        lock(self.shard(&id)).insert(id, handle);
    }

    pub(crate) fn find(&self, id: &HandleId) -> Option<Handle> {
        lock(self.shard(id)).get(id).cloned()
    }

    pub(crate) fn remove(&self, id: &HandleId) {
        let removed = lock(self.shard(id)).remove(id);
        // Not under the lock: what it holds may be large.
        drop(removed);
    }

    /// All handles at this moment.
    pub(crate) fn all(&self) -> Vec<Handle> {
        self.0.iter().flat_map(|shard| lock(shard).values().cloned().collect::<Vec<_>>()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, id: &HandleId) -> &Mutex<Shard> {
        // It is random, and no part of the hash.
        &self.0[usize::from(id.as_bytes()[8]) % SHARDS]
    }
}
