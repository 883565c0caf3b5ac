//! Any order of sending, taking and answering ends well.

use crate::wire::{Wire, soon};
use callback_receive::{Delivery, MemoryInbox, Receiver, Verdict};
use proptest::prelude::*;
use std::{collections::HashMap, time::Duration};

#[derive(Clone, Debug)]
enum Step {
    Send(u8),
    Take,
    Accept,
    Refuse,
    Drop,
    Reattach,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..6).prop_map(Step::Send),
        4 => Just(Step::Take),
        2 => Just(Step::Accept),
        1 => Just(Step::Refuse),
        1 => Just(Step::Drop),
        1 => Just(Step::Reattach),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each id is accepted at most once, and what was taken in is accepted, dead, in hand, or comes.
    #[test]
    fn nothing_is_lost_and_nothing_is_accepted_twice(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let (wire, receiver) = Wire::open(Receiver::builder().inbox(MemoryInbox::new())).await;
            let mut callback = receiver.expect("name").await.expect("a name");
            let url = callback.url();
            let mut open: Vec<Delivery> = Vec::new();
            let mut fate: HashMap<String, u32> = HashMap::new();
            let (mut sent, mut dead) = (std::collections::HashSet::new(), 0);
            for step in steps {
                match step {
                    Step::Send(id) => {
                        let expected = if sent.insert(id) { Verdict::Accepted } else { Verdict::Duplicate };
                        assert_eq!(wire.send(&url, &id.to_string()).await, expected);
                    }
                    Step::Take => {
                        if let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(1), callback.next()).await {
                            open.push(delivery);
                        }
                    }
                    Step::Accept => {
                        if let Some(delivery) = open.pop() {
                            let message = delivery.accept().await.expect("stored");
                            *fate.entry(message.id().to_string()).or_default() += 1;
                        }
                    }
                    Step::Refuse => {
                        if let Some(delivery) = open.pop() {
                            delivery.refuse("no").await.expect("stored");
                            dead += 1;
                        }
                    }
                    Step::Drop => drop(open.pop()),
                    Step::Reattach => {
                        drop(callback);
                        callback = receiver.expect("name").await.expect("nobody holds it");
                    }
                }
            }
            open.clear();
            while fate.len() + dead < sent.len() {
                let message = soon(callback.next()).await.expect("open").accept().await.expect("stored");
                *fate.entry(message.id().to_string()).or_default() += 1;
            }
            assert!(fate.values().all(|times| *times == 1), "{fate:?}");
            assert_eq!(receiver.dead_letters().list(0, 100).await.expect("readable").len(), dead);
        });
    }
}
