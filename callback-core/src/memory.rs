//! A sink into this process, for tests and demos.

use crate::{Attempt, Dsn, DsnError, Evidence, Message, Receipt, Sink, SinkError};
use async_trait::async_trait;
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Instant,
};

/// Delivers to named channels of this process: `memory://name`. Clones share the channels.
///
/// It reads the system's clock once a delivery, to refuse what is past its deadline.
///
/// ```
/// use callback_core::{Dsn, MemorySink, Sink};
///
/// let sink = MemorySink::new();
/// assert!(sink.check(&"memory://results".parse::<Dsn>()?).is_ok());
/// assert!(sink.take("results").is_empty());
/// # Ok::<_, callback_core::DsnError>(())
/// ```
#[derive(Clone, Default)]
pub struct MemorySink(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    channels: HashMap<String, Channel>,
    closed: bool,
}

#[derive(Default)]
struct Channel {
    delivered: VecDeque<Delivered>,
    failures: VecDeque<SinkError>,
    waiting: Vec<Waker>,
}

/// One message as it arrived.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delivered {
    /// Where it was sent.
    pub dsn: Dsn,
    /// What was sent.
    pub message: Message,
    /// The attempt that brought it.
    pub attempt: Attempt,
}

impl MemorySink {
    /// A sink whose channels are all empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for the oldest message of a channel and takes it. Cancel-safe.
    pub async fn next(&self, name: &str) -> Delivered {
        poll_fn(|context| {
            let mut state = self.state();
            let channel = state.channels.entry(name.to_owned()).or_default();
            match channel.delivered.pop_front() {
                Some(delivered) => Poll::Ready(delivered),
                None => {
                    channel.waiting.push(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Takes all messages that have arrived in a channel.
    #[must_use]
    pub fn take(&self, name: &str) -> Vec<Delivered> {
        self.state().channels.get_mut(name).map(|channel| channel.delivered.drain(..).collect()).unwrap_or_default()
    }

    /// Makes the channel's next delivery fail; called several times, the next several.
    pub fn fail(&self, name: &str, error: SinkError) {
        self.state().channels.entry(name.to_owned()).or_default().failures.push_back(error);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single step, so a panic elsewhere leaves the state whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SCHEMES: [&str; 1] = ["memory"];

fn name(dsn: &Dsn) -> Result<String, DsnError> {
    if dsn.scheme() != SCHEMES[0] {
        return Err(DsnError::unknown_scheme(dsn.scheme(), &SCHEMES));
    }
    dsn.params().finish()?;
    let name = dsn.authority();
    if name.is_empty() || name.contains([':', '@']) || !matches!(dsn.path(), "" | "/") {
        return Err(DsnError::invalid("the form is memory://name"));
    }
    Ok(name.to_owned())
}

#[async_trait]
impl Sink for MemorySink {
    fn schemes(&self) -> &[&str] {
        &SCHEMES
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        name(dsn).map(drop)
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let name = name(dsn)?;
        let mut state = self.state();
        if state.closed {
            return Err(SinkError::unavailable("the sink is closed"));
        }
        if attempt.deadline() <= Instant::now() {
            return Err(SinkError::timed_out("the deadline is over"));
        }
        let channel = state.channels.entry(name).or_default();
        if let Some(error) = channel.failures.pop_front() {
            return Err(error);
        }
        channel.delivered.push_back(Delivered { dsn: dsn.clone(), message: message.clone(), attempt: attempt.clone() });
        channel.waiting.drain(..).for_each(Waker::wake);
        Ok(Receipt::new(Evidence::Acknowledged))
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.state().closed = true;
        Ok(())
    }
}

impl fmt::Debug for MemorySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySink").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn message() -> (Message, Attempt) {
        (
            Message::builder("a").build().expect("valid"),
            Attempt::new(1, SystemTime::now(), Instant::now() + Duration::from_secs(60)),
        )
    }

    fn dsn(text: &str) -> Dsn {
        text.parse().expect("valid")
    }

    #[tokio::test]
    async fn what_is_delivered_is_found_in_its_channel() {
        let (sink, (message, attempt)) = (MemorySink::new(), message());
        sink.deliver(&dsn("memory://a"), &message, &attempt).await.expect("delivered");
        assert!(sink.take("b").is_empty());
        assert_eq!(sink.next("a").await.message, message);
        assert!(sink.take("a").is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let (sink, (message, attempt)) = (MemorySink::new(), message());
        let waiting = tokio::spawn({
            let sink = sink.clone();
            async move { sink.next("a").await }
        });
        tokio::task::yield_now().await;
        sink.deliver(&dsn("memory://a"), &message, &attempt).await.expect("delivered");
        assert_eq!(waiting.await.expect("no panic").message, message);
    }

    #[tokio::test]
    async fn a_failure_is_used_once() {
        let (sink, (message, attempt)) = (MemorySink::new(), message());
        sink.fail("a", SinkError::refused("no"));
        assert!(sink.deliver(&dsn("memory://a"), &message, &attempt).await.is_err());
        assert!(sink.deliver(&dsn("memory://a"), &message, &attempt).await.is_ok());
    }

    #[tokio::test]
    async fn after_close_nothing_is_taken() {
        let (sink, (message, attempt)) = (MemorySink::new(), message());
        sink.close().await.expect("closed");
        assert!(sink.deliver(&dsn("memory://a"), &message, &attempt).await.is_err());
    }

    #[test]
    fn only_a_name_is_a_channel() {
        for text in ["memory:///a", "memory://a/b", "memory://a:1", "memory://a?b=c"] {
            assert!(MemorySink::new().check(&dsn(text)).is_err(), "{text}");
        }
    }
}
