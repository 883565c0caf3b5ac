//! What the kit needs to know of a sink and its far end.

use super::{Fault, Received, Skip};
use crate::{Dsn, ErrorKind, Sink};
use async_trait::async_trait;
use std::time::Duration;

/// A far end with a sink that delivers to it. Each clause starts its own.
#[async_trait]
pub trait Harness: Send + Sync + Sized + 'static {
    /// The sink that is tested.
    type Sink: Sink;

    /// Starts a far end, or finds a place in a shared one that nobody else uses.
    ///
    /// # Errors
    /// [`Skip::absent`] where the far end cannot be had on this machine.
    async fn start() -> Result<Self, Skip>;

    /// Makes a sink that delivers to this far end.
    ///
    /// A clause may ask for several, which may share what they hold: it closes none of them before it has used all.
    fn sink(&self) -> Self::Sink;

    /// Where the far end is. User, password and query values of 8 bytes and more are searched for in what is printed.
    fn dsn(&self) -> Dsn;

    /// Everything that the far end has accepted since the start, oldest first, again at each call.
    ///
    /// It is asked as soon as `deliver` resolved: a harness that reads from a broker reads to the end here. It works
    /// while a fault is in force.
    async fn received(&self) -> Vec<Received>;

    /// Makes the far end fail, for deliveries that begin after this.
    ///
    /// # Errors
    /// When the far end of this sink cannot fail in this way, or cannot be made to.
    async fn inject(&self, fault: Fault) -> Result<(), Skip>;

    /// Ends what was injected. Default: nothing to do.
    async fn heal(&self) {}

    /// The clauses that cannot be shown for this sink, by the name of their functions. Default: none.
    fn skip(&self, clause: &str) -> Option<Skip> {
        let _ = clause;
        None
    }

    /// What [`Fault::Refuse`] means. Default: [`ErrorKind::Refused`].
    fn refusal(&self) -> ErrorKind {
        ErrorKind::Refused
    }

    /// A sink, and a Dsn that its policy forbids at first sight. Default: skipped.
    ///
    /// # Errors
    /// When the sink dials nothing that a Dsn names.
    fn forbidden(&self) -> Result<(Self::Sink, Dsn), Skip> {
        Err(Skip::because("the harness names no Dsn that a policy forbids"))
    }

    /// A sink, and a Dsn that passes `check`, and leads to a forbidden address: the name of a host. Default: skipped.
    ///
    /// # Errors
    /// When the sink resolves no names of a Dsn.
    fn forbidden_at_connect(&self) -> Result<(Self::Sink, Dsn), Skip> {
        Err(Skip::because("the harness names no Dsn that leads to a forbidden address"))
    }

    /// How many connections were made to where [`forbidden_at_connect`](Self::forbidden_at_connect) leads, since the
    /// start. Default: `None`, nobody counts, and that nothing arrived must do.
    ///
    /// A [`Proxy`](super::Proxy) counts its [connections](super::Proxy::connections).
    async fn connections(&self) -> Option<usize> {
        None
    }

    /// What else must never be printed: the passwords that the sink was built with. Default: none.
    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }

    /// How long the kit waits for what must happen. Default: 30 seconds.
    ///
    /// A delivery that the far end lets hang gets a fraction of it as its deadline: 1.5 s, or 3.75 s, of 30.
    fn patience(&self) -> Duration {
        Duration::from_secs(30)
    }
}
