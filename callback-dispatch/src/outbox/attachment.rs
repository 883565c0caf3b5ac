//! What an outbox keeps of an attached Dsn, and what follows from it: pure.

use crate::clock::Micros;
use callback_core::{Dsn, TaskId};
use std::{fmt, hint::black_box};

/// Tells an attachment from the others of its Dsn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttachmentId(pub(crate) TaskId);

impl AttachmentId {
    pub(crate) fn new() -> Self {
        Self(TaskId::new())
    }
}

/// A digest of what a client shows when it comes back.
#[derive(Clone)]
pub(crate) struct SecretDigest(pub(crate) [u8; 32]);

impl SecretDigest {
    /// Whether it is the one that is kept, in a time that does not tell how much of it is.
    fn is(&self, kept: Option<&[u8]>) -> bool {
        let Some(kept) = kept.filter(|kept| kept.len() == self.0.len()) else { return false };
        let differs = self.0.iter().zip(kept).fold(0, |differs, (one, other)| black_box(differs | (one ^ other)));
        black_box(differs) == 0
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretDigest")
    }
}

/// A Dsn is attached, and so many rows of it that nobody holds are due at once.
#[derive(Clone, Debug)]
pub(crate) struct Attaching {
    pub(crate) dsn: Dsn,
    pub(crate) id: AttachmentId,
    /// Of who comes back: nothing is attached if it is not that of what is kept, or the one before.
    pub(crate) presented: Option<SecretDigest>,
    pub(crate) secret: Option<SecretDigest>,
    pub(crate) now: Micros,
    /// Until when it is kept if its process is not heard of again.
    pub(crate) until: Micros,
    pub(crate) limit: usize,
}

/// A row in hand, whose Dsn is not attached here, is given back to wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Parking {
    pub(crate) id: TaskId,
    pub(crate) token: u32,
    pub(crate) dsn: Dsn,
    pub(crate) now: Micros,
    /// When it is due if the Dsn is attached here after all.
    pub(crate) soon: Micros,
}

/// Where the Dsn of a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// Attached here: the row is due soon.
    Here,
    /// Attached by another process that lives: the row is as due as it was.
    Elsewhere,
    /// Its client is away: the row is due when its time is over.
    Away,
    /// Its time is over, and nobody comes back to it. The row is in hand still.
    Over,
    /// It never was attached, or long ago. The row is in hand still.
    Unknown,
}

/// Until when an attachment is kept, unless another has taken its place.
#[derive(Clone, Debug)]
pub(crate) struct Keeping {
    pub(crate) dsn: Dsn,
    pub(crate) id: AttachmentId,
    pub(crate) until: Micros,
    pub(crate) state: Keep,
}

/// What an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// In force.
    Held,
    /// Its client is away.
    Away,
    /// Nobody comes back to it.
    Over,
}

/// Who has it attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Nobody,
    This,
    /// Another process that lives.
    #[cfg_attr(not(any(test, feature = "postgres")), expect(dead_code, reason = "only a server has several"))]
    Other,
}

/// An attachment as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct AttachmentRow<T> {
    pub(crate) holder: Holder,
    pub(crate) until: Micros,
    pub(crate) secret: Option<T>,
    /// The one before: good until the current one was used.
    pub(crate) former: Option<T>,
}

impl<T: AsRef<[u8]>> AttachmentRow<T> {
    /// Whether who presents this may come back.
    pub(crate) fn admits(&self, presented: &SecretDigest, now: Micros) -> bool {
        let bytes = |kept: &Option<T>| kept.as_ref().is_some_and(|kept| presented.is(Some(kept.as_ref())));
        // Both are compared, whatever the first says.
        let (current, former) = (bytes(&self.secret), bytes(&self.former));
        !self.is_over(now) && (current | former)
    }

    pub(crate) fn parked(&self, now: Micros) -> Parked {
        match self.holder {
            Holder::This => Parked::Here,
            Holder::Other => Parked::Elsewhere,
            Holder::Nobody if self.is_over(now) => Parked::Over,
            Holder::Nobody => Parked::Away,
        }
    }

    /// Who has it counts as alive, however late it says so.
    fn is_over(&self, now: Micros) -> bool {
        self.holder == Holder::Nobody && self.until <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = Micros(1_000);

    fn kept(holder: Holder, until: i64) -> AttachmentRow<[u8; 32]> {
        AttachmentRow { holder, until: Micros(until), secret: Some([1; 32]), former: Some([2; 32]) }
    }

    #[test]
    fn the_current_secret_and_the_former_admit_until_it_is_over() {
        let table = [
            (1, Holder::Nobody, 1_001, true),
            (2, Holder::Nobody, 1_001, true),
            (3, Holder::Nobody, 1_001, false),
            (1, Holder::Nobody, 1_000, false),
            (2, Holder::Nobody, 1_000, false),
            (1, Holder::This, 1_000, true),
            (1, Holder::Other, 1_000, true),
        ];
        for (presented, holder, until, expected) in table {
            let admitted = kept(holder, until).admits(&SecretDigest([presented; 32]), NOW);
            assert_eq!(admitted, expected, "{presented} {holder:?} {until}");
        }
        let without = AttachmentRow { secret: None, former: None, ..kept(Holder::Nobody, 2_000) };
        assert!(!without.admits(&SecretDigest([0; 32]), NOW));
        assert!(!SecretDigest([1; 32]).is(Some(&[1; 31])), "a prefix is not enough");
    }

    #[test]
    fn a_row_waits_for_who_has_its_dsn() {
        let table = [
            (Holder::This, 0, Parked::Here),
            (Holder::Other, 0, Parked::Elsewhere),
            (Holder::Nobody, 1_001, Parked::Away),
            (Holder::Nobody, 1_000, Parked::Over),
        ];
        for (holder, until, expected) in table {
            assert_eq!(kept(holder, until).parked(NOW), expected);
        }
    }
}
