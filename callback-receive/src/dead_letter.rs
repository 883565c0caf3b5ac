//! What was refused, or came to a handle that ended.

use crate::{ReceiveError, inbox::Write, inbox::Written, receiver::Shared};
use callback_core::Message;
use std::{sync::Arc, time::SystemTime};

/// The dead letters of a receiver's inbox: what [`Delivery::refuse`](crate::Delivery::refuse) refused, and what waited for a
/// handle that was finished or expired.
///
/// They are kept until [`purge`](Self::purge).
#[derive(Clone, Debug)]
pub struct DeadLetters(pub(crate) Arc<Shared>);

/// One of them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its place in the inbox; rises with the order in which messages came.
    pub number: u64,
    /// The name of the handle that it came to.
    pub name: String,
    /// The message.
    pub message: Message,
    /// Why it is here: the [`Problem`](callback_core::Problem) in JSON, or `finished`, `expired`.
    pub reason: String,
    /// Since when it is here.
    pub since: SystemTime,
}

impl DeadLetters {
    /// The first ones after a number, in the order in which they came; `0` for the beginning.
    ///
    /// # Errors
    /// When the inbox fails, or there is none.
    pub async fn list(&self, after: u64, most: usize) -> Result<Vec<DeadLetter>, ReceiveError> {
        Ok(self.0.inbox()?.dead_letters(after, most).await?)
    }

    /// Hands one over again; `false` if there is none of this number, or its handle has ended.
    ///
    /// # Errors
    /// When the inbox fails, or there is none.
    pub async fn replay(&self, number: u64) -> Result<bool, ReceiveError> {
        let Ok(seq) = i64::try_from(number) else { return Ok(false) };
        let shared = Arc::clone(&self.0);
        let replayed = self.0.write_then(Write::Replay { seq }, move |written| match written {
            Written::Replayed(Some(handle)) => {
                shared.replayed(&handle, seq);
                true
            }
            _ => false,
        });
        replayed.await
    }

    /// Deletes those that are here since before this time; gives their number. Their ids stay known for their time.
    ///
    /// # Errors
    /// When the inbox fails, or there is none.
    pub async fn purge(&self, until: SystemTime) -> Result<u64, ReceiveError> {
        let purged = self.0.write_then(Write::Purge { until: until.into() }, |written| match written {
            Written::Count(count) => count,
            _ => 0,
        });
        purged.await
    }
}
