//! Delivers to RabbitMQ.

use crate::{
    address::Address,
    config::AmqpSinkBuilder,
    connection::{Limits, Link},
    dial::{Endpoint, Identity},
    lane::{Answer, Job, blocked},
    outcome::{About, broken},
    wire,
};
use async_trait::async_trait;
use callback_core::{Attempt, Dsn, DsnError, ErrorKind, Message, Pattern, Phase, Policy, Receipt, Sink, SinkError};
use futures_util::future::join_all;
use rustls::ClientConfig;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{AcquireError, oneshot},
    time::{timeout, timeout_at},
};
use tokio_util::task::TaskTracker;
use url::Host;

/// Delivers messages to RabbitMQ, over `amqp` and `amqps`.
///
/// Delivered is what the broker has confirmed and not returned, judged by its `message_id`. There is one connection a
/// cluster and vhost, made when it is first needed and again when it was lost, and closed after a few minutes without work;
/// concurrent deliveries are pipelined on it.
///
/// At most 4,096 messages a connection are in flight, with 256 MiB of bodies, or 16 MiB where a client named the broker; a
/// further delivery waits, until its deadline at the longest.
///
/// ```
/// use callback_amqp::{AmqpCluster, AmqpSink};
///
/// let broker = AmqpCluster::new("amqp://shop:secret@10.0.0.7/".parse()?).queue("results").declare_queues();
/// let sink = AmqpSink::builder().default_cluster(broker).build()?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct AmqpSink(Arc<Inner>);

struct Inner {
    clusters: HashMap<String, Cluster>,
    unregistered: Option<(Policy, Arc<ClientConfig>)>,
    links: Mutex<Links>,
    limits: Limits,
    in_flight: TaskTracker,
}

/// A registered cluster, and what of it a Dsn may name.
pub(crate) struct Cluster {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) vhost: String,
    pub(crate) vhosts: Vec<Pattern>,
    pub(crate) exchanges: Vec<Pattern>,
    pub(crate) queues: Vec<Pattern>,
    pub(crate) declare_queues: bool,
}

#[derive(Default)]
struct Links {
    by_place: HashMap<Place, (Arc<Link>, u64)>,
    /// How often a link was asked for; beside each is when it was last.
    asked: u64,
}

/// Which connection: a broker and a vhost.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place {
    Registered { name: String, vhost: String },
    Unregistered { identity: Identity, vhost: String },
}

/// How much of all bodies together is in flight on a connection to a registered cluster, in KiB.
const REGISTERED_KIBIBYTES: u32 = 256 << 10;

/// And on one to a broker that a client names.
const UNREGISTERED_KIBIBYTES: u32 = 16 << 10;

/// To how many brokers that clients name there are connections at once, counting each vhost.
const UNREGISTERED: usize = 64;

/// And how many of those are at one host, by whatever port and user.
const OF_ONE_HOST: usize = 8;

/// To how many vhosts of a cluster there are connections at once, beside its own.
const VHOSTS: usize = 256;

/// How long the confirms of deliveries that nobody waits for may take at the end.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);

/// Whose cluster a Dsn names.
enum Broker<'a> {
    Registered(&'a str, &'a Cluster),
    Unregistered(&'a Policy, &'a Arc<ClientConfig>),
}

impl Place {
    /// The host that a client named.
    fn host(&self) -> Option<&Host> {
        match self {
            Self::Registered { .. } => None,
            Self::Unregistered { identity, .. } => Some(identity.host()),
        }
    }
}

impl Links {
    /// Sees to it that there are fewer of a kind than this, by closing the one that was without work for longest.
    fn make_room(&mut self, is_alike: impl Fn(&Place) -> bool, limit: usize) -> Result<(), SinkError> {
        let alike = || self.by_place.iter().filter(|(place, _)| is_alike(place));
        if alike().count() < limit {
            return Ok(());
        }
        // Neither a delivery nor a try to connect has it, and no message is in flight on it.
        let unused = alike().filter(|(_, (link, _))| Arc::strong_count(link) == 1 && link.is_settled());
        let Some(oldest) = unused.min_by_key(|(_, (_, asked))| *asked).map(|(place, _)| place.clone()) else {
            return Err(SinkError::throttled("too many brokers are in use").with_phase(Phase::Connect));
        };
        if let Some((link, _)) = self.by_place.remove(&oldest) {
            tokio::spawn(async move { link.close().await });
        }
        Ok(())
    }
}

impl AmqpSink {
    /// Begins a sink: of one cluster at least, or of a policy for brokers that clients name.
    pub fn builder() -> AmqpSinkBuilder {
        AmqpSinkBuilder::default()
    }

    pub(crate) fn with(clusters: HashMap<String, Cluster>, unregistered: Option<(Policy, Arc<ClientConfig>)>) -> Self {
        Self(Arc::new(Inner {
            clusters,
            unregistered,
            links: Mutex::default(),
            limits: Limits::DEFAULT,
            in_flight: TaskTracker::new(),
        }))
    }

    /// Finds the broker that a Dsn names, and judges what it says of it.
    fn judge(&self, dsn: &Dsn) -> Result<(Broker<'_>, Address), DsnError> {
        if !self.schemes().contains(&dsn.scheme()) {
            return Err(DsnError::invalid("the scheme must be amqp or amqps"));
        }
        let address = Address::of(dsn)?;
        let broker = match (self.0.clusters.get_key_value(dsn.authority()), &self.0.unregistered) {
            (Some((name, cluster)), _) => {
                cluster.judge(dsn, &address)?;
                Broker::Registered(name, cluster)
            }
            (None, Some((policy, tls))) if !dsn.hosts().is_empty() => {
                policy.judge(dsn)?;
                Endpoint::unregistered(dsn, policy, tls)?;
                Broker::Unregistered(policy, tls)
            }
            (None, _) if dsn.authority().is_empty() => return Err(DsnError::forbidden("there is no default cluster")),
            (None, _) => return Err(DsnError::forbidden("no cluster of this name is registered")),
        };
        Ok((broker, address))
    }

    fn link(&self, dsn: &Dsn, broker: &Broker<'_>, address: &Address) -> Result<Arc<Link>, SinkError> {
        let (place, endpoint) = match broker {
            Broker::Registered(name, cluster) => {
                let vhost = address.vhost.clone().unwrap_or_else(|| cluster.vhost.clone());
                (Place::Registered { name: (*name).to_owned(), vhost }, Arc::clone(&cluster.endpoint))
            }
            Broker::Unregistered(policy, tls) => {
                let endpoint = Endpoint::unregistered(dsn, policy, tls)?;
                let vhost = address.vhost.clone().unwrap_or_else(|| "/".to_owned());
                (Place::Unregistered { identity: endpoint.identity(), vhost }, Arc::new(endpoint))
            }
        };
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.asked += 1;
        let now = links.asked;
        if let Some((link, asked)) = links.by_place.get_mut(&place) {
            *asked = now;
            return Ok(Arc::clone(link));
        }
        // Clients choose these: their number has a bound. Of a cluster's own vhost there is one.
        match (&place, broker) {
            (Place::Registered { name, vhost }, Broker::Registered(_, cluster)) if *vhost != cluster.vhost => {
                let is_alike = |place: &Place| match place {
                    Place::Registered { name: other, vhost } => other == name && *vhost != cluster.vhost,
                    Place::Unregistered { .. } => false,
                };
                links.make_room(is_alike, VHOSTS)?;
            }
            (Place::Registered { .. }, _) => {}
            (Place::Unregistered { identity, .. }, _) => {
                links.make_room(|place| place.host() == Some(identity.host()), OF_ONE_HOST)?;
                links.make_room(|place| place.host().is_some(), UNREGISTERED)?;
            }
        }
        let (vhost, kibibytes) = match &place {
            Place::Registered { vhost, .. } => (vhost.clone(), REGISTERED_KIBIBYTES),
            Place::Unregistered { vhost, .. } => (vhost.clone(), UNREGISTERED_KIBIBYTES),
        };
        let link = Arc::new(Link::new(endpoint, vhost, kibibytes, self.0.limits));
        links.by_place.insert(place, (Arc::clone(&link), now));
        Ok(link)
    }

    async fn publish(
        &self,
        dsn: &Dsn,
        message: &Message,
        attempt: &Attempt,
        phase: &mut Phase,
    ) -> Result<Receipt, SinkError> {
        let (broker, address) = self.judge(dsn)?;
        let link = self.link(dsn, &broker, &address)?;
        let declares = matches!(broker, Broker::Registered(_, cluster) if cluster.declare_queues);
        let queue = address.queue().filter(|_| declares);
        let closed = || SinkError::unavailable("the sink is closed");
        loop {
            *phase = Phase::Connect;
            let connected = link.connected().await?;
            if connected.is_blocked() {
                return Err(blocked().into());
            }
            let properties = wire::properties(&address, message, attempt, connected.frame_max())?;
            let permits = link.room(message.body().len()).await.map_err(|_: AcquireError| closed())?;
            if let Some(queue) = queue {
                let failed = |error| broken(&error, Phase::Connect, connected.about(About::Place));
                connected.declare(queue).await.map_err(failed)?;
            }
            let (message, routing_key) = (message.clone(), address.routing_key.clone());
            let (answer, answered) = oneshot::channel();
            let job = Job { message, routing_key, properties, answer, quarter: 0, _permits: permits };
            connected.publish(&address.exchange, Box::new(job));
            *phase = Phase::Answer;
            // A publisher answers each job that it is given, whatever becomes of it.
            let Answer::Judged(result) = answered.await.map_err(|_| closed())? else { continue };
            if let (Some(queue), Err(error)) = (queue, &result)
                && error.kind() == ErrorKind::Unroutable
            {
                connected.forget(queue);
            }
            return result;
        }
    }
}

#[async_trait]
impl Sink for AmqpSink {
    fn schemes(&self) -> &[&str] {
        &["amqp", "amqps"]
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        self.judge(dsn).map(|_| ())
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let _in_flight = self.0.in_flight.token();
        if self.0.in_flight.is_closed() {
            return Err(SinkError::unavailable("the sink is closed"));
        }
        let mut phase = Phase::Connect;
        match timeout_at(attempt.deadline().into(), self.publish(dsn, message, attempt, &mut phase)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(SinkError::timed_out("no confirm in time").with_phase(phase)),
        }
    }

    async fn close(&self) -> Result<(), SinkError> {
        self.0.in_flight.close();
        // Each delivery ends by its own deadline.
        self.0.in_flight.wait().await;
        let links: Vec<Arc<Link>> = {
            let links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.by_place.values().map(|(link, _)| Arc::clone(link)).collect()
        };
        // What nobody waits for holds its place until the broker has confirmed it.
        let all = timeout(LAST_CONFIRMS, join_all(links.iter().map(|link| link.settled()))).await;
        join_all(links.iter().map(|link| link.close())).await;
        match all {
            Ok(_) => Ok(()),
            Err(_elapsed) => Err(SinkError::unavailable("messages were left unconfirmed")),
        }
    }
}

impl Cluster {
    fn judge(&self, dsn: &Dsn, address: &Address) -> Result<(), DsnError> {
        let open = |patterns: &[Pattern], name: &str| patterns.iter().any(|pattern| pattern.matches(name));
        if dsn.username().is_some() {
            return Err(DsnError::invalid("a registered cluster takes neither user nor password"));
        }
        if dsn.scheme() == "amqps" && !self.endpoint.is_tls() {
            return Err(DsnError::forbidden("this cluster is registered without TLS: `amqp`"));
        }
        if let Some(vhost) = &address.vhost
            && *vhost != self.vhost
            && !open(&self.vhosts, vhost)
        {
            return Err(DsnError::forbidden("the vhost is not open"));
        }
        match address.queue() {
            Some(queue) if !open(&self.queues, queue) => Err(DsnError::forbidden("the queue is not open")),
            None if !open(&self.exchanges, &address.exchange) => Err(DsnError::forbidden("the exchange is not open")),
            _ => Ok(()),
        }
    }
}

/// Prints the names of the clusters.
impl fmt::Debug for AmqpSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpSink")
            .field("clusters", &self.0.clusters.keys())
            .field("unregistered", &self.0.unregistered.as_ref().map(|(policy, _)| policy))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
