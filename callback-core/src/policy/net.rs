//! Resolving and connecting under a policy, on tokio.

use super::Policy;
use crate::{Dsn, DsnError, HostPort, Phase, SinkError, dsn::default_port};
use async_trait::async_trait;
use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout_at,
};
use url::Host;

/// Turns host names into addresses, for [`Policy::resolver`].
#[async_trait]
pub trait Resolver: fmt::Debug + Send + Sync + 'static {
    /// The addresses of a name, in the order in which they are to be tried.
    ///
    /// # Errors
    /// When the name has none, or nobody could be asked.
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's own resolver, on tokio's blocking threads.
#[derive(Debug)]
pub(super) struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// Of the feature `net`.
impl Policy {
    /// Takes another resolver than the system's.
    pub fn resolver(mut self, resolver: impl Resolver) -> Self {
        self.resolver = Arc::new(resolver);
        self
    }

    /// Resolves a host and judges every address: for clients that ask by name alone.
    ///
    /// The scheme is that of the Dsn for which the host is looked up. Does not judge the port: a client that uses this
    /// calls [`judge`](Self::judge) for each Dsn.
    ///
    /// # Errors
    /// `Forbidden` if any address is, `Unavailable` if there is none, `TimedOut` at the deadline.
    ///
    /// # Cancellation
    /// May be dropped at any point.
    pub async fn resolve_host(&self, scheme: &str, host: &Host, deadline: Instant) -> Result<Vec<IpAddr>, SinkError> {
        let addresses = match host {
            Host::Ipv4(address) => vec![(*address).into()],
            Host::Ipv6(address) => vec![(*address).into()],
            Host::Domain(name) => timeout_at(deadline.into(), self.resolver.resolve(name))
                .await
                .map_err(|_| SinkError::timed_out("the name was not resolved in time").with_phase(Phase::Resolve))?
                .map_err(|error| SinkError::from(error).with_phase(Phase::Resolve))?,
        };
        if addresses.is_empty() {
            return Err(SinkError::unavailable("the name has no address").with_phase(Phase::Resolve));
        }
        addresses.iter().try_for_each(|address| self.judge_address(scheme, host, *address))?;
        Ok(addresses)
    }

    /// Judges a Dsn, resolves its hosts and judges every address.
    ///
    /// # Errors
    /// `Forbidden` if anything is, `Unavailable` if a name has no address, `TimedOut` at the deadline, `Refused` if the
    /// Dsn names no host or port.
    ///
    /// # Cancellation
    /// May be dropped at any point.
    pub async fn resolve(&self, dsn: &Dsn, deadline: Instant) -> Result<Vec<SocketAddr>, SinkError> {
        self.judge(dsn)?;
        let mut resolved = Vec::new();
        for HostPort { host, port } in dsn.hosts() {
            let port =
                port.or_else(|| default_port(dsn.scheme())).ok_or_else(|| DsnError::invalid("the port is missing"))?;
            let addresses = self.resolve_host(dsn.scheme(), host, deadline).await?;
            resolved.extend(addresses.into_iter().map(|address| SocketAddr::new(address, port)));
        }
        if resolved.is_empty() { Err(DsnError::invalid("the host is missing").into()) } else { Ok(resolved) }
    }

    /// Connects to the first address of a Dsn that answers, after all of them were judged.
    ///
    /// What is left until the deadline is shared out evenly among the addresses. `TCP_NODELAY` is set.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve), and `Unavailable` or `TimedOut` if no address answers.
    ///
    /// # Cancellation
    /// May be dropped at any point.
    pub async fn connect(&self, dsn: &Dsn, deadline: Instant) -> Result<TcpStream, SinkError> {
        let addresses = self.resolve(dsn, deadline).await?;
        let mut failure = None;
        for (tried, address) in addresses.iter().enumerate() {
            let now = tokio::time::Instant::now();
            let share =
                tokio::time::Instant::from(deadline).saturating_duration_since(now) / shares(addresses.len() - tried);
            match timeout_at(now + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true).map_err(|error| SinkError::from(error).with_phase(Phase::Connect))?;
                    return Ok(stream);
                }
                Ok(Err(error)) => failure = Some(SinkError::from(error)),
                Err(_) => failure = Some(SinkError::timed_out("no connection in time")),
            }
        }
        let failure = failure.unwrap_or_else(|| SinkError::unavailable("the name has no address"));
        Err(failure.with_phase(Phase::Connect))
    }
}

fn shares(left: usize) -> u32 {
    u32::try_from(left).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Rule};
    use std::{future::pending, time::Duration};
    use tokio::net::TcpListener;

    /// Answers every name with these addresses; never, if there are none.
    #[derive(Debug)]
    struct Fixed(&'static [&'static str]);

    #[async_trait]
    impl Resolver for Fixed {
        async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            match self.0 {
                [] => pending().await,
                ["none"] => Ok(Vec::new()),
                ["error"] => Err(io::Error::other("no such name")),
                addresses => Ok(addresses.iter().map(|address| address.parse().unwrap()).collect()),
            }
        }
    }

    fn soon() -> Instant {
        tokio::time::Instant::now().into_std() + Duration::from_secs(20)
    }

    #[track_caller]
    fn check<T: fmt::Debug>(result: Result<T, SinkError>, kind: ErrorKind, phase: Phase, reason: &str) {
        let error = result.unwrap_err();
        assert_eq!((error.kind(), error.phase()), (kind, Some(phase)), "{error:?}");
        assert!(error.chain().contains(reason), "{}", error.chain());
    }

    async fn resolve(policy: Policy, dsn: &str) -> Result<Vec<SocketAddr>, SinkError> {
        policy.resolve(&dsn.parse().unwrap(), soon()).await
    }

    #[tokio::test]
    async fn a_name_resolves_to_what_is_dialled() {
        let policy = Policy::default().resolver(Fixed(&["8.8.8.8", "2606:4700::1111"]));
        let resolved = resolve(policy.clone(), "https://example.com/").await.unwrap();
        assert_eq!(resolved, ["8.8.8.8:443".parse().unwrap(), "[2606:4700::1111]:443".parse().unwrap()]);
        assert_eq!(resolve(policy, "wss://9.9.9.9:8443/").await.unwrap(), ["9.9.9.9:8443".parse().unwrap()]);
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_mix_is_refused() {
        let mixed = Policy::default().resolver(Fixed(&["8.8.8.8", "10.0.0.1"]));
        let result = resolve(mixed.clone(), "https://example.com/").await;
        check(result, ErrorKind::Forbidden, Phase::Policy, "private addresses are not open");

        let opened = mixed.allow("10.0.0.0/8".parse().unwrap());
        assert_eq!(resolve(opened.clone(), "https://example.com/").await.unwrap().len(), 2);
        let result = resolve(opened, "http://example.com/").await;
        check(result, ErrorKind::Forbidden, Phase::Policy, "plain http is not open");
    }

    #[tokio::test]
    async fn what_cannot_be_resolved_says_why() {
        let policy = |answer| Policy::default().resolver(Fixed(answer));
        let dsn = "https://example.com/";
        check(resolve(policy(&["none"]), dsn).await, ErrorKind::Unavailable, Phase::Resolve, "no address");
        check(resolve(policy(&["error"]), dsn).await, ErrorKind::Unavailable, Phase::Resolve, "no such name");
        check(resolve(policy(&[]), "https://127.1/").await, ErrorKind::Forbidden, Phase::Policy, "loopback");
        check(resolve(policy(&[]), "https://a.example:22/").await, ErrorKind::Forbidden, Phase::Policy, "port 22");
        check(resolve(policy(&["8.8.8.8"]), "tcp://a.example").await, ErrorKind::Refused, Phase::Policy, "port");
        check(resolve(policy(&[]), "tcp:///").await, ErrorKind::Refused, Phase::Policy, "host");
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_never_answers_ends_at_the_deadline() {
        let result = resolve(Policy::default().resolver(Fixed(&[])), "https://example.com/").await;
        check(result, ErrorKind::TimedOut, Phase::Resolve, "in time");
    }

    #[tokio::test]
    async fn the_first_address_that_answers_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dsn: Dsn = format!("https://name.example:{}/", address.port()).parse().unwrap();
        let policy = Policy::default().resolver(Fixed(&["127.0.0.2", "127.0.0.1"]));

        check(policy.connect(&dsn, soon()).await, ErrorKind::Forbidden, Phase::Policy, "loopback");
        let stream = policy.clone().allow(Rule::loopback()).connect(&dsn, soon()).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        assert!(stream.nodelay().unwrap());

        drop(listener);
        let result = policy.allow(Rule::loopback()).connect(&dsn, soon()).await;
        check(result, ErrorKind::Unavailable, Phase::Connect, "refused");
    }

    #[tokio::test]
    async fn the_system_resolves_localhost() {
        let addresses = SystemResolver.resolve("localhost").await.unwrap();
        assert!(addresses.iter().all(IpAddr::is_loopback) && !addresses.is_empty());
    }
}
