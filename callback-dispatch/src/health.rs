//! How a dispatcher is doing.

use crate::OutboxError;

/// How a dispatcher is doing: for a readiness check, and for people. From [`Dispatcher::health`](crate::Dispatcher::health).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Health {
    /// Why new work is refused; none while it is accepted.
    pub refusal: Option<Refusal>,
    /// Why the outbox cannot be read; none while it can.
    pub outbox: Option<OutboxError>,
    /// The writes that wait to be stored.
    pub waiting_writes: usize,
    /// The size of the work and events among them that are new, in bytes.
    pub waiting_bytes: usize,
    /// The size of what is in memory, in bytes.
    pub memory_bytes: usize,
    /// The tasks and events in hand: they run, are attempted, or wait for that in memory.
    pub in_hand: usize,
    /// Whether the dispatcher is closing, or closed.
    pub closing: bool,
}

/// Why new work is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// The dispatcher is closing, or closed.
    Closing,
    /// The outbox fails: results wait in memory, and are stored before anything new.
    OutboxFails,
    /// Too much waits to be stored.
    Overloaded,
}

impl Health {
    /// Whether new work is accepted, and the outbox can be read.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        self.refusal.is_none() && self.outbox.is_none()
    }
}
