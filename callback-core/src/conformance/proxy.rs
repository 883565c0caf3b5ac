//! The faults of a network, in front of a TCP server.

use super::{Fault, Skip};
use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{oneshot, watch},
    task::AbortHandle,
};

/// Passes on what a sink and a TCP server say to each other, and fails on demand.
///
/// It makes [`Fault::Disconnect`], [`Fault::Outage`] and [`Fault::Stall`]; the others are for the server. A stall
/// withholds what the server says, and passes on what it is sent. Dropping the proxy ends its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    askers: Arc<Askers>,
    accepting: AbortHandle,
}

/// Who asks for the number of connections, by the address that the question comes from.
type Askers = Mutex<HashMap<SocketAddr, oneshot::Sender<usize>>>;

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Counts how often every connection was cut.
    cuts: u64,
    out: bool,
    stalled: bool,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, and connects to the server once for each connection of its own.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(server: impl Into<String>) -> io::Result<Self> {
        let server: Arc<str> = server.into().into();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State::default());
        let askers = Arc::<Askers>::default();
        let asked = Arc::clone(&askers);
        let accepting = tokio::spawn(async move {
            let mut connections = 0;
            while let Ok((client, from)) = listener.accept().await {
                if let Some(asker) = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&from) {
                    let _ = asker.send(connections);
                    continue;
                }
                connections += 1;
                // While it is out, a connection is closed as soon as it is made.
                let State { cuts, out, .. } = *watched.borrow();
                if !out {
                    tokio::spawn(serve(client, Arc::clone(&server), watched.clone(), cuts));
                }
            }
        })
        .abort_handle();
        Ok(Self { address, state, askers, accepting })
    }

    /// The address for the sink.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections were made to the proxy so far, also while it was out.
    ///
    /// # Errors
    /// When the proxy cannot be asked: there is no port.
    pub async fn connections(&self) -> io::Result<usize> {
        // A connection of its own, which comes after all that were made before it.
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let (asker, answer) = oneshot::channel();
        self.askers.lock().unwrap_or_else(PoisonError::into_inner).insert(socket.local_addr()?, asker);
        let _stream = socket.connect(self.address).await?;
        answer.await.map_err(io::Error::other)
    }

    /// Makes a fault of the network.
    ///
    /// # Errors
    /// When the fault is one of the server.
    pub fn inject(&self, fault: Fault) -> Result<(), Skip> {
        match fault {
            Fault::Disconnect => self.state.send_modify(|state| state.cuts += 1),
            Fault::Outage => self.state.send_modify(|state| (state.cuts, state.out) = (state.cuts + 1, true)),
            Fault::Stall => self.state.send_modify(|state| state.stalled = true),
            Fault::Refuse | Fault::Throttle(_) => return Err(Skip::because("a network does not do this")),
        }
        Ok(())
    }

    /// Passes everything on again.
    pub fn heal(&self) {
        self.state.send_modify(|state| (state.out, state.stalled) = (false, false));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.send_modify(|state| state.cuts += 1);
    }
}

/// Carries one connection until it ends on both sides, or is cut: this many cuts were made before it.
async fn serve(client: TcpStream, server: Arc<str>, mut watched: watch::Receiver<State>, cuts: u64) {
    let mut stall = watched.clone();
    let carry = async {
        let server = TcpStream::connect(&*server).await?;
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let there = async {
            copy(&mut from_client, &mut to_server).await?;
            to_server.shutdown().await
        };
        let back = async {
            let mut buffer = vec![0; 16 << 10];
            loop {
                let read = from_server.read(&mut buffer).await?;
                // A proxy that is gone has cut the connection.
                let _ = stall.wait_for(|state| !state.stalled).await;
                if read == 0 {
                    return to_client.shutdown().await;
                }
                to_client.write_all(&buffer[..read]).await?;
            }
        };
        tokio::try_join!(there, back).map(drop)
    };
    tokio::select! {
        // What is sent after a cut is not carried, however soon.
        biased;
        _cut = watched.wait_for(|state| state.cuts != cuts) => {}
        _ended = carry => {}
    }
}
