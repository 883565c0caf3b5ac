//! The name of a far end.

use super::{Dsn, DsnError, Family, HostPort, default_port, parse::Parts};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr, sync::Arc};
use url::Host;

/// Names a far end, and holds no secret: what metrics, spans, notices and queries show.
///
/// `scheme://host:port`, the scheme's default port filled in; several hosts are sorted. A single-label name of a
/// broker scheme without a port is the name of a registered cluster, and stays as it is. The address of a session is
/// a secret: 64 bits of its SHA-256 stand for it. What `Display` prints is read back.
///
/// ```
/// use callback_core::{Destination, Dsn};
///
/// let dsn: Dsn = "https://user:secret@api.example/orders?token=1".parse()?;
/// assert_eq!(dsn.destination().to_string(), "https://api.example:443");
/// assert_eq!("https://api.example".parse::<Destination>()?, dsn.destination());
///
/// let dsn: Dsn = "kafka://orders/completed".parse()?;
/// assert_eq!(dsn.destination().to_string(), "kafka://orders");
/// # Ok::<_, callback_core::DsnError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination(Arc<str>);

const DIGEST_MARK: &str = "session://#";
const DIGEST_BYTES: usize = 8;

impl Destination {
    pub(super) fn of(scheme: &str, address: &str, hosts: &[HostPort]) -> Self {
        let text = match Family::of(scheme) {
            Family::Session => {
                let digest = Sha256::digest(address);
                let hex: String = digest.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
                format!("{DIGEST_MARK}{hex}")
            }
            _ => {
                let mut ends: Vec<String> = hosts.iter().map(|host| far_end(scheme, host)).collect();
                ends.sort_unstable();
                ends.dedup();
                format!("{scheme}://{}", ends.join(","))
            }
        };
        Self(text.into())
    }

    /// The destination as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The scheme, lower case.
    #[must_use]
    pub fn scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(scheme, _)| scheme)
    }
}

/// One spelling a host, so that nobody gets a second lane by writing it otherwise.
fn far_end(scheme: &str, HostPort { host, port }: &HostPort) -> String {
    let broker = matches!(Family::of(scheme), Family::Amqp | Family::Kafka);
    let host = match host {
        Host::Domain(name) if broker && port.is_none() && !name.contains('.') => return name.clone(),
        Host::Domain(name) => Host::Domain(name.strip_suffix('.').unwrap_or(name).to_owned()),
        Host::Ipv6(address) => match address.to_ipv4_mapped() {
            Some(address) => Host::Ipv4(address),
            None => Host::Ipv6(*address),
        },
        Host::Ipv4(address) => Host::Ipv4(*address),
    };
    HostPort { host, port: port.or_else(|| default_port(scheme)) }.to_string()
}

impl FromStr for Destination {
    type Err = DsnError;

    fn from_str(text: &str) -> Result<Self, DsnError> {
        if let Some(digest) = text.strip_prefix(DIGEST_MARK) {
            let hex = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
            return if digest.len() == DIGEST_BYTES * 2 && digest.bytes().all(hex) {
                Ok(Self(text.into()))
            } else {
                Err(DsnError::invalid("a session's destination has 16 lower-case hexadecimal digits"))
            };
        }
        let dsn = Dsn(Arc::new(Parts::parse(text)?));
        if dsn.username().is_some() || !matches!(dsn.path(), "" | "/") || dsn.query().is_some() {
            return Err(DsnError::invalid("a destination is scheme, host and port only"));
        }
        Ok(dsn.destination())
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Destination({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(dsn: &str, expected: &str) {
        let destination = dsn.parse::<Dsn>().unwrap().destination();
        assert_eq!(destination.as_str(), expected);
        assert_eq!(expected.parse(), Ok(destination), "{expected} is not read back");
    }

    #[test]
    fn a_destination_is_scheme_host_and_port() {
        check("https://EXAMPLE.com/hook?token=secret", "https://example.com:443");
        check("https://user:secret@example.com.:8443", "https://example.com:8443");
        check("ws://[::1]/", "ws://[::1]:80");
        check("http://[::ffff:127.0.0.1]/", "http://127.0.0.1:80");
        check("http://2130706433/", "http://127.0.0.1:80");
        check("amqps://broker.example/vhost?queue=q", "amqps://broker.example:5671");
        check("kafka+ssl://b2.example:9093,b1.example/topic", "kafka+ssl://b1.example:9092,b2.example:9093");
        check("memory://results", "memory://results");
        check("file:///tmp/out", "file://");
    }

    #[test]
    fn a_registered_cluster_keeps_its_name() {
        check("kafka://orders/completed", "kafka://orders");
        check("kafka:///completed", "kafka://");
        check("amqp://main/%2F?queue=q", "amqp://main");
        check("amqp://main:5673/", "amqp://main:5673");
    }

    #[test]
    fn the_address_of_a_session_is_hashed() {
        check("session://kR3mZ0wq", "session://#3fa2b5509474c1ce");
    }

    #[test]
    fn a_destination_is_nothing_more_than_that() {
        for text in ["https://user@example.com", "https://example.com/a", "https://example.com?a", "session://#12", ""]
        {
            assert!(text.parse::<Destination>().is_err(), "{text:?}");
        }
    }
}
