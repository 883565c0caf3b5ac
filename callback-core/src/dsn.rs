//! Where a result is to be sent.

mod destination;
mod error;
mod host;
mod params;
mod parse;
mod percent;
mod scheme;

pub use destination::Destination;
pub use error::{DsnError, DsnErrorKind};
pub use host::HostPort;
pub use params::Params;

pub(crate) use host::parse_host;
pub(crate) use scheme::{Family, default_port, is_scheme};

use parse::Parts;
use serde::{Deserialize, Deserializer, de};
use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};
use url::{Host, Url};

/// Where a result is to be sent: `https://…`, `wss://…`, `amqp://…`, `kafka://…`, or a custom scheme.
///
/// A `Dsn` is `scheme://[user[:password]@]host[:port][,…]/path[?query]`, at most [`MAX_LEN`](Self::MAX_LEN) bytes of
/// visible ASCII; only a host may be written in other letters (IDNA), and everything else is percent-encoded. It has
/// no fragment, no backslash, and no second `@`: what two parsers would read differently is an error here.
///
/// | scheme | authority | path and query |
/// |---|---|---|
/// | `http` `https` `ws` `wss` | one host, as WHATWG URL reads it | the receiver's |
/// | `session` | an address: 1 to 128 of `A-Z a-z 0-9 _ -` | none |
/// | `kafka` `kafka+ssl` `kafka+sasl` `kafka+sasl+ssl` | any number of hosts | the sink's |
/// | `amqp` `amqps` `memory` and custom | a host, or none | the sink's |
///
/// A host of *any* scheme that spells an IPv4 address (`127.1`, `0x7f000001`, `2130706433`) is that address.
///
/// Two are equal when their texts are, apart from the case of the scheme. `Display` and `Debug` mask user, password,
/// every query value and the address of a session; there is no `Serialize`. [`expose`](Self::expose) is the full text.
///
/// ```
/// use callback_core::Dsn;
///
/// let dsn: Dsn = "amqps://guest:secret@broker.example/orders?queue=done".parse()?;
/// assert_eq!(dsn.scheme(), "amqps");
/// assert_eq!(dsn.hosts()[0].to_string(), "broker.example");
/// assert_eq!((dsn.username(), dsn.password()), (Some("guest"), Some("secret")));
/// assert_eq!(dsn.path(), "/orders");
/// assert_eq!(dsn.to_string(), "amqps://***:***@broker.example/orders?queue=***");
///
/// let mut params = dsn.params();
/// assert_eq!(params.require::<String>("queue")?, "done");
/// params.finish()?;
/// # Ok::<_, callback_core::DsnError>(())
/// ```
#[derive(Clone)]
pub struct Dsn(Arc<Parts>);

impl Dsn {
    /// The length in bytes that a Dsn may have: 2,048.
    pub const MAX_LEN: usize = 2048;

    /// The scheme, lower case.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.0.text[..self.0.scheme_end]
    }

    /// What stands between user and path, as written: host list, name, or session address.
    ///
    /// This is the secret of a `session:` Dsn.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.0.text[self.0.host_start..self.0.path_start]
    }

    /// The hosts in the order given: one for `http` and `ws`, none for `session` and an empty authority.
    ///
    /// Names are lower case and in their ASCII form.
    #[must_use]
    pub fn hosts(&self) -> &[HostPort] {
        &self.0.hosts
    }

    /// The user name, percent-decoded; it is empty in `https://:token@host`.
    ///
    /// It holds no control character, and for `http` and `ws` no colon, so that it fits into Basic (RFC 7617).
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        self.0.username.as_deref()
    }

    /// The password, percent-decoded, without control characters.
    #[must_use]
    pub fn password(&self) -> Option<&str> {
        self.0.password.as_deref()
    }

    /// The path as written, percent-encoded: empty, or beginning with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.0.text[self.0.path_start..self.0.path_end]
    }

    /// The path, percent-decoded.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn decoded_path(&self) -> Result<Cow<'_, str>, DsnError> {
        percent::decode(self.path()).ok_or_else(|| DsnError::invalid("the path is not UTF-8"))
    }

    /// The query as written, percent-encoded, without its `?`.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.0.text.get(self.0.path_end + 1..).filter(|_| self.0.path_end < self.0.text.len())
    }

    /// The query parameters, to be taken one by one.
    pub fn params(&self) -> Params<'_> {
        Params::new(self.query().unwrap_or_default())
    }

    /// The far end, without any secret: for metrics, spans, notices and queries.
    #[must_use]
    pub fn destination(&self) -> Destination {
        self.0.destination.clone()
    }

    /// The full text, secrets included; only the scheme's case is not as the user gave it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0.text
    }

    /// Whether an operator may register a cluster by this name, for Dsns such as `amqp://orders/?queue=done`.
    ///
    /// It has 1 to 63 of `a-z 0-9 _ -` and spells no address, so a Dsn holds it as it is; no name in DNS that has a dot
    /// is meant by it.
    ///
    /// ```
    /// use callback_core::Dsn;
    ///
    /// assert!(Dsn::is_cluster_name("orders-2"));
    /// assert!(!Dsn::is_cluster_name("orders.example") && !Dsn::is_cluster_name("0x7f"));
    /// ```
    #[must_use]
    pub fn is_cluster_name(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        name.bytes().all(allowed) && matches!(parse_host(name), Ok(Host::Domain(host)) if host == name)
    }

    /// The parsed URL of an `http`, `https`, `ws` or `wss` Dsn, **without** user and password.
    ///
    /// Those are [`username`](Self::username) and [`password`](Self::password), for an `authorization` header.
    #[must_use]
    pub fn url(&self) -> Option<&Url> {
        self.0.url.as_ref()
    }
}

impl FromStr for Dsn {
    type Err = DsnError;

    fn from_str(text: &str) -> Result<Self, DsnError> {
        if text.len() > Self::MAX_LEN {
            return Err(DsnError::invalid(format!("the DSN has more than {} bytes", Self::MAX_LEN)));
        }
        Parts::parse(text).map(|parts| Self(Arc::new(parts)))
    }
}

impl<'de> Deserialize<'de> for Dsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl PartialEq for Dsn {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Dsn {}

impl Hash for Dsn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

/// The text with `***` for user, password, query values and the address of a session.
impl fmt::Display for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme())?;
        match (self.username(), self.password()) {
            (None, _) => {}
            (Some(_), None) => f.write_str("***@")?,
            (Some(_), Some(_)) => f.write_str("***:***@")?,
        }
        match Family::of(self.scheme()) {
            Family::Session => f.write_str("***")?,
            _ => host::write_list(f, self.hosts())?,
        }
        f.write_str(self.path())?;
        for (index, parameter) in self.query().into_iter().flat_map(|query| query.split('&')).enumerate() {
            f.write_str(if index == 0 { "?" } else { "&" })?;
            match parameter.split_once('=') {
                Some((name, _)) => write!(f, "{name}=***")?,
                None if parameter.is_empty() => {}
                None => f.write_str("***")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dsn({self})")
    }
}

#[cfg(test)]
mod tests;
