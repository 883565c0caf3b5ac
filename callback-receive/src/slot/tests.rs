//! Every interleaving of senders, waiting code and drops, as far as the model checker gets.

use super::*;
use crate::handle::Minter;
use shuttle::{check_dfs, check_pct, future::block_on, thread};
use std::{future::poll_fn, sync::Arc, time::Duration};

const ROOM: usize = 4;

struct Scene {
    slot: Slot,
    memory: Mutex<Memory>,
    now: Instant,
}

impl Scene {
    fn new() -> Arc<Self> {
        let slot = Slot::new(Minter::new(&[1; 32]).mint());
        Arc::new(Self { slot, memory: Mutex::new(Memory::new(Duration::from_secs(10), 100)), now: Instant::now() })
    }

    /// What the sender of a message is told, once he is.
    fn send(&self, id: &str) -> Option<Verdict> {
        match self.offer(id) {
            Offered::Verdict(verdict) => Some(verdict),
            Offered::Waiting(verdict) => block_on(verdict).ok(),
        }
    }

    fn offer(&self, id: &str) -> Offered {
        let message = Message::builder("a").id(id.parse().expect("valid")).build().expect("valid");
        self.slot.offer(message, &self.memory, ROOM, self.now)
    }

    fn take(&self) -> Option<(u64, Message)> {
        block_on(poll_fn(|context| self.slot.poll_take(context)))
    }

    fn settle(&self, number: u64, verdict: &Verdict) {
        self.slot.settle(number, verdict, &self.memory, self.now);
    }
}

/// Runs all interleavings of small tests, and many of larger ones.
fn explore(test: impl Fn() + Send + Sync + Clone + 'static) {
    check_dfs(test.clone(), Some(4_000));
    check_pct(test, 400, 3);
}

#[test]
fn a_message_is_handed_over_or_its_sender_is_told_that_the_handle_has_ended() {
    explore(|| {
        let scene = Scene::new();
        let sender = Arc::clone(&scene);
        let sent = thread::spawn(move || sender.send("a"));
        let ending = Arc::clone(&scene);
        let end = thread::spawn(move || ending.slot.end(&Verdict::Ended));
        let mut accepted = false;
        while let Some((number, _)) = scene.take() {
            scene.settle(number, &Verdict::Accepted);
            accepted = true;
        }
        end.join().expect("no panic");
        let told = sent.join().expect("no panic").expect("every sender is told");
        assert_eq!(told, if accepted { Verdict::Accepted } else { Verdict::Ended });
    });
}

#[test]
fn one_message_sent_twice_is_handed_over_once() {
    explore(|| {
        let scene = Scene::new();
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || scene.send("a"))
            })
            .collect();
        let (number, _) = scene.take().expect("it comes");
        scene.settle(number, &Verdict::Accepted);
        for sender in senders {
            let told = sender.join().expect("no panic").expect("every sender is told");
            assert!(told.is_taken(), "{told:?}");
        }
        scene.slot.end(&Verdict::Ended);
        assert!(scene.take().is_none(), "it came twice");
    });
}

#[test]
fn a_refused_id_is_not_remembered() {
    explore(|| {
        let scene = Scene::new();
        let sender = Arc::clone(&scene);
        let sent = thread::spawn(move || (sender.send("a"), sender.send("a")));
        let (number, _) = scene.take().expect("it comes");
        scene.settle(number, &Verdict::Refused("no".into()));
        let (number, _) = scene.take().expect("it comes again");
        scene.settle(number, &Verdict::Accepted);
        let told = sent.join().expect("no panic");
        assert_eq!(told, (Some(Verdict::Refused("no".into())), Some(Verdict::Accepted)));
    });
}

#[test]
fn a_verdict_after_the_end_reaches_the_sender() {
    explore(|| {
        let scene = Scene::new();
        let sender = Arc::clone(&scene);
        let sent = thread::spawn(move || sender.send("a"));
        let (number, _) = scene.take().expect("it comes");
        let ending = Arc::clone(&scene);
        let end = thread::spawn(move || ending.slot.end(&Verdict::Ended));
        scene.settle(number, &Verdict::Accepted);
        assert_eq!(sent.join().expect("no panic"), Some(Verdict::Accepted));
        end.join().expect("no panic");
        assert_eq!(scene.send("a"), Some(Verdict::Duplicate), "what was accepted is known after the end");
        assert_eq!(scene.send("b"), Some(Verdict::Ended));
    });
}

#[test]
fn what_has_no_room_comes_again() {
    explore(|| {
        let scene = Scene::new();
        let senders: Vec<_> = ["a", "b", "c", "d"]
            .map(|id| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || matches!(scene.offer(id), Offered::Waiting(_)))
            })
            .into_iter()
            .collect();
        assert!(senders.into_iter().all(|sender| sender.join().expect("no panic")));
        assert!(matches!(scene.offer("e"), Offered::Verdict(Verdict::RetryLater(None))));
        let (number, _) = scene.take().expect("it comes");
        assert!(matches!(scene.offer("e"), Offered::Verdict(Verdict::RetryLater(None))), "in hand is not done");
        scene.settle(number, &Verdict::Accepted);
        assert!(matches!(scene.offer("e"), Offered::Waiting(_)));
    });
}

#[test]
fn a_sender_who_left_is_not_awaited_and_may_come_back() {
    explore(|| {
        let scene = Scene::new();
        let Offered::Waiting(left) = scene.offer("a") else { panic!("it waits") };
        let (number, _) = scene.take().expect("it comes");
        assert!(scene.slot.is_awaited(number));
        drop(left);
        assert!(!scene.slot.is_awaited(number));
        let back = Arc::clone(&scene);
        let back = thread::spawn(move || back.send("a"));
        scene.settle(number, &Verdict::Accepted);
        assert!(back.join().expect("no panic").expect("told").is_taken());
    });
}

#[test]
fn no_more_than_sixteen_wait_for_one_message() {
    shuttle::check_random(
        || {
            let scene = Scene::new();
            let _waiting: Vec<_> = (0..16).map(|_| scene.offer("a")).collect();
            assert!(matches!(scene.offer("a"), Offered::Verdict(Verdict::RetryLater(None))));
        },
        1,
    );
}
