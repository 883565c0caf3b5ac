//! What a Dsn says about the place in a broker.

use callback_core::{Dsn, DsnError};
use std::sync::Arc;

/// Where in a broker a message goes, and what its Dsn says of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// `None` is the cluster's own.
    pub(crate) vhost: Option<String>,
    /// Empty is the default exchange, whose routing key is a queue's name.
    pub(crate) exchange: Arc<str>,
    pub(crate) routing_key: String,
    /// Milliseconds.
    pub(crate) expiration: Option<u32>,
    pub(crate) priority: Option<u8>,
}

impl Address {
    /// Reads path and query.
    pub(crate) fn of(dsn: &Dsn) -> Result<Self, DsnError> {
        let mut params = dsn.params();
        let queue = params.take::<String>("queue")?;
        let exchange = params.take::<String>("exchange")?;
        let routing_key = params.take::<String>("routing_key")?;
        let expiration = params.take("expiration")?;
        let priority = params.take("priority")?;
        params.finish()?;
        let (exchange, routing_key) = match (queue, exchange, routing_key) {
            (Some(queue), None, None) => (String::new(), checked(queue, "queue")?),
            (None, Some(exchange), Some(key)) => {
                if key.len() > NAME_LIMIT {
                    return Err(too_long("routing_key"));
                }
                (checked(exchange, "exchange")?, key)
            }
            (None, Some(_), None) => return Err(DsnError::invalid("the parameter `routing_key` is missing")),
            (None, None, Some(_)) => return Err(DsnError::invalid("the parameter `exchange` is missing")),
            (None, None, None) => {
                return Err(DsnError::invalid("the parameter `queue` is missing, or `exchange` and `routing_key`"));
            }
            (Some(_), _, _) => return Err(DsnError::invalid("`queue` goes without `exchange` and `routing_key`")),
        };
        Ok(Self { vhost: vhost(dsn)?, exchange: exchange.into(), routing_key, expiration, priority })
    }

    /// The queue, where one is named.
    pub(crate) fn queue(&self) -> Option<&str> {
        self.exchange.is_empty().then_some(&self.routing_key)
    }
}

/// What a short string of AMQP 0-9-1 holds, in bytes.
pub(crate) const NAME_LIMIT: usize = 255;

/// The vhost that a path names, percent-decoded; `None` where it names none.
pub(crate) fn vhost(dsn: &Dsn) -> Result<Option<String>, DsnError> {
    let Some(vhost) = dsn.path().strip_prefix('/').filter(|vhost| !vhost.is_empty()) else { return Ok(None) };
    if vhost.contains('/') {
        return Err(DsnError::invalid("the path is one vhost; a slash in its name is written `%2F`"));
    }
    let vhost = &dsn.decoded_path()?[1..];
    if vhost.len() > NAME_LIMIT {
        return Err(DsnError::invalid(format!("the vhost has more than {NAME_LIMIT} bytes")));
    }
    Ok(Some(vhost.to_owned()))
}

fn checked(name: String, parameter: &str) -> Result<String, DsnError> {
    match name.len() {
        0 => Err(DsnError::invalid(format!("the parameter `{parameter}` is empty"))),
        1..=NAME_LIMIT => Ok(name),
        _ => Err(too_long(parameter)),
    }
}

fn too_long(parameter: &str) -> DsnError {
    DsnError::invalid(format!("the parameter `{parameter}` has more than {NAME_LIMIT} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(dsn: &str) -> Result<Address, String> {
        dsn.parse().and_then(|dsn| Address::of(&dsn)).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check(dsn: &str, vhost: Option<&str>, exchange: &str, routing_key: &str) {
        let address = address(dsn).unwrap_or_else(|error| panic!("{dsn}: {error}"));
        let found = (address.vhost.as_deref(), &*address.exchange, &*address.routing_key);
        assert_eq!(found, (vhost, exchange, routing_key), "{dsn}");
    }

    #[track_caller]
    fn refused(dsn: &str, reason: &str) {
        let error = address(dsn).err().unwrap_or_else(|| panic!("{dsn} is taken"));
        assert!(error.contains(reason), "{dsn}: {error}");
    }

    #[test]
    fn a_dsn_names_a_queue_or_an_exchange() {
        check("amqp:///?queue=done", None, "", "done");
        check("amqp://?queue=done", None, "", "done");
        check("amqp://orders/shop?exchange=results&routing_key=a.b", Some("shop"), "results", "a.b");
        check("amqp://orders/%2F?exchange=fan&routing_key=", Some("/"), "fan", "");
        check("amqp:///a%2Fb%25?queue=gr%C3%B6%C3%9Fe", Some("a/b%"), "", "größe");
    }

    #[test]
    fn expiration_and_priority_are_numbers() {
        let address = address("amqp:///?queue=q&expiration=60000&priority=9").expect("valid");
        assert_eq!((address.expiration, address.priority), (Some(60_000), Some(9)));
        refused("amqp:///?queue=q&expiration=-1", "`expiration` is not valid");
        refused("amqp:///?queue=q&expiration=4294967296", "`expiration` is not valid");
        refused("amqp:///?queue=q&priority=256", "`priority` is not valid");
    }

    #[test]
    fn what_says_less_or_more_is_refused() {
        refused("amqp:///", "`queue` is missing");
        refused("amqp:///?queue=", "`queue` is empty");
        refused("amqp:///?exchange=e", "`routing_key` is missing");
        refused("amqp:///?routing_key=e", "`exchange` is missing");
        refused("amqp:///?exchange=&routing_key=e", "`exchange` is empty");
        refused("amqp:///?queue=q&exchange=e&routing_key=k", "goes without");
        refused("amqp:///a/b?queue=q", "`%2F`");
        refused("amqp:///%ff?queue=q", "UTF-8");
        refused(&format!("amqp:///?queue={}", "q".repeat(256)), "`queue` has more than 255");
        refused(&format!("amqp:///?exchange=e&routing_key={}", "q".repeat(256)), "`routing_key` has more than 255");
        refused(&format!("amqp:///{}?queue=q", "v".repeat(256)), "vhost has more than 255");
    }

    #[test]
    fn an_unknown_parameter_is_named_beside_the_known_ones() {
        refused(
            "amqp:///?queue=q&heartbeat=5",
            "unknown parameter \"heartbeat\"; known are `queue`, `exchange`, `routing_key`, `expiration`, `priority`",
        );
    }
}
