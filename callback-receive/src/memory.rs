//! The ids that were accepted, so that a message that comes twice is handed over once.

use crate::HandleId;
use callback_core::MessageId;
use sha2::{Digest as _, Sha256};
use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, Hash, Hasher, RandomState},
    time::Duration,
};
use tokio::time::Instant;

/// Ids of accepted messages, forgotten after a time, and the oldest first when there are too many.
///
/// About 64 bytes an id.
#[derive(Debug)]
pub(crate) struct Memory {
    known: HashSet<Key, Keyed>,
    /// Oldest first.
    order: VecDeque<(Instant, Key)>,
    keep: Duration,
    most: usize,
    evicted: u64,
}

/// A digest of handle and id: what is kept does not grow with what a sender calls his message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key([u64; 2]);

/// Digests are spread already; what a sender could make of one bucket is kept from him by a number of the map's own.
#[derive(Clone, Debug)]
struct Keyed([u64; 2]);

#[derive(Debug)]
struct Folded {
    key: [u64; 2],
    hash: u64,
}

impl Memory {
    pub(crate) fn new(keep: Duration, most: usize) -> Self {
        Self { known: HashSet::with_hasher(Keyed::random()), order: VecDeque::new(), keep, most, evicted: 0 }
    }

    pub(crate) fn remember(&mut self, key: Key, now: Instant) {
        self.forget(now);
        if self.known.insert(key) {
            self.order.push_back((now, key));
        }
        while self.order.len() > self.most {
            self.pop();
            self.evicted += 1;
            metrics::counter!("callback_receive_ids_evicted_total").increment(1);
        }
    }

    pub(crate) fn knows(&mut self, key: &Key, now: Instant) -> bool {
        self.forget(now);
        self.known.contains(key)
    }

    /// How many ids were forgotten before their time.
    pub(crate) const fn evicted(&self) -> u64 {
        self.evicted
    }

    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= self.keep) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.known.remove(&key);
        }
    }
}

impl Key {
    pub(crate) fn of(handle: &HandleId, id: &MessageId) -> Self {
        let digest = Sha256::new().chain_update(handle.as_bytes()).chain_update(id.as_str()).finalize();
        let half = |from: usize| u64::from_le_bytes(std::array::from_fn(|place| digest[from + place]));
        Self([half(0), half(8)])
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
        state.write_u64(self.0[1]);
    }
}

impl Keyed {
    fn random() -> Self {
        let random = RandomState::new();
        Self([random.hash_one(0), random.hash_one(1) | 1])
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded { key: self.0, hash: self.0[0] }
    }
}

impl Hasher for Folded {
    fn write_u64(&mut self, half: u64) {
        let product = u128::from(self.hash ^ half) * u128::from(self.key[1]);
        self.hash = (product >> 64) as u64 ^ product as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::Minter;
    use proptest::prelude::*;

    fn id(text: &str) -> MessageId {
        text.parse().expect("a valid id")
    }

    #[test]
    fn an_id_is_known_to_its_handle_for_its_time() {
        let minter = Minter::new(&[1; 32]);
        let (one, other, begun) = (minter.mint(), minter.mint(), Instant::now());
        let mut memory = Memory::new(Duration::from_secs(10), 8);
        memory.remember(Key::of(&one, &id("a")), begun);
        assert!(memory.knows(&Key::of(&one, &id("a")), begun + Duration::from_secs(9)));
        assert!(!memory.knows(&Key::of(&one, &id("b")), begun));
        assert!(!memory.knows(&Key::of(&other, &id("a")), begun));
        assert!(!memory.knows(&Key::of(&one, &id("a")), begun + Duration::from_secs(10)));
        assert_eq!(memory.evicted(), 0);
    }

    proptest! {
        #[test]
        fn the_last_ones_are_known_and_evictions_are_counted(count in 0_u64..50, most in 1_usize..20) {
            let (handle, now) = (Minter::new(&[1; 32]).mint(), Instant::now());
            let mut memory = Memory::new(Duration::from_secs(10), most);
            for number in 0..count {
                memory.remember(Key::of(&handle, &id(&number.to_string())), now);
            }
            let forgotten = count.saturating_sub(most as u64);
            prop_assert_eq!(memory.evicted(), forgotten);
            for number in 0..count {
                prop_assert_eq!(memory.knows(&Key::of(&handle, &id(&number.to_string())), now), number >= forgotten);
            }
            prop_assert!(memory.order.len() <= most && memory.known.len() == memory.order.len());
        }
    }
}
