//! A transport in memory: a sender has a Dsn, sends, and is told the verdict.

use async_trait::async_trait;
use callback_core::{Dsn, Message, MessageBuilder};
use callback_receive::{HandleId, Incoming, Intake, Listener, Receiver, ReceiverBuilder, Verdict};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it comes in time")
}

const BASE: &str = "https://receiver.example/in/";

#[derive(Clone, Debug)]
pub(crate) struct Wire {
    intake: Arc<watch::Sender<Option<Intake>>>,
    closed: Arc<watch::Sender<bool>>,
}

impl Wire {
    pub(crate) fn new() -> Self {
        Self { intake: Arc::new(watch::Sender::new(None)), closed: Arc::new(watch::Sender::new(false)) }
    }

    /// A receiver over a wire of its own.
    pub(crate) async fn open(builder: ReceiverBuilder) -> (Self, Receiver) {
        let wire = Self::new();
        let receiver = builder.open(wire.clone()).await.expect("it opens");
        (wire, receiver)
    }

    pub(crate) async fn intake(&self) -> Intake {
        let mut intake = self.intake.subscribe();
        let intake = soon(intake.wait_for(Option::is_some)).await.expect("the wire is there").clone();
        intake.expect("it listens")
    }

    pub(crate) async fn offer(&self, url: &str, incoming: Incoming) -> Verdict {
        let handle = handle(url);
        self.intake().await.offer(&handle, incoming).await
    }

    /// Sends a message that is not signed.
    pub(crate) async fn send(&self, url: &str, id: &str) -> Verdict {
        self.offer(url, Incoming::new(message(id).build().expect("valid"))).await
    }

    /// Sends on a task of its own.
    pub(crate) fn sending(&self, url: &str, id: &str) -> JoinHandle<Verdict> {
        let (wire, url, id) = (self.clone(), url.to_owned(), id.to_owned());
        tokio::spawn(async move { wire.send(&url, &id).await })
    }
}

pub(crate) fn handle(url: &str) -> HandleId {
    url.strip_prefix(BASE).expect("a Dsn of this wire").parse().expect("a handle")
}

pub(crate) fn message(id: &str) -> MessageBuilder {
    Message::builder("order.completed").id(id.parse().expect("a valid id")).payload(id)
}

#[async_trait]
impl Listener for Wire {
    fn dsn(&self, handle: &HandleId) -> Dsn {
        format!("{BASE}{}", handle.expose()).parse().expect("a Dsn")
    }

    async fn listen(&self, intake: Intake) {
        self.intake.send_replace(Some(intake));
        let mut closed = self.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await;
    }

    async fn close(&self) {
        self.closed.send_replace(true);
    }
}
