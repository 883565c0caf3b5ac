//! Which published messages the broker has taken, judged without trusting which confirm carried a return.
//!
//! A broker sends `basic.return` before the confirm of the message that it returns. lapin 4.12 puts what was returned into
//! a queue, first in, first out, of the channel, and each confirm that settles takes the queue's head along, whosoever it
//! is; several messages settle in any order where one frame confirms them. Three things follow:
//!
//! - What was returned is known by its id, and settled as soon as its own confirm is.
//! - A confirm that took nothing along found the queue empty. Every message that had settled by then had been returned
//!   before, if at all, and whoever took that return along has settled too: who is not known as returned by now never is.
//! - Once every publish has settled, the queue is empty: it cannot hold more than the confirms yet to come.
//!
//! Who waits for a confirm hears of it in the order in which confirms settle. Who begins to wait when it has settled
//! already hears of it too late to say what else had settled by then: such a confirm proves nothing, and its own message
//! is judged by one that began to wait later.

use crate::outcome::Verdict;
use callback_core::MessageId;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The publishes of one channel that are not judged yet; each has a ticket, given back with its verdict.
#[derive(Debug)]
pub(crate) struct Window<T> {
    entries: HashMap<MessageId, Entry<T>>,
    /// Acknowledged, and not known as returned.
    undecided: Vec<Undecided>,
    /// How many are not settled.
    pending: usize,
    /// A confirm failed: what it would have taken along is not known.
    is_broken: bool,
    clock: Clock,
}

/// Counts the confirms that a window was told of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Undecided {
    id: MessageId,
    /// Only a confirm that is waited for since then proves that it was not returned; `None` is any.
    after: Option<u64>,
}

#[derive(Debug)]
struct Entry<T> {
    ticket: T,
    returned: Option<u16>,
    is_settled: bool,
}

/// How a publish settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Confirm {
    pub(crate) is_ack: bool,
    /// The message that came with it, whosoever it is, and the reply code.
    pub(crate) carried: Option<(MessageId, u16)>,
    /// When it began to be waited for; `None` if it had settled by then.
    pub(crate) waited_since: Option<u64>,
}

impl<T> Window<T> {
    pub(crate) fn new() -> Self {
        Self { entries: HashMap::new(), undecided: Vec::new(), pending: 0, is_broken: false, clock: Clock::default() }
    }

    /// How many are not judged.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// How many have not settled.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    /// Whether the message is published and not judged: another of its id must wait.
    pub(crate) fn contains(&self, id: &MessageId) -> bool {
        self.entries.contains_key(id)
    }

    /// A message, not contained, is published.
    pub(crate) fn publish(&mut self, id: MessageId, ticket: T) {
        self.pending += 1;
        self.entries.insert(id, Entry { ticket, returned: None, is_settled: false });
    }

    /// A publish settled; `decide` is called for each message on which there is a verdict now.
    ///
    /// Returns false where a message came back that is not in the window: a verdict was wrong.
    pub(crate) fn settle(&mut self, id: &MessageId, confirm: Confirm, decide: &mut impl FnMut(T, Verdict)) -> bool {
        self.clock.0.fetch_add(1, Ordering::Relaxed);
        let found_none = confirm.waited_since.filter(|_| confirm.carried.is_none() && !self.is_broken);
        let is_known = confirm.carried.is_none_or(|(returned, code)| self.is_returned(&returned, code, decide));
        self.pending -= 1;
        if let Some(entry) = self.entries.get_mut(id) {
            entry.is_settled = true;
            match (entry.returned, confirm.is_ack) {
                (Some(code), _) => self.decide(id, Verdict::Returned(code), decide),
                (None, false) => self.decide(id, Verdict::Nacked, decide),
                (None, true) => {
                    let after = confirm.waited_since.is_none().then(|| self.clock.now());
                    self.undecided.push(Undecided { id: id.clone(), after });
                }
            }
        }
        self.confirm(found_none, decide);
        is_known
    }

    /// A publish was not made after all; its ticket. `decide` is called as by [`settle`](Self::settle).
    pub(crate) fn withdraw(&mut self, id: &MessageId, decide: &mut impl FnMut(T, Verdict)) -> Option<T> {
        self.pending -= 1;
        let entry = self.entries.remove(id);
        self.confirm(None, decide);
        entry.map(|entry| entry.ticket)
    }

    /// A publish failed, and with it the channel; its ticket.
    pub(crate) fn fail(&mut self, id: &MessageId) -> Option<T> {
        self.is_broken = true;
        self.pending -= 1;
        self.entries.remove(id).map(|entry| entry.ticket)
    }

    /// The tickets of all that is not judged.
    pub(crate) fn tickets(&self) -> impl Iterator<Item = &T> {
        self.entries.values().map(|entry| &entry.ticket)
    }

    /// The tickets of all that is not judged, and cannot be any more.
    pub(crate) fn into_tickets(self) -> impl Iterator<Item = T> {
        self.entries.into_values().map(|entry| entry.ticket)
    }

    /// Decides on what cannot come back any more, by a confirm that found nothing returned, or by there being none to come.
    fn confirm(&mut self, found_none: Option<u64>, decide: &mut impl FnMut(T, Verdict)) {
        let all = self.pending == 0 && !self.is_broken;
        if all || found_none.is_some() {
            for Undecided { id, after } in std::mem::take(&mut self.undecided) {
                if all || after <= found_none {
                    self.decide(&id, Verdict::Confirmed, decide);
                } else {
                    self.undecided.push(Undecided { id, after });
                }
            }
        }
    }

    fn is_returned(&mut self, id: &MessageId, code: u16, decide: &mut impl FnMut(T, Verdict)) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        entry.returned = Some(code);
        if entry.is_settled {
            self.undecided.retain(|undecided| undecided.id != *id);
            self.decide(id, Verdict::Returned(code), decide);
        }
        true
    }

    fn decide(&mut self, id: &MessageId, verdict: Verdict, decide: &mut impl FnMut(T, Verdict)) {
        if let Some(entry) = self.entries.remove(id) {
            decide(entry.ticket, verdict);
        }
    }
}

#[cfg(test)]
mod tests;
