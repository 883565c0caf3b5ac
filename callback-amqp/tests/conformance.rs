//! The sink keeps the contract, against a real RabbitMQ behind a network that fails.

use callback_amqp::{AmqpCluster, AmqpSink};
use callback_core::{
    Dsn, ErrorKind, Policy, Resolver, Rule, async_trait,
    conformance::{Fault, Harness, Proxy, Received, Skip, server},
};
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::BasicGetMessage,
    options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Mutex, PoisonError},
};

/// A queue that nobody else has, on the broker of `CALLBACK_TEST_AMQP`.
struct Queue {
    broker: Dsn,
    proxy: Proxy,
    name: String,
    _connection: Connection,
    channel: Channel,
    received: Mutex<Vec<Received>>,
}

/// Every name is this machine.
#[derive(Debug)]
struct Here;

#[async_trait]
impl Resolver for Here {
    async fn resolve(&self, _name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![Ipv4Addr::LOCALHOST.into()])
    }
}

impl Queue {
    async fn declare(&self) {
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(self.name.as_str().into(), durable, FieldTable::default());
        declared.await.expect("a queue");
    }

    async fn drain(&self) {
        let options = BasicGetOptions { no_ack: true };
        // Where the queue was deleted, the answer is an error, and there is nothing to read.
        while let Ok(Some(message)) = self.channel.basic_get(self.name.as_str().into(), options).await {
            self.received.lock().unwrap_or_else(PoisonError::into_inner).push(read(&message));
        }
    }

    /// The broker as a client would name it, by this host.
    fn unregistered(&self, host: &str) -> (AmqpSink, Dsn) {
        let policy = Policy::default().allow("amqp:".parse::<Rule>().expect("a rule")).resolver(Here);
        let sink = AmqpSink::builder().unregistered(policy).build().expect("a sink");
        let (port, queue) = (self.proxy.address().port(), &self.name);
        let dsn = format!("amqp://planted-user:planted-password@{host}:{port}/?queue={queue}");
        (sink, dsn.parse().expect("valid"))
    }
}

fn read(message: &BasicGetMessage) -> Received {
    let properties = &message.properties;
    let id = properties.message_id().as_ref().expect("an id").as_str().parse().expect("an id");
    let headers = properties.headers().as_ref().expect("headers").inner().iter().filter_map(|(name, value)| {
        let AMQPValue::LongString(value) = value else { return None };
        Some((name.to_string(), value.to_string()))
    });
    let content_type = properties.content_type().as_ref().expect("set").to_string();
    let content_type = std::iter::once(("content-type".to_owned(), content_type));
    Received::new(id, message.data.clone()).with_headers(headers.chain(content_type))
}

#[async_trait]
impl Harness for Queue {
    type Sink = AmqpSink;

    async fn start() -> Result<Self, Skip> {
        let broker: Dsn = server("CALLBACK_TEST_AMQP")?.parse().expect("a Dsn");
        let url = format!("{}%2F", broker.expose());
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.expect("a broker");
        let channel = connection.create_channel().await.expect("a channel");
        let proxy = Proxy::start(broker.hosts()[0].to_string()).await.expect("a free port");
        let name = format!("planted-{}", callback_core::MessageId::new().as_str());
        let queue = Self { broker, proxy, name, _connection: connection, channel, received: Mutex::default() };
        queue.declare().await;
        Ok(queue)
    }

    fn sink(&self) -> AmqpSink {
        let (from, to) = (self.broker.hosts()[0].to_string(), self.proxy.address().to_string());
        let cluster = self.broker.expose().replace(&from, &to).parse().expect("a Dsn");
        let cluster = AmqpCluster::new(cluster).queue("planted-*");
        AmqpSink::builder().default_cluster(cluster).build().expect("a sink")
    }

    fn dsn(&self) -> Dsn {
        format!("amqp:///?queue={}", self.name).parse().expect("valid")
    }

    async fn received(&self) -> Vec<Received> {
        self.drain().await;
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn inject(&self, fault: Fault) -> Result<(), Skip> {
        match fault {
            Fault::Refuse => {
                self.drain().await;
                let deleted = self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default());
                deleted.await.expect("deleted");
                Ok(())
            }
            Fault::Throttle(Some(_)) => Err(Skip::because("a RabbitMQ that is blocked does not say for how long")),
            Fault::Throttle(None) => {
                Err(Skip::because("it blocks the broker for everybody: shown in tests/it/faults.rs, on one of its own"))
            }
            _ => self.proxy.inject(fault),
        }
    }

    async fn heal(&self) {
        self.proxy.heal();
        self.declare().await;
    }

    fn refusal(&self) -> ErrorKind {
        ErrorKind::Unroutable
    }

    fn forbidden(&self) -> Result<(AmqpSink, Dsn), Skip> {
        Ok(self.unregistered("127.0.0.1"))
    }

    fn forbidden_at_connect(&self) -> Result<(AmqpSink, Dsn), Skip> {
        Ok(self.unregistered("broker.example"))
    }
}

callback_core::conformance!(Queue);
