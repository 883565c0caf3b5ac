//! The channels of one exchange: tasks that publish, and own the confirms.

use crate::{
    connection::Connected,
    outcome::{About, Failure, Verdict, broken, is_about_one_message, judge},
    window::{Clock, Confirm, Window},
};
use callback_core::{ErrorKind, Message, MessageId, Phase, Receipt, SinkError};
use flume::{Receiver, Sender};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, ErrorKind as LapinErrorKind, PublisherConfirm, message::BasicReturnMessage,
    options::BasicPublishOptions, types::ShortString,
};
use std::{
    collections::{HashMap, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

/// How many channels an exchange has at the most. A further one is opened while more wait than one takes.
const CHANNELS: usize = 4;

/// How many messages of one channel are published and not judged, at the most.
const WINDOW: usize = 256;

/// How many wait before a further channel is opened.
const BACKLOG: usize = 32;

/// After a message closed its channel, so many go one at a time, so that the culprit is found and pays alone.
const ONE_AT_A_TIME: usize = WINDOW;

/// How many messages wait on one channel for another of their id, at the most.
const PARKED: usize = 1024;

/// How long confirms may take to say that their channel is lost.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Into how many parts the time that a confirm may take is cut.
const QUARTERS: u32 = 4;

/// How many exchanges a connection has channels for, at the most; the default one comes on top.
const LANES: usize = 256;

/// A message on its way to the broker. Whoever waits for the answer may be gone; the permits are held on.
pub(crate) struct Job {
    pub(crate) message: Message,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) answer: oneshot::Sender<Answer>,
    /// In which of the publisher's quarters it was published.
    pub(crate) quarter: u64,
    pub(crate) _permits: [OwnedSemaphorePermit; 2],
}

/// What became of a message.
pub(crate) enum Answer {
    Judged(Result<Receipt, SinkError>),
    /// Nothing of it was sent: the channel was closed already. It may go on another.
    Unpublished,
}

// Nobody listens to an answer where the deadline has passed.
impl Job {
    fn judge(self, verdict: Verdict) {
        let _ = self.answer.send(Answer::Judged(judge(verdict)));
    }

    fn fail(self, failure: Failure) {
        let _ = self.answer.send(Answer::Judged(Err(failure.into())));
    }

    pub(crate) fn give_back(self) {
        let _ = self.answer.send(Answer::Unpublished);
    }
}

/// The exchanges of a connection that have channels.
#[derive(Default)]
pub(crate) struct Lanes(Mutex<State>);

#[derive(Default)]
struct State {
    lanes: HashMap<Arc<str>, Lane>,
    is_closed: bool,
}

struct Lane {
    jobs: Sender<Box<Job>>,
    waiting: Receiver<Box<Job>>,
    publishers: usize,
}

impl Lanes {
    /// Queues a message for its exchange.
    pub(crate) fn publish(&self, connected: &Arc<Connected>, exchange: &Arc<str>, job: Box<Job>) {
        let mut state = self.lock();
        if state.is_closed {
            return job.give_back();
        }
        if !state.lanes.contains_key(exchange) {
            let others = state.lanes.len() - usize::from(state.lanes.contains_key(""));
            if !exchange.is_empty() && others >= LANES {
                return job.fail(Failure::new(ErrorKind::Throttled, Phase::Connect, "too many exchanges are in use"));
            }
            let (jobs, waiting) = flume::unbounded();
            state.lanes.insert(Arc::clone(exchange), Lane { jobs, waiting, publishers: 0 });
        }
        let Some(lane) = state.lanes.get_mut(exchange) else { return job.give_back() };
        if lane.publishers == 0 || (lane.publishers < CHANNELS && lane.waiting.len() >= BACKLOG) {
            lane.publishers += 1;
            let publisher = Publisher {
                connected: Arc::clone(connected),
                exchange: Arc::clone(exchange),
                waiting: lane.waiting.clone(),
                parked: VecDeque::new(),
                careful: 0,
                quarter: 0,
            };
            tokio::spawn(publisher.run());
        }
        // The lane holds a receiver: sending cannot fail.
        let _ = lane.jobs.send(job);
    }

    /// Closes if no exchange has a channel; whether that is so.
    pub(crate) fn retire(&self) -> bool {
        let mut state = self.lock();
        state.is_closed |= state.lanes.is_empty();
        state.is_closed
    }

    /// Takes nothing any more; what waits is published yet.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Drops what waits for an exchange and nobody waits for any more: it holds the permits of others.
    fn purge(&self, exchange: &str) {
        let state = self.lock();
        let Some(lane) = state.lanes.get(exchange) else { return };
        let waiting: Vec<Box<Job>> = lane.waiting.drain().filter(|job| !job.answer.is_closed()).collect();
        for job in waiting {
            let _ = lane.jobs.send(job);
        }
    }

    /// A publisher has nothing to do; whether it may go.
    fn leave(&self, exchange: &str, is_forced: bool) -> bool {
        let mut state = self.lock();
        let Some(lane) = state.lanes.get_mut(exchange) else { return true };
        if !is_forced && !lane.waiting.is_empty() {
            return false;
        }
        lane.publishers -= 1;
        if lane.publishers == 0 {
            // What came in since is answered here: nobody else would.
            let left: Vec<Box<Job>> = lane.waiting.drain().collect();
            state.lanes.remove(exchange);
            drop(state);
            left.into_iter().for_each(|job| job.give_back());
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one task that uses a channel: lapin numbers publishes in the order in which it is called.
struct Publisher {
    connected: Arc<Connected>,
    exchange: Arc<str>,
    waiting: Receiver<Box<Job>>,
    /// What must wait until another message of its id is judged.
    parked: VecDeque<Box<Job>>,
    /// How many still go one at a time.
    careful: usize,
    /// How many quarters of the time that a confirm may take have begun.
    quarter: u64,
}

/// Whoever wakes it goes to the end of one queue, so settled confirms are seen in the order in which they settled.
type Confirms<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Settled> + Send + 'a>>>;

struct Settled {
    id: MessageId,
    end: PublishEnd,
}

enum PublishEnd {
    Confirmed(Confirm),
    /// The channel was closed before.
    Refused,
    /// The channel was closed since.
    Lost(lapin::Error),
}

/// Whether a channel is closed, and why, where that is known.
#[derive(Default)]
struct Closed {
    is_closed: bool,
    error: Option<lapin::Error>,
}

impl Publisher {
    async fn run(mut self) {
        let connected = Arc::clone(&self.connected);
        loop {
            // What waited for another message's verdict when the channel was lost goes first.
            let job = match self.parked.pop_front() {
                Some(job) => job,
                None => tokio::select! {
                    biased;
                    Ok(job) = self.waiting.recv_async() => job,
                    () = connected.ended() => break,
                    () = sleep(connected.limits().idle) => if connected.lanes().leave(&self.exchange, false) {
                        return;
                    } else {
                        continue;
                    },
                },
            };
            let has_served = !job.answer.is_closed() && self.serve(job).await;
            // An exchange without a channel, which may be one that a client made up, keeps no place.
            if !has_served && self.parked.is_empty() && connected.lanes().leave(&self.exchange, false) {
                return;
            }
        }
        connected.lanes().leave(&self.exchange, true);
    }

    /// Opens a channel for a message, and publishes on it until it is lost or idle; whether there was one.
    async fn serve(&mut self, job: Box<Job>) -> bool {
        self.parked.push_front(job);
        let failure = match timeout(self.connected.limits().open, self.connected.open(&self.exchange)).await {
            Ok(Ok(channel)) => {
                self.publish_on(&channel).await;
                return true;
            }
            Ok(Err(error)) => broken(&error, Phase::Connect, self.connected.about(About::Place)),
            Err(_elapsed) if self.connected.is_blocked() => blocked(),
            Err(_elapsed) => {
                // Other channels may have their confirms yet; the next message gets another connection.
                self.connected.lanes().close();
                Failure::new(ErrorKind::Unavailable, Phase::Connect, "the broker opened no channel in time")
            }
        };
        for job in self.parked.drain(..).chain(self.waiting.drain()) {
            job.fail(failure.clone());
        }
        false
    }

    async fn publish_on(&mut self, channel: &Channel) {
        let mut window = Window::new();
        let mut confirms = Confirms::new();
        let mut closed = Closed::default();
        let connected = Arc::clone(&self.connected);
        let limits = connected.limits();
        let mut quarters = interval(limits.confirm / QUARTERS);
        quarters.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !closed.is_closed {
            while let Some(job) = self.next_job(&window) {
                self.publish(channel, job, &mut window, &confirms);
            }
            let has_room = window.len() < self.limit();
            tokio::select! {
                biased;
                _ = quarters.tick(), if !confirms.is_empty() => {
                    self.quarter += 1;
                    self.parked.retain(|job| !job.answer.is_closed());
                    connected.lanes().purge(&self.exchange);
                    if window.tickets().any(|job| self.quarter - job.quarter > u64::from(QUARTERS)) {
                        // Dropping the channel closes it: its messages are not the broker's to judge any more.
                        let failure =
                            Failure::new(ErrorKind::Unavailable, Phase::Answer, "the broker did not confirm in time");
                        window.into_tickets().for_each(|job| job.fail(failure.clone()));
                        return;
                    }
                }
                Some(settled) = confirms.next(), if !confirms.is_empty() => {
                    self.settle(settled, &mut window, &mut closed);
                    // The others that are there already: one frame confirms many.
                    while let Some(Some(settled)) = confirms.next().now_or_never() {
                        self.settle(settled, &mut window, &mut closed);
                    }
                }
                Ok(job) = self.waiting.recv_async(), if has_room => self.publish(channel, job, &mut window, &confirms),
                () = connected.ended(), if confirms.is_empty() => break,
                () = sleep(limits.idle), if confirms.is_empty() => break,
            }
        }
        // A channel that is dropped is closed; nobody waits for that.
        if !closed.is_closed {
            return;
        }
        // What the broker had confirmed before is told still.
        let rest = async {
            while let Some(settled) = confirms.next().await {
                self.settle(settled, &mut window, &mut closed);
            }
        };
        let _ = timeout(LAST_WORDS, rest).await;
        let why = |error: &lapin::Error| broken(error, Phase::Answer, connected.about(About::Several));
        let failure = closed.error.as_ref().map_or_else(Failure::lost, why);
        window.into_tickets().for_each(|job| job.fail(failure.clone()));
    }

    /// The next message that may be published now.
    fn next_job(&mut self, window: &Window<Box<Job>>) -> Option<Box<Job>> {
        if window.len() >= self.limit() {
            return None;
        }
        self.parked.retain(|job| !job.answer.is_closed());
        if let Some(at) = self.parked.iter().position(|job| !window.contains(job.message.id())) {
            return self.parked.remove(at);
        }
        self.waiting.try_recv().ok()
    }

    const fn limit(&self) -> usize {
        if self.careful == 0 { WINDOW } else { 1 }
    }

    fn publish(
        &mut self,
        channel: &Channel,
        mut job: Box<Job>,
        window: &mut Window<Box<Job>>,
        confirms: &Confirms<'_>,
    ) {
        if job.answer.is_closed() {
            return;
        }
        if window.contains(job.message.id()) {
            // Two of one id are not told apart when one comes back.
            if self.parked.len() < PARKED {
                self.parked.push_back(job);
            } else {
                job.fail(Failure::new(ErrorKind::Throttled, Phase::Write, "too many messages of one id are in flight"));
            }
            return;
        }
        if self.connected.is_blocked() {
            job.fail(blocked());
            return;
        }
        let (exchange, routing_key) = (ShortString::from(&*self.exchange), std::mem::take(&mut job.routing_key));
        let (properties, message) = (std::mem::take(&mut job.properties), job.message.clone());
        let (channel, clock) = (channel.clone(), window.clock());
        job.quarter = self.quarter;
        window.publish(message.id().clone(), job);
        confirms.push(Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let body = message.body();
            let sent = channel.basic_publish(exchange, routing_key.into(), options, body, properties).await;
            let confirm = match sent {
                // lapin says so before it has sent anything.
                Err(error) if matches!(error.kind(), LapinErrorKind::InvalidChannelState(..)) => {
                    return Settled { id: message.id().clone(), end: PublishEnd::Refused };
                }
                Err(error) => Err(error),
                Ok(confirm) => settled(confirm, &clock).await,
            };
            let end = confirm.map_or_else(PublishEnd::Lost, PublishEnd::Confirmed);
            Settled { id: message.id().clone(), end }
        }));
    }

    fn settle(&mut self, settled: Settled, window: &mut Window<Box<Job>>, closed: &mut Closed) {
        let Settled { id, end } = settled;
        let careful = &mut self.careful;
        let mut decide = |job: Box<Job>, verdict: Verdict| {
            *careful = careful.saturating_sub(1);
            job.judge(verdict);
        };
        match end {
            PublishEnd::Confirmed(confirm) => {
                if !window.settle(&id, confirm, &mut decide) {
                    tracing::error!("the broker returned a message that was judged as delivered, or is none of ours");
                }
            }
            PublishEnd::Refused => {
                closed.is_closed = true;
                if let Some(job) = window.withdraw(&id, &mut decide) {
                    job.give_back();
                }
            }
            PublishEnd::Lost(error) => {
                // Those that failed with the first were underway beside it.
                let is_alone = closed.error.is_none() && window.pending() == 1;
                let about = self.connected.about(if is_alone { About::Message } else { About::Several });
                let job = window.fail(&id);
                let failure = broken(&error, Phase::Answer, about);
                if about != About::Connection && is_about_one_message(&error) {
                    self.careful = ONE_AT_A_TIME;
                }
                closed.is_closed = true;
                closed.error.get_or_insert(error);
                if let Some(job) = job {
                    job.fail(failure);
                }
            }
        }
    }
}

/// The broker takes nothing at the moment.
pub(crate) fn blocked() -> Failure {
    Failure::new(ErrorKind::Throttled, Phase::Write, "the broker is short of memory or disk")
}

async fn settled(mut confirm: PublisherConfirm, clock: &Clock) -> Result<Confirm, lapin::Error> {
    let mut waited_since = None;
    let confirmation = poll_fn(|context| {
        let confirmation = Pin::new(&mut confirm).poll(context);
        if confirmation.is_pending() {
            waited_since.get_or_insert_with(|| clock.now());
        }
        confirmation
    })
    .await?;
    let (is_ack, returned) = match confirmation {
        Confirmation::Ack(returned) => (true, returned),
        Confirmation::Nack(returned) => (false, returned),
        // The channel has no confirms: nothing is known.
        Confirmation::NotRequested => (false, None),
    };
    Ok(Confirm { is_ack, carried: returned.as_ref().and_then(carried), waited_since })
}

fn carried(returned: &BasicReturnMessage) -> Option<(MessageId, u16)> {
    let id = returned.properties.message_id().as_ref()?.as_str().parse().ok()?;
    Some((id, returned.reply_code))
}
