//! The inbox and those who wait, in many interleavings: nothing is passed over, nothing is handed over twice.

use super::*;
use crate::handle::Minter;
use shuttle::{check_pct, check_random, future::block_on, thread};
use std::{future::poll_fn, sync::Arc};

/// An inbox that has everything at once, and answers in the order of its writes.
struct Scene {
    named: Named,
    /// What waits, by place.
    stored: Mutex<Vec<i64>>,
}

fn message(seq: i64) -> Message {
    Message::builder("a").id(format!("m{seq}").parse().expect("valid")).build().expect("valid")
}

impl Scene {
    fn new() -> Arc<Self> {
        let handle = Minter::new(&[1; 32]).mint();
        let expectation = Expectation { name: "name".to_owned(), handle, expires: None, own_key: false, waiting: 0 };
        Arc::new(Self { named: Named::new(expectation), stored: Mutex::default() })
    }

    /// Stores a message; what follows happens outside of the store's lock, as with the writer.
    fn store(&self, seq: i64) {
        assert!(self.named.reserve(1000));
        lock(&self.stored).push(seq);
        self.named.stored(seq, message(seq));
    }

    fn fill(&self, filling: Filling) {
        let mut next = Some(filling);
        while let Some(filling) = next {
            let page: Vec<i64> =
                lock(&self.stored).iter().copied().filter(|seq| *seq > filling.after).take(PAGE).collect();
            let page = page.into_iter().map(|seq| Waiting { seq, due: Micros(0), message: message(seq) }).collect();
            next = self.named.filled(filling, page, Micros(1)).next;
        }
    }

    fn take(self: &Arc<Self>) -> Option<i64> {
        let taken = block_on(poll_fn(|context| {
            let (taken, filling) = self.named.poll_take(context);
            if let Some(filling) = filling {
                let scene = Arc::clone(self);
                thread::spawn(move || scene.fill(filling));
            }
            taken
        }));
        taken.map(|(seq, _)| seq)
    }

    fn accept(&self, seq: i64) {
        lock(&self.stored).retain(|stored| *stored != seq);
        self.named.settled(seq);
    }
}

fn explore(test: impl Fn() + Send + Sync + Clone + 'static) {
    check_random(test.clone(), 400);
    check_pct(test, 400, 3);
}

#[test]
fn each_message_is_handed_over_once_while_the_inbox_is_read() {
    explore(|| {
        let scene = Scene::new();
        for seq in 1..=2 {
            scene.store(seq);
        }
        assert!(scene.named.attach());
        let storing = Arc::clone(&scene);
        let storing = thread::spawn(move || (3..=5).for_each(|seq| storing.store(seq)));
        let mut taken = Vec::new();
        while taken.len() < 5 {
            let seq = scene.take().expect("open");
            scene.accept(seq);
            taken.push(seq);
        }
        storing.join().expect("no panic");
        assert_eq!(taken, [1, 2, 3, 4, 5], "in the order in which they were stored");
    });
}

#[test]
fn what_is_in_hand_is_not_handed_over_to_the_next_holder() {
    explore(|| {
        let scene = Scene::new();
        scene.store(1);
        assert!(scene.named.attach());
        assert!(!scene.named.attach(), "one holder at a time");
        assert_eq!(scene.take(), Some(1));
        scene.named.detach();
        let storing = Arc::clone(&scene);
        let storing = thread::spawn(move || storing.store(2));
        assert!(scene.named.attach());
        assert_eq!(scene.take(), Some(2));
        // Dropped unanswered, it comes to whoever holds the handle.
        assert_eq!(scene.named.dropped(1, message(1)), None);
        assert_eq!(scene.take(), Some(1));
        storing.join().expect("no panic");
    });
}

#[test]
fn what_is_accepted_while_the_inbox_is_read_is_not_handed_over_again() {
    explore(|| {
        let scene = Scene::new();
        (1..=2).for_each(|seq| scene.store(seq));
        assert!(scene.named.attach());
        assert_eq!(scene.take(), Some(1));
        scene.named.detach();
        assert!(scene.named.attach());
        let accepting = Arc::clone(&scene);
        let accepting = thread::spawn(move || accepting.accept(1));
        assert_eq!(scene.take(), Some(2));
        scene.accept(2);
        accepting.join().expect("no panic");
        scene.store(3);
        assert_eq!(scene.take(), Some(3));
    });
}

#[test]
fn what_is_dropped_while_the_inbox_is_read_is_handed_over_once() {
    explore(|| {
        let scene = Scene::new();
        (1..=3).for_each(|seq| scene.store(seq));
        assert!(scene.named.attach());
        assert_eq!([scene.take(), scene.take()], [Some(1), Some(2)]);
        scene.named.detach();
        assert!(scene.named.attach());
        let dropping = Arc::clone(&scene);
        let dropping = thread::spawn(move || {
            assert_eq!(dropping.named.dropped(1, message(1)), None);
            assert_eq!(dropping.named.dropped(2, message(2)), None);
        });
        let mut taken = Vec::new();
        for _ in 0..3 {
            let seq = scene.take().expect("open");
            scene.accept(seq);
            taken.push(seq);
        }
        dropping.join().expect("no panic");
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 3]);
        scene.store(4);
        assert_eq!(scene.take(), Some(4));
    });
}

#[test]
fn the_end_reaches_whoever_waits() {
    explore(|| {
        let scene = Scene::new();
        assert!(scene.named.attach());
        let ending = Arc::clone(&scene);
        let ending = thread::spawn(move || ending.named.end());
        assert_eq!(scene.take(), None);
        ending.join().expect("no panic");
        assert!(!scene.named.attach());
    });
}

#[test]
fn pages_follow_each_other() {
    check_random(
        || {
            let scene = Scene::new();
            let all: Vec<i64> = (1..=3 * PAGE as i64 + 1).collect();
            all.iter().for_each(|seq| scene.store(*seq));
            assert!(scene.named.attach());
            let taken: Vec<i64> = all.iter().map(|_| scene.take().expect("open")).collect();
            assert_eq!(taken, all);
        },
        50,
    );
}

#[test]
fn there_is_room_for_so_many() {
    check_random(
        || {
            let scene = Scene::new();
            assert!(scene.named.reserve(1));
            assert!(!scene.named.reserve(1));
            scene.named.release();
            assert!(scene.named.reserve(1));
        },
        1,
    );
}

#[test]
fn code_that_drops_at_once_does_not_spin() {
    let waits: Vec<u128> = (1..=15).map(|times| wait_after(times).as_millis()).collect();
    assert_eq!(waits[..4], [0, 100, 200, 400]);
    assert_eq!(waits[14], 60_000);
    assert!(waits.is_sorted() && wait_after(u32::MAX).as_secs() == 60);
}
