//! From rows and steps to what statements are given.

use crate::{
    clock::Micros,
    outbox::codec::Text,
    row::{Stage, digest},
};
use callback_core::{Dsn, TaskId};
use sqlx::{Error, types::Uuid};

/// No array that is bound comes near the limit of one value, 1 GB.
pub(super) const STATEMENT_BYTES: usize = 64 << 20;

pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Splits what is bound at once into parts of bounded size, none of them empty.
pub(super) fn parts<T>(mut items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = items.iter().take_while(|item| {
            bytes += size(item);
            bytes <= STATEMENT_BYTES
        });
        let (part, rest) = items.split_at_checked(fits.count().max(1))?;
        items = rest;
        Some(part)
    })
}

/// What is bound as one array: a value of each item.
pub(super) fn column<'a, I, T>(items: &'a [I], value: impl Fn(&'a I) -> T) -> Vec<T> {
    items.iter().map(value).collect()
}

/// Which of so many have their place, from 1, in the list.
pub(super) fn marked(count: usize, places: Vec<i64>) -> Vec<bool> {
    let mut marked = vec![false; count];
    for place in places {
        if let Some(mark) = usize::try_from(place - 1).ok().and_then(|place| marked.get_mut(place)) {
            *mark = true;
        }
    }
    marked
}

/// What a Dsn is found by: it may be sealed itself.
pub(super) fn address(dsn: &Dsn) -> Vec<u8> {
    digest([dsn.expose()]).to_vec()
}

/// What is kept of a text: a column of bytes takes both its forms.
pub(in crate::outbox::postgres) fn bytes<'a>(text: &'a Text<'_>) -> &'a [u8] {
    match text {
        Text::Plain(text) => text.as_bytes(),
        Text::Sealed(bytes) => bytes,
    }
}

pub(in crate::outbox::postgres) fn not_sealed(reason: String) -> Error {
    Error::Encode(reason.into())
}

pub(in crate::outbox::postgres) fn uuid(id: TaskId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

pub(super) fn ended_at(stage: Stage, now: Micros) -> Option<i64> {
    stage.is_ended().then_some(now.0)
}
