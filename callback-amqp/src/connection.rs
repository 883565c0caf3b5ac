//! One connection a broker and vhost, made again when it is lost.

use crate::{
    dial::{Endpoint, Socket},
    lane::{Job, Lanes},
    outcome::{About, Failure},
};
use callback_core::{ErrorKind, Phase};
use futures_core::Stream;
use futures_util::StreamExt;
use lapin::{
    Channel, Connection, ErrorKind as LapinErrorKind, Event,
    options::{ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions},
    types::FieldTable,
};
use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::{
    sync::{AcquireError, OnceCell, OwnedSemaphorePermit, Semaphore, watch},
    time,
};
use tokio_util::sync::CancellationToken;

/// The pause after the first failure to connect; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two tries to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A connection that was lost sooner than this counts as a failure to connect.
pub(crate) const PROOF: Duration = Duration::from_secs(5);

/// How long a connection waits for this or that.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// How long one without work is kept, and how long its channels are.
    pub(crate) idle: Duration,
    /// How long a channel may take to open; the exchange is looked for first.
    pub(crate) open: Duration,
    /// How long a confirm may take at least before the channel is given up; a quarter more at the most.
    pub(crate) confirm: Duration,
}

impl Limits {
    pub(crate) const DEFAULT: Self =
        Self { idle: Duration::from_secs(60), open: Duration::from_secs(10), confirm: Duration::from_secs(60) };
}

/// How long a connection may take to say goodbye.
pub(crate) const GOODBYE: Duration = Duration::from_secs(2);

/// How many declared queues a connection remembers.
const DECLARED: usize = 10_000;

/// How many queues are declared at once: each takes a channel of its own.
const DECLARING: usize = 32;

/// A broker and vhost, connected or not.
pub(crate) struct Link {
    endpoint: Arc<Endpoint>,
    vhost: String,
    /// One a message in flight.
    slots: Arc<Semaphore>,
    /// One a KiB of the bodies in flight.
    bytes: Arc<Semaphore>,
    /// How many there are of `bytes`.
    kibibytes: u32,
    limits: Limits,
    state: Mutex<State>,
}

/// How many messages are in flight on a connection.
const SLOTS: u32 = 4096;

struct State {
    /// How many tries to connect have failed in a row.
    failures: u32,
    connected: Option<Arc<Connected>>,
    /// The try that is underway.
    trying: Option<watch::Receiver<Option<Tried>>>,
    is_closed: bool,
}

type Tried = Result<Arc<Connected>, Failure>;

impl Link {
    pub(crate) fn new(endpoint: Arc<Endpoint>, vhost: String, kibibytes: u32, limits: Limits) -> Self {
        Self {
            endpoint,
            vhost,
            slots: Arc::new(Semaphore::new(SLOTS as usize)),
            bytes: Arc::new(Semaphore::new(kibibytes as usize)),
            kibibytes,
            limits,
            state: Mutex::new(State { failures: 0, connected: None, trying: None, is_closed: false }),
        }
    }

    /// The connection; where there is none, what becomes of the try to make it that is underway.
    pub(crate) async fn connected(self: &Arc<Self>) -> Tried {
        let mut trying = match self.connected_or_trying() {
            Ok(connected) => return connected,
            Err(trying) => trying,
        };
        match trying.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(tried)) => tried.clone(),
            _ => Err(closed()),
        }
    }

    /// A place for one more message in flight, with a body of so many bytes.
    pub(crate) async fn room(&self, body: usize) -> Result<[OwnedSemaphorePermit; 2], AcquireError> {
        let kibibytes = u32::try_from(body / 1024 + 1).unwrap_or(u32::MAX).min(self.kibibytes);
        Ok([
            Arc::clone(&self.slots).acquire_owned().await?,
            Arc::clone(&self.bytes).acquire_many_owned(kibibytes).await?,
        ])
    }

    /// Whether no message is in flight.
    pub(crate) fn is_settled(&self) -> bool {
        self.slots.available_permits() == SLOTS as usize
    }

    /// Resolves once no message is in flight.
    pub(crate) async fn settled(&self) {
        let _ = self.slots.acquire_many(SLOTS).await;
    }

    fn connected_or_trying(self: &Arc<Self>) -> Result<Tried, watch::Receiver<Option<Tried>>> {
        let mut state = self.lock();
        if state.is_closed {
            return Ok(Err(closed()));
        }
        if let Some(trying) = &state.trying {
            return Err(trying.clone());
        }
        match state.connected.take() {
            Some(connected) if connected.is_alive() => {
                state.connected = Some(Arc::clone(&connected));
                return Ok(Ok(connected));
            }
            // Who connects and is thrown out at once waits, too.
            Some(lost) if lost.since.elapsed() < PROOF && !lost.is_retired() => state.failures += 1,
            Some(_) => state.failures = 0,
            None => {}
        }
        let (sender, receiver) = watch::channel(None);
        state.trying = Some(receiver.clone());
        let (link, pause) = (Arc::clone(self), pause(state.failures));
        drop(state);
        tokio::spawn(async move {
            time::sleep(pause).await;
            let tried = link.try_to_connect().await;
            let mut state = link.lock();
            state.trying = None;
            match &tried {
                Ok(connected) if !state.is_closed => state.connected = Some(Arc::clone(connected)),
                Ok(_) => {}
                Err(_) => state.failures = state.failures.saturating_add(1),
            }
            drop(state);
            sender.send_replace(Some(tried));
        });
        Err(receiver)
    }

    async fn try_to_connect(&self) -> Tried {
        let (connection, socket) = self.endpoint.connect(&self.vhost).await?;
        let frame_max = usize::try_from(connection.configuration().frame_max()).unwrap_or(usize::MAX);
        let events = connection.events_listener();
        let ended = CancellationToken::new();
        let connected = Arc::new(Connected {
            frame_max,
            ended: ended.clone(),
            connection,
            socket,
            limits: self.limits,
            lanes: Lanes::default(),
            declared: Mutex::default(),
            declaring: Semaphore::new(DECLARING),
            since: Instant::now(),
        });
        tokio::spawn(watch_over(Arc::downgrade(&connected), Box::pin(events), ended, self.limits.idle));
        Ok(connected)
    }

    /// Makes no more connections, and ends the one there is.
    pub(crate) async fn close(&self) {
        let connected = {
            let mut state = self.lock();
            state.is_closed = true;
            state.connected.take()
        };
        if let Some(connected) = connected {
            connected.close().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed() -> Failure {
    Failure::new(ErrorKind::Unavailable, Phase::Connect, "the sink is closed")
}

/// How long to wait after so many failures in a row, give or take a fifth.
pub(crate) fn pause(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE);
    // Each `RandomState` has other keys.
    let random = RandomState::new().hash_one(failures) % 401;
    pause * 8 / 10 + pause * u32::try_from(random).unwrap_or(0) / 1_000
}

/// Notices the end of a connection, and ends one that had nothing to do for a while.
async fn watch_over(
    connected: Weak<Connected>,
    mut events: Pin<Box<impl Stream<Item = Event> + Send>>,
    ended: CancellationToken,
    idle: Duration,
) {
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(_)) => tracing::warn!("a broker is short of memory or disk"),
                // lapin tells the errors of channels, too, which do not end the connection.
                Some(Event::Error(_)) if connected.upgrade().is_none_or(|connected| !connected.is_connected()) => break,
                None => break,
                Some(_) => {}
            },
            () = ended.cancelled() => break,
            () = time::sleep(idle) => match connected.upgrade() {
                Some(connected) if connected.is_alive() && !connected.lanes.retire() => {}
                Some(connected) => return connected.close().await,
                None => break,
            },
        }
    }
    ended.cancel();
}

/// A connection that was made.
pub(crate) struct Connected {
    connection: Connection,
    socket: Socket,
    lanes: Lanes,
    /// The queues that were seen or declared on this connection, or are just looked for.
    declared: Mutex<HashMap<String, Arc<OnceCell<()>>>>,
    declaring: Semaphore,
    frame_max: usize,
    limits: Limits,
    since: Instant,
    /// Cancelled once nothing more can be published.
    ended: CancellationToken,
}

impl Connected {
    pub(crate) fn is_alive(&self) -> bool {
        self.is_connected() && !self.is_retired()
    }

    fn is_connected(&self) -> bool {
        self.connection.status().connected()
    }

    fn is_retired(&self) -> bool {
        self.lanes.is_closed()
    }

    /// Whom an error is about, which is the connection where that is lost.
    pub(crate) fn about(&self, about: About) -> About {
        if self.is_connected() { about } else { About::Connection }
    }

    /// The broker takes nothing: memory or disk are short there.
    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(crate) const fn limits(&self) -> Limits {
        self.limits
    }

    /// How large a frame may be.
    pub(crate) const fn frame_max(&self) -> usize {
        self.frame_max
    }

    /// Hands a message to the channels of its exchange.
    pub(crate) fn publish(self: &Arc<Self>, exchange: &Arc<str>, job: Box<Job>) {
        if self.is_alive() {
            self.lanes.publish(self, exchange, job);
        } else {
            job.give_back();
        }
    }

    /// Resolves once nothing more can be published.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(crate) const fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// A channel whose publishes are confirmed; its exchange was there a moment ago.
    pub(crate) async fn open(&self, exchange: &str) -> Result<Channel, lapin::Error> {
        if !exchange.is_empty() {
            // On a channel of its own: that closes if there is no such exchange.
            let channel = self.connection.create_channel().await?;
            let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let kind = lapin::ExchangeKind::Direct;
            channel.exchange_declare(exchange.into(), kind, passive, FieldTable::default()).await?;
        }
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Declares a queue unless it is there. Who waits for one queue holds up nobody who needs another.
    pub(crate) async fn declare(&self, queue: &str) -> Result<(), lapin::Error> {
        let cell = {
            let mut declared = self.declared();
            match declared.get(queue) {
                Some(cell) if cell.initialized() => return Ok(()),
                Some(cell) => Arc::clone(cell),
                None => {
                    if declared.len() >= DECLARED {
                        declared.clear();
                    }
                    Arc::clone(declared.entry(queue.to_owned()).or_default())
                }
            }
        };
        cell.get_or_try_init(|| self.look_or_declare(queue)).await.copied()
    }

    async fn look_or_declare(&self, queue: &str) -> Result<(), lapin::Error> {
        // It is never closed.
        let _permit = self.declaring.acquire().await;
        // First asked for, since a queue with other properties than ours is as good.
        match self.declare_queue(queue, true).await {
            Err(error) if matches!(error.kind(), LapinErrorKind::ProtocolError(error) if error.get_id() == 404) => {
                self.declare_queue(queue, false).await
            }
            result => result,
        }
    }

    async fn declare_queue(&self, queue: &str, passive: bool) -> Result<(), lapin::Error> {
        let channel = self.connection.create_channel().await?;
        let options = QueueDeclareOptions { passive, durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), options, FieldTable::default()).await.map(drop)
    }

    /// Forgets that a queue is there.
    pub(crate) fn forget(&self, queue: &str) {
        self.declared().remove(queue);
    }

    fn declared(&self) -> MutexGuard<'_, HashMap<String, Arc<OnceCell<()>>>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn close(&self) {
        self.lanes.close();
        self.ended.cancel();
        let _ = time::timeout(GOODBYE, self.connection.close(200, "OK".into())).await;
        self.socket.shut_down();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("is_settled", &self.is_settled()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        assert_eq!(pause(0), Duration::ZERO);
        for (failures, milliseconds) in [(1, 100), (2, 200), (3, 400), (6, 3_200), (7, 5_000), (u32::MAX, 5_000)] {
            for _ in 0..100 {
                let found = pause(failures).as_millis();
                assert!((milliseconds * 8 / 10..=milliseconds * 12 / 10).contains(&found), "{failures}: {found}");
            }
        }
    }
}
