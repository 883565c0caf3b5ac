//! Takes callbacks in from RabbitMQ.

mod config;

mod desk;
mod session;

mod answer;
mod place;
mod waits;
mod wire;

pub use config::{AmqpReceiverBuilder, AmqpReceiverError};

use crate::{
    AmqpCluster,
    connection::{PROOF, pause},
    dial::Endpoint,
    outcome::Failure,
};
use async_trait::async_trait;
use callback_core::Dsn;
use callback_receive::{HandleId, Intake, Listener};
use desk::Desk;
use place::Place;
use session::Session;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Takes callbacks in from a queue of RabbitMQ. The [`Listener`] of a [`Receiver`](callback_receive::Receiver).
///
/// A handle's Dsn names an exchange, and a routing key that ends with the handle:
/// `amqp:///?exchange=callbacks&routing_key=shop.<handle>`; the queue is bound to all keys of this receiver. So a
/// dispatcher's [`AmqpSink`](crate::AmqpSink) reaches it, where its cluster has opened the exchange. Clients that publish to
/// the queue itself name the handle in `correlation_id`.
///
/// A message is acknowledged after its verdict. It has the attributes that `AmqpSink` writes, or the properties of whoever
/// else publishes; the age of its signature is not judged.
///
/// ```no_run
/// use callback_amqp::{AmqpCluster, AmqpReceiver};
/// use callback_receive::{Receiver, SqliteInbox};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = AmqpCluster::new("amqps://shop:secret@broker.example/".parse()?);
/// let inbox = SqliteInbox::open("inbox.sqlite").await?;
/// let receiver = Receiver::builder().inbox(inbox).open(AmqpReceiver::connect(broker, "shop").await?).await?;
/// println!("{}", receiver.expect("order-42").await?.url());
/// # Ok(())
/// # }
/// ```
pub struct AmqpReceiver {
    source: Source,
    keep_unknown: Duration,
    /// The connection that declared exchange and queue, until it is listened on.
    first: Mutex<Option<Session>>,
    closing: CancellationToken,
    listening: TaskTracker,
}

/// The broker, and what of it this receiver has.
struct Source {
    endpoint: Endpoint,
    vhost: String,
    place: Place,
    /// Whether the queue is one that ends with the receiver.
    is_temporary: bool,
    dead_letters: Option<String>,
    prefetch: u16,
}

impl AmqpReceiver {
    /// Connects, and declares the exchange `callbacks` and this queue, unless they are there.
    ///
    /// The queue is durable and this receiver's own: what comes while nobody listens waits in it. Of the cluster, URL and
    /// certificates count. [`builder`](Self::builder) sets up the rest.
    ///
    /// # Errors
    /// When the cluster or the name cannot be used, or the broker cannot be reached, or refuses.
    pub async fn connect(cluster: AmqpCluster, queue: &str) -> Result<Self, AmqpReceiverError> {
        Self::builder(cluster).queue(queue).connect().await
    }

    /// Begins a receiver that is set up otherwise.
    pub const fn builder(cluster: AmqpCluster) -> AmqpReceiverBuilder {
        AmqpReceiverBuilder::new(cluster)
    }

    async fn open(source: Source, keep_unknown: Duration) -> Result<Self, Failure> {
        let first = Session::open(&source).await?;
        Ok(Self {
            source,
            keep_unknown,
            first: Mutex::new(Some(first)),
            closing: CancellationToken::new(),
            listening: TaskTracker::new(),
        })
    }

    fn first(&self) -> Option<Session> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A connection with exchange and queue, after so many failures in a row.
    async fn session(&self, failures: u32) -> Result<Session, Failure> {
        match self.first() {
            Some(session) => Ok(session),
            None => {
                sleep(pause(failures)).await;
                Session::open(&self.source).await
            }
        }
    }
}

#[async_trait]
impl Listener for AmqpReceiver {
    fn dsn(&self, handle: &HandleId) -> Dsn {
        self.source.place.dsn(handle)
    }

    async fn listen(&self, intake: Intake) {
        let _listening = self.listening.token();
        let unknown = usize::from(self.source.prefetch / 2).max(1);
        let desk = Arc::new(Desk::new(intake, self.keep_unknown, unknown, self.closing.clone()));
        // They outlive a connection: a verdict counts, though it cannot be told any more.
        let mut offers = JoinSet::new();
        let mut failures = 0;
        loop {
            let session = tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                session = self.session(failures) => session,
            };
            let since = Instant::now();
            let ended = match &session {
                Ok(session) => session.take_in(&self.source, &desk, &mut offers, &self.closing).await,
                Err(failure) => Err(failure.clone()),
            };
            if let Err(failure) = ended {
                tracing::warn!(reason = %failure.text, "the broker is not listened to; it will be tried again");
            }
            match session {
                Ok(session) if self.closing.is_cancelled() => {
                    session.close(&self.source).await;
                    break;
                }
                // Who connects and is thrown out at once waits, too.
                Ok(_) if since.elapsed() >= PROOF => failures = 1,
                _ => failures = failures.saturating_add(1),
            }
        }
        // Each has its verdict soon, and nobody to tell it to.
        while offers.join_next().await.is_some() {}
    }

    async fn close(&self) {
        self.closing.cancel();
        self.listening.close();
        self.listening.wait().await;
        if let Some(session) = self.first() {
            session.close(&self.source).await;
        }
    }
}

impl Drop for AmqpReceiver {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Exchange and queue.
impl fmt::Debug for AmqpReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpReceiver")
            .field("exchange", &self.source.place.exchange)
            .field("queue", &self.source.place.queue)
            .field("prefetch", &self.source.prefetch)
            .finish_non_exhaustive()
    }
}
