//! The place where a handle that dies with its `Callback` meets its messages.
//!
//! One lock decides everything: whether a message is known, joins another, waits, or has come too late. So there is no
//! moment between the end of a handle and the arrival of a message that belongs to neither.

use crate::{
    HandleId, Verdict,
    memory::{Key, Memory},
    sync::{Mutex, lock},
};
use callback_core::{Message, Verifier};
use std::{
    collections::VecDeque,
    mem,
    task::{Context, Poll, Waker},
};
use tokio::{sync::oneshot, task::AbortHandle, time::Instant};

/// How many senders of one message are answered together with the first one.
const JOINED: usize = 15;

pub(crate) struct Slot {
    pub(crate) handle: HandleId,
    state: Mutex<State>,
}

struct State {
    /// What waits to be taken.
    queue: VecDeque<Entry>,
    /// What was taken and has no verdict.
    open: Vec<Entry>,
    next: u64,
    waker: Option<Waker>,
    verifier: Option<Box<Verifier>>,
    /// Ends the handle when its time is over.
    expiry: Option<AbortHandle>,
    ended: bool,
}

struct Entry {
    number: u64,
    key: Key,
    message: Message,
    /// Who sent it first.
    waiter: Option<oneshot::Sender<Verdict>>,
    /// Who sent it again.
    joined: Vec<oneshot::Sender<Verdict>>,
}

impl Entry {
    /// Takes all out who wait.
    fn waiters(&mut self) -> impl Iterator<Item = oneshot::Sender<Verdict>> {
        self.waiter.take().into_iter().chain(mem::take(&mut self.joined))
    }

    fn is_awaited(&self) -> bool {
        self.waiter.iter().chain(&self.joined).any(|waiter| !waiter.is_closed())
    }
}

/// What becomes of a message that is offered.
pub(crate) enum Offered {
    /// Known at once.
    Verdict(Verdict),
    /// The verdict of the waiting code.
    Waiting(oneshot::Receiver<Verdict>),
}

impl Slot {
    pub(crate) fn new(handle: HandleId) -> Self {
        let state = State {
            queue: VecDeque::new(),
            open: Vec::new(),
            next: 0,
            waker: None,
            verifier: None,
            expiry: None,
            ended: false,
        };
        Self { handle, state: Mutex::new(state) }
    }

    pub(crate) fn verifier(&self) -> Option<Verifier> {
        lock(&self.state).verifier.as_deref().cloned()
    }

    pub(crate) fn set_verifier(&self, verifier: Verifier) {
        lock(&self.state).verifier = Some(Box::new(verifier));
    }

    pub(crate) fn set_expiry(&self, expiry: AbortHandle) {
        let former = lock(&self.state).expiry.replace(expiry);
        if let Some(former) = former {
            former.abort();
        }
    }

    /// Takes a message in, unless it is known, joins one that is here, finds `room` used up, or has come too late.
    pub(crate) fn offer(&self, message: Message, memory: &Mutex<Memory>, room: usize, now: Instant) -> Offered {
        let key = Key::of(&self.handle, message.id());
        let mut state = lock(&self.state);
        if lock(memory).knows(&key, now) {
            return Offered::Verdict(Verdict::Duplicate);
        }
        let State { queue, open, ended, .. } = &mut *state;
        let (sender, receiver) = oneshot::channel();
        if let Some(entry) = queue.iter_mut().chain(open.iter_mut()).find(|entry| entry.key == key) {
            entry.joined.retain(|waiter| !waiter.is_closed());
            if entry.joined.len() >= JOINED {
                return Offered::Verdict(Verdict::RetryLater(None));
            }
            entry.joined.push(sender);
            return Offered::Waiting(receiver);
        }
        if *ended {
            return Offered::Verdict(Verdict::Ended);
        }
        if queue.len() + open.len() >= room {
            return Offered::Verdict(Verdict::RetryLater(None));
        }
        let number = state.next;
        state.next += 1;
        state.queue.push_back(Entry { number, key, message, waiter: Some(sender), joined: Vec::new() });
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Offered::Waiting(receiver)
    }

    /// Takes the next message out; `None` once the handle has ended.
    pub(crate) fn poll_take(&self, context: &Context<'_>) -> Poll<Option<(u64, Message)>> {
        let mut state = lock(&self.state);
        if let Some(entry) = state.queue.pop_front() {
            let taken = (entry.number, entry.message.clone());
            state.open.push(entry);
            return Poll::Ready(Some(taken));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Answers those who sent a message that was taken out; what is accepted is remembered from here on. Whether the
    /// handle is over with it: ended, and nothing in hand.
    pub(crate) fn settle(&self, number: u64, verdict: &Verdict, memory: &Mutex<Memory>, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let Some(place) = state.open.iter().position(|entry| entry.number == number) else { return false };
        let entry = state.open.swap_remove(place);
        if let Verdict::Accepted = verdict {
            lock(memory).remember(entry.key, now);
        }
        let is_over = state.ended && state.open.is_empty();
        drop(state);
        answer(entry, verdict);
        is_over
    }

    /// Whether somebody still waits for the verdict on a message that was taken out.
    pub(crate) fn is_awaited(&self, number: u64) -> bool {
        let state = lock(&self.state);
        let entry = state.open.iter().find(|entry| entry.number == number);
        entry.is_some_and(Entry::is_awaited)
    }

    pub(crate) fn is_ended(&self) -> bool {
        lock(&self.state).ended
    }

    /// Ends the handle; what nobody has taken is answered so. Idempotent. Whether nothing is in hand: what is waits for
    /// its verdict, and whoever sends it again joins.
    pub(crate) fn end(&self, verdict: &Verdict) -> bool {
        let mut state = lock(&self.state);
        state.ended = true;
        let is_over = state.open.is_empty();
        let (queue, waker, expiry) = (mem::take(&mut state.queue), state.waker.take(), state.expiry.take());
        drop(state);
        queue.into_iter().for_each(|entry| answer(entry, verdict));
        if let Some(expiry) = expiry {
            expiry.abort();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        is_over
    }

    /// Answers all who still wait; messages that were taken out may be accepted all the same.
    pub(crate) fn answer_all(&self, verdict: &Verdict) {
        let mut state = lock(&self.state);
        let State { queue, open, .. } = &mut *state;
        let waiters: Vec<_> = queue.iter_mut().chain(open).flat_map(Entry::waiters).collect();
        drop(state);
        for waiter in waiters {
            let _ = waiter.send(verdict.clone());
        }
    }
}

fn answer(mut entry: Entry, verdict: &Verdict) {
    for waiter in entry.waiters() {
        // A sender may have gone.
        let _ = waiter.send(verdict.clone());
    }
}

#[cfg(test)]
mod tests;
