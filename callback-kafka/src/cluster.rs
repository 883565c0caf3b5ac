//! One cluster as the operator registers it.

use crate::{
    KafkaSinkError,
    target::{Registered, Security, Topics, with_port},
};
use callback_core::{Dsn, Secret};
use rdkafka::{ClientConfig, error::KafkaError, types::RDKafkaConfRes};
use std::{fmt, time::Duration};

/// A cluster that messages may be sent to: its brokers, its security, its open topics.
///
/// ```
/// use callback_kafka::{KafkaCluster, KafkaSink};
///
/// let orders = KafkaCluster::new("b1:9092,b2:9092").ssl().scram_sha_512("order-service", "secret").topic("orders.*");
/// let sink = KafkaSink::builder().cluster("orders", orders).build()?;
/// # Ok::<_, callback_kafka::KafkaSinkError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct KafkaCluster {
    brokers: String,
    tls: bool,
    sasl: Option<Sasl>,
    roots: Option<String>,
    identity: Option<(String, Secret)>,
    topics: Vec<String>,
    in_flight: usize,
    delivery_timeout: Duration,
    settings: Vec<(String, Secret)>,
}

#[derive(Clone)]
struct Sasl {
    mechanism: &'static str,
    user: String,
    password: Secret,
}

/// What is set for each client where the operator says nothing else.
const DEFAULTS: [(&str, &str); 3] =
    [("client.id", "callback"), ("reconnect.backoff.max.ms", "1000"), ("socket.keepalive.enable", "true")];

/// What is set for producers.
const OF_PRODUCERS: [(&str, &str); 4] = [
    // A batch is refused as a whole: what is larger than this travels alone, so that it is known to be the culprit.
    (BATCH_SIZE, "65536"),
    // The broker's own limit decides; a body that was accepted is smaller.
    ("message.max.bytes", "16777216"),
    // The same key goes to the same partition as from Java's producer.
    ("partitioner", "murmur2_random"),
    ("topic.metadata.propagation.max.ms", "2000"),
];

const BATCH_SIZE: &str = "batch.size";

/// What the sink relies on, and why nobody else sets it.
pub(crate) const RESERVED: [(&str, &str); 17] = [
    ("acks", "is always `all`"),
    ("bootstrap.servers", "is given to `new`"),
    ("delivery.report.only.error", "is always off: a receipt needs the report"),
    ("delivery.timeout.ms", "is set by `delivery_timeout`"),
    ("enable.idempotence", "is always on"),
    ("log.queue", "is always on"),
    ("message.timeout.ms", "is set by `delivery_timeout`"),
    ("metadata.broker.list", "is given to `new`"),
    ("plugin.library.paths", "is refused: it loads code"),
    ("queue.buffering.max.messages", "follows from `in_flight`"),
    ("request.required.acks", "is always `all`"),
    ("sasl.mechanism", "is set by `sasl_plain` or `scram_sha_…`"),
    ("sasl.mechanisms", "is set by `sasl_plain` or `scram_sha_…`"),
    ("sasl.password", "is set by `sasl_plain` or `scram_sha_…`"),
    ("sasl.username", "is set by `sasl_plain` or `scram_sha_…`"),
    ("security.protocol", "follows from `ssl`, `sasl_plain` and `scram_sha_…`"),
    ("transactional.id", "is refused: there are no transactions"),
];

impl KafkaCluster {
    /// A cluster that is found through these brokers: `host:port`, several separated by commas. Default port: 9092.
    ///
    /// librdkafka dials them, and whatever brokers they advertise, by itself: no [`Policy`](callback_core::Policy) is asked.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            tls: false,
            sasl: None,
            roots: None,
            identity: None,
            topics: Vec::new(),
            in_flight: 10_000,
            delivery_timeout: Duration::from_secs(10),
            settings: Vec::new(),
        }
    }

    /// Connects by TLS. The brokers' certificates are checked, their host names too.
    pub fn ssl(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Trusts these certificates, in PEM, instead of the system's. Needs [`ssl`](Self::ssl).
    pub fn root_certificates(mut self, pem: impl Into<String>) -> Self {
        self.roots = Some(pem.into());
        self
    }

    /// Shows this certificate to the brokers; it and its key in PEM. Needs [`ssl`](Self::ssl).
    ///
    /// The passphrase of an encrypted key is the setting `ssl.key.password`.
    pub fn client_certificate(mut self, certificate: impl Into<String>, key: impl Into<Secret>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Authenticates by SASL PLAIN, which shows the broker the password: only with [`ssl`](Self::ssl), where others listen.
    pub fn sasl_plain(self, user: impl Into<String>, password: impl Into<Secret>) -> Self {
        self.sasl("PLAIN", user.into(), password.into())
    }

    /// Authenticates by SASL SCRAM-SHA-256.
    pub fn scram_sha_256(self, user: impl Into<String>, password: impl Into<Secret>) -> Self {
        self.sasl("SCRAM-SHA-256", user.into(), password.into())
    }

    /// Authenticates by SASL SCRAM-SHA-512.
    pub fn scram_sha_512(self, user: impl Into<String>, password: impl Into<Secret>) -> Self {
        self.sasl("SCRAM-SHA-512", user.into(), password.into())
    }

    fn sasl(mut self, mechanism: &'static str, user: String, password: Secret) -> Self {
        self.sasl = Some(Sasl { mechanism, user, password });
        self
    }

    /// Opens topics to Dsns: a name, in which `*` stands for any characters. At least one has to be opened.
    ///
    /// Internal topics, whose names begin with `__`, are opened only by a pattern that begins so.
    pub fn topic(mut self, pattern: impl Into<String>) -> Self {
        self.topics.push(pattern.into());
        self
    }

    /// How many messages may be on their way at once: 1 to 10,000,000. Default 10,000.
    ///
    /// Whoever comes then waits, and is throttled where the attempt's deadline passes meanwhile.
    pub fn in_flight(mut self, messages: usize) -> Self {
        self.in_flight = messages;
        self
    }

    /// How long librdkafka tries to deliver a message: 1 to 300 s. Default 10 s.
    ///
    /// It may take twice as long until it gives up, so this is at most half of an attempt's deadline, which is 20 s by
    /// default. An attempt whose deadline is earlier ends by then all the same.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.delivery_timeout = timeout;
        self
    }

    /// Sets a property of librdkafka by its name. What the sink relies on is refused by `build`.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<Secret>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    pub(crate) const fn most_in_flight(&self) -> usize {
        self.in_flight
    }

    /// What a batch may have, in bytes; a larger message travels alone.
    pub(crate) fn batch_size(&self) -> usize {
        let own = self.settings.iter().rev().find(|(name, _)| name == BATCH_SIZE).map(|(_, value)| value.expose());
        let size = own.or_else(|| OF_PRODUCERS.iter().find(|(name, _)| *name == BATCH_SIZE).map(|(_, value)| *value));
        size.and_then(|size| size.trim().parse().ok()).unwrap_or_default()
    }

    const fn security(&self) -> Security {
        match (self.sasl.is_some(), self.tls) {
            (false, false) => Security::Plain,
            (false, true) => Security::Tls,
            (true, false) => Security::Sasl,
            (true, true) => Security::SaslTls,
        }
    }

    /// What a Dsn is compared with.
    pub(crate) fn registered(&self, name: Option<String>) -> Result<Registered, KafkaSinkError> {
        let cluster = called(name.as_deref());
        let wrong = |reason: &str| KafkaSinkError::Cluster { cluster: cluster.clone(), reason: reason.to_owned() };
        let dsn = self.checked(name.as_deref(), &RESERVED, &self.client_config())?;
        if self.topics.is_empty() {
            return Err(wrong("opens no topic: name them by `topic`; `*` opens all"));
        }
        let topics = self.topics.iter().map(|pattern| {
            let opened = Topics::parse(pattern);
            opened.ok_or_else(|| wrong(&format!("cannot open {pattern:?}: a topic has A-Z a-z 0-9 . _ - only")))
        });
        let topics = topics.collect::<Result<_, _>>()?;
        if !(1..=10_000_000).contains(&self.in_flight) {
            return Err(wrong("may have 1 to 10,000,000 messages in flight"));
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&self.delivery_timeout) {
            return Err(wrong("needs a delivery timeout of 1 to 300 s"));
        }
        Ok(Registered::new(name, self.security(), dsn.hosts(), topics))
    }

    /// The brokers as a Dsn has them; all that any client of the cluster needs is there.
    pub(crate) fn checked(
        &self,
        name: Option<&str>,
        reserved: &[(&str, &str)],
        config: &ClientConfig,
    ) -> Result<Dsn, KafkaSinkError> {
        let cluster = called(name);
        let wrong = |reason: &str| KafkaSinkError::Cluster { cluster: cluster.clone(), reason: reason.to_owned() };
        let invalid = |source| KafkaSinkError::Brokers { cluster: cluster.clone(), source };
        let dsn: Dsn = format!("kafka://{}/topic", self.brokers).parse().map_err(invalid)?;
        if dsn.hosts().is_empty() || dsn.username().is_some() || dsn.path() != "/topic" || dsn.query().is_some() {
            return Err(wrong("needs `host:port` of its brokers, and nothing else"));
        }
        if !self.tls && (self.roots.is_some() || self.identity.is_some()) {
            return Err(wrong("has certificates, but no `ssl`"));
        }
        for (name, _) in &self.settings {
            if let Some((_, reason)) = reserved.iter().find(|(reserved, _)| reserved == name) {
                let reason = (*reason).to_owned();
                return Err(KafkaSinkError::Setting { cluster, name: name.clone(), reason });
            }
        }
        // Reads names and values, and starts nothing.
        if let Err(error) = config.create_native_config() {
            let (name, reason) = setting_error(error);
            return Err(KafkaSinkError::Setting { cluster, name, reason: reason.to_owned() });
        }
        Ok(dsn)
    }

    /// All properties of the producer, secrets included.
    pub(crate) fn client_config(&self) -> ClientConfig {
        let mut config = self.connection(&OF_PRODUCERS);
        config.set("acks", "all").set("enable.idempotence", "true");
        config.set("delivery.timeout.ms", self.delivery_timeout.as_millis().to_string());
        // librdkafka counts a record until the whole batch of reports has been read, which is later than its future.
        config.set("queue.buffering.max.messages", (self.in_flight * 2 + 1).to_string());
        config
    }

    /// What every client is set to, secrets included; the operator's settings come before these defaults.
    pub(crate) fn connection(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        let defaults = DEFAULTS.iter().chain(defaults);
        config.extend(defaults.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        config.extend(self.settings.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
        let hosts = format!("kafka://{}/topic", self.brokers).parse::<Dsn>();
        let hosts: Vec<String> =
            hosts.iter().flat_map(|dsn| dsn.hosts()).map(|host| with_port(host).to_string()).collect();
        config.set("bootstrap.servers", hosts.join(","));
        config.set("security.protocol", self.security().protocol());
        if let Some(sasl) = &self.sasl {
            config.set("sasl.mechanisms", sasl.mechanism).set("sasl.username", &sasl.user);
            config.set("sasl.password", sasl.password.expose());
        }
        if let Some(roots) = &self.roots {
            config.set("ssl.ca.pem", roots);
        }
        if let Some((certificate, key)) = &self.identity {
            config.set("ssl.certificate.pem", certificate).set("ssl.key.pem", key.expose());
        }
        config
    }

    /// The text without any of the cluster's secrets.
    pub(crate) fn masked(&self, text: String) -> String {
        let secrets = self.settings.iter().map(|(_, value)| value.expose());
        let secrets = secrets.chain(self.sasl.as_ref().map(|sasl| sasl.password.expose()));
        let secrets = secrets.chain(self.identity.as_ref().map(|(_, key)| key.expose()));
        secrets.filter(|secret| !secret.is_empty()).fold(text, |text, secret| text.replace(secret, "***"))
    }
}

/// A cluster in an error.
fn called(name: Option<&str>) -> String {
    name.map_or_else(|| "the default cluster".to_owned(), |name| format!("the cluster `{name}`"))
}

/// The name of a setting and what is wrong with it; librdkafka's own text holds the value.
fn setting_error(error: KafkaError) -> (String, &'static str) {
    match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _) => {
            (name, "is unknown to librdkafka")
        }
        KafkaError::ClientConfig(_, _, name, _) => (name, "has a value that librdkafka does not take"),
        _ => (String::new(), "holds a NUL character"),
    }
}

/// Neither users nor passwords, keys or values of settings are printed.
impl fmt::Debug for KafkaCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<&str> = self.settings.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("KafkaCluster")
            .field("security", &self.security())
            .field("topics", &self.topics)
            .field("in_flight", &self.in_flight)
            .field("delivery_timeout", &self.delivery_timeout)
            .field("settings", &settings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> KafkaCluster {
        KafkaCluster::new("b1:9092,[2001:db8::1]").topic("orders.*")
    }

    #[track_caller]
    fn refused(cluster: &KafkaCluster, words: &str) {
        let error = cluster.registered(None).expect_err("it cannot be registered").to_string();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn what_the_sink_relies_on_cannot_be_set() {
        for (name, reason) in RESERVED {
            refused(&plain().setting(name, "1"), &format!("the setting `{name}` of the default cluster {reason}"));
        }
    }

    #[test]
    fn a_setting_is_known_and_has_a_value_that_fits() {
        refused(
            &plain().setting("linger", "5"),
            "the setting `linger` of the default cluster is unknown to librdkafka",
        );
        refused(&plain().setting("linger.ms", "soon"), "does not take");
        refused(&plain().setting("client.id", "a\0b"), "NUL");
        plain().setting("linger.ms", "0").setting("compression.type", "gzip").registered(None).expect("both are known");
    }

    #[test]
    fn a_cluster_is_whole() {
        refused(&KafkaCluster::new("b1:9092"), "opens no topic");
        refused(&KafkaCluster::new("").topic("*"), "needs `host:port`");
        refused(&KafkaCluster::new("user@b1").topic("*"), "needs `host:port`");
        refused(&KafkaCluster::new("b1/x").topic("*"), "needs `host:port`");
        refused(&KafkaCluster::new("b1:0").topic("*"), "no list of `host:port`");
        refused(&plain().topic("a b"), "cannot open \"a b\"");
        refused(&plain().root_certificates(""), "no `ssl`");
        refused(&plain().client_certificate("", ""), "no `ssl`");
        refused(&plain().in_flight(0), "in flight");
        refused(&plain().delivery_timeout(Duration::from_millis(999)), "delivery timeout");
    }

    #[test]
    fn the_producer_is_idempotent_and_waits_for_all_replicas() {
        let config = plain().ssl().scram_sha_256("me", "secret").setting("linger.ms", "1").client_config();
        let expected = [
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("delivery.timeout.ms", "10000"),
            ("queue.buffering.max.messages", "20001"),
            ("bootstrap.servers", "b1:9092,[2001:db8::1]:9092"),
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanisms", "SCRAM-SHA-256"),
            ("sasl.username", "me"),
            ("sasl.password", "secret"),
            ("linger.ms", "1"),
            ("batch.size", "65536"),
        ];
        for (name, value) in expected {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn the_size_of_a_batch_is_the_operators() {
        assert_eq!(plain().batch_size(), 65_536);
        assert_eq!(plain().setting("batch.size", "1000").setting("batch.size", "2000").batch_size(), 2_000);
    }
}
