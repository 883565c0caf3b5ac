//! Connecting to a broker: our own socket and TLS under lapin.

use crate::{
    frames::Frames,
    outcome::{About, Failure, broken},
};
use async_rs::{
    Runtime, Tokio,
    traits::Reactor,
    util::{DummyIO, DummyStream, RuntimeParts},
};
use callback_core::{Dsn, DsnError, ErrorKind, HostPort, Phase, Policy, SinkError};
use futures_core::Stream;
use futures_io::{AsyncRead as FuturesRead, AsyncWrite as FuturesWrite};
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism},
};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    future,
    io::{self, Read, Write},
    marker::PhantomData,
    net::{Shutdown, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Sleep, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use url::Host;

/// How long connecting may take, the handshakes included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How much of that name and TCP may take; the handshakes have the rest at least.
const DIAL_LIMIT: Duration = Duration::from_secs(6);

/// Seconds; a broker that was silent for twice as long is gone.
const HEARTBEAT: u16 = 10;

/// The largest frame, in bytes; a broker may ask for smaller ones. lapin allots 64 such frames to a connection.
const FRAME_MAX: u32 = 131_072;

/// How to reach a broker. Holds the password: it has no `Debug`.
pub(crate) struct Endpoint {
    host: Host,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    /// `None`: the client certificate logs in.
    login: Option<(String, String)>,
    /// The Dsn to dial and the policy to ask, where a client named the host.
    judged: Option<(Dsn, Policy)>,
}

/// What tells the brokers that clients name apart. Holds the password: it has no `Debug`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    is_tls: bool,
    login: Option<(String, String)>,
    host: Host,
    port: u16,
}

impl Identity {
    pub(crate) const fn host(&self) -> &Host {
        &self.host
    }
}

impl Endpoint {
    /// The operator's own broker.
    pub(crate) fn registered(
        dsn: &Dsn,
        tls: Option<Arc<ClientConfig>>,
        has_certificate: bool,
    ) -> Result<Self, DsnError> {
        Self::of(dsn, tls, has_certificate)
    }

    /// A broker that a client named.
    pub(crate) fn unregistered(dsn: &Dsn, policy: &Policy, tls: &Arc<ClientConfig>) -> Result<Self, DsnError> {
        let tls = (dsn.scheme() == "amqps").then(|| Arc::clone(tls));
        let endpoint = Self::of(dsn, tls, false)?;
        Ok(Self { judged: Some((dsn.clone(), policy.clone())), ..endpoint })
    }

    fn of(dsn: &Dsn, tls: Option<Arc<ClientConfig>>, has_certificate: bool) -> Result<Self, DsnError> {
        let [HostPort { host, port }] = dsn.hosts() else { return Err(DsnError::invalid("the host is missing")) };
        let login = match (dsn.username(), dsn.password()) {
            (Some(user), Some(password)) => Some((user.to_owned(), password.to_owned())),
            (None, None) if has_certificate => None,
            _ => return Err(DsnError::invalid("user and password are missing: `amqps://user:password@host/`")),
        };
        let port = port.unwrap_or(if dsn.scheme() == "amqps" { 5671 } else { 5672 });
        Ok(Self { host: host.clone(), port, tls, login, judged: None })
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { is_tls: self.is_tls(), login: self.login.clone(), host: self.host.clone(), port: self.port }
    }

    /// Connects, logs in and opens the vhost.
    pub(crate) async fn connect(&self, vhost: &str) -> Result<(Connection, Socket), Failure> {
        let now = Instant::now();
        let limit = now + CONNECT_LIMIT;
        let stream = self.dial(now + DIAL_LIMIT).await?;
        let (stream, socket) = Socket::share(stream).map_err(|error| failed(&error, Phase::Connect))?;
        let stream: Box<dyn Duplex> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = server_name(&self.host);
                let handshake = TlsConnector::from(Arc::clone(config)).connect(name, stream);
                let stream = timeout_at(limit.into(), handshake).await.map_err(|_elapsed| too_slow(Phase::Tls))?;
                Box::new(stream.map_err(|error| not_believed(&error))?)
            }
        };
        // At the limit the socket is shut down, without which lapin's thread would wait for ever.
        let connection = timeout_at(limit.into(), handshake(self.uri(vhost), Box::new(Frames::new(stream)))).await;
        let connection = connection.map_err(|_elapsed| too_slow(Phase::Connect))?;
        Ok((connection.map_err(|error| broken(&error, Phase::Connect, About::Login))?, socket))
    }

    async fn dial(&self, limit: Instant) -> Result<TcpStream, Failure> {
        if let Some((dsn, policy)) = &self.judged {
            return policy.connect(dsn, limit).await.map_err(|error| of_policy(&error));
        }
        let addresses: Vec<SocketAddr> = match &self.host {
            Host::Ipv4(address) => vec![(*address, self.port).into()],
            Host::Ipv6(address) => vec![(*address, self.port).into()],
            Host::Domain(name) => timeout_at(limit.into(), tokio::net::lookup_host((&**name, self.port)))
                .await
                .map_err(|_elapsed| too_slow(Phase::Resolve))?
                .map_err(|error| failed(&error, Phase::Resolve))?
                .collect(),
        };
        dial_one_of(&addresses, limit).await
    }

    fn uri(&self, vhost: &str) -> AMQPUri {
        let (username, password) = self.login.clone().unwrap_or_default();
        let mechanism = if self.login.is_some() { SASLMechanism::Plain } else { SASLMechanism::External };
        AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username, password },
                host: self.host.to_string(),
                port: self.port,
            },
            vhost: vhost.to_owned(),
            query: AMQPQueryString {
                heartbeat: Some(HEARTBEAT),
                frame_max: Some(FRAME_MAX),
                auth_mechanism: Some(mechanism),
                ..AMQPQueryString::default()
            },
        }
    }
}

/// Connects to the first address that answers; those that are left share the time that is left.
async fn dial_one_of(addresses: &[SocketAddr], limit: Instant) -> Result<TcpStream, Failure> {
    let mut failure = Failure::new(ErrorKind::Unavailable, Phase::Resolve, "the name has no address");
    for (tried, address) in addresses.iter().enumerate() {
        let left = limit.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(|error| failed(&error, Phase::Connect))?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = failed(&error, Phase::Connect),
            Err(_elapsed) => failure = too_slow(Phase::Connect),
        }
    }
    Err(failure)
}

fn server_name(host: &Host) -> ServerName<'static> {
    match host {
        Host::Ipv4(address) => ServerName::IpAddress((*address).into()),
        Host::Ipv6(address) => ServerName::IpAddress((*address).into()),
        Host::Domain(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
            .unwrap_or_else(|_| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())),
    }
}

fn failed(error: &io::Error, phase: Phase) -> Failure {
    // The text of an I/O error is the system's.
    Failure::new(ErrorKind::Unavailable, phase, error.to_string())
}

/// Why there is no TLS. The texts are ours: those of rustls repeat the names in the broker's certificate.
fn not_believed(error: &io::Error) -> Failure {
    use rustls::{CertificateError as Certificate, Error};
    let Some(tls) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return failed(error, Phase::Tls);
    };
    let text = match tls {
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "the broker's certificate has expired"
        }
        Error::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            "the broker's certificate is for another name"
        }
        Error::InvalidCertificate(Certificate::UnknownIssuer) => "the issuer of the broker's certificate is unknown",
        Error::InvalidCertificate(_) => "the broker's certificate is not valid",
        Error::AlertReceived(_) => "the broker broke the TLS handshake off",
        _ => "the TLS handshake failed",
    };
    Failure::new(ErrorKind::Unavailable, Phase::Tls, text)
}

fn too_slow(phase: Phase) -> Failure {
    Failure::new(ErrorKind::Unavailable, phase, "the broker did not answer in time")
}

fn of_policy(error: &SinkError) -> Failure {
    let text = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    Failure::new(error.kind(), error.phase().unwrap_or(Phase::Connect), text)
}

/// A second handle on a connection's socket; dropping it ends the connection, whoever waits for it.
#[derive(Debug)]
pub(crate) struct Socket(std::net::TcpStream);

impl Socket {
    fn share(stream: TcpStream) -> io::Result<(TcpStream, Self)> {
        let stream = stream.into_std()?;
        let socket = Self(stream.try_clone()?);
        Ok((TcpStream::from_std(stream)?, socket))
    }

    pub(crate) fn shut_down(&self) {
        // It fails where the other side has closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shut_down();
    }
}

async fn handshake(uri: AMQPUri, stream: Box<dyn Duplex>) -> Result<Connection, lapin::Error> {
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Dialled));
    let stream = Mutex::new(Some(stream));
    let connect = async move |_uri, _runtime| {
        // This runs on the connection's own thread, on which lapin logs returned messages as a whole: it gets no logger.
        std::mem::forget(tracing::dispatcher::set_default(&tracing::Dispatch::none()));
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        let stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        Ok(AsyncTcpStream::Plain(stream.compat()))
    };
    Connection::connector(uri, runtime, connect, ConnectionProperties::default()).await
}

/// A socket with or without TLS.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Tells lapin which streams it is given; itself it opens none.
#[derive(Clone, Debug)]
struct Dialled;

impl Reactor for Dialled {
    type TcpStream = Compat<Box<dyn Duplex>>;
    type Sleep = Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl FuturesRead + FuturesWrite + Send + Unpin + 'static> {
        Err::<DummyIO, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        sleep(duration)
    }

    fn interval(&self, _duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        DummyStream(PhantomData)
    }

    fn tcp_connect_addr(
        &self,
        _address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    /// An address that answers to nobody: its queue of connections is full, as long as these live.
    async fn black_hole() -> (SocketAddr, impl Sized) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        let listener = socket.listen(1).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let mut streams = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            streams.push(stream.expect("connected"));
        }
        (address, (listener, streams))
    }

    #[test]
    fn no_error_of_tls_repeats_the_broker_s_certificate() {
        use rustls::{CertificateError, Error};
        let expected = ServerName::try_from("broker.example").expect("a name");
        let presented = vec!["planted.example".to_owned()];
        let other_name = CertificateError::NotValidForNameContext { expected, presented };
        for (error, text) in [
            (Error::InvalidCertificate(other_name), "for another name"),
            (Error::InvalidCertificate(CertificateError::Expired), "has expired"),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "issuer"),
            (Error::General("planted".to_owned()), "handshake failed"),
        ] {
            let failure = not_believed(&io::Error::new(io::ErrorKind::InvalidData, error));
            assert!(failure.text.contains(text) && !failure.text.contains("planted"), "{}", failure.text);
            assert_eq!((failure.kind, failure.phase), (ErrorKind::Unavailable, Phase::Tls));
        }
    }

    #[tokio::test]
    async fn the_last_address_has_its_turn() {
        let (silent, _held) = black_hole().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let good = listener.local_addr().expect("an address");
        let mut addresses = vec![silent; 9];
        addresses.push(good);
        let limit = Instant::now() + Duration::from_secs(2);
        let stream = dial_one_of(&addresses, limit).await.map_err(|failure| failure.text).expect("connected");
        assert_eq!(stream.peer_addr().expect("an address"), good);
        // Nobody waits longer than the limit, however many addresses there are.
        let limit = Duration::from_millis(500);
        let failure = timeout(20 * limit, dial_one_of(&vec![silent; 1_000], Instant::now() + limit)).await;
        let failure = failure.expect("in time").expect_err("nobody answers");
        assert_eq!((failure.kind, failure.phase), (ErrorKind::Unavailable, Phase::Connect));
    }
}
