//! A listener of its own: HTTP/1.1 with the limits that a public one needs.

use super::{
    Inner,
    connections::{Connection, Connections},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{interval, sleep},
};

/// How large the head of a request may be, in bytes.
const HEAD: usize = 32 << 10;

/// How long the last answer of a connection may take to be written, or a head to come that has begun, when the receiver
/// closes.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// How long nothing is accepted after the system had no room for a connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the receiver closes.
pub(super) async fn serve(inner: Arc<Inner>, listener: TcpListener) {
    let connections = Arc::new(Connections::new());
    inner.connections.spawn(expire(Arc::clone(&inner), Arc::clone(&connections)));
    let room = Arc::new(Semaphore::new(inner.limits.connections));
    loop {
        let accepted = tokio::select! {
            biased;
            () = inner.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection was accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let permit = tokio::select! {
            biased;
            () = inner.closing.cancelled() => return,
            permit = enter(&room, &connections) => permit,
        };
        let (connection, all) = (connections.open(inner.closing.child_token()), Arc::clone(&connections));
        inner.connections.spawn(converse(Arc::clone(&inner), stream, connection, all, permit));
    }
}

/// A place for a connection; where there is none, the one that has been idle for longest makes room.
async fn enter(room: &Arc<Semaphore>, connections: &Connections) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(room).try_acquire_owned() {
        return Some(permit);
    }
    let mut place = pin!(Arc::clone(room).acquire_owned());
    // It is never closed.
    tokio::select! {
        biased;
        permit = place.as_mut() => return permit.ok(),
        () = connections.evict() => {}
    }
    place.await.ok()
}

/// Lets those go that take too long for a head, looking several times in that time.
///
/// Hyper's own timer is set anew for each request, and costs one as much as the verdict on its message.
async fn expire(inner: Arc<Inner>, connections: Arc<Connections>) {
    let head = inner.limits.head;
    let mut ticks = interval((head / 8).clamp(Duration::from_millis(1), Duration::from_secs(5)));
    loop {
        tokio::select! {
            biased;
            () = inner.closing.cancelled() => return,
            _ = ticks.tick() => connections.expire(head),
        }
    }
}

async fn converse(
    inner: Arc<Inner>,
    stream: TcpStream,
    connection: Arc<Connection>,
    all: Arc<Connections>,
    permit: Option<OwnedSemaphorePermit>,
) {
    let _open = Open(&all, &connection);
    // Without it the kernel waits for more before it sends a small answer.
    let _ = stream.set_nodelay(true);
    let service = {
        let (inner, connection, all) = (Arc::clone(&inner), Arc::clone(&connection), Arc::clone(&all));
        service_fn(move |request: http::Request<Incoming>| {
            let (inner, connection, all) = (Arc::clone(&inner), Arc::clone(&connection), Arc::clone(&all));
            async move {
                Connections::work(&connection);
                let handle = inner.base.name(request.uri().path()).parse().ok();
                let answer = inner.requests.serve(handle, request).await;
                all.rest(&connection);
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let mut http = http1::Builder::new();
    http.max_buf_size(HEAD);
    let mut conversation = pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        biased;
        () = connection.leaving.cancelled() => if inner.closing.is_cancelled() {
            conversation.as_mut().graceful_shutdown();
            tokio::select! {
                _ = conversation.as_mut() => {}
                () = silent(&connection) => {}
            }
        },
        // A sender that goes away is no matter.
        _ = conversation.as_mut() => {}
    }
    drop(permit);
}

/// A connection that is forgotten when it ends, however it does.
struct Open<'a>(&'a Connections, &'a Connection);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.close(self.1);
    }
}

/// Resolves once the connection has had its time without a request. A request ends by itself: its body is not waited for any
/// more, and its verdict is there in time.
async fn silent(connection: &Connection) {
    loop {
        sleep(LAST_ANSWER).await;
        if !connection.is_working() {
            return;
        }
    }
}
