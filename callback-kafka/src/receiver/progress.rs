//! How far one partition was read, and up to where every record has its verdict. Pure.

use std::collections::BTreeSet;

/// One partition.
#[derive(Debug)]
pub(super) struct Progress {
    /// Behind all that was read.
    next: i64,
    /// What was read and has no verdict that lets it pass.
    open: BTreeSet<i64>,
}

impl Progress {
    /// Nothing was read; the first offset will be this, or a later one.
    pub(super) const fn new(next: i64) -> Self {
        Self { next, open: BTreeSet::new() }
    }

    /// A record was read. False if it is there already, without a verdict.
    pub(super) fn read(&mut self, offset: i64) -> bool {
        self.next = self.next.max(offset.saturating_add(1));
        self.open.insert(offset)
    }

    /// A record may pass.
    pub(super) fn settle(&mut self, offset: i64) {
        self.open.remove(&offset);
    }

    /// The last offset before which, itself included, everything may pass.
    pub(super) fn passed(&self) -> i64 {
        self.open.first().map_or(self.next, |offset| *offset) - 1
    }

    /// What `passed` will be if this record passes before any other.
    pub(super) fn passed_with(&self, offset: i64) -> i64 {
        self.open.iter().find(|open| **open != offset).map_or(self.next, |offset| *offset) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    #[test]
    fn a_record_without_a_verdict_holds_back_those_behind_it() {
        let mut progress = Progress::new(5);
        assert_eq!(progress.passed(), 4);
        for offset in [5, 6, 9] {
            assert!(progress.read(offset));
        }
        assert!(!progress.read(9), "it is there");
        assert_eq!((progress.passed(), progress.passed_with(5), progress.passed_with(6)), (4, 5, 4));
        progress.settle(6);
        // What lies between 6 and 9 is no record.
        assert_eq!((progress.passed(), progress.passed_with(5)), (4, 8));
        progress.settle(5);
        progress.settle(9);
        assert_eq!(progress.passed(), 9);
    }

    #[test]
    fn what_is_read_again_from_an_earlier_place_is_no_step_back() {
        let mut progress = Progress::new(5);
        progress.read(2);
        assert_eq!(progress.passed(), 1);
        progress.settle(2);
        assert_eq!(progress.passed(), 4);
    }

    proptest! {
        #[test]
        fn nothing_without_a_verdict_is_passed(steps in vec((0_i64..3, any::<prop::sample::Index>()), 1..200)) {
            let (mut progress, mut open, mut next) = (Progress::new(0), Vec::new(), 0);
            for (gap, pick) in steps {
                if gap < 2 || open.is_empty() {
                    next += gap;
                    progress.read(next);
                    open.push(next);
                    next += 1;
                } else {
                    let offset = open.swap_remove(pick.index(open.len()));
                    let will = progress.passed_with(offset);
                    progress.settle(offset);
                    prop_assert_eq!(progress.passed(), will);
                }
                let first = open.iter().copied().min().unwrap_or(next);
                prop_assert_eq!(progress.passed(), first - 1);
                prop_assert!(open.iter().all(|offset| progress.passed_with(*offset) >= first - 1));
            }
        }
    }
}
