//! One connection of a client: handshake, greeting, and then its session.

use super::{
    Hub, Shared,
    greeting::{self, ELSEWHERE, Hello, OVER, Secret},
    sessions::Seat,
};
use crate::{
    connection::{complaint, drive, say_goodbye},
    dial::INCOMING_LIMIT,
    session::Session,
    upgrade::{self, Socket, Terms, Upgrade},
    wire::Subprotocol,
};
use axum::{
    extract::{Request, State},
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use callback_core::Dsn;
use callback_dispatch::{Attach, AttachError, Attachment, Dispatcher};
use futures_util::{FutureExt, SinkExt, StreamExt};
use std::{error::Error, sync::Arc};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::{Message as Frame, protocol::frame::coding::CloseCode};

/// How many pings and pongs a client may send before it says what it wants.
const BEFORE_HELLO: usize = 8;

/// Answers a client's request, and goes on with its socket.
pub(super) async fn open(State((hub, dispatcher)): State<(Hub, Dispatcher)>, mut request: Request) -> Response {
    let shared = &hub.0.shared;
    let terms = Terms { subprotocols: &["callback.v1"], origins: Some(&shared.origins) };
    let upgrade = match upgrade::accept(&mut request, terms) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refusal.answer().into_response(),
    };
    let permit = Arc::clone(&shared.room).try_acquire_owned();
    let Some(permit) = permit.ok().filter(|_| !hub.0.conversations.is_closed()) else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "5")], "there is no room for a session")
            .into_response();
    };
    let (answer, shared) = (upgrade.answer(), Arc::clone(shared));
    hub.0.conversations.spawn(async move {
        converse(shared, dispatcher, upgrade).await;
        drop(permit);
    });
    answer.into_response()
}

async fn converse(shared: Arc<Shared>, dispatcher: Dispatcher, upgrade: Upgrade) {
    let limit = Instant::now() + shared.hello;
    let subprotocol = Subprotocol::picked(Some(upgrade.subprotocol())).unwrap_or(Subprotocol::CallbackV1);
    // The system has told the client already that nobody is there where there is no socket.
    let Ok(Ok(mut socket)) = timeout_at(limit, upgrade.open(INCOMING_LIMIT)).await else { return };
    let greeted = tokio::select! {
        greeted = greet(&shared, dispatcher, &mut socket, limit) => greeted,
        () = shared.over.cancelled() => Err(Some(CloseCode::Away)),
    };
    match greeted {
        Ok((seat, attachment)) => Box::pin(attend(shared, subprotocol, socket, seat, attachment)).await,
        Err(code) => say_goodbye(&mut socket, code).await,
    }
}

/// Hears what a client wants, and tells it its session; else the code to close with, none where the client has closed.
async fn greet(
    shared: &Arc<Shared>,
    dispatcher: Dispatcher,
    socket: &mut Socket,
    limit: Instant,
) -> Result<(Seat, Attachment), Option<CloseCode>> {
    let hello = timeout_at(limit, hear(socket)).await.map_err(|_elapsed| Some(CloseCode::Policy))??;
    let is_resumed = hello != Hello::Begin;
    let (secret, seat, attachment) = match hello {
        Hello::Begin => begin(shared, &dispatcher).await,
        Hello::Resume(secret) => resume(shared, &dispatcher, secret).await,
    }?;
    let welcome = greeting::welcome(&secret, is_resumed, shared.keep);
    match timeout_at(Instant::now() + shared.hello, socket.send(Frame::text(welcome))).await {
        Ok(Ok(())) => Ok((seat, attachment)),
        _ => {
            // Nobody knows a session that was not told, so nobody comes back to it.
            if !is_resumed {
                attachment.end().await;
            }
            Err(None)
        }
    }
}

async fn hear(socket: &mut Socket) -> Result<Hello, Option<CloseCode>> {
    for _ in 0..BEFORE_HELLO {
        match socket.next().await {
            Some(Ok(Frame::Text(text))) => return greeting::hello(&text).ok_or(Some(CloseCode::Policy)),
            Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => {}
            Some(Ok(Frame::Binary(_) | Frame::Frame(_))) => break,
            Some(Ok(Frame::Close(_))) | None => return Err(None),
            Some(Err(error)) => return Err(complaint(&error).1),
        }
    }
    Err(Some(CloseCode::Policy))
}

type Begun = Result<(Secret, Seat, Attachment), Option<CloseCode>>;

async fn begin(shared: &Arc<Shared>, dispatcher: &Dispatcher) -> Begun {
    let secret = Secret::begin();
    // It sits before it is attached, since messages are attempted from then on.
    let seat = Seat::reserve(Arc::clone(&shared.sessions), secret.address()).ok_or(Some(CloseCode::Again))?;
    let attach = Attach::new(shared.keep).secret(secret.digest());
    let attachment = dispatcher.attach(&dsn(&secret)?, attach).await.map_err(|error| Some(code(&error)))?;
    Ok((secret, seat, attachment))
}

async fn resume(shared: &Arc<Shared>, dispatcher: &Dispatcher, shown: String) -> Begun {
    let shown = Secret::shown(shown).ok_or(Some(OVER))?;
    let secret = shown.next();
    let seat = Seat::reserve(Arc::clone(&shared.sessions), secret.address());
    let attach = Attach::new(shared.keep).secret(secret.digest());
    let attachment = dispatcher.resume(&dsn(&secret)?, shown.digest(), attach).await;
    let attachment = attachment.map_err(|error| Some(code(&error)))?;
    let is_lost = || attachment.lost().now_or_never().is_some();
    let seat = match seat {
        Some(seat) if seat.is_current() => seat,
        _ => Seat::take(Arc::clone(&shared.sessions), secret.address(), is_lost).ok_or(Some(ELSEWHERE))?,
    };
    Ok((secret, seat, attachment))
}

fn dsn(secret: &Secret) -> Result<Dsn, Option<CloseCode>> {
    format!("session://{}", secret.address()).parse().map_err(|_| Some(OVER))
}

fn code(error: &AttachError) -> CloseCode {
    match error {
        AttachError::Unknown => OVER,
        AttachError::Closed => CloseCode::Away,
        error => {
            tracing::warn!(error = error as &dyn Error, "a session could not be stored");
            CloseCode::Again
        }
    }
}

/// Delivers to a client until it leaves.
async fn attend(shared: Arc<Shared>, subprotocol: Subprotocol, socket: Socket, mut seat: Seat, attachment: Attachment) {
    let session = Session::new(subprotocol, seat.pace, None, Instant::now().into_std());
    let Seat { jobs, gone, .. } = &mut seat;
    let stop = async {
        tokio::select! {
            biased;
            Ok(()) = gone => OVER,
            () = shared.over.cancelled() => CloseCode::Away,
            () = attachment.lost() => ELSEWHERE,
        }
    };
    let ended = drive(socket, session, jobs, None, |_| false, stop).await;
    seat.pace = ended.pace;
    // What is still in the queue then waits for the client, and is not tried again at once.
    drop(attachment);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_whether_to_come_again() {
        for (error, expected) in [
            (AttachError::Unknown, 4410),
            (AttachError::Closed, 1001),
            (AttachError::NotLocal("session".to_owned()), 1013),
        ] {
            assert_eq!(u16::from(code(&error)), expected, "{error}");
        }
    }
}
