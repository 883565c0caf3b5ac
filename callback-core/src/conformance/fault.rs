//! What may go wrong at a far end, and what cannot be shown.

use std::{borrow::Cow, fmt, time::Duration};

/// What a harness makes its far end do, until it is healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Every connection is cut, once; a new one works.
    Disconnect,
    /// The far end is out of reach, and every connection to it is cut.
    Outage,
    /// The far end refuses whatever is sent, in the way of [`Harness::refusal`](super::Harness::refusal).
    Refuse,
    /// The far end takes what is sent, and never answers.
    Stall,
    /// The far end asks to slow down; for this long, where a time is given.
    Throttle(Option<Duration>),
}

/// Why a clause cannot be shown. The reason is printed with the clause's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    reason: Cow<'static, str>,
    absent: bool,
}

impl Skip {
    /// The clause cannot be shown for this sink, for this reason.
    #[must_use]
    pub fn because(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), absent: false }
    }

    /// The far end is missing on this machine. Where the environment has `CI`, this is a failure.
    #[must_use]
    pub fn absent(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into(), absent: true }
    }

    /// Whether the far end is missing on this machine.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        self.absent
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
