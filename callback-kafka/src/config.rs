//! How a sink is set up.

use crate::{KafkaCluster, KafkaSink, producer::Producer, target::Registered};
use callback_core::{Dsn, DsnError};
use std::fmt;

/// Builds a [`KafkaSink`].
#[derive(Clone, Default)]
#[must_use]
pub struct KafkaSinkBuilder {
    default: Option<KafkaCluster>,
    named: Vec<(String, KafkaCluster)>,
}

impl KafkaSinkBuilder {
    /// Registers the cluster of `kafka:///topic`.
    pub fn default_cluster(mut self, cluster: KafkaCluster) -> Self {
        self.default = Some(cluster);
        self
    }

    /// Registers the cluster of `kafka://name/topic`.
    ///
    /// A name is as [`Dsn::is_cluster_name`] says: 1 to 63 of `a-z 0-9 _ -`.
    pub fn cluster(mut self, name: impl Into<String>, cluster: KafkaCluster) -> Self {
        self.named.push((name.into(), cluster));
        self
    }

    /// Makes the sink. Does no I/O: a cluster is connected to when the first message is sent to it.
    ///
    /// # Errors
    /// When there is no cluster, a name is none or given twice, or a cluster is set up wrongly.
    pub fn build(self) -> Result<KafkaSink, KafkaSinkError> {
        let default = self.default.map(|cluster| (None, cluster));
        let named = self.named.into_iter().map(|(name, cluster)| (Some(name), cluster));
        let (mut registered, mut producers): (Vec<Registered>, Vec<Producer>) = Default::default();
        for (name, cluster) in default.into_iter().chain(named) {
            if let Some(name) = &name {
                if !Dsn::is_cluster_name(name) {
                    return Err(KafkaSinkError::no_name(name.clone()));
                }
                if registered.iter().any(|other| other.name() == Some(name)) {
                    return Err(KafkaSinkError::Name { name: name.clone(), reason: "is given to two clusters" });
                }
            }
            registered.push(cluster.registered(name)?);
            producers.push(Producer::new(cluster));
        }
        if registered.is_empty() {
            return Err(KafkaSinkError::NoCluster);
        }
        Ok(KafkaSink::with(registered, producers))
    }
}

impl fmt::Debug for KafkaSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSinkBuilder").field("default", &self.default).field("named", &self.named).finish()
    }
}

/// Why a sink could not be made. Prints names, and no value of a setting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaSinkError {
    /// Nothing is registered.
    #[error("no cluster is registered")]
    NoCluster,
    /// The name of a cluster cannot be used.
    #[error("`{name}` {reason}")]
    #[non_exhaustive]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The brokers are no list of hosts.
    #[error("the brokers of {cluster} are no list of `host:port`")]
    #[non_exhaustive]
    Brokers {
        /// Which cluster.
        cluster: String,
        /// What is wrong with them.
        source: DsnError,
    },
    /// A cluster is set up wrongly.
    #[error("{cluster} {reason}")]
    #[non_exhaustive]
    Cluster {
        /// Which cluster.
        cluster: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting of librdkafka cannot be used.
    #[error("the setting `{name}` of {cluster} {reason}")]
    #[non_exhaustive]
    Setting {
        /// Which cluster.
        cluster: String,
        /// The setting.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl KafkaSinkError {
    pub(crate) const fn no_name(name: String) -> Self {
        Self::Name { name, reason: "is no name of a cluster: 1 to 63 of a-z 0-9 _ -, and no number" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> KafkaCluster {
        KafkaCluster::new("b1:9092,b2").topic("*")
    }

    #[track_caller]
    fn refused(builder: KafkaSinkBuilder, words: &str) {
        let error = builder.build().expect_err("it cannot be built").to_string();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn a_cluster_is_there_and_has_a_name_of_its_own() {
        refused(KafkaSinkBuilder::default(), "no cluster is registered");
        refused(KafkaSink::builder().cluster("a", plain()).cluster("a", plain()), "`a` is given to two clusters");
        for name in ["", "a.b", "127"] {
            refused(KafkaSink::builder().cluster(name, plain()), "is no name of a cluster");
        }
        let builder = KafkaSink::builder().default_cluster(plain()).cluster("orders-2_b", plain());
        builder.build().expect("both names can be used");
    }

    #[test]
    fn no_error_and_no_debug_prints_a_secret() {
        let cluster = plain().ssl().scram_sha_512("planted-user", "planted-password");
        let cluster = cluster.client_certificate("planted-certificate", "planted-key");
        let good =
            KafkaSink::builder().cluster("orders", cluster.clone().setting("ssl.key.password", "planted-phrase"));
        let text = format!("{good:?} {:?}", good.clone().build().expect("valid"));
        assert!(!text.contains("planted"), "{text}");
        for (name, value) in [("linger.ms", "planted"), ("planted.name", "planted-value"), ("acks", "planted")] {
            let builder = KafkaSink::builder().cluster("orders", cluster.clone().setting(name, value));
            let error = builder.build().expect_err("the setting cannot be used");
            let text = format!("{error} {error:?}").replace("planted.name", "");
            assert!(!text.contains("planted"), "{text}");
        }
    }
}
