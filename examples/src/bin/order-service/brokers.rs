//! The brokers that results may go to, in a build that has their features.

use callback_core::{BoxError, Dsn, Sink};
use std::sync::Arc;

#[derive(clap::Args)]
pub(crate) struct Brokers {
    /// A RabbitMQ, with user and password, whose queues results may go to; needs the feature `amqp`
    #[arg(long, env = "ORDER_SERVICE_AMQP", hide_env_values = true, value_name = "URL")]
    amqp: Option<Dsn>,

    /// Which queues of it: a name, in which * stands for any characters
    #[arg(long, env = "ORDER_SERVICE_AMQP_QUEUE", default_value = "orders.*", value_name = "PATTERN")]
    amqp_queue: String,

    /// A Kafka, as host:port,…, whose topics results may go to; needs the feature `kafka`
    #[arg(long, env = "ORDER_SERVICE_KAFKA", value_name = "BROKERS")]
    kafka: Option<String>,

    /// Which topics of it: a name, in which * stands for any characters
    #[arg(long, env = "ORDER_SERVICE_KAFKA_TOPIC", default_value = "orders.*", value_name = "PATTERN")]
    kafka_topic: String,
}

/// The sinks of all brokers that are named.
pub(crate) fn sinks(arguments: Brokers) -> Result<Vec<Arc<dyn Sink>>, BoxError> {
    let Brokers { amqp, amqp_queue, kafka, kafka_topic } = arguments;
    let amqp = amqp.map(|url| self::amqp(url, &amqp_queue)).transpose()?;
    let kafka = kafka.map(|brokers| self::kafka(&brokers, &kafka_topic)).transpose()?;
    Ok(amqp.into_iter().chain(kafka).collect())
}

#[cfg(feature = "amqp")]
fn amqp(url: Dsn, queues: &str) -> Result<Arc<dyn Sink>, BoxError> {
    let cluster = callback_amqp::AmqpCluster::new(url).queue(queues);
    Ok(Arc::new(callback_amqp::AmqpSink::builder().default_cluster(cluster).build()?))
}

#[cfg(not(feature = "amqp"))]
fn amqp(_: Dsn, _: &str) -> Result<Arc<dyn Sink>, BoxError> {
    Err("--amqp: this order-service was built without RabbitMQ; build it with `--features amqp`".into())
}

#[cfg(feature = "kafka")]
fn kafka(brokers: &str, topics: &str) -> Result<Arc<dyn Sink>, BoxError> {
    let cluster = callback_kafka::KafkaCluster::new(brokers).topic(topics);
    Ok(Arc::new(callback_kafka::KafkaSink::builder().default_cluster(cluster).build()?))
}

#[cfg(not(feature = "kafka"))]
fn kafka(_: &str, _: &str) -> Result<Arc<dyn Sink>, BoxError> {
    Err("--kafka: this order-service was built without Kafka; build it with `--features kafka`".into())
}
