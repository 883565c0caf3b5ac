//! An HTTP server with the limits that a public one needs.

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::StatusCode,
    middleware::Next,
};
use http_body::{Frame, SizeHint};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::{Sleep, sleep, timeout},
};

/// How long a body may take, from the end of its headers.
const BODY_TIME: Duration = Duration::from_secs(15);

/// A running HTTP/1.1 server: at most 1,024 connections, 10 s for the headers of a request, 15 s for its body, 150 s for all
/// of it, 10 min for a connection. How many of the connections one client may have is for a proxy to say.
///
/// A call may name up to 120 s for its method (`$rpc.timeout`). A connection that became a WebSocket is none of these.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    stopped: JoinHandle<()>,
}

impl Server {
    /// Listens, and serves the router.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn start(address: SocketAddr, router: Router) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (stop, stopping) = oneshot::channel();
        let stopped = tokio::spawn(serve(listener, router, stopping));
        Ok(Self { address, stop, stopped })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and requests; waits for those in flight, 5 s at most.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.stopped.await;
    }
}

async fn serve(listener: TcpListener, router: Router, mut stopping: oneshot::Receiver<()>) {
    let router = router.layer(axum::middleware::from_fn(|request: Request, next: Next| async move {
        let request = request.map(|body| Body::new(Timely { body, over: Box::pin(sleep(BODY_TIME)) }));
        timeout(Duration::from_secs(150), next.run(request)).await.map_err(|_elapsed| StatusCode::REQUEST_TIMEOUT)
    }));
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    let (connections, places) = (GracefulShutdown::new(), Arc::new(Semaphore::new(1_024)));
    loop {
        let accept = async {
            // Whoever has no place waits in the kernel's queue.
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (stream, place) = tokio::select! {
            _ = &mut stopping => break,
            (accepted, place) = accept => match accepted {
                Ok((stream, _)) => (stream, place),
                Err(error) => {
                    // Too many open files, for example: it passes.
                    tracing::warn!(%error, "a connection was not accepted");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection =
            connections.watch(http.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned());
        tokio::spawn(async move {
            // Whoever reads no answer, or sends on for ever, loses the place.
            match timeout(Duration::from_secs(600), connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(error, "a connection ended early"),
                Err(_elapsed) => tracing::debug!("a connection was open for too long"),
            }
            drop(place);
        });
    }
    drop(listener);
    let _ = timeout(Duration::from_secs(5), connections.shutdown()).await;
}

/// A body that fails where it is not there in time.
struct Timely {
    body: Body,
    over: Pin<Box<Sleep>>,
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(this.over.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_takes_too_long_fails() {
        let drip = futures_util::stream::unfold((), |()| async {
            sleep(BODY_TIME / 4).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"a")), ()))
        });
        let over = Box::pin(sleep(BODY_TIME));
        let read = axum::body::to_bytes(Body::new(Timely { body: Body::from_stream(drip), over }), usize::MAX);
        assert!(timeout(BODY_TIME * 2, read).await.expect("it ends").is_err());
    }
}
