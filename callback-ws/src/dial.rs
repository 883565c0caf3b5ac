//! Connecting to a server: socket by the policy, then TLS, then the handshake on it.

use crate::{handshake, outcome::Failure, wire::Subprotocol};
use callback_core::{Dsn, ErrorKind, Phase, Policy, SinkError};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::client::generate_key,
        protocol::{Role, WebSocketConfig},
    },
};
use url::Host;

/// How long connecting may take, the handshakes included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How much of that name and TCP may take; the handshakes have the rest at least.
const DIAL_LIMIT: Duration = Duration::from_secs(6);

/// How long the head of a server's answer may be, in bytes.
const HEAD_LIMIT: usize = 16 << 10;

/// The largest message that is read: a peer has little to say.
pub(crate) const INCOMING_LIMIT: usize = 64 << 10;

/// A socket with or without TLS.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// What a server is connected to with.
pub(crate) struct Dialler {
    pub(crate) policy: Policy,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) origin: Option<String>,
    pub(crate) allow_unsigned: bool,
}

/// An open socket, and what the server picked.
pub(crate) type Opened = (WebSocketStream<Box<dyn Duplex>>, Subprotocol);

impl Dialler {
    /// Opens a socket.
    pub(crate) async fn open(&self, dsn: &Dsn) -> Result<Opened, Failure> {
        let now = Instant::now();
        let limit = now + CONNECT_LIMIT;
        let stream = self.policy.connect(dsn, (now + DIAL_LIMIT).into_std()).await;
        let stream = stream.map_err(|error| of_policy(&error))?;
        // A connection that is given up is cut: what lies in the system's buffers must not arrive after what comes next.
        stream.set_zero_linger().map_err(|error| failed(&error, Phase::Connect))?;
        let mut stream: Box<dyn Duplex> = match dsn.scheme() {
            "wss" => {
                let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(server_name(dsn)?, stream);
                let stream = timeout_at(limit, handshake).await.map_err(|_elapsed| too_slow(Phase::Tls))?;
                Box::new(stream.map_err(|error| not_believed(&error))?)
            }
            _ => Box::new(stream),
        };
        let shaken = timeout_at(limit, self.shake_hands(dsn, &mut stream)).await;
        let (subprotocol, rest) = shaken.map_err(|_elapsed| too_slow(Phase::Connect))??;
        if subprotocol == Subprotocol::Bare && !self.allow_unsigned {
            let text = "the server picks no subprotocol, and unsigned frames are not allowed";
            return Err(Failure::new(ErrorKind::Forbidden, Phase::Policy, text));
        }
        let socket = WebSocketStream::from_partially_read(stream, rest, Role::Client, Some(limits(16 << 10))).await;
        Ok((socket, subprotocol))
    }

    /// Gives what was picked, and what of the first frames came along with the answer.
    async fn shake_hands(&self, dsn: &Dsn, stream: &mut dyn Duplex) -> Result<(Subprotocol, Vec<u8>), Failure> {
        let key = generate_key();
        let request = handshake::request(dsn, self.origin.as_deref(), &key)?;
        let broken = |error: io::Error| failed(&error, Phase::Connect);
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let (mut answer, mut start) = (Vec::with_capacity(1024), 0);
        loop {
            if stream.read_buf(&mut answer).await.map_err(broken)? == 0 {
                return Err(Failure::unavailable(Phase::Connect, "the server closed the connection in the handshake"));
            }
            while let Some((length, response)) = handshake::head(&answer[start..])? {
                start += length;
                if !handshake::is_interim(&response) {
                    let subprotocol = handshake::judge(&response, &key, SystemTime::now())?;
                    return Ok((subprotocol, answer.split_off(start)));
                }
            }
            if answer.len() > HEAD_LIMIT {
                return Err(Failure::unavailable(Phase::Answer, "the server's answer is too long"));
            }
        }
    }
}

/// The limits of a connection whose reads go through a buffer of so many bytes.
pub(crate) fn limits(read_buffer: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(read_buffer)
        .write_buffer_size(64 << 10)
        .max_message_size(Some(INCOMING_LIMIT))
        .max_frame_size(Some(INCOMING_LIMIT))
}

fn server_name(dsn: &Dsn) -> Result<ServerName<'static>, Failure> {
    let missing = || Failure::new(ErrorKind::Refused, Phase::Policy, "the host is missing");
    Ok(match &dsn.hosts().first().ok_or_else(missing)?.host {
        Host::Ipv4(address) => ServerName::IpAddress((*address).into()),
        Host::Ipv6(address) => ServerName::IpAddress((*address).into()),
        Host::Domain(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
            .map_err(|_| Failure::new(ErrorKind::Refused, Phase::Tls, "no certificate can be for this host"))?,
    })
}

fn failed(error: &io::Error, phase: Phase) -> Failure {
    // The text of an I/O error is the system's.
    Failure::unavailable(phase, error.to_string())
}

/// Why there is no TLS. The texts are ours: those of rustls repeat the names in the server's certificate.
fn not_believed(error: &io::Error) -> Failure {
    use rustls::{CertificateError as Certificate, Error};
    let Some(tls) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return failed(error, Phase::Tls);
    };
    let text = match tls {
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "the server's certificate has expired"
        }
        Error::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            "the server's certificate is for another name"
        }
        Error::InvalidCertificate(Certificate::UnknownIssuer) => "the issuer of the server's certificate is unknown",
        Error::InvalidCertificate(_) => "the server's certificate is not valid",
        Error::AlertReceived(_) => "the server broke the TLS handshake off",
        _ => "the TLS handshake failed",
    };
    Failure::unavailable(Phase::Tls, text)
}

fn too_slow(phase: Phase) -> Failure {
    Failure::unavailable(phase, "the server did not answer in time")
}

/// Nothing was sent yet, so a limit that passed leaves no doubt about the outcome.
fn of_policy(error: &SinkError) -> Failure {
    let text = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    let kind = if error.kind() == ErrorKind::TimedOut { ErrorKind::Unavailable } else { error.kind() };
    Failure::new(kind, error.phase().unwrap_or(Phase::Connect), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_of_tls_repeats_the_server_s_certificate() {
        use rustls::{CertificateError, Error};
        let expected = ServerName::try_from("hook.example").expect("a name");
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
}
