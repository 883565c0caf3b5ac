//! One open socket: writes what is to be delivered, reads what the peer answers.

use crate::{
    outcome::Failure,
    session::{Due, End, Incoming, Pace, Session},
};
use callback_core::{Attempt, Message, Receipt};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message as Frame,
        error::{CapacityError, ProtocolError},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

/// How long a peer may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// How many pings may wait for their pongs to be written: tungstenite keeps each pong in memory until the peer reads.
const UNANSWERED_PINGS: u32 = 1_000;

/// What waits for a frame's end.
pub(crate) type Reply = oneshot::Sender<Result<Receipt, Failure>>;

/// The queue of a connection. Jobs are boxed: most queues are empty, and have room for many.
pub(crate) type Jobs = mpsc::Receiver<Box<Job>>;

/// One attempt that is to be delivered.
pub(crate) struct Job {
    pub(crate) message: Message,
    pub(crate) attempt: Attempt,
    pub(crate) reply: Reply,
}

impl Job {
    /// Whether somebody waits for it.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.reply.is_closed() && self.attempt.deadline() > Instant::now().into_std()
    }

    /// Ends it without a try.
    pub(crate) fn fail(self, failure: Failure) {
        // Whoever has left wants to know nothing.
        let _ = self.reply.send(Err(failure));
    }
}

/// What is left of a connection.
pub(crate) struct Ended {
    pub(crate) pace: Pace,
    /// Whether it acknowledged anything.
    pub(crate) was_of_use: bool,
    /// Whether no further one is wanted: nobody can send any more jobs, or `retire` agreed.
    pub(crate) is_retired: bool,
}

/// Why a connection ends, and with which code we say so.
enum Why {
    /// It is not needed any more.
    Retired,
    /// The peer closed it, and gets its answer.
    Closed(Option<u16>),
    Broken(&'static str, Option<CloseCode>),
    /// Whoever drives it has had enough.
    Stopped(CloseCode),
}

/// Delivers jobs over a socket until it ends: all that were written have their reply then.
///
/// After long without work, `retire` is asked whether the connection may end. When `stop` is ready, it ends with that code.
pub(crate) async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    session: Session<Reply>,
    jobs: &mut Jobs,
    first: Option<Box<Job>>,
    retire: impl Fn(&Jobs) -> bool + Sync,
    stop: impl Future<Output = CloseCode>,
) -> Ended {
    let timer = Box::pin(sleep_until(session.next(now()).into()));
    let mut connection =
        Connection { socket, session, first, control: VecDeque::new(), is_dirty: false, unanswered: 0, timer };
    let mut stop = pin!(stop);
    let why = poll_fn(|context| match stop.as_mut().poll(context) {
        Poll::Ready(code) => Poll::Ready(Why::Stopped(code)),
        Poll::Pending => match connection.poll(context, jobs, &retire) {
            // Whoever stops it may have let go of its queue since it was asked.
            Poll::Ready(Why::Retired) => Poll::Ready(match stop.as_mut().poll(context) {
                Poll::Ready(code) => Why::Stopped(code),
                Poll::Pending => Why::Retired,
            }),
            other => other,
        },
    })
    .await;

    let Connection { mut socket, session, first, .. } = connection;
    let was_of_use = session.acknowledged() > 0;
    let (end, code) = match why {
        Why::Retired => (End::Broken("the connection was closed"), Some(CloseCode::Normal)),
        Why::Closed(code) => (End::Closed(code), None),
        Why::Broken(reason, code) => (End::Broken(reason), code),
        Why::Stopped(code) => (End::Stopped, Some(code)),
    };
    let is_retired = matches!(why, Why::Retired);
    let (left, pace) = session.end(end);
    for (reply, failure) in left {
        let _ = reply.send(Err(failure));
    }
    if let Some(first) = first {
        first.fail(Failure::unavailable(callback_core::Phase::Write, "the connection was lost"));
    }
    if code.is_some() || matches!(why, Why::Closed(_)) {
        say_goodbye(&mut socket, code).await;
    }
    Ended { pace, was_of_use, is_retired }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Closes a socket, with a code or in answer to the peer's close, and hears the peer out for a moment.
pub(crate) async fn say_goodbye<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    code: Option<CloseCode>,
) {
    let goodbye = async {
        if let Some(code) = code {
            let _ = socket.send(Frame::Close(Some(CloseFrame { code, reason: "".into() }))).await;
        }
        while let Some(Ok(_)) = socket.next().await {}
    };
    let _ = timeout(GOODBYE, goodbye).await;
}

struct Connection<S> {
    socket: WebSocketStream<S>,
    session: Session<Reply>,
    /// The job that the connection was made for.
    first: Option<Box<Job>>,
    /// Pings that are to be written.
    control: VecDeque<Frame>,
    /// Whether something was written since the last flush.
    is_dirty: bool,
    /// How many pings came in since then.
    unanswered: u32,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn poll(&mut self, context: &mut Context<'_>, jobs: &mut Jobs, retire: &impl Fn(&Jobs) -> bool) -> Poll<Why> {
        loop {
            // A peer that reads slowly blocks the writing, and is read from all the same.
            if let Poll::Ready(why) = self.poll_write(context, jobs) {
                return Poll::Ready(why);
            }
            let mut has_read = false;
            while let Poll::Ready(incoming) = Pin::new(&mut self.socket).poll_next(context) {
                has_read = true;
                if let Some(why) = self.take_in(incoming.as_ref()) {
                    return Poll::Ready(why);
                }
                if self.unanswered > 0 {
                    // Its pong is to be flushed before more is read, as long as the peer takes it.
                    break;
                }
            }
            let mut has_pinged = false;
            while self.timer.as_mut().poll(context).is_ready() {
                match self.session.due(now()) {
                    Due::Nothing(until) => self.timer.as_mut().reset(until.into()),
                    Due::Ping(payload) => {
                        self.control.push_back(Frame::Ping(payload.to_vec().into()));
                        has_pinged = true;
                    }
                    Due::Idle if retire(jobs) => return Poll::Ready(Why::Retired),
                    // A job is on its way.
                    Due::Idle => self.timer.as_mut().reset(Instant::now() + Duration::from_secs(1)),
                    Due::Dead(reason) => return Poll::Ready(Why::Broken(reason, None)),
                }
            }
            if !has_read && !has_pinged {
                return Poll::Pending;
            }
        }
    }

    /// Writes all there is room for, and flushes once; is never ready but at the end.
    fn poll_write(&mut self, context: &mut Context<'_>, jobs: &mut Jobs) -> Poll<Why> {
        let lost = |_error| Why::Broken("the connection was lost", None);
        if jobs.sender_strong_count() == 0 && jobs.is_empty() {
            // Also while the peer reads nothing, and what was written takes all the room.
            return Poll::Ready(Why::Retired);
        }
        loop {
            match Pin::new(&mut self.socket).poll_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(lost(error)),
                Poll::Pending => {
                    // A slow peer is asked about what fills the pipe, not only about all that waits behind it.
                    self.control.extend(self.session.ping().map(|payload| Frame::Ping(payload.to_vec().into())));
                    return Poll::Pending;
                }
            }
            let job = if let Some(frame) = self.control.pop_front() {
                if let Err(error) = self.write(frame) {
                    return Poll::Ready(lost(error));
                }
                continue;
            } else if !self.session.has_room() {
                None
            } else if let Some(first) = self.first.take() {
                Some(first)
            } else {
                match jobs.poll_recv(context) {
                    Poll::Ready(None) => return Poll::Ready(Why::Retired),
                    Poll::Ready(job) => job,
                    Poll::Pending => None,
                }
            };
            if let Some(job) = job {
                if job.is_wanted() {
                    let frame = self.session.subprotocol().frame(&job.message, &job.attempt);
                    let (id, deadline) = (job.message.id().clone(), job.attempt.deadline());
                    self.session.written(id, job.reply, deadline, now());
                    if let Err(error) = self.write(frame) {
                        return Poll::Ready(lost(error));
                    }
                    self.tick();
                }
            } else if let Some(payload) = self.session.ping() {
                self.control.push_back(Frame::Ping(payload.to_vec().into()));
            } else if self.is_dirty {
                if let Err(error) = ready!(Pin::new(&mut self.socket).poll_flush(context)) {
                    return Poll::Ready(lost(error));
                }
                (self.is_dirty, self.unanswered) = (false, 0);
            } else {
                return Poll::Pending;
            }
        }
    }

    fn write(&mut self, frame: Frame) -> Result<(), Error> {
        self.is_dirty = true;
        Pin::new(&mut self.socket).start_send(frame)
    }

    /// Wakes up sooner where the session asks for it.
    fn tick(&mut self) {
        let next = self.session.next(now()).into();
        if self.timer.deadline() > next {
            self.timer.as_mut().reset(next);
        }
    }

    /// Takes in one frame, or the end of the connection.
    fn take_in(&mut self, incoming: Option<&Result<Frame, Error>>) -> Option<Why> {
        let received = match incoming {
            Some(Ok(Frame::Text(text))) => self.session.received(Incoming::Text(text), now()),
            Some(Ok(Frame::Binary(_) | Frame::Frame(_))) => self.session.received(Incoming::Binary, now()),
            Some(Ok(Frame::Ping(_))) => {
                (self.is_dirty, self.unanswered) = (true, self.unanswered + 1);
                if self.unanswered > UNANSWERED_PINGS {
                    return Some(Why::Broken("the peer pings, and does not read", None));
                }
                self.session.received(Incoming::Ping, now())
            }
            Some(Ok(Frame::Pong(payload))) => self.session.received(Incoming::Pong(payload), now()),
            Some(Ok(Frame::Close(close))) => return Some(Why::Closed(close.as_ref().map(|close| close.code.into()))),
            Some(Err(error)) => {
                let (reason, code) = complaint(error);
                return Some(Why::Broken(reason, code));
            }
            None => return Some(Why::Broken("the connection was lost", None)),
        };
        let Ok(settled) = received else {
            return Some(Why::Broken("the peer sent what is no answer", Some(CloseCode::Policy)));
        };
        for (reply, result) in settled {
            let _ = reply.send(result);
        }
        None
    }
}

/// Why a socket that fails is of no use any more, and the code that says so to a peer that broke the rules.
pub(crate) fn complaint(error: &Error) -> (&'static str, Option<CloseCode>) {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            ("the peer sent a frame that is too large", Some(CloseCode::Size))
        }
        Error::Utf8(_) => ("the peer sent a text that is not UTF-8", Some(CloseCode::Invalid)),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => ("the connection was lost", None),
        Error::Protocol(_) => ("the peer broke the rules of WebSocket", Some(CloseCode::Protocol)),
        _ => ("the connection was lost", None),
    }
}

#[cfg(test)]
mod tests;
