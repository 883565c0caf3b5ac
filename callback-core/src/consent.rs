//! What a destination says to being sent to at all.

use crate::{Dsn, SinkError};
use async_trait::async_trait;
use std::{fmt, num::NonZeroU32, time::Instant};

/// Asks destinations whether they let us send to them.
///
/// A transport that has a question of that kind implements it beside its [`Sink`](crate::Sink): over HTTP it is the
/// handshake of CloudEvents' webhooks. The engine asks before the first message to a destination, and keeps the answer.
#[async_trait]
pub trait Consent: fmt::Debug + Send + Sync + 'static {
    /// The schemes whose destinations are asked, lower case.
    fn schemes(&self) -> &[&str];

    /// Asks the destination of this Dsn; resolves once it has consented, and is over by `deadline`.
    ///
    /// It dials by the sink's own [`Policy`](crate::Policy), and puts no secret into an error.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`](crate::ErrorKind::Unauthorized) when the destination answered, and did not consent; what
    /// else went wrong as [`Sink::deliver`](crate::Sink::deliver) says it.
    async fn ask(&self, dsn: &Dsn, deadline: Instant) -> Result<Consented, SinkError>;
}

const _: fn(&dyn Consent) = |_| {};

/// A destination lets us send to it.
///
/// ```
/// use callback_core::Consented;
/// use std::num::NonZeroU32;
///
/// assert_eq!(Consented::new().requests_per_minute(), None);
/// let slowly = NonZeroU32::new(120);
/// assert_eq!(Consented::new().per_minute(slowly).requests_per_minute(), slowly);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consented {
    per_minute: Option<NonZeroU32>,
}

impl Consented {
    /// Without a limit.
    #[must_use]
    pub const fn new() -> Self {
        Self { per_minute: None }
    }

    /// Says how many requests a minute it allows; any number if none.
    #[must_use]
    pub const fn per_minute(mut self, requests: Option<NonZeroU32>) -> Self {
        self.per_minute = requests;
        self
    }

    /// How many requests a minute it allows; any number if none.
    #[must_use]
    pub const fn requests_per_minute(&self) -> Option<NonZeroU32> {
        self.per_minute
    }
}
