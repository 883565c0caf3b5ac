//! Hosts and ports.

use super::DsnError;
use std::fmt;
use url::Host;

/// One host of a Dsn, and its port where one is given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// A name in its ASCII form and lower case, or an address.
    pub host: Host,
    /// The port as given, 1 to 65535; `None` means the scheme's default.
    pub port: Option<u16>,
}

impl HostPort {
    pub(super) fn parse(text: &str) -> Result<Self, DsnError> {
        let (host, port) = match text.find(']') {
            Some(end) => {
                let (host, rest) = text.split_at(end + 1);
                let port = rest.strip_prefix(':');
                if port.is_none() && !rest.is_empty() {
                    return Err(DsnError::invalid("nothing but a port may follow an address in brackets"));
                }
                (host, port)
            }
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(DsnError::invalid("an IPv6 address stands in brackets: `[2001:db8::1]:9092`"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        Ok(Self { host: parse_host(host)?, port: port.map(parse_port).transpose()? })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => self.host.fmt(f),
        }
    }
}

pub(super) fn write_list(f: &mut fmt::Formatter<'_>, hosts: &[HostPort]) -> fmt::Result {
    for (index, host) in hosts.iter().enumerate() {
        f.write_str(if index == 0 { "" } else { "," })?;
        write!(f, "{host}")?;
    }
    Ok(())
}

/// Reads a host as WHATWG URL does for `https`, whatever the scheme, and then takes only what DNS can carry.
pub(crate) fn parse_host(text: &str) -> Result<Host, DsnError> {
    if text.is_empty() {
        return Err(DsnError::invalid("the host is empty"));
    }
    let host = Host::parse(text).map_err(|error| DsnError::invalid(format!("the host is not valid: {error}")))?;
    if let Host::Domain(name) = &host {
        let labels = name.strip_suffix('.').unwrap_or(name);
        if labels.len() > 253 || labels.split('.').any(|label| !(1..=63).contains(&label.len())) {
            return Err(DsnError::invalid("a part of the host name is empty or longer than 63 characters"));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !name.bytes().all(allowed) {
            return Err(DsnError::invalid("a host name has letters, digits, `.`, `-` and `_` only"));
        }
    }
    Ok(host)
}

fn parse_port(text: &str) -> Result<u16, DsnError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port @ 1..) if digits => Ok(port),
        _ => Err(DsnError::invalid("the port is not a number from 1 to 65535")),
    }
}
