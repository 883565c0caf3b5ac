//! How a sink is set up.

use crate::{AmqpSink, address, dial::Endpoint, sink::Cluster, tls};
use callback_core::{BoxError, Dsn, Pattern, Policy};
use std::{collections::HashMap, fmt, sync::Arc};

/// Builds an [`AmqpSink`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct AmqpSinkBuilder {
    default_cluster: Option<AmqpCluster>,
    clusters: Vec<(String, AmqpCluster)>,
    unregistered: Option<Policy>,
}

impl AmqpSinkBuilder {
    /// Sets the cluster of a Dsn that names none: `amqp:///?queue=…`.
    pub fn default_cluster(mut self, cluster: AmqpCluster) -> Self {
        self.default_cluster = Some(cluster);
        self
    }

    /// Registers a cluster: `amqp://NAME/?queue=…`.
    ///
    /// A name is as [`Dsn::is_cluster_name`] says: 1 to 63 of `a-z 0-9 _ -`.
    pub fn cluster(mut self, name: impl Into<String>, cluster: AmqpCluster) -> Self {
        self.clusters.push((name.into(), cluster));
        self
    }

    /// Delivers to brokers that a client names by host, too, where this policy opens them. Default: to none.
    ///
    /// A rule for the scheme opens it (`"amqps:".parse()?`). Such a Dsn holds user and password of its own, and names any
    /// vhost, exchange and queue; the address that is dialled is the one that the policy judged.
    pub fn unregistered(mut self, policy: Policy) -> Self {
        self.unregistered = Some(policy);
        self
    }

    /// Makes the sink. Does no I/O but reading the system's certificates, where a cluster needs them.
    ///
    /// # Errors
    /// When there is neither a cluster nor a policy. Otherwise it says which cluster cannot be used, and why.
    pub fn build(self) -> Result<AmqpSink, AmqpSinkError> {
        if self.default_cluster.is_none() && self.clusters.is_empty() && self.unregistered.is_none() {
            return Err(AmqpSinkError::Nowhere);
        }
        let mut clusters = HashMap::new();
        if let Some((name, _)) = self.clusters.iter().find(|(name, _)| !Dsn::is_cluster_name(name)) {
            return Err(AmqpSinkError::Name { name: name.clone() });
        }
        let default = self.default_cluster.map(|cluster| (String::new(), cluster));
        for (name, cluster) in default.into_iter().chain(self.clusters) {
            let cluster = cluster.build().map_err(|source| AmqpSinkError::Cluster { name: name.clone(), source })?;
            if clusters.insert(name.clone(), cluster).is_some() {
                return Err(AmqpSinkError::Twice { name });
            }
        }
        let unregistered = self.unregistered.map(|policy| Ok((policy, tls::config(None, None)?))).transpose();
        Ok(AmqpSink::with(clusters, unregistered.map_err(AmqpSinkError::Roots)?))
    }
}

/// A RabbitMQ cluster that the operator registers, and what of it a Dsn may name.
///
/// By default a Dsn may name **nothing**: each [`queue`](Self::queue) and [`exchange`](Self::exchange) is opened, and of
/// the vhosts the one in the cluster's own URL is open. What is opened is a [`Pattern`]: `*` stands for any characters.
///
/// ```
/// use callback_amqp::{AmqpCluster, AmqpSink};
///
/// let orders = AmqpCluster::new("amqps://shop:secret@broker.example/orders".parse()?)
///     .queue("results.*")
///     .exchange("results");
/// let sink = AmqpSink::builder().default_cluster(orders).build()?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct AmqpCluster {
    dsn: Dsn,
    client_certificate: Option<(Vec<u8>, Vec<u8>)>,
    root_certificates: Option<Vec<u8>>,
    vhosts: Vec<Pattern>,
    exchanges: Vec<Pattern>,
    queues: Vec<Pattern>,
    declare_queues: bool,
}

impl AmqpCluster {
    /// The cluster at this URL: `amqps://user:password@host:port/vhost`, without a query.
    ///
    /// The port is 5671 or, without TLS, 5672 by default; the vhost `/`. The host may have any address: it is the
    /// operator's. Without user and password, a client certificate logs in (SASL EXTERNAL).
    pub const fn new(dsn: Dsn) -> Self {
        Self {
            dsn,
            client_certificate: None,
            root_certificates: None,
            vhosts: Vec::new(),
            exchanges: Vec::new(),
            queues: Vec::new(),
            declare_queues: false,
        }
    }

    /// Shows this certificate chain and its key, in PEM, to the broker.
    pub fn client_certificate(mut self, chain: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.client_certificate = Some((chain.into(), key.into()));
        self
    }

    /// Trusts these certificates, in PEM, instead of the system's.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// Opens the vhosts of this pattern, beside the one in the cluster's URL.
    pub fn vhost(mut self, pattern: impl Into<String>) -> Self {
        self.vhosts.push(Pattern::new(pattern));
        self
    }

    /// Opens the exchanges of this pattern, with any routing key.
    pub fn exchange(mut self, pattern: impl Into<String>) -> Self {
        self.exchanges.push(Pattern::new(pattern));
        self
    }

    /// Opens the queues of this pattern.
    pub fn queue(mut self, pattern: impl Into<String>) -> Self {
        self.queues.push(Pattern::new(pattern));
        self
    }

    /// Declares a queue that a Dsn names and that does not exist: durable, otherwise as the broker makes queues.
    ///
    /// Default: nothing is declared, and a message to such a queue is `Unroutable`.
    pub const fn declare_queues(mut self) -> Self {
        self.declare_queues = true;
        self
    }

    /// Where the cluster is, and its own vhost.
    pub(crate) fn endpoint(&self) -> Result<(Endpoint, String), BoxError> {
        let vhost = address::vhost(&self.dsn)?.unwrap_or_else(|| "/".to_owned());
        self.dsn.params().finish()?;
        let certificate = self.client_certificate.as_ref().map(|(chain, key)| (&**chain, &**key));
        let tls = match self.dsn.scheme() {
            "amqps" => Some(tls::config(self.root_certificates.as_deref(), certificate)?),
            "amqp" if certificate.is_none() && self.root_certificates.is_none() => None,
            "amqp" => return Err("certificates are for `amqps`".into()),
            _ => return Err("the scheme of a cluster is `amqp` or `amqps`".into()),
        };
        Ok((Endpoint::registered(&self.dsn, tls, certificate.is_some())?, vhost))
    }

    fn build(self) -> Result<Cluster, BoxError> {
        let (endpoint, vhost) = self.endpoint()?;
        Ok(Cluster {
            endpoint: Arc::new(endpoint),
            vhost,
            vhosts: self.vhosts,
            exchanges: self.exchanges,
            queues: self.queues,
            declare_queues: self.declare_queues,
        })
    }
}

impl fmt::Debug for AmqpCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpCluster")
            .field("dsn", &self.dsn)
            .field("vhosts", &self.vhosts)
            .field("exchanges", &self.exchanges)
            .field("queues", &self.queues)
            .field("declare_queues", &self.declare_queues)
            .finish_non_exhaustive()
    }
}

/// Why a sink could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AmqpSinkError {
    /// A cluster cannot be used.
    #[error("the cluster `{name}` cannot be used")]
    Cluster {
        /// Its name; empty for the default cluster.
        name: String,
        /// What is wrong with it.
        source: BoxError,
    },
    /// No Dsn could name such a cluster.
    #[error("`{name}` is no name of a cluster: 1 to 63 of a-z 0-9 _ -, and no number")]
    Name {
        /// The name.
        name: String,
    },
    /// There is neither a cluster nor a policy: no Dsn could be delivered to.
    #[error("a sink needs a cluster, or a policy for brokers that clients name")]
    Nowhere,
    /// There are no usable root certificates: install `ca-certificates`, or give your own.
    #[error("no usable root certificates: install ca-certificates, or give your own")]
    Roots(#[source] BoxError),
    /// Two clusters have one name.
    #[error("the cluster `{name}` is registered twice")]
    Twice {
        /// The name.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(dsn: &str) -> AmqpCluster {
        AmqpCluster::new(dsn.parse().expect(dsn))
    }

    #[track_caller]
    fn refused(builder: AmqpSinkBuilder, reason: &str) {
        let error = builder.build().expect_err("it cannot be used");
        let text =
            format!("{error}: {}", std::error::Error::source(&error).map_or_else(String::new, ToString::to_string));
        assert!(text.contains(reason), "{text}");
    }

    #[test]
    fn a_cluster_that_cannot_be_used_is_named() {
        let with = |dsn: &str| AmqpSink::builder().cluster("orders", cluster(dsn));
        refused(with("https://a:b@broker.example/"), "`amqp` or `amqps`");
        refused(with("amqp://broker.example/"), "user and password");
        refused(with("amqp://a@broker.example/"), "user and password");
        refused(with("amqp:///orders"), "the host is missing");
        refused(with("amqp://a:b@broker.example/x/y"), "`%2F`");
        refused(with("amqp://a:b@broker.example/?heartbeat=1"), "unknown parameter \"heartbeat\"");
        refused(with("amqp://a:b@broker.example/?heartbeat=1"), "`orders`");
        refused(
            AmqpSink::builder().default_cluster(cluster("amqp://a:b@broker.example").root_certificates("")),
            "certificates are for `amqps`",
        );
        refused(
            AmqpSink::builder().default_cluster(cluster("amqps://a:b@broker.example").root_certificates("none")),
            "no certificate",
        );
    }

    #[test]
    fn a_sink_that_delivers_nowhere_is_none() {
        refused(AmqpSink::builder(), "needs a cluster");
    }

    #[test]
    fn a_name_is_one_that_no_host_can_have() {
        let with = |name: &str| AmqpSink::builder().cluster(name, cluster("amqp://a:b@broker.example/"));
        for name in ["", "a.b", "7"] {
            refused(with(name), "is no name of a cluster");
        }
        refused(with("a").cluster("a", cluster("amqp://a:b@broker.example/")), "registered twice");
        assert!(with("orders-2_eu").build().is_ok());
    }

    #[test]
    fn debug_hides_what_is_secret() {
        let cluster = cluster("amqps://planted:planted@broker.example/orders").client_certificate("planted", "planted");
        let builder = AmqpSink::builder().default_cluster(cluster.clone()).cluster("a", cluster);
        let text = format!("{builder:?}");
        assert!(!text.contains("planted") && text.contains("broker.example"), "{text}");
    }
}
