//! The place where a named handle meets its messages.
//!
//! The inbox has them all; here are the few that are to be handed over next. One lock decides; the inbox is read and
//! written outside of it, and what it says comes back by a method that finds the state as it is by then.

use crate::{
    HandleId,
    inbox::{Expectation, Micros, Waiting, Write},
    sync::{Mutex, lock},
};
use callback_core::{Message, Verifier};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::task::AbortHandle;

/// How many messages are in memory at most.
pub(crate) const PAGE: usize = 64;

pub(crate) struct Named {
    pub(crate) handle: HandleId,
    pub(crate) name: Box<str>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether a `Callback` holds it.
    attached: bool,
    ended: bool,
    /// Grows with each attachment, so that what was begun for one does not disturb the next.
    generation: u64,
    own_key: bool,
    verifier: Option<Verifier>,
    expires: Option<Micros>,
    expiry: Option<AbortHandle>,
    /// How many messages wait in the inbox, those on their way into it included.
    waiting: usize,
    queue: VecDeque<(i64, Message)>,
    /// The places of those that are in hand.
    open: HashSet<i64>,
    /// The places of those that a timer brings back.
    later: HashSet<i64>,
    /// How often they were dropped unanswered.
    drops: HashMap<i64, u32>,
    /// What is in memory, or was, reaches to this place.
    loaded_through: i64,
    /// Whether the inbox has more.
    behind: bool,
    /// Whether it is being read.
    filling: bool,
    /// Whether something was stored meanwhile.
    dirty: bool,
    /// What had its verdict or came back meanwhile: what is read may still have it.
    passed: HashSet<i64>,
    waker: Option<Waker>,
}

/// By which key a message is judged.
pub(crate) enum Judge {
    /// By the receiver's, if it has one.
    Receiver,
    Own(Verifier),
    /// By one that this process has not been given yet.
    Missing,
}

/// A reading of the inbox that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filling {
    generation: u64,
    pub(crate) after: i64,
}

/// What is to be done after a page was read.
#[derive(Debug)]
pub(crate) struct Filled {
    /// Messages that are due later.
    pub(crate) later: Vec<(i64, Micros)>,
    /// The reading goes on.
    pub(crate) next: Option<Filling>,
}

impl Named {
    pub(crate) fn new(expectation: Expectation) -> Self {
        let Expectation { name, handle, expires, own_key, waiting } = expectation;
        let state = State { expires, own_key, waiting, ..State::default() };
        Self { handle, name: name.into(), state: Mutex::new(state) }
    }

    /// Gives it to a `Callback`; `false` if another holds it, or it has ended.
    pub(crate) fn attach(&self) -> bool {
        lock(&self.state).attach()
    }

    /// Gives it to a `Callback`, with a key of its own; `None` as of [`attach`](Self::attach), else whether it had one.
    pub(crate) fn attach_with(&self, verifier: Verifier) -> Option<bool> {
        let mut state = lock(&self.state);
        if !state.attach() {
            return None;
        }
        state.verifier = Some(verifier);
        Some(mem::replace(&mut state.own_key, true))
    }

    /// Takes it back. What was in memory is in the inbox.
    pub(crate) fn detach(&self) {
        let mut state = lock(&self.state);
        state.attached = false;
        state.generation += 1;
        state.loaded_through = 0;
        (state.filling, state.dirty) = (false, false);
        let dropped = (mem::take(&mut state.queue), mem::take(&mut state.passed), state.waker.take());
        drop(state);
        drop(dropped);
    }

    /// Ends it in memory. Idempotent.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.ended = true;
        let (queue, waker, expiry) = (mem::take(&mut state.queue), state.waker.take(), state.expiry.take());
        drop(state);
        drop(queue);
        if let Some(expiry) = expiry {
            expiry.abort();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        lock(&self.state).ended
    }

    pub(crate) fn judge(&self) -> Judge {
        let state = lock(&self.state);
        match &state.verifier {
            Some(verifier) => Judge::Own(verifier.clone()),
            None if state.own_key => Judge::Missing,
            None => Judge::Receiver,
        }
    }

    pub(crate) fn set_verifier(&self, verifier: Verifier) {
        let mut state = lock(&self.state);
        state.verifier = Some(verifier);
        state.own_key = true;
    }

    /// What is to be stored of it.
    pub(crate) fn change(&self) -> Write {
        let state = lock(&self.state);
        Write::Change { handle: self.handle, expires: state.expires, own_key: state.own_key }
    }

    pub(crate) fn set_expiry(&self, expires: Micros, expiry: AbortHandle) {
        let mut state = lock(&self.state);
        state.expires = Some(expires);
        let former = if state.ended { Some(expiry) } else { state.expiry.replace(expiry) };
        drop(state);
        if let Some(former) = former {
            former.abort();
        }
    }

    /// Takes a place for a message in the inbox; `false` if it has as many as it may.
    pub(crate) fn reserve(&self, most: usize) -> bool {
        let mut state = lock(&self.state);
        if state.waiting >= most {
            return false;
        }
        state.waiting += 1;
        true
    }

    /// Gives the place back: nothing was stored.
    pub(crate) fn release(&self) {
        let mut state = lock(&self.state);
        state.waiting = state.waiting.saturating_sub(1);
    }

    /// Nobody knows whether something was stored: the inbox is read.
    pub(crate) fn doubt(&self) {
        let wake = look(&mut lock(&self.state));
        wake.wake();
    }

    /// A message was stored, at a place behind all before it.
    pub(crate) fn stored(&self, seq: i64, message: Message) {
        let mut state = lock(&self.state);
        if !state.attached || state.ended {
            return;
        }
        let wake = if state.behind || state.filling || state.queue.len() >= PAGE {
            look(&mut state)
        } else if seq > state.loaded_through {
            state.loaded_through = seq;
            state.queue.push_back((seq, message));
            Wake(state.waker.take())
        } else {
            Wake(None)
        };
        drop(state);
        wake.wake();
    }

    /// Takes the next message out, or `None` once the handle has ended; and says what is to be read from the inbox.
    pub(crate) fn poll_take(&self, context: &Context<'_>) -> (Poll<Option<(i64, Message)>>, Option<Filling>) {
        let mut state = lock(&self.state);
        if let Some((seq, message)) = state.queue.pop_front() {
            state.open.insert(seq);
            let filling = if state.queue.len() < PAGE / 4 { begin(&mut state) } else { None };
            return (Poll::Ready(Some((seq, message))), filling);
        }
        if state.ended {
            return (Poll::Ready(None), None);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        (Poll::Pending, begin(&mut state))
    }

    /// Takes in a page that was read.
    pub(crate) fn filled(&self, filling: Filling, page: Vec<Waiting>, now: Micros) -> Filled {
        let mut state = lock(&self.state);
        let mut filled = Filled { later: Vec::new(), next: None };
        if state.generation != filling.generation || !state.filling || state.ended {
            return filled;
        }
        let is_last = page.len() < PAGE;
        let passed = mem::take(&mut state.passed);
        let queued: HashSet<i64> = state.queue.iter().map(|(seq, _)| *seq).collect();
        for Waiting { seq, due, message } in page {
            state.loaded_through = state.loaded_through.max(seq);
            let is_here = queued.contains(&seq) || state.open.contains(&seq) || state.later.contains(&seq);
            if is_here || passed.contains(&seq) {
                continue;
            }
            if due > now {
                state.later.insert(seq);
                filled.later.push((seq, due));
            } else {
                state.queue.push_back((seq, message));
            }
        }
        state.behind = !is_last || state.dirty;
        state.filling = is_last && mem::take(&mut state.dirty);
        if state.filling {
            filled.next = Some(Filling { after: state.loaded_through, ..filling });
        }
        let waker = state.waker.take();
        drop(state);
        Wake(waker).wake();
        filled
    }

    /// The inbox could not be read; somebody will try again.
    pub(crate) fn not_filled(&self, filling: Filling) -> Option<Filling> {
        let state = lock(&self.state);
        (state.generation == filling.generation && state.filling && !state.ended).then_some(filling)
    }

    /// A message in hand has its verdict.
    pub(crate) fn settled(&self, seq: i64) {
        let mut state = lock(&self.state);
        state.drops.remove(&seq);
        pass(&mut state, seq);
        if state.open.remove(&seq) {
            state.waiting = state.waiting.saturating_sub(1);
        }
    }

    /// A message in hand is to come back when a timer says so.
    pub(crate) fn postponed(&self, seq: i64) {
        let mut state = lock(&self.state);
        state.open.remove(&seq);
        state.later.insert(seq);
    }

    /// A message waits again that did not.
    pub(crate) fn replayed(&self, seq: i64) {
        let mut state = lock(&self.state);
        state.waiting += 1;
        // It may have been read already.
        if !state.open.contains(&seq) && state.queue.iter().all(|(queued, _)| *queued != seq) {
            state.later.insert(seq);
        }
    }

    /// A message in hand was dropped without a verdict: it comes at once, or after a wait.
    pub(crate) fn dropped(&self, seq: i64, message: Message) -> Option<Duration> {
        let mut state = lock(&self.state);
        if !state.open.remove(&seq) || state.ended {
            return None;
        }
        if !state.attached {
            // Whoever attaches finds it in the inbox.
            return None;
        }
        pass(&mut state, seq);
        let times = state.drops.entry(seq).or_default();
        *times += 1;
        let wait = wait_after(*times);
        if wait.is_zero() {
            state.queue.push_front((seq, message));
            let waker = state.waker.take();
            drop(state);
            Wake(waker).wake();
            return None;
        }
        state.later.insert(seq);
        Some(wait)
    }

    /// The timer of a message is over; `None` if it does not wait any more.
    pub(crate) fn back(&self, seq: i64, message: Option<Message>) {
        let mut state = lock(&self.state);
        if !state.later.remove(&seq) {
            return;
        }
        pass(&mut state, seq);
        match message {
            Some(message) if state.attached && !state.ended => {
                state.queue.push_front((seq, message));
                let waker = state.waker.take();
                drop(state);
                Wake(waker).wake();
            }
            // Whoever attaches finds it in the inbox.
            Some(_) => {}
            None => state.waiting = state.waiting.saturating_sub(1),
        }
    }
}

impl State {
    fn attach(&mut self) -> bool {
        if self.attached || self.ended {
            return false;
        }
        self.attached = true;
        self.behind = true;
        true
    }
}

/// Keeps in mind that a message left the hand or its timer while the inbox is read.
fn pass(state: &mut State, seq: i64) {
    if state.filling {
        state.passed.insert(seq);
    }
}

/// Lets the inbox be read for what is not in memory.
fn look(state: &mut State) -> Wake {
    state.behind = true;
    if state.filling {
        state.dirty = true;
        return Wake(None);
    }
    Wake(state.waker.take())
}

/// Begins to read the inbox, where it has more and nobody does.
fn begin(state: &mut State) -> Option<Filling> {
    if !state.behind || state.filling || state.ended || !state.attached {
        return None;
    }
    (state.filling, state.dirty) = (true, false);
    state.passed.clear();
    Some(Filling { generation: state.generation, after: state.loaded_through })
}

/// How long a message waits that was dropped without a verdict for the n-th time: code that fails at once must not spin.
fn wait_after(times: u32) -> Duration {
    match times {
        0 | 1 => Duration::ZERO,
        more => Duration::from_millis(100).saturating_mul(1 << (more - 2).min(10)).min(Duration::from_secs(60)),
    }
}

/// Whoever is to be woken, outside of the lock.
#[must_use]
struct Wake(Option<Waker>);

impl Wake {
    fn wake(self) {
        if let Some(waker) = self.0 {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests;
