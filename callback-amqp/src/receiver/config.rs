//! How a receiver is set up.

use super::{AmqpReceiver, Source, place::Place};
use crate::AmqpCluster;
use callback_core::{BoxError, Dsn, DsnError, MessageId};
use std::time::Duration;

/// Builds an [`AmqpReceiver`].
#[derive(Clone, Debug)]
#[must_use]
pub struct AmqpReceiverBuilder {
    cluster: AmqpCluster,
    exchange: Option<String>,
    queue: Option<String>,
    public_dsn: Option<Dsn>,
    dead_letters: Option<String>,
    prefetch: u16,
    keep_unknown: Duration,
}

impl AmqpReceiverBuilder {
    pub(super) const fn new(cluster: AmqpCluster) -> Self {
        Self {
            cluster,
            exchange: None,
            queue: None,
            public_dsn: None,
            dead_letters: None,
            prefetch: 256,
            keep_unknown: Duration::from_secs(3600),
        }
    }

    /// Sets the exchange that senders publish to: a durable topic exchange, which receivers may share. Default `callbacks`.
    ///
    /// It is declared; a user who may not declare it needs it to be there. 1 to 255 bytes.
    pub fn exchange(mut self, name: impl Into<String>) -> Self {
        self.exchange = Some(name.into());
        self
    }

    /// Sets the queue: 1 to 222 bytes, no word of it `*` or `#`, and no other receiver's.
    ///
    /// One that is there already is taken as it is, a quorum queue for example; otherwise it is declared, durable. Default:
    /// a durable queue with a name of its own, for handles that end with the process: [`close`] deletes it, and the broker
    /// does once nobody has listened for 30 minutes.
    ///
    /// [`close`]: callback_receive::Receiver::close
    pub fn queue(mut self, name: impl Into<String>) -> Self {
        self.queue = Some(name.into());
        self
    }

    /// Sets how senders name the broker and its vhost: `amqp://orders/tenant-7`, without a query. Default `amqp:///`, the
    /// default cluster of the sender's sink.
    pub fn public_dsn(mut self, dsn: Dsn) -> Self {
        self.public_dsn = Some(dsn);
        self
    }

    /// Sets the exchange to which the queue gives what is rejected, where it is declared here. Default: none, what is
    /// rejected is dropped. Neither it nor a queue behind it is declared.
    pub fn dead_letter_exchange(mut self, name: impl Into<String>) -> Self {
        self.dead_letters = Some(name.into());
        self
    }

    /// Sets how many messages are here at once, those included that wait for their time. Default 256; 0 counts as 1.
    ///
    /// Each may be as large as the broker lets it be (its `max_message_size`, 128 MiB by default): it is in memory before
    /// its length is judged.
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.prefetch = if messages == 0 { 1 } else { messages };
        self
    }

    /// Sets for how long a message waits whose handle is none of this receiver's, before it is rejected. Default 1 h.
    ///
    /// It is given back to the queue after waits of 1 s to 60 s. At most half of the [`prefetch`](Self::prefetch) waits so:
    /// where there are more, the one that has been unknown for longest is rejected. Rejected is what was unknown for so long
    /// to this process.
    pub fn keep_unknown(mut self, time: Duration) -> Self {
        self.keep_unknown = time;
        self
    }

    /// Connects, and declares what is not there, like [`AmqpReceiver::connect`].
    ///
    /// # Errors
    /// Those of [`AmqpReceiver::connect`].
    pub async fn connect(self) -> Result<AmqpReceiver, AmqpReceiverError> {
        let Self { cluster, exchange, queue, public_dsn, dead_letters, prefetch, keep_unknown } = self;
        let (endpoint, vhost) = cluster.endpoint().map_err(AmqpReceiverError::Cluster)?;
        let is_temporary = queue.is_none();
        // No other receiver has such an id.
        let queue = queue.unwrap_or_else(|| format!("callback-{}", MessageId::new().as_str()));
        let public = match public_dsn {
            Some(dsn) => dsn,
            None => "amqp:///".parse().map_err(AmqpReceiverError::Name)?,
        };
        let exchange = exchange.unwrap_or_else(|| "callbacks".to_owned());
        let place = Place::new(exchange, queue, &public).map_err(AmqpReceiverError::Name)?;
        let source = Source { endpoint, vhost, place, is_temporary, dead_letters, prefetch };
        let opened = AmqpReceiver::open(source, keep_unknown).await;
        opened.map_err(|failure| AmqpReceiverError::Broker(failure.text.into_owned()))
    }
}

/// Why a receiver could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AmqpReceiverError {
    /// The broker cannot be reached, or refuses login, exchange or queue.
    #[error("the broker cannot be used: {0}")]
    Broker(String),
    /// The cluster cannot be used.
    #[error("the cluster cannot be used")]
    Cluster(#[source] BoxError),
    /// A name, or the public Dsn, cannot be used.
    #[error("no handle can have a Dsn")]
    Name(#[source] DsnError),
}
