//! What a Dsn names: a registered cluster, a topic, a key, a partition. Pure.

use callback_core::{Dsn, DsnError, HostPort, Pattern};
use std::str::FromStr;

/// How a cluster is connected to; the scheme of a Dsn says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    Plain,
    Tls,
    Sasl,
    SaslTls,
}

/// The schemes of all kinds of security.
pub(crate) const SCHEMES: [&str; 4] = ["kafka", "kafka+ssl", "kafka+sasl", "kafka+sasl+ssl"];

/// The port of a broker that is named without one.
const DEFAULT_PORT: u16 = 9092;

impl Security {
    const fn scheme(self) -> &'static str {
        SCHEMES[self as usize]
    }

    /// librdkafka's name.
    pub(crate) const fn protocol(self) -> &'static str {
        match self {
            Self::Plain => "plaintext",
            Self::Tls => "ssl",
            Self::Sasl => "sasl_plaintext",
            Self::SaslTls => "sasl_ssl",
        }
    }
}

/// What Dsns may say of a cluster.
#[derive(Debug)]
pub(crate) struct Registered {
    name: Option<String>,
    security: Security,
    hosts: Vec<HostPort>,
    topics: Vec<Topics>,
}

/// Where a message goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The place of the cluster among those that are registered.
    pub(crate) cluster: usize,
    pub(crate) topic: String,
    pub(crate) key: Option<String>,
    pub(crate) partition: Option<i32>,
}

impl Registered {
    pub(crate) fn new(name: Option<String>, security: Security, hosts: &[HostPort], topics: Vec<Topics>) -> Self {
        Self { name, security, hosts: as_set(hosts), topics }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn opens(&self, topic: &str) -> bool {
        self.topics.iter().any(|topics| topics.contain(topic))
    }
}

/// The order in which hosts are named, and how often, says nothing.
fn as_set(hosts: &[HostPort]) -> Vec<HostPort> {
    let mut hosts: Vec<HostPort> = hosts.iter().map(with_port).collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

pub(crate) fn with_port(host: &HostPort) -> HostPort {
    HostPort { host: host.host.clone(), port: host.port.or(Some(DEFAULT_PORT)) }
}

impl Target {
    /// Reads a Dsn.
    ///
    /// # Errors
    /// When it names no registered cluster or a topic that is not open, or says what it cannot say.
    pub(crate) fn of(dsn: &Dsn, clusters: &[Registered]) -> Result<Self, DsnError> {
        if !SCHEMES.contains(&dsn.scheme()) {
            return Err(DsnError::unknown_scheme(dsn.scheme(), &SCHEMES));
        }
        if dsn.username().is_some() {
            return Err(DsnError::invalid("user and password of a Kafka cluster are the operator's: the DSN has none"));
        }
        let cluster = find_cluster(dsn, clusters)?;
        let topic = dsn.path().strip_prefix('/').unwrap_or_default();
        check_topic(topic)?;
        let mut params = dsn.params();
        let key = params.take::<String>("key")?;
        let partition = params.take::<Partition>("partition")?;
        params.finish()?;
        if !clusters[cluster].opens(topic) {
            return Err(DsnError::forbidden(format!("the topic `{topic}` is not open")));
        }
        Ok(Self { cluster, topic: topic.to_owned(), key, partition: partition.map(|partition| partition.0) })
    }
}

fn find_cluster(dsn: &Dsn, clusters: &[Registered]) -> Result<usize, DsnError> {
    let forbidden = || DsnError::forbidden("kafka is open to registered clusters only, and this is none");
    let by_name = match dsn.hosts() {
        [] => Some(clusters.iter().position(|cluster| cluster.name.is_none()).ok_or_else(forbidden)?),
        [HostPort { host, port: None }] => {
            let name = host.to_string();
            clusters.iter().position(|cluster| cluster.name() == Some(&name))
        }
        _ => None,
    };
    if let Some(index) = by_name {
        let scheme = clusters[index].security.scheme();
        if dsn.scheme() != "kafka" && dsn.scheme() != scheme {
            return Err(DsnError::invalid(format!("the scheme of this cluster is `{scheme}`, or `kafka` for short")));
        }
        return Ok(index);
    }
    let hosts = as_set(dsn.hosts());
    let mut found = clusters.iter().enumerate().filter(|(_, cluster)| cluster.hosts == hosts);
    let (index, cluster) = found.next().ok_or_else(forbidden)?;
    if found.next().is_some() {
        return Err(DsnError::invalid("several clusters have these hosts: the DSN has to give the name of one"));
    }
    if dsn.scheme() != cluster.security.scheme() {
        return Err(DsnError::invalid(format!("the scheme of these hosts is `{}`", cluster.security.scheme())));
    }
    Ok(index)
}

const fn is_of_a_topic(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Kafka's own rule (`org.apache.kafka.common.internals.Topic`).
pub(crate) fn check_topic(topic: &str) -> Result<(), DsnError> {
    if topic.is_empty() {
        return Err(DsnError::invalid("the topic is missing: the form is kafka://cluster/topic"));
    }
    if topic.len() > 249 || !topic.bytes().all(is_of_a_topic) || matches!(topic, "." | "..") {
        let reason = "a topic has 1 to 249 characters of A-Z a-z 0-9 . _ - and is neither `.` nor `..`";
        return Err(DsnError::invalid(reason));
    }
    Ok(())
}

/// The number of a partition, from 0.
struct Partition(i32);

impl FromStr for Partition {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(Self).ok_or("a partition is a number from 0 to 2147483647")
    }
}

/// Names of topics that are open.
#[derive(Debug)]
pub(crate) struct Topics(Pattern);

impl Topics {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.bytes().all(|byte| is_of_a_topic(byte) || byte == b'*');
        fits.then(|| Self(Pattern::new(text)))
    }

    /// Kafka's own topics begin with `__`: a pattern that does not means none of them.
    fn contain(&self, topic: &str) -> bool {
        (self.0.as_str().starts_with("__") || !topic.starts_with("__")) && self.0.matches(topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::DsnErrorKind::{self, Forbidden, Invalid, UnknownScheme};

    fn hosts(list: &str) -> Vec<HostPort> {
        format!("kafka://{list}/t").parse::<Dsn>().expect("valid").hosts().to_vec()
    }

    fn clusters() -> Vec<Registered> {
        let topics = |patterns: &[&str]| patterns.iter().map(|text| Topics::parse(text).expect("valid")).collect();
        vec![
            Registered::new(None, Security::Plain, &hosts("d1"), topics(&["*"])),
            Registered::new(Some("orders".into()), Security::SaslTls, &hosts("b1:9092,b2:9093"), topics(&["orders.*"])),
            Registered::new(Some("twin".into()), Security::Tls, &hosts("t1:9092"), topics(&["a", "__internal"])),
            Registered::new(Some("twin-2".into()), Security::Sasl, &hosts("t1"), topics(&["*"])),
        ]
    }

    #[track_caller]
    fn check(dsn: &str, cluster: usize, topic: &str, key: Option<&str>, partition: Option<i32>) {
        let target = Target::of(&dsn.parse().expect("a DSN"), &clusters()).expect("a target");
        let expected = Target { cluster, topic: topic.to_owned(), key: key.map(str::to_owned), partition };
        assert_eq!(target, expected, "{dsn}");
    }

    #[track_caller]
    fn refused(dsn: &str, kind: DsnErrorKind, words: &str) {
        let error = Target::of(&dsn.parse().expect("a DSN"), &clusters()).expect_err("no target");
        assert_eq!(error.kind(), kind, "{dsn}: {error}");
        assert!(error.to_string().contains(words), "{dsn}: {error}");
    }

    #[test]
    fn a_cluster_is_found_by_name_by_its_hosts_or_by_default() {
        check("kafka:///orders", 0, "orders", None, None);
        check("kafka://d1/orders", 0, "orders", None, None);
        check("kafka://D1:9092/orders?", 0, "orders", None, None);
        check("kafka://orders/orders.done", 1, "orders.done", None, None);
        check("kafka+sasl+ssl://orders/orders.done", 1, "orders.done", None, None);
        check("kafka+sasl+ssl://b2:9093,b1/orders.done", 1, "orders.done", None, None);
        check("kafka://twin/a", 2, "a", None, None);
    }

    #[test]
    fn key_and_partition_are_taken() {
        check("kafka:///t?key=a%2Fb%20c&partition=7", 0, "t", Some("a/b c"), Some(7));
        check("kafka:///t?key=", 0, "t", Some(""), None);
    }

    #[test]
    fn what_is_not_registered_is_forbidden() {
        for authority in
            ["b1:9092", "b1:9092,b2:9093,b3:9092", "b1:9092,b2:9092", "unknown", "orders:9092", "d1,d1:9093"]
        {
            refused(&format!("kafka+sasl+ssl://{authority}/orders.done"), Forbidden, "registered clusters only");
        }
        let named_only = &clusters()[1..];
        let error = Target::of(&"kafka:///t".parse().expect("a DSN"), named_only).expect_err("no default");
        assert_eq!(error.kind(), Forbidden);
    }

    #[test]
    fn the_scheme_agrees_with_the_cluster() {
        refused("kafka+ssl:///t", Invalid, "`kafka`");
        refused("kafka+ssl://orders/orders.done", Invalid, "`kafka+sasl+ssl`");
        refused("kafka://b1:9092,b2:9093/orders.done", Invalid, "`kafka+sasl+ssl`");
        refused("kafka+ssl://t1/a", Invalid, "several clusters");
        refused("amqp://orders/t", UnknownScheme, "amqp");
    }

    #[test]
    fn a_dsn_has_no_credentials() {
        refused("kafka+sasl://user:secret@twin-2/t", Invalid, "the operator's");
    }

    #[test]
    fn unknown_parameters_are_named_beside_the_known_ones() {
        for name in ["acks", "plugin.library.paths", "bootstrap.servers", "ssl.ca.location", "Key", "topic"] {
            let words = format!("unknown parameter {name:?}; known are `key`, `partition`");
            refused(&format!("kafka:///t?key=1&{name}=planted"), Invalid, &words);
        }
        for partition in ["-1", "+1", "2147483648", "", "one"] {
            refused(&format!("kafka:///t?partition={partition}"), Invalid, "`partition` is not valid");
        }
        refused("kafka:///t?key=1&key=2", Invalid, "more than once");
    }

    #[test]
    fn a_topic_has_the_characters_of_kafka() {
        refused("kafka://orders", Invalid, "the topic is missing");
        refused("kafka:///", Invalid, "the topic is missing");
        let long = "x".repeat(250);
        for topic in [".", "..", "a/b", "a/", "a%20b", "a:b", "%C3%A4", "a*", "a%00", &long] {
            refused(&format!("kafka:///{topic}"), Invalid, "1 to 249 characters");
        }
        check(&format!("kafka:///{}", "x".repeat(249)), 0, &"x".repeat(249), None, None);
    }

    #[test]
    fn a_topic_that_is_not_open_is_forbidden() {
        refused("kafka://orders/payments", Forbidden, "`payments` is not open");
        refused("kafka://orders/orders", Forbidden, "not open");
        refused("kafka:///__consumer_offsets", Forbidden, "not open");
        check("kafka://twin/__internal", 2, "__internal", None, None);
    }

    #[test]
    fn kafka_s_own_topics_are_open_by_name_only() {
        for (pattern, topic, expected) in [
            ("orders.*", "orders.done", true),
            ("orders.*", "payments", false),
            ("__*", "__consumer_offsets", true),
            ("*", "__consumer_offsets", false),
            ("*", "_a", true),
        ] {
            assert_eq!(Topics::parse(pattern).expect("valid").contain(topic), expected, "{pattern} {topic}");
        }
        assert!(Topics::parse("").is_none() && Topics::parse("a?").is_none());
    }
}
