//! An HTTP server with the limits that a public one needs.

use axum::{Router, http::StatusCode};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// A running HTTP/1.1 server: at most 1,024 connections, 10 s for the headers of a request, 150 s for all of it, 10 min for
/// a connection.
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
    let router = router.layer(axum::middleware::from_fn(|request, next: axum::middleware::Next| async move {
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
