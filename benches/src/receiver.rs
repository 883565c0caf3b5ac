//! The webhook receiver that all contenders send to.

use bytes::Bytes;
use callback_core::BoxError;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    collections::{BTreeSet, HashSet},
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime},
};
use tokio::{
    runtime,
    sync::{Notify, Semaphore},
    time::timeout,
};

/// Answers 204 to everything, on a thread of its own, and keeps count of what arrived.
#[derive(Clone)]
pub(crate) struct Receiver {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    round: Mutex<Round>,
    all_arrived: Notify,
}

/// What arrived since the last `expect`.
#[derive(Default)]
struct Round {
    expected: usize,
    ids: HashSet<u128>,
    repeated: usize,
    foreign: usize,
    header_names: BTreeSet<String>,
    delays: Vec<u32>,
    window: Option<Arc<Semaphore>>,
    returned: usize,
}

/// What a round came to.
pub(crate) struct Arrivals {
    /// The names of the headers of the first request.
    pub(crate) header_names: BTreeSet<String>,
    /// From the making of each id to its arrival, in whole milliseconds, sorted.
    pub(crate) delays: Vec<u32>,
}

/// Places of the window are given back in groups: waking a publisher from another thread costs.
const GROUP: usize = 32;

/// How long a round may go on.
const PATIENCE: Duration = Duration::from_secs(300);

impl Receiver {
    /// Listens on a free port of the loopback interface.
    pub(crate) fn start() -> Result<Self, BoxError> {
        Self::listening(1)
    }

    /// The same on as many ports: as many destinations.
    pub(crate) fn listening(ports: usize) -> Result<Self, BoxError> {
        let bind = |_| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            Ok::<_, io::Error>(listener)
        };
        let listeners = (0..ports).map(bind).collect::<Result<Vec<_>, _>>()?;
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        let receiver = Self { addresses, shared: Arc::default() };
        let shared = Arc::clone(&receiver.shared);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = async move {
            let serving = listeners.into_iter().map(|listener| tokio::spawn(serve(listener, Arc::clone(&shared))));
            for serving in serving.collect::<Vec<_>>() {
                let _ = serving.await;
            }
        };
        thread::Builder::new().name("receiver".to_owned()).spawn(move || runtime.block_on(serving))?;
        Ok(receiver)
    }

    /// The URL of the first port.
    pub(crate) fn url(&self) -> String {
        self.urls().swap_remove(0)
    }

    /// A URL for each port.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.addresses.iter().map(|address| format!("http://{address}/orders/callback")).collect()
    }

    /// Begins a round of as many messages, each with an id of its own.
    ///
    /// What arrives gives its place in the window back.
    pub(crate) fn expect(&self, messages: usize, window: Option<Arc<Semaphore>>) {
        *self.shared.round() = Round {
            expected: messages,
            ids: HashSet::with_capacity(messages),
            delays: Vec::with_capacity(messages),
            window,
            ..Round::default()
        };
    }

    /// Waits until everything has arrived.
    pub(crate) async fn all_arrived(&self) -> Result<(), BoxError> {
        loop {
            let arrived = self.shared.all_arrived.notified();
            let (here, expected) = {
                let round = self.shared.round();
                (round.ids.len(), round.expected)
            };
            if here >= expected {
                return Ok(());
            }
            timeout(PATIENCE, arrived).await.map_err(|_| format!("{here} of {expected} messages arrived in time"))?;
        }
    }

    /// Ends the round; an error unless each message arrived exactly once, and nothing else did.
    pub(crate) fn take(&self) -> Result<Arrivals, BoxError> {
        let mut round = std::mem::take(&mut *self.shared.round());
        if round.ids.len() != round.expected || round.repeated > 0 || round.foreign > 0 {
            let Round { expected, repeated, foreign, ids, .. } = round;
            let arrived = ids.len();
            return Err(
                format!("of {expected} messages {arrived} arrived, {repeated} again, {foreign} without an id").into()
            );
        }
        round.delays.sort_unstable();
        Ok(Arrivals { header_names: round.header_names, delays: round.delays })
    }
}

impl Shared {
    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, headers: &HeaderMap) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let mut round = self.round();
        let Some(id) = headers.get("webhook-id").and_then(|id| uuid(id.as_bytes())) else {
            round.foreign += 1;
            return;
        };
        if round.ids.is_empty() {
            round.header_names = headers.keys().map(ToString::to_string).collect();
        }
        if !round.ids.insert(id) {
            round.repeated += 1;
            return;
        }
        // A UUID of version 7 begins with the milliseconds at which it was made (RFC 9562 §5.7).
        round.delays.push(u32::try_from(now.saturating_sub(id >> 80)).unwrap_or(u32::MAX));
        let arrived = round.ids.len();
        let is_last = arrived == round.expected;
        if arrived - round.returned >= GROUP || is_last {
            if let Some(window) = &round.window {
                window.add_permits(arrived - round.returned);
            }
            round.returned = arrived;
        }
        if is_last {
            self.all_arrived.notify_waiters();
        }
    }
}

/// Reads a hyphenated UUID.
fn uuid(text: &[u8]) -> Option<u128> {
    text.iter().filter(|byte| **byte != b'-').try_fold(0, |number: u128, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(number.checked_mul(16)? | u128::from(digit))
    })
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener does not block");
    while let Ok((stream, _)) = listener.accept().await {
        // Without it the kernel waits for more before it sends a small answer.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
            // A client that goes away is no matter.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    while let Some(Ok(_)) = body.frame().await {}
    shared.arrived(&head.headers);
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_read_as_its_number() {
        assert_eq!(uuid(b"017f22e2-79b0-7cc3-98c4-dc0c0c07398f"), Some(0x017f_22e2_79b0_7cc3_98c4_dc0c_0c07_398f));
        assert_eq!(uuid(b"msg_1"), None);
    }
}
