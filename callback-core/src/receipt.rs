//! Proof that a destination accepted a message.

/// Proof that the destination accepted: nothing else counts as delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    evidence: Evidence,
}

impl Receipt {
    /// A receipt that rests on this evidence.
    #[must_use]
    pub const fn new(evidence: Evidence) -> Self {
        Self { evidence }
    }

    /// What the receipt rests on.
    #[must_use]
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// The HTTP status, where the destination answered with one.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self.evidence {
            Evidence::Status(status) => Some(status),
            _ => None,
        }
    }
}

/// What a [`Receipt`] rests on, by transport.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// The peer's own acknowledgment (WebSocket `callback.v1`), or a queue in this process.
    Acknowledged,
    /// A broker's publisher confirm for a message that was not returned (RabbitMQ).
    Confirmed,
    /// A sink of one's own says in a word what it waited for, `fsync` for example.
    Custom(&'static str),
    /// The place in a log (Kafka, `acks=all`). The offset is -1 where the broker knew the message already.
    Offset {
        /// The partition, from 0.
        partition: i32,
        /// The offset in it.
        offset: i64,
    },
    /// The pong to a ping that was sent after the frame (WebSocket without `callback.v1`).
    Pong,
    /// An HTTP status of 200 to 299, its answer read to the end or to 64 KiB.
    Status(u16),
}
