//! One open socket: what comes is offered, many messages at once, and each is answered when its verdict is there.

use super::{
    answer::{self, Answer},
    metered::Metered,
    seats::Seat,
    watch::{Due, Seen, Watch},
    wire::{self, Malformed, Reason},
};
use crate::wire::Subprotocol;
use callback_core::MessageId;
use callback_receive::{HandleId, Intake, Verdict};
use futures_util::{
    FutureExt as _, Sink as _, SinkExt as _, StreamExt as _,
    future::{BoxFuture, poll_fn},
    stream::FuturesUnordered,
};
use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message as Frame,
        error::ProtocolError,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How many messages of one connection have no answer that is written; beyond that, nothing more is read.
const WINDOW: usize = 256;

/// How long a peer may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// How many pings may wait for their pongs to be written: tungstenite keeps each pong in memory until the peer reads.
const UNANSWERED_PINGS: u32 = 1_000;

/// How long the reason of a close may be, in bytes (RFC 6455 §5.5).
const CLOSE_REASON: usize = 123;

/// What a connection is for.
pub(super) struct Talk {
    pub(super) subprotocol: Subprotocol,
    pub(super) handle: HandleId,
    pub(super) intake: Intake,
    pub(super) seat: Seat,
    /// Cancelled when the receiver closes.
    pub(super) closing: CancellationToken,
    /// How long a message may take to become whole.
    pub(super) message_time: Duration,
}

/// How a connection ends.
enum End {
    /// We end it, with a code.
    Close(CloseCode, Reason),
    /// It makes room for another, which does not wait for a goodbye.
    Evicted,
    /// The peer has closed it, and gets its answer.
    Closed,
    /// Nobody is there.
    Lost,
}

/// Takes messages in until the connection ends.
pub(super) async fn converse<S: AsyncRead + AsyncWrite + Unpin>(socket: WebSocketStream<Metered<S>>, talk: Talk) {
    talk.seat.rest();
    let watch = Watch::new(talk.message_time, Instant::now());
    let timer = Box::pin(sleep_until(watch.next()));
    let leaving = Box::pin(talk.seat.leaving.clone().cancelled_owned());
    let mut conversation = Conversation {
        socket,
        talk,
        offers: FuturesUnordered::new(),
        answers: VecDeque::new(),
        leaving: Some(leaving),
        ending: None,
        holds_pong: false,
        denies_pong: false,
        is_broken: false,
        is_dirty: false,
        unanswered: 0,
        watch,
        timer,
    };
    let end = poll_fn(|context| conversation.poll(context)).await;
    let Conversation { mut socket, is_broken, talk, .. } = conversation;
    match end {
        End::Close(code, reason) => {
            let _ = timeout(GOODBYE, say_goodbye(socket, talk.subprotocol, code, &reason, is_broken)).await;
        }
        End::Evicted => {
            let _ = close(&mut socket, talk.subprotocol, CloseCode::Away, "there is no room").now_or_never();
        }
        End::Closed => {
            let _ = timeout(GOODBYE, socket.flush()).await;
        }
        End::Lost => {}
    }
}

async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<Metered<S>>,
    subprotocol: Subprotocol,
    code: CloseCode,
    reason: &str,
) -> Result<(), Error> {
    if !subprotocol.acknowledges() {
        // A pong that waits would be evidence: this one takes its place, and answers no ping. Whatever flushes comes later.
        Pin::new(&mut *socket).start_send(Frame::Pong(b"not taken"[..].into()))?;
    }
    let reason = answer::cut(reason, CLOSE_REASON).into();
    socket.send(Frame::Close(Some(CloseFrame { code, reason }))).await
}

/// Closes, and reads on until the peer has read that: whoever cuts a connection on which something comes takes back what he
/// has said last.
async fn say_goodbye<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocketStream<Metered<S>>,
    subprotocol: Subprotocol,
    code: CloseCode,
    reason: &str,
    is_broken: bool,
) {
    if close(&mut socket, subprotocol, code, reason).await.is_err() {
        return;
    }
    if !is_broken {
        while let Some(Ok(_)) = socket.next().await {
            drop(socket.get_mut().message());
        }
        return;
    }
    let mut stream = socket.into_inner().into_inner();
    let mut buffer = vec![0; 4 << 10];
    if stream.shutdown().await.is_ok() {
        while stream.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {}
    }
}

/// A message that was offered: its id, its place in memory, and what is to be said of it.
type Offered = (MessageId, Option<OwnedSemaphorePermit>, Verdict);

struct Conversation<S> {
    socket: WebSocketStream<Metered<S>>,
    talk: Talk,
    offers: FuturesUnordered<BoxFuture<'static, Offered>>,
    /// What is to be written.
    answers: VecDeque<Frame>,
    leaving: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Nothing more is read; once what was offered is answered, the connection is closed so.
    ending: Option<(CloseCode, Reason)>,
    /// A pong waits for verdicts: until then nothing is written, and nothing read.
    holds_pong: bool,
    /// Something was not taken, and a pong would say that it was: none is written any more.
    denies_pong: bool,
    /// Nothing more can be read.
    is_broken: bool,
    /// Whether something was written since the last flush.
    is_dirty: bool,
    /// How many pings came in since then.
    unanswered: u32,
    watch: Watch,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            let mut has_moved = self.poll_offers(context);
            if let Some(leaving) = &mut self.leaving
                && leaving.as_mut().poll(context).is_ready()
            {
                self.leaving = None;
                if !self.talk.closing.is_cancelled() {
                    return Poll::Ready(End::Evicted);
                }
                self.end(CloseCode::Away, "the receiver closes".into());
            }
            let written = self.poll_write(context);
            if let Poll::Ready(Err(_)) = written {
                return Poll::Ready(End::Lost);
            }
            if self.offers.is_empty()
                && written.is_ready()
                && let Some((code, reason)) = self.ending.take()
            {
                return Poll::Ready(End::Close(code, reason));
            }
            let is_reading =
                self.ending.is_none() && !self.holds_pong && self.offers.len() + self.answers.len() < WINDOW;
            if is_reading && let Poll::Ready(incoming) = self.socket.poll_next_unpin(context) {
                has_moved = true;
                if let Some(end) = self.take_in(incoming) {
                    return Poll::Ready(end);
                }
            }
            let stream = self.socket.get_ref();
            let seen = Seen {
                read: stream.bytes_read(),
                is_partial: stream.is_partial(),
                is_reading,
                is_blocked: written.is_pending() && !self.holds_pong,
                is_ending: self.ending.is_some(),
            };
            self.watch.see(seen, Instant::now());
            match self.poll_time(context) {
                Poll::Ready(Some(end)) => return Poll::Ready(end),
                Poll::Ready(None) => has_moved = true,
                Poll::Pending => {}
            }
            if !has_moved {
                return Poll::Pending;
            }
        }
    }

    /// Answers what has its verdict; says whether anything had.
    fn poll_offers(&mut self, context: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        while let Poll::Ready(Some((id, _memory, verdict))) = self.offers.poll_next_unpin(context) {
            has_moved = true;
            match answer::of(self.talk.subprotocol, &id, &verdict) {
                Answer::Nothing => {}
                Answer::Frame(frame) => self.answers.push_back(frame),
                Answer::Close(code, reason) => self.end(code, reason),
            }
        }
        if has_moved && self.offers.is_empty() {
            // A pong that was held goes out with the next flush.
            (self.holds_pong, self.is_dirty) = (false, self.is_dirty || self.holds_pong);
            self.talk.seat.rest();
        }
        has_moved
    }

    /// Writes all there is, and flushes once; is ready when nothing is left.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.denies_pong {
            return Poll::Ready(Ok(()));
        }
        if self.holds_pong {
            return Poll::Pending;
        }
        loop {
            ready!(Pin::new(&mut self.socket).poll_ready(context))?;
            if let Some(frame) = self.answers.pop_front() {
                self.is_dirty = true;
                Pin::new(&mut self.socket).start_send(frame)?;
            } else if self.is_dirty {
                ready!(Pin::new(&mut self.socket).poll_flush(context))?;
                (self.is_dirty, self.unanswered) = (false, 0);
            } else {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Takes in one frame, or the end of the connection.
    fn take_in(&mut self, incoming: Option<Result<Frame, Error>>) -> Option<End> {
        match incoming {
            Some(Ok(Frame::Text(text))) => self.take_message(&text),
            Some(Ok(Frame::Binary(_) | Frame::Frame(_))) => {
                self.end(CloseCode::Policy, "messages are text frames".into());
            }
            Some(Ok(Frame::Ping(payload))) => {
                self.socket.get_mut().control(payload.len());
                (self.is_dirty, self.unanswered) = (true, self.unanswered + 1);
                self.holds_pong = !self.talk.subprotocol.acknowledges() && !self.offers.is_empty();
                if self.unanswered > UNANSWERED_PINGS {
                    return Some(End::Lost);
                }
            }
            Some(Ok(Frame::Pong(payload))) => self.socket.get_mut().control(payload.len()),
            Some(Ok(Frame::Close(_))) => return Some(End::Closed),
            Some(Err(error)) => {
                self.is_broken = true;
                let Some((code, reason)) = self.judge(&error) else { return Some(End::Lost) };
                self.end(code, reason.into());
            }
            None => return Some(End::Lost),
        }
        None
    }

    fn take_message(&mut self, text: &str) {
        let memory = self.socket.get_mut().message();
        self.watch.message();
        match wire::read(self.talk.subprotocol, text) {
            Ok(wire::Read { id, incoming }) => {
                if self.offers.is_empty() {
                    self.talk.seat.work();
                }
                let (intake, handle) = (self.talk.intake.clone(), self.talk.handle);
                self.offers.push(Box::pin(async move {
                    let verdict = intake.offer(&handle, incoming).await;
                    (id, memory, verdict)
                }));
            }
            Err(Malformed::Message(id, reason)) => self.answers.push_back(answer::malformed(&id, &reason)),
            Err(Malformed::Frame(reason)) => self.end(CloseCode::Policy, reason),
        }
    }

    /// Nothing more is read. The first reason counts.
    fn end(&mut self, code: CloseCode, reason: Reason) {
        self.ending.get_or_insert((code, reason));
        if !self.talk.subprotocol.acknowledges() && code != CloseCode::Away {
            self.denies_pong = true;
            self.offers.clear();
        }
    }

    fn judge(&self, error: &Error) -> Option<(CloseCode, &'static str)> {
        match error {
            Error::Capacity(_) => Some((CloseCode::Size, "the message is too large")),
            Error::Utf8(_) => Some((CloseCode::Invalid, "a text is not UTF-8")),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
            Error::Protocol(_) => Some((CloseCode::Protocol, "this breaks the rules of WebSocket")),
            Error::Io(_) if self.socket.get_ref().is_starved() => Some((CloseCode::Again, "there is no memory")),
            _ => None,
        }
    }

    /// Does what is due; ready if that was anything.
    fn poll_time(&mut self, context: &mut Context<'_>) -> Poll<Option<End>> {
        let next = self.watch.next();
        if self.timer.deadline() > next {
            self.timer.as_mut().reset(next);
        }
        while self.timer.as_mut().poll(context).is_ready() {
            match self.watch.due(Instant::now()) {
                Due::Nothing(until) => self.timer.as_mut().reset(until),
                Due::Ping => {
                    self.answers.push_back(Frame::Ping(bytes::Bytes::new()));
                    return Poll::Ready(None);
                }
                Due::Slow => {
                    self.is_broken = true;
                    self.end(CloseCode::Away, "the message took too long".into());
                    return Poll::Ready(None);
                }
                Due::Dead => return Poll::Ready(Some(End::Lost)),
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
