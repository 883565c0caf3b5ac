//! From a request to a conversation; and a listener of its own: HTTP/1.1 with the limits that a public one needs.

use super::{
    Inner,
    conversation::{self, Talk},
    metered::Metered,
    seats::Seat,
    wire,
};
use crate::{
    upgrade::{self, Terms},
    wire::Subprotocol,
};
use callback_receive::{HandleId, Standing};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request, Response, StatusCode, header};

/// How large the head of a request may be, in bytes.
const HEAD: usize = 32 << 10;

/// How long an answer may take to be written when the receiver closes.
const LAST_ANSWER: Duration = Duration::from_secs(30);

/// How long nothing is accepted after the system had no room for a connection.
const PAUSE: Duration = Duration::from_millis(50);

/// When a sender is told to come again.
const RETRY_AFTER: &str = "5";

/// The subprotocols that are spoken, the best first.
const SUBPROTOCOLS: &[&str] = &["callback.v1", "cloudevents.json"];

pub(super) type Answer = Response<String>;

impl Inner {
    /// Answers a request to this handle; `None` where its path names none. The conversation begins once the answer is sent.
    ///
    /// The seat is asked for once everything else is in order.
    pub(super) async fn shake_hands<B>(
        self: &Arc<Self>,
        handle: Option<HandleId>,
        mut request: Request<B>,
        seat: impl Future<Output = Option<Seat>>,
    ) -> Answer {
        let Some(handle) = handle else { return unknown() };
        let Some(intake) = self.intake.get().filter(|_| !self.closing.is_cancelled()) else { return not_now() };
        if intake.standing(&handle) == Standing::Unknown {
            // Nobody has a socket who has never been told a handle.
            return unknown();
        }
        // A sender knows who may have the handle, whatever page it runs in.
        let terms = Terms { subprotocols: SUBPROTOCOLS, origins: None };
        let upgrade = match upgrade::accept(&mut request, terms) {
            Ok(upgrade) => upgrade,
            Err(refusal) => return refusal.answer(),
        };
        let Some(seat) = seat.await else { return not_now() };
        let answer = upgrade.answer();
        let subprotocol = Subprotocol::picked(Some(upgrade.subprotocol())).unwrap_or(Subprotocol::Bare);
        let talk = Talk {
            subprotocol,
            handle,
            intake: intake.clone(),
            seat,
            closing: self.closing.clone(),
            message_time: self.limits.message,
        };
        let (memory, limit) = (Arc::clone(&self.memory), wire::frame_limit(intake.body_limit()));
        let (head, leaving) = (self.limits.head, talk.seat.leaving.clone());
        self.connections.spawn(async move {
            let opened = upgrade.open_over(limit, |stream| Metered::new(stream, memory));
            let socket = tokio::select! {
                biased;
                opened = timeout(head, opened) => opened,
                () = leaving.cancelled() => return,
            };
            if let Ok(Ok(socket)) = socket {
                conversation::converse(socket, talk).await;
            }
        });
        answer
    }
}

fn unknown() -> Answer {
    refused(StatusCode::NOT_FOUND, "there is no such callback")
}

pub(super) fn not_now() -> Answer {
    let mut answer = refused(StatusCode::SERVICE_UNAVAILABLE, "not now");
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    answer
}

fn refused(status: StatusCode, text: &str) -> Answer {
    let mut answer = Answer::new(text.to_owned());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// Accepts connections until the receiver closes.
pub(super) async fn serve(inner: Arc<Inner>, listener: TcpListener) {
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
        let seat = tokio::select! {
            biased;
            () = inner.closing.cancelled() => return,
            seat = inner.seats.enter() => seat,
        };
        inner.connections.spawn(receive(Arc::clone(&inner), stream, seat));
    }
}

/// Serves the requests of a connection, until one of them opens a socket.
async fn receive(inner: Arc<Inner>, stream: TcpStream, seat: Seat) {
    // Without it the kernel waits for more before it sends a small answer.
    let _ = stream.set_nodelay(true);
    let leaving = seat.leaving.clone();
    // It goes on to the socket, and is free when that has ended.
    let seat = Arc::new(Mutex::new(Some(seat)));
    let service = {
        let (inner, seat) = (Arc::clone(&inner), Arc::clone(&seat));
        service_fn(move |request: Request<Incoming>| {
            let (inner, seat) = (Arc::clone(&inner), Arc::clone(&seat));
            async move {
                let handle = inner.base.name(request.uri().path()).parse().ok();
                let seat = async { seat.lock().unwrap_or_else(PoisonError::into_inner).take() };
                let mut answer = inner.shake_hands(handle, request, seat).await;
                if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(inner.limits.head).max_buf_size(HEAD);
    let mut conversation = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    tokio::select! {
        biased;
        // A sender that goes away is no matter.
        _ = conversation.as_mut() => {}
        () = leaving.cancelled() => if inner.closing.is_cancelled() {
            conversation.as_mut().graceful_shutdown();
            let _ = timeout(LAST_ANSWER, conversation).await;
        },
    }
}
