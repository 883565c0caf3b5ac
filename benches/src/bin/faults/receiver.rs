//! The webhook receiver: it counts every id over real sockets, and can be down.

use bytes::Bytes;
use callback_core::BoxError;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use tokio::runtime;

/// A receiver on a thread of its own.
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    arrivals: Mutex<Arrivals>,
    changed: Condvar,
}

/// What arrived until now.
#[derive(Default)]
pub(crate) struct Arrivals {
    /// Whether all are answered with 503.
    is_down: bool,
    /// The ids that were answered with 503.
    pub(crate) turned_away: HashSet<String>,
    /// How often each id was answered with 204.
    pub(crate) taken: HashMap<String, usize>,
    /// The ids that arrived as a report of interrupted work.
    pub(crate) reported: HashSet<String>,
    /// The numbers of the requests whose results arrived.
    pub(crate) numbers: HashSet<u64>,
}

impl Receiver {
    /// Listens on a free port of the loopback interface.
    pub(crate) fn start() -> Result<Self, BoxError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let receiver = Self { address: listener.local_addr()?, shared: Arc::default() };
        let shared = Arc::clone(&receiver.shared);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("receiver".to_owned()).spawn(move || runtime.block_on(serve(listener, shared)))?;
        Ok(receiver)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/callback", self.address)
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.arrivals().is_down = is_down;
    }

    pub(crate) fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        self.shared.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the arrivals are such; false if nothing more arrived for as long as `patience`.
    pub(crate) fn until(&self, patience: Duration, enough: impl Fn(&Arrivals) -> bool) -> bool {
        let mut arrivals = self.arrivals();
        while !enough(&arrivals) {
            let waited = self.shared.changed.wait_timeout(arrivals, patience);
            let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return enough(&next);
            }
            arrivals = next;
        }
        true
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the listener does not block");
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
            // A client that is killed is what this is about.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Empty::new());
    let Ok(body) = body.collect().await else {
        // The rest of it does not come: the client is dead.
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    };
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let id = header("webhook-id").to_owned();
    let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
    let mut arrivals = shared.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    *response.status_mut() = if arrivals.is_down {
        arrivals.turned_away.insert(id);
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        if header("ce-type") == "callback.task.failed" {
            arrivals.reported.insert(id.clone());
        }
        arrivals.numbers.extend(body["number"].as_u64());
        *arrivals.taken.entry(id).or_default() += 1;
        StatusCode::NO_CONTENT
    };
    drop(arrivals);
    shared.changed.notify_all();
    Ok(response)
}
