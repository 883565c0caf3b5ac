//! From text to the parts of a Dsn.

use super::{Destination, DsnError, Family, HostPort, is_scheme, percent};
use url::Url;

/// The text, where its parts begin and end, and what was parsed out of it.
pub(super) struct Parts {
    pub(super) text: Box<str>,
    pub(super) scheme_end: usize,
    pub(super) host_start: usize,
    pub(super) path_start: usize,
    pub(super) path_end: usize,
    pub(super) hosts: Box<[HostPort]>,
    pub(super) username: Option<Box<str>>,
    pub(super) password: Option<Box<str>>,
    pub(super) url: Option<Url>,
    pub(super) destination: Destination,
}

impl Parts {
    /// Does not limit the length: a [`Destination`](super::Destination) may be longer than its Dsn.
    pub(super) fn parse(text: &str) -> Result<Self, DsnError> {
        check_characters(text)?;
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
            _ => return Err(DsnError::invalid("a DSN begins with `scheme://`")),
        };
        let family = Family::of(&scheme);

        let text = format!("{scheme}://{rest}").into_boxed_str();
        let scheme_end = scheme.len();
        let authority_start = scheme_end + "://".len();
        let path_start = text[authority_start..].find(['/', '?']).map_or(text.len(), |at| authority_start + at);
        let path_end = text[path_start..].find('?').map_or(text.len(), |at| path_start + at);
        if !text[path_start..].is_ascii() {
            return Err(DsnError::invalid("path and query are ASCII; other characters are percent-encoded"));
        }

        let authority = &text[authority_start..path_start];
        let (userinfo, hosts) = match authority.split_once('@') {
            Some((userinfo, hosts)) => (Some(userinfo), hosts),
            None => (None, authority),
        };
        let (username, password) = userinfo.map_or(Ok((None, None)), |text| parse_userinfo(text, family))?;
        let host_start = path_start - hosts.len();
        let hosts = match family {
            Family::Session => {
                check_session(authority, &text[path_start..])?;
                Box::default()
            }
            _ => parse_hosts(hosts, family)?,
        };
        let url = (family == Family::Web)
            .then(|| parse_url(&format!("{}{}", &text[..authority_start], &text[host_start..]), &hosts))
            .transpose()?;
        if let Some(url) = &url {
            check_untouched(url, &text[path_start..path_end], text[path_end..].strip_prefix('?'))?;
        }

        let destination = Destination::of(&scheme, &text[host_start..path_start], &hosts);
        Ok(Self { text, scheme_end, host_start, path_start, path_end, hosts, username, password, url, destination })
    }
}

fn check_characters(text: &str) -> Result<(), DsnError> {
    if text.is_empty() {
        return Err(DsnError::invalid("the DSN is empty"));
    }
    for character in text.chars() {
        let reason = match character {
            '#' => "a DSN has no fragment; `#` is written `%23`",
            // WHATWG URL reads it as `/`, RFC 3986 as part of a name: the two see different hosts.
            '\\' => "a DSN has no backslash",
            _ if character.is_control() => "a DSN has no control characters",
            _ if character.is_whitespace() => "a DSN has no spaces; a space is written `%20`",
            _ => continue,
        };
        return Err(DsnError::invalid(reason));
    }
    if !percent::is_valid(text) {
        return Err(DsnError::invalid("`%` stands before two hexadecimal digits; itself it is written `%25`"));
    }
    Ok(())
}

type UserAndPassword = (Option<Box<str>>, Option<Box<str>>);

fn parse_userinfo(text: &str, family: Family) -> Result<UserAndPassword, DsnError> {
    let (username, password) = match text.split_once(':') {
        Some((username, password)) => (username, Some(password)),
        None => (text, None),
    };
    if username.is_empty() && password.is_none_or(str::is_empty) {
        return Err(DsnError::invalid("user and password before `@` are empty"));
    }
    let decode = |text: &str| {
        percent::decode(text)
            .filter(|decoded| text.is_ascii() && !decoded.contains(char::is_control))
            .map(|decoded| Box::from(&*decoded))
            .ok_or_else(|| {
                DsnError::invalid("user and password are UTF-8, percent-encoded, without control characters")
            })
    };
    let (username, password): (Box<str>, Option<Box<str>>) = (decode(username)?, password.map(decode).transpose()?);
    if family == Family::Web && username.contains(':') {
        return Err(DsnError::invalid("a user name of the Basic scheme has no colon"));
    }
    Ok((Some(username), password))
}

fn parse_hosts(text: &str, family: Family) -> Result<Box<[HostPort]>, DsnError> {
    if text.contains('@') {
        return Err(DsnError::invalid("`@` in user or password is written `%40`"));
    }
    match family {
        Family::Web if text.is_empty() => Err(DsnError::invalid("the host is missing")),
        _ if text.is_empty() => Ok(Box::default()),
        Family::Kafka => text.split(',').map(HostPort::parse).collect(),
        _ if text.contains(',') => Err(DsnError::invalid("several hosts are for the kafka schemes only")),
        _ => Ok(Box::from([HostPort::parse(text)?])),
    }
}

fn check_session(address: &str, rest: &str) -> Result<(), DsnError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !(1..=128).contains(&address.len()) || !address.bytes().all(allowed) {
        return Err(DsnError::invalid("a session address has 1 to 128 characters of A-Z a-z 0-9 _ -"));
    }
    if !rest.is_empty() {
        return Err(DsnError::invalid("a session has neither path nor query"));
    }
    Ok(())
}

/// Parses a text without user and password, once for the life of the Dsn.
fn parse_url(text: &str, hosts: &[HostPort]) -> Result<Url, DsnError> {
    let url = Url::parse(text).map_err(|error| DsnError::invalid(format!("the URL is not valid: {error}")))?;
    // The policy judges `hosts`, the client dials `url`: they name one host, or nothing is sent.
    let same = matches!(hosts, [only] if url.host_str() == Some(&only.host.to_string()) &&
        only.port.is_none_or(|port| url.port_or_known_default() == Some(port)));
    if same { Ok(url) } else { Err(DsnError::invalid("the host is ambiguous")) }
}

/// Path and query are the receiver's, and reach it as they are: what a URL would rewrite is refused.
fn check_untouched(url: &Url, path: &str, query: Option<&str>) -> Result<(), DsnError> {
    let same_path = url.path() == path || (path.is_empty() && url.path() == "/");
    if same_path && url.query() == query {
        return Ok(());
    }
    let reason = "the path has no `.` and `..` segments, and what a URL encodes (such as `'` in a query, or `{` in a path) \
                  is percent-encoded already";
    Err(DsnError::invalid(reason))
}
