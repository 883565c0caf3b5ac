//! Records whose key nobody expects: kept for a time, and for so many bytes. Pure.

use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// What is kept, the oldest first.
#[derive(Debug)]
pub(super) struct Kept<T> {
    time: Duration,
    most: usize,
    bytes: usize,
    queue: VecDeque<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    since: Instant,
    size: usize,
    record: T,
}

impl<T> Kept<T> {
    pub(super) const fn new(time: Duration, most: usize) -> Self {
        Self { time, most, bytes: 0, queue: VecDeque::new() }
    }

    /// Keeps a record; gives those that have no room any more, which may be this one.
    pub(super) fn keep(&mut self, record: T, size: usize, now: Instant) -> Vec<T> {
        self.bytes += size;
        self.queue.push_back(Entry { since: now, size, record });
        self.pop_while(|kept, _| kept.bytes > kept.most)
    }

    /// Gives those whose time is over.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<T> {
        self.pop_while(|kept, oldest| now.saturating_duration_since(oldest.since) >= kept.time)
    }

    /// Gives those that are asked for, in their order.
    pub(super) fn take(&mut self, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let (mut wanted, mut left) = (Vec::new(), VecDeque::new());
        for entry in self.queue.drain(..) {
            if is_wanted(&entry.record) {
                self.bytes -= entry.size;
                wanted.push(entry.record);
            } else {
                left.push_back(entry);
            }
        }
        self.queue = left;
        wanted
    }

    fn pop_while(&mut self, is_over: impl Fn(&Self, &Entry<T>) -> bool) -> Vec<T> {
        let mut popped = Vec::new();
        while self.queue.front().is_some_and(|oldest| is_over(self, oldest)) {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.bytes -= oldest.size;
            popped.push(oldest.record);
        }
        popped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_oldest_make_room() {
        let (mut kept, now) = (Kept::new(HOUR, 10), Instant::now());
        assert!(kept.keep("a", 4, now).is_empty());
        assert!(kept.keep("b", 6, now).is_empty());
        assert_eq!(kept.keep("c", 5, now), ["a", "b"]);
        assert_eq!(kept.keep("larger than all", 11, now), ["c", "larger than all"]);
        assert!(kept.keep("d", 10, now).is_empty());
    }

    #[test]
    fn they_go_when_their_time_is_over() {
        let (mut kept, now) = (Kept::new(HOUR, 100), Instant::now());
        kept.keep("a", 60, now);
        kept.keep("b", 1, now + HOUR / 2);
        assert!(kept.expired(now + HOUR - Duration::from_nanos(1)).is_empty());
        assert_eq!(kept.expired(now + HOUR), ["a"]);
        assert!(kept.keep("c", 99, now).is_empty(), "the room of what expired is free");
        assert_eq!(kept.expired(now + HOUR * 2), ["b", "c"]);
    }

    #[test]
    fn what_is_asked_for_is_taken_in_its_order() {
        let (mut kept, now) = (Kept::new(HOUR, 6), Instant::now());
        for record in [1, 2, 3, 4] {
            kept.keep(record, 1, now);
        }
        assert_eq!(kept.take(|record| record % 2 == 0), [2, 4]);
        assert!(kept.keep(5, 4, now).is_empty(), "their room is free");
        assert_eq!(kept.take(|_| true), [1, 3, 5]);
    }
}
