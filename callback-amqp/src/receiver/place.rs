//! Where in a broker a receiver is, and what senders are told of it.

use crate::address::{self, NAME_LIMIT};
use callback_core::{Dsn, DsnError};
use callback_receive::HandleId;
use std::fmt::Write as _;

/// Exchange and queue of a receiver. A routing key is the queue's name, a dot and a handle.
pub(super) struct Place {
    pub(super) exchange: String,
    pub(super) queue: String,
    /// The Dsn of a handle, without the handle.
    public: String,
}

impl Place {
    /// `public` is how senders name the broker and the vhost.
    pub(super) fn new(exchange: String, queue: String, public: &Dsn) -> Result<Self, DsnError> {
        let name = |name: &str, what: &str, limit: usize| match name.len() {
            0 => Err(DsnError::invalid(format!("the name of the {what} is empty"))),
            length if length > limit => Err(DsnError::invalid(format!("the name of the {what} exceeds {limit} bytes"))),
            _ if name.chars().any(char::is_control) => {
                Err(DsnError::invalid(format!("the name of the {what} has a control character")))
            }
            _ => Ok(()),
        };
        name(&exchange, "exchange", NAME_LIMIT)?;
        name(&queue, "queue", NAME_LIMIT - 1 - HandleId::LEN)?;
        if queue.split('.').any(|word| matches!(word, "*" | "#")) {
            return Err(DsnError::invalid("the name of the queue has a word `*` or `#`, which stands for others"));
        }
        if !matches!(public.scheme(), "amqp" | "amqps") {
            return Err(DsnError::invalid("the scheme of the public Dsn must be amqp or amqps"));
        }
        if public.query().is_some() {
            return Err(DsnError::invalid("the public Dsn has no query: broker and vhost are all that it names"));
        }
        address::vhost(public)?;
        let public = format!("{}?exchange={}&routing_key={}.", public.expose(), encode(&exchange), encode(&queue));
        let place = Self { exchange, queue, public };
        place.parse(&"A".repeat(HandleId::LEN))?;
        Ok(place)
    }

    pub(super) fn dsn(&self, handle: &HandleId) -> Dsn {
        self.parse(&handle.expose()).expect("the public Dsn was tried with a handle of this length")
    }

    fn parse(&self, handle: &str) -> Result<Dsn, DsnError> {
        format!("{}{handle}", self.public).parse()
    }

    /// The routing keys of the queue's own handles, as a topic exchange is told.
    pub(super) fn binding(&self) -> String {
        format!("{}.*", self.queue)
    }
}

/// The handle that a message names: the last word of its routing key, or, where that is none, its `correlation_id`.
pub(super) fn handle(routing_key: &str, correlation_id: Option<&str>) -> Option<HandleId> {
    let word = routing_key.rsplit('.').next().unwrap_or_default();
    word.parse().ok().or_else(|| correlation_id?.parse().ok())
}

/// A value of a Dsn's query.
fn encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a text cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    const HANDLE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn place(exchange: &str, queue: &str, public: &str) -> Result<Place, String> {
        let public = public.parse().map_err(|error: DsnError| error.to_string())?;
        Place::new(exchange.to_owned(), queue.to_owned(), &public).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check(exchange: &str, queue: &str, public: &str, expected: &str) {
        let place = place(exchange, queue, public).expect("a place");
        let dsn = place.dsn(&HANDLE.parse().expect("a handle"));
        assert_eq!(dsn.expose(), format!("{expected}{HANDLE}"));
        let address = Address::of(&dsn).expect("an address");
        let key = format!("{queue}.{HANDLE}");
        assert_eq!((&*address.exchange, &*address.routing_key), (exchange, &*key), "what the sink reads of it");
        assert_eq!(handle(&address.routing_key, None), HANDLE.parse().ok());
    }

    #[test]
    fn a_handle_s_dsn_names_the_exchange_and_a_routing_key() {
        check("callbacks", "shop", "amqp:///", "amqp:///?exchange=callbacks&routing_key=shop.");
        check("callbacks", "shop.eu", "amqp://orders", "amqp://orders?exchange=callbacks&routing_key=shop.eu.");
        check(
            "a b+&c",
            "größe",
            "amqp://orders/v%2F1",
            "amqp://orders/v%2F1?exchange=a%20b%2B%26c&routing_key=gr%C3%B6%C3%9Fe.",
        );
        check("e", "q", "amqps://u:p@broker.example/v", "amqps://u:p@broker.example/v?exchange=e&routing_key=q.");
    }

    #[track_caller]
    fn refused(exchange: &str, queue: &str, public: &str, word: &str) {
        let error = place(exchange, queue, public).err().expect("refused");
        assert!(error.contains(word), "{error}");
    }

    #[test]
    fn names_that_cannot_be_used_are_refused() {
        refused("", "q", "amqp:///", "exchange is empty");
        refused("e", "", "amqp:///", "queue is empty");
        refused("e", &"q".repeat(223), "amqp:///", "exceeds 222");
        assert!(place("e", &"q".repeat(222), "amqp:///").is_ok());
        refused("e", "a\nb", "amqp:///", "control character");
        refused("e", "a.#", "amqp:///", "stands for others");
        refused("e", "*.b", "amqp:///", "stands for others");
        refused("e", "q", "https://example.com", "amqp or amqps");
        refused("e", "q", "amqp:///?queue=q", "no query");
        refused("e", "q", "amqp:///a/b", "%2F");
    }

    #[test]
    fn a_message_names_its_handle_by_its_routing_key_or_its_correlation_id() {
        let expected = HANDLE.parse().ok();
        assert_eq!(handle(HANDLE, None), expected);
        assert_eq!(handle("shop", Some(HANDLE)), expected);
        assert_eq!(handle(&format!("shop.{HANDLE}"), Some("other")), expected);
        for (key, correlation) in
            [("", None), ("shop", None), ("shop.x", Some("12345")), (&*format!("{HANDLE}."), None)]
        {
            assert_eq!(handle(key, correlation), None, "{key}");
        }
    }
}
