//! Delivers to Kafka.

use crate::{
    config::KafkaSinkBuilder,
    outcome,
    producer::Producer,
    target::{Registered, SCHEMES, Target},
};
use async_trait::async_trait;
use callback_core::{Attempt, Dsn, DsnError, Message, Receipt, Sink, SinkError};
use futures_util::future::join_all;
use std::{fmt, sync::Arc};
use tokio::time::timeout_at;
use tokio_util::task::TaskTracker;

/// Delivers messages to topics of registered Kafka clusters.
///
/// Delivered is what all in-sync replicas have, by the delivery report of an idempotent producer. Each cluster has one
/// producer; it is started by the first message, and replaced after a fatal error. Needs a tokio runtime.
///
/// ```
/// use callback_core::{Dsn, Sink};
/// use callback_kafka::{KafkaCluster, KafkaSink};
///
/// let orders = KafkaCluster::new("b1:9092,b2:9092").ssl().scram_sha_512("order-service", "secret").topic("orders.*");
/// let sink = KafkaSink::builder().cluster("orders", orders).build()?;
///
/// assert!(sink.check(&"kafka://orders/orders.completed".parse()?).is_ok());
/// assert!(sink.check(&"kafka+sasl+ssl://b1:9092,b2:9092/orders.completed?key=12345".parse()?).is_ok());
/// assert!(sink.check(&"kafka://orders/payments".parse()?).is_err());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct KafkaSink(Arc<Inner>);

struct Inner {
    registered: Vec<Registered>,
    /// In the same order.
    producers: Vec<Producer>,
    in_flight: TaskTracker,
}

impl KafkaSink {
    /// Begins a sink; it needs a cluster at least.
    pub fn builder() -> KafkaSinkBuilder {
        KafkaSinkBuilder::default()
    }

    pub(crate) fn with(registered: Vec<Registered>, producers: Vec<Producer>) -> Self {
        Self(Arc::new(Inner { registered, producers, in_flight: TaskTracker::new() }))
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn schemes(&self) -> &[&str] {
        &SCHEMES
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        Target::of(dsn, &self.0.registered).map(drop)
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let _in_flight = self.0.in_flight.token();
        if self.0.in_flight.is_closed() {
            return Err(SinkError::unavailable("the sink is closed"));
        }
        let target = Target::of(dsn, &self.0.registered)?;
        let producer = &self.0.producers[target.cluster];
        match timeout_at(attempt.deadline().into(), producer.send(&target, message, attempt)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(outcome::no_report(producer.trouble())),
        }
    }

    /// Waits for what is in flight, each by its own deadline, then up to 5 s for what nobody waits for any more. What is
    /// left then is dropped, and counted.
    async fn close(&self) -> Result<(), SinkError> {
        self.0.in_flight.close();
        self.0.in_flight.wait().await;
        let left: usize = join_all(self.0.producers.iter().map(Producer::close)).await.into_iter().sum();
        match left {
            0 => Ok(()),
            left => Err(SinkError::unavailable(format!("{left} messages could not be flushed"))),
        }
    }
}

impl fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.registered.iter().map(|cluster| cluster.name().unwrap_or_default()).collect();
        f.debug_struct("KafkaSink").field("clusters", &names).finish_non_exhaustive()
    }
}
