//! The engine's part: makes messages, delivers them, and looks at the far end.

use super::{Harness, Received, Unproved, prove::ensure};
use crate::{Attempt, Dsn, Message, MessageBuilder, Payload, Receipt, Sink, SinkError};
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{task::JoinHandle, time};

/// What a delivery ended with.
pub(super) type Ended = Result<Receipt, SinkError>;

/// A harness with one sink of its own.
pub(super) struct Probe<'a, H: Harness> {
    pub(super) harness: &'a H,
    pub(super) sink: Arc<H::Sink>,
    pub(super) dsn: Dsn,
}

impl<'a, H: Harness> Probe<'a, H> {
    pub(super) fn new(harness: &'a H) -> Self {
        Self { harness, sink: Arc::new(harness.sink()), dsn: harness.dsn() }
    }

    /// A deadline that a healthy far end keeps.
    pub(super) fn ample(&self) -> Instant {
        Instant::now() + self.harness.patience()
    }

    /// A deadline for what hangs.
    pub(super) fn soon(&self) -> Instant {
        Instant::now() + self.harness.patience() / 20
    }

    /// Begins a delivery in a task of its own, as the engine does.
    pub(super) fn spawn(&self, message: &Message, attempt: Attempt) -> JoinHandle<Ended> {
        let (sink, dsn, message) = (Arc::clone(&self.sink), self.dsn.clone(), message.clone());
        tokio::spawn(async move { sink.deliver(&dsn, &message, &attempt).await })
    }

    /// Waits for a delivery, beyond every deadline.
    pub(super) async fn end(&self, delivery: JoinHandle<Ended>) -> Result<Ended, Unproved> {
        let ended = self.in_time("a delivery", 2, delivery).await?;
        ended.map_err(|error| Unproved::Broken(format!("deliver panics: {error}")))
    }

    pub(super) async fn deliver(&self, message: &Message, attempt: Attempt) -> Result<Ended, Unproved> {
        self.end(self.spawn(message, attempt)).await
    }

    /// Delivers what must arrive.
    pub(super) async fn delivered(&self, message: &Message) -> Result<(), Unproved> {
        match self.deliver(message, attempt(1, self.ample())).await? {
            Ok(_) => Ok(()),
            Err(error) => Err(Unproved::Broken(format!("a delivery fails without a fault: {}", error.chain()))),
        }
    }

    /// Delivers fresh messages until one arrives: a sink has some time to connect again.
    ///
    /// Until then it fails as one whose far end is out of reach.
    pub(super) async fn delivers_again(&self, after: &str) -> Result<(), Unproved> {
        let give_up = self.ample();
        loop {
            let message = plain();
            match self.deliver(&message, attempt(1, self.soon())).await? {
                Ok(_) => return self.arrived_once(&message).await,
                Err(error) => {
                    ensure!(out_of_reach(&error), "after {after}, a delivery fails as {}", error.chain());
                    ensure!(Instant::now() < give_up, "after {after}, the sink never delivers: {}", error.chain());
                }
            }
            time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn close(&self) -> Result<(), Unproved> {
        match self.in_time("close", 2, self.sink.close()).await? {
            Ok(()) => Ok(()),
            Err(error) => Err(Unproved::Broken(format!("close fails: {}", error.chain()))),
        }
    }

    /// What arrived under the message's id.
    pub(super) async fn arrivals(&self, message: &Message) -> Result<Vec<Received>, Unproved> {
        let received = self.in_time("the harness's `received`", 2, self.harness.received()).await?;
        Ok(received.into_iter().filter(|received| received.id == *message.id()).collect())
    }

    /// Finds the message at the far end, once, as it was sent.
    pub(super) async fn arrived_once(&self, message: &Message) -> Result<(), Unproved> {
        let arrivals = self.arrivals(message).await?;
        ensure!(!arrivals.is_empty(), "deliver resolved Ok, and the far end does not have the message");
        ensure!(arrivals.len() == 1, "one delivery arrived {} times", arrivals.len());
        check_body(message, &arrivals[0])
    }

    /// Fails when a future is not over after this many times the patience.
    pub(super) async fn in_time<F: Future>(&self, what: &str, times: u32, future: F) -> Result<F::Output, Unproved> {
        let limit = self.harness.patience() * times;
        time::timeout(limit, future).await.map_err(|_| Unproved::Broken(format!("no end in time: {what}")))
    }
}

pub(super) fn check_body(message: &Message, received: &Received) -> Result<(), Unproved> {
    let (sent, arrived) = (message.body(), &received.body);
    ensure!(sent == arrived, "a body of {} bytes arrived as another, of {} bytes", sent.len(), arrived.len());
    Ok(())
}

/// Whether an error says what an outage is: nothing is known of the message, and another attempt may succeed.
pub(super) fn out_of_reach(error: &SinkError) -> bool {
    matches!(error.kind(), crate::ErrorKind::Unavailable | crate::ErrorKind::TimedOut)
}

pub(super) fn attempt(number: u32, deadline: Instant) -> Attempt {
    Attempt::new(number, SystemTime::now(), deadline)
}

pub(super) fn message(body: impl Into<Payload>) -> MessageBuilder {
    Message::builder("callback.rpc.completed").source("/conformance").subject("conformance").payload(body)
}

/// A message with a body of its own.
pub(super) fn plain() -> Message {
    build(message(serde_json::json!({ "status": "completed" })))
}

pub(super) fn build(builder: MessageBuilder) -> Message {
    builder.build().expect("what the kit sets is valid")
}
