//! Who may send where.

mod address;
#[cfg(feature = "net")]
mod net;
mod port;
mod rule;

#[cfg(feature = "net")]
pub use net::Resolver;
pub use rule::{Rule, RuleError};

use crate::dsn::{Dsn, DsnError, Family, HostPort, default_port};
use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};
use url::Host;

/// Decides which destinations a client may name.
///
/// A Dsn that a client supplies is hostile until a policy has passed it. A sink that dials asks twice: [`judge`] before
/// the Dsn is acknowledged, and at connect, on the very address that is dialled ([`judge_address`], or `connect` of
/// the feature `net`, which asks by itself). What the first cannot know, such as what a name resolves to, the second
/// decides.
///
/// | | by default | opened by | closed by |
/// |---|---|---|---|
/// | `https` `wss` `session` | open | scheme | scheme |
/// | `http` `ws` | closed | scheme; or, for what it names, host or address | scheme |
/// | `amqp` `amqps` | closed: only registered clusters | scheme | scheme |
/// | `kafka…` | closed: only registered clusters | nothing: its client dials whom the broker names | |
/// | `memory` and custom schemes | open: the sink's own business | | scheme |
/// | host names | open | | host |
/// | public addresses | open | | address |
/// | all other addresses | closed | address | address |
/// | ports | open, but those of other services for `http` and `ws` | port | port |
///
/// Each row of what a Dsn names must be open. Deny wins over allow. A rule for a host opens plain `http` to it, and not
/// the private addresses to which it may resolve: those are opened by address alone, since whoever runs the DNS of a
/// host decides on them. The cloud metadata addresses are opened only by a rule that names exactly one of them.
///
/// Not public is what the IANA registries of special-purpose addresses (RFC 6890) call not globally reachable, and
/// multicast, cloud metadata, 6to4, Teredo, and IPv4-compatible addresses. An IPv4 address inside IPv6
/// (`::ffff:0:0/96`, `64:ff9b::/96`) is judged as itself. The ports of other services are the "bad ports" of the Fetch
/// standard, and those of common databases.
///
/// ```
/// use callback_core::{Dsn, Policy, Rule};
///
/// let policy = Policy::default()
///     .allow("*.partner.example".parse()?)
///     .allow("10.0.0.0/8".parse()?)
///     .deny(":8443".parse()?);
/// let judge = |dsn: &str| policy.judge(&dsn.parse::<Dsn>().unwrap()).map_err(|error| error.to_string());
///
/// assert_eq!(judge("https://example.com/"), Ok(()));
/// assert_eq!(judge("http://a.partner.example/"), Ok(()));
/// assert_eq!(judge("http://10.1.2.3/"), Ok(()));
/// assert_eq!(judge("https://192.168.0.1/"), Err("private addresses are not open".to_owned()));
/// assert_eq!(judge("https://example.com:8443/"), Err("port 8443 is closed by a rule".to_owned()));
///
/// let for_tests = Policy::default().allow(Rule::loopback());
/// assert!(for_tests.judge(&"ws://localhost:8080/".parse()?).is_ok());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// [`judge`]: Self::judge
/// [`judge_address`]: Self::judge_address
#[derive(Clone, Debug)]
#[must_use = "a policy guards nothing until a sink has it"]
pub struct Policy {
    allow: Arc<Vec<Rule>>,
    deny: Arc<Vec<Rule>>,
    #[cfg(feature = "net")]
    resolver: Arc<dyn Resolver>,
}

/// `https`, `wss` and `session`, to public addresses.
impl Default for Policy {
    fn default() -> Self {
        ["https", "wss", "session"].into_iter().map(Rule::scheme).fold(Self::closed(), Self::allow)
    }
}

impl Policy {
    /// A policy with every scheme that it judges closed: a list of what is open follows.
    ///
    /// A rule for a host or an address opens all of `http`, `https`, `ws` and `wss` to what it names.
    ///
    /// ```
    /// use callback_core::Policy;
    ///
    /// let policy = Policy::closed().allow("*.partner.example".parse()?);
    /// assert!(policy.judge(&"https://hooks.partner.example/".parse()?).is_ok());
    /// assert!(policy.judge(&"https://example.com/".parse()?).is_err());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn closed() -> Self {
        Self {
            allow: Arc::default(),
            deny: Arc::default(),
            #[cfg(feature = "net")]
            resolver: Arc::new(net::SystemResolver),
        }
    }

    /// Opens what the rule names.
    pub fn allow(mut self, rule: Rule) -> Self {
        Arc::make_mut(&mut self.allow).push(rule);
        self
    }

    /// Closes what the rule names, whatever else allows it.
    pub fn deny(mut self, rule: Rule) -> Self {
        Arc::make_mut(&mut self.deny).push(rule);
        self
    }

    /// Judges what can be known without I/O: scheme, ports, hosts, and hosts that are addresses.
    ///
    /// A name over plain `http` passes where a rule opens addresses: it may resolve to one of them.
    ///
    /// # Errors
    /// Says what is not open.
    pub fn judge(&self, dsn: &Dsn) -> Result<(), Forbidden> {
        let scheme = dsn.scheme();
        self.judge_scheme(scheme)?;
        if Family::of(scheme) == Family::Memory {
            return Ok(());
        }
        dsn.hosts().iter().try_for_each(|HostPort { host, port }| {
            self.judge_port(scheme, *port)?;
            match host {
                Host::Ipv4(address) => self.judge_address(scheme, host, (*address).into()),
                Host::Ipv6(address) => self.judge_address(scheme, host, (*address).into()),
                // RFC 6761 §6.3: these names mean loopback, and are judged as such before anybody resolves them.
                Host::Domain(name) if is_localhost(name) => {
                    self.judge_address(scheme, host, Ipv4Addr::LOCALHOST.into()).or_else(|forbidden| {
                        self.judge_address(scheme, host, Ipv6Addr::LOCALHOST.into()).or(Err(forbidden))
                    })
                }
                Host::Domain(_) => self.judge_host(scheme, host, None),
            }
        })
    }

    /// Judges one address that is about to be dialled for a host of a Dsn of this scheme.
    ///
    /// A host is refused as a whole if any of the addresses to which it resolves is. Ports are judged by
    /// [`judge`](Self::judge) alone: nothing changes them later.
    ///
    /// # Errors
    /// Says what is not open.
    pub fn judge_address(&self, scheme: &str, host: &Host, address: IpAddr) -> Result<(), Forbidden> {
        self.judge_scheme(scheme)?;
        if self.deny.iter().any(|rule| rule.covers(address)) {
            return Err(Forbidden::new("the address is closed by a rule"));
        }
        match address::class(address) {
            Some(class) if !self.allow.iter().any(|rule| rule.opens(address)) => {
                Err(Forbidden::new(format!("{class} addresses are not open")))
            }
            _ => self.judge_host(scheme, host, Some(address)),
        }
    }

    fn judge_scheme(&self, scheme: &str) -> Result<(), Forbidden> {
        if self.deny.iter().any(|rule| rule.is_scheme(scheme)) {
            return Err(Forbidden::new(format!("the scheme `{scheme}` is closed by a rule")));
        }
        match Family::of(scheme) {
            Family::Session if !self.opens_scheme(scheme) => Err(Forbidden::new("the scheme `session` is not open")),
            Family::Amqp if !self.opens_scheme(scheme) => {
                Err(Forbidden::new("amqp is open to registered clusters only"))
            }
            Family::Kafka => Err(Forbidden::new("kafka is open to registered clusters only")),
            _ => Ok(()),
        }
    }

    fn opens_scheme(&self, scheme: &str) -> bool {
        self.allow.iter().any(|rule| rule.is_scheme(scheme))
    }

    fn judge_port(&self, scheme: &str, port: Option<u16>) -> Result<(), Forbidden> {
        let Some(port) = port.or_else(|| default_port(scheme)) else { return Ok(()) };
        if self.deny.iter().any(|rule| rule.is_port(port)) {
            return Err(Forbidden::new(format!("port {port} is closed by a rule")));
        }
        let foreign = Family::of(scheme) == Family::Web && port::is_of_another_service(port);
        if foreign && !self.allow.iter().any(|rule| rule.is_port(port)) {
            return Err(Forbidden::new(format!("port {port} belongs to another service and is not open")));
        }
        Ok(())
    }

    /// Judges the host itself; `None` for an address that is not known yet.
    fn judge_host(&self, scheme: &str, host: &Host, address: Option<IpAddr>) -> Result<(), Forbidden> {
        if self.deny.iter().any(|rule| rule.names(host)) {
            return Err(Forbidden::new("the host is closed by a rule"));
        }
        let named = |rule: &Rule| {
            rule.is_scheme(scheme)
                || rule.names(host)
                || address.map_or_else(|| rule.is_address(), |address| rule.opens(address))
        };
        match Family::of(scheme) {
            Family::Web if !self.allow.iter().any(named) => {
                let plain = if matches!(scheme, "http" | "ws") { "plain " } else { "" };
                Err(Forbidden::new(format!("{plain}{scheme} is not open to this host")))
            }
            _ => Ok(()),
        }
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

/// A destination that the policy does not open. Says which rule, and holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Forbidden {
    reason: Cow<'static, str>,
}

impl Forbidden {
    fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: reason.into() }
    }
}

impl From<Forbidden> for DsnError {
    fn from(forbidden: Forbidden) -> Self {
        Self::forbidden(forbidden.reason)
    }
}

#[cfg(test)]
mod tests;
