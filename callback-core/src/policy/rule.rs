//! What an operator opens or closes.

use super::address;
use crate::dsn::{Family, is_scheme, parse_host};
use ipnet::{IpNet, Ipv4Net};
use std::{fmt, net::IpAddr, str::FromStr};
use url::Host;

/// One thing that a [`Policy`](crate::Policy) opens or closes.
///
/// | text | names |
/// |---|---|
/// | `10.0.0.0/8`, `2001:db8::/32` | the addresses of a network, also where they stand inside IPv6 |
/// | `10.0.0.1`, `fd00::1` | one address |
/// | `loopback` | `127.0.0.0/8` and `::1` |
/// | `example.com` | one host name |
/// | `*.example.com` | every name below, at any depth, but not `example.com` itself |
/// | `:8443` | a port |
/// | `http:` | a scheme |
///
/// `Display` writes what is read back.
///
/// ```
/// use callback_core::Rule;
///
/// assert_eq!("*.Example.COM".parse::<Rule>()?.to_string(), "*.example.com");
///
/// let error = "10.1.0.0/8".parse::<Rule>().unwrap_err();
/// assert_eq!(error.to_string(), "`10.1.0.0/8` reaches beyond its prefix: `10.0.0.0/8`?");
/// # Ok::<_, callback_core::RuleError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Net(IpNet),
    Loopback,
    Host(Box<str>),
    /// The suffix with its leading dot.
    Below(Box<str>),
    Port(u16),
    Scheme(Box<str>),
}

impl Rule {
    /// `127.0.0.0/8` and `::1`: for tests and demos.
    #[must_use]
    pub const fn loopback() -> Self {
        Self(Kind::Loopback)
    }

    pub(super) fn scheme(scheme: &str) -> Self {
        Self(Kind::Scheme(scheme.into()))
    }

    pub(super) fn is_scheme(&self, scheme: &str) -> bool {
        matches!(&self.0, Kind::Scheme(ours) if **ours == *scheme)
    }

    pub(super) fn is_port(&self, port: u16) -> bool {
        self.0 == Kind::Port(port)
    }

    pub(super) fn is_address(&self) -> bool {
        matches!(self.0, Kind::Net(_) | Kind::Loopback)
    }

    pub(super) fn names(&self, host: &Host) -> bool {
        let Host::Domain(name) = host else { return false };
        let name = name.strip_suffix('.').unwrap_or(name);
        match &self.0 {
            Kind::Host(ours) => name.eq_ignore_ascii_case(ours),
            Kind::Below(suffix) => name
                .len()
                .checked_sub(suffix.len())
                .filter(|&start| start > 0)
                .and_then(|start| name.get(start..))
                .is_some_and(|end| end.eq_ignore_ascii_case(suffix)),
            _ => false,
        }
    }

    /// Whether the rule names the address, as it is written or as the address that it leads to.
    pub(super) fn covers(&self, address: IpAddr) -> bool {
        let canonical = address::canonical(address);
        match &self.0 {
            Kind::Net(net) => net.contains(&canonical) || net.contains(&address),
            Kind::Loopback => canonical.is_loopback(),
            _ => false,
        }
    }

    /// Whether the rule, as one that allows, opens the address: nothing wider than itself opens a metadata address.
    ///
    /// A rule for IPv4 opens the v4-mapped spelling too, but not the way there through a NAT64 gateway: that is another
    /// machine.
    pub(super) fn opens(&self, address: IpAddr) -> bool {
        let exact = matches!(&self.0, Kind::Net(net) if net.prefix_len() == net.max_prefix_len());
        let dialled = address.to_canonical();
        let names = match &self.0 {
            Kind::Net(net) => net.contains(&dialled) || net.contains(&address),
            Kind::Loopback => dialled.is_loopback(),
            _ => false,
        };
        names && (exact || !address::is_metadata(address))
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text == "loopback" {
            return Ok(Self::loopback());
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(Kind::Net(address.to_canonical().into())));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(RuleError(format!("`{text}` says more than one thing: `{scheme}:` or `{rest}`?")));
        }
        if text.contains('/') {
            return parse_net(text).map(|net| Self(Kind::Net(net)));
        }
        if let Some(port) = text.strip_prefix(':') {
            return parse_port(port).map(|port| Self(Kind::Port(port)));
        }
        if let Some(scheme) = text.strip_suffix(':').filter(|scheme| is_scheme(scheme)) {
            return Ok(Self::scheme(&scheme.to_ascii_lowercase()));
        }
        if let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.starts_with('[')) {
            return Err(RuleError(format!("`{text}` says more than one thing: `{host}` or `:{port}`?")));
        }
        if Family::of(text) != Family::Custom {
            return Err(RuleError(format!("a scheme ends in a colon: `{text}:`")));
        }
        match text.strip_prefix("*.") {
            Some(suffix) => Ok(Self(Kind::Below(format!(".{}", parse_name(suffix)?).into()))),
            None => parse_name(text).map(|name| Self(Kind::Host(name.into()))),
        }
    }
}

fn parse_net(text: &str) -> Result<IpNet, RuleError> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(RuleError(format!("`{text}` is no network; one is written `10.0.0.0/8` or `2001:db8::/32`")));
    };
    if net.trunc() != net {
        return Err(RuleError(format!("`{text}` reaches beyond its prefix: `{}`?", net.trunc())));
    }
    // A network of IPv4-mapped addresses names the IPv4 addresses themselves.
    match net {
        IpNet::V6(mapped) if mapped.prefix_len() >= 96 => match mapped.addr().to_ipv4_mapped() {
            Some(address) => Ok(Ipv4Net::new_assert(address, mapped.prefix_len() - 96).into()),
            None => Ok(net),
        },
        _ => Ok(net),
    }
}

fn parse_port(text: &str) -> Result<u16, RuleError> {
    match text.parse() {
        Ok(port @ 1..) if !text.starts_with('+') => Ok(port),
        _ => Err(RuleError(format!("`:{text}` is no port; one is written `:8443`, from 1 to 65535"))),
    }
}

fn parse_name(text: &str) -> Result<String, RuleError> {
    if text.contains('*') {
        return Err(RuleError("`*` stands at the beginning only, and for whole labels: `*.example.com`".to_owned()));
    }
    match parse_host(text) {
        Ok(Host::Domain(name)) => Ok(name.strip_suffix('.').unwrap_or(&name).to_owned()),
        Ok(_) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(RuleError(format!("a port begins with a colon: `:{text}`")))
        }
        Ok(Host::Ipv4(address)) => Err(RuleError(format!("an address has its usual form: `{address}`"))),
        Ok(Host::Ipv6(address)) => Err(RuleError(format!("an address has no brackets: `{address}`"))),
        Err(error) => Err(RuleError(format!(
            "`{text}` is no rule ({error}); one is `10.0.0.0/8`, `example.com`, `*.example.com`, `:8443` or `http:`"
        ))),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Net(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Kind::Net(net) => net.fmt(f),
            Kind::Loopback => f.write_str("loopback"),
            Kind::Host(name) => f.write_str(name),
            Kind::Below(suffix) => write!(f, "*{suffix}"),
            Kind::Port(port) => write!(f, ":{port}"),
            Kind::Scheme(scheme) => write!(f, "{scheme}:"),
        }
    }
}

/// A text that is no rule; says what would have been one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RuleError(String);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let rule: Rule = text.parse().unwrap();
        assert_eq!(rule.to_string(), expected);
        assert_eq!(expected.parse(), Ok(rule));
    }

    #[track_caller]
    fn refused(text: &str, hint: &str) {
        let error = text.parse::<Rule>().expect_err(text).to_string();
        assert!(error.contains(hint), "{text:?} is refused because: {error}");
    }

    #[test]
    fn a_rule_has_one_spelling() {
        check("10.0.0.0/8", "10.0.0.0/8");
        check("10.0.0.1/32", "10.0.0.1");
        check("::ffff:10.0.0.0/104", "10.0.0.0/8");
        check("::ffff:10.0.0.1", "10.0.0.1");
        check("0.0.0.0/0", "0.0.0.0/0");
        check("FD00::/8", "fd00::/8");
        check("::", "::");
        check("loopback", "loopback");
        check("Example.COM.", "example.com");
        check("*.bücher.example", "*.xn--bcher-kva.example");
        check(":8443", ":8443");
        check("HTTP:", "http:");
        check("kafka+ssl:", "kafka+ssl:");
    }

    #[test]
    fn an_error_says_what_would_have_been_right() {
        refused("10.0.0.1/8", "`10.0.0.0/8`?");
        refused("10.0.0.0/33", "`10.0.0.0/8` or");
        refused("http", "`http:`");
        refused("8443", "`:8443`");
        refused(":0", "`:8443`");
        refused(":+80", "`:8443`");
        refused("127.1", "`127.0.0.1`");
        refused("[::1]", "no brackets: `::1`");
        refused("https://example.com", "`https:` or `example.com`?");
        refused("example.com:8443", "`example.com` or `:8443`?");
        refused("*", "`*.example.com`");
        refused("*example.com", "`*.example.com`");
        refused("a.*.example.com", "`*.example.com`");
        refused("", "`10.0.0.0/8`, `example.com`");
        refused("a b", "`10.0.0.0/8`, `example.com`");
    }

    #[test]
    fn a_suffix_names_whole_labels_below_it() {
        let rule: Rule = "*.example.com".parse().unwrap();
        let names = |name: &str| rule.names(&Host::Domain(name.to_owned()));
        assert!(names("a.example.com") && names("a.b.example.com.") && names("A.Example.Com"));
        assert!(
            !names("example.com") && !names(".example.com") && !names("badexample.com") && !names("a.example.com.evil")
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_rule_or_an_error(text in prop_oneof![any::<String>(), "[*a-f0-9:./\\[\\]]{0,20}"]) {
            if let Ok(rule) = text.parse::<Rule>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }
    }
}
