//! From a message of the broker to what the broker is told.

use super::{
    answer::{self, Answer},
    place,
    waits::Waits,
    wire,
};
use callback_receive::{HandleId, Incoming, Intake, Standing, Verdict};
use lapin::{
    Acker, Error,
    message::Delivery,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// After which wait a message is offered again for which nobody has time or room; doubled with each further one.
const FIRST: Duration = Duration::from_millis(100);

/// The longest such wait.
const LONGEST: Duration = Duration::from_secs(5);

/// For how long a message is offered so before it is given back; RabbitMQ closes a channel that holds one for half an hour.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How long an answer may take to be written; a broker that is silent for 20 s is gone.
const WRITTEN: Duration = Duration::from_secs(30);

/// Where messages wait for their verdict, and after it for their time.
pub(super) struct Desk {
    intake: Intake,
    keep_unknown: Duration,
    closing: CancellationToken,
    hasher: RandomState,
    waits: Mutex<Waits>,
    unknown: Mutex<Unknown>,
}

/// The messages that are held since their handle is unknown, by when they came for the first time.
struct Unknown {
    most: usize,
    next: u64,
    held: BTreeMap<(Instant, u64), CancellationToken>,
}

impl Unknown {
    /// Takes a message; where there are too many, the one that is unknown for longest must go.
    fn hold(&mut self, since: Instant) -> ((Instant, u64), CancellationToken) {
        let (place, token) = ((since, self.next), CancellationToken::new());
        self.next += 1;
        self.held.insert(place, token.clone());
        if self.held.len() > self.most
            && let Some((_, oldest)) = self.held.pop_first()
        {
            oldest.cancel();
        }
        (place, token)
    }
}

/// How the holding of a message ended.
enum Held {
    /// Its time has come, or the receiver closes.
    Over,
    /// There were too many.
    Displaced,
    /// Its channel is gone.
    Lost,
}

impl Desk {
    /// At most `unknown` messages are held since their handle is unknown.
    pub(super) fn new(intake: Intake, keep_unknown: Duration, unknown: usize, closing: CancellationToken) -> Self {
        Self {
            intake,
            keep_unknown,
            closing,
            hasher: RandomState::new(),
            waits: Mutex::default(),
            unknown: Mutex::new(Unknown { most: unknown, next: 0, held: BTreeMap::new() }),
        }
    }

    /// Offers a message, holds it if it is not its time, and tells the broker.
    pub(super) async fn settle(self: Arc<Self>, mut delivery: Delivery, lost: CancellationToken) {
        let acker = delivery.acker.clone();
        let key = self.key(&delivery);
        // One that comes again has been given back, or was on a connection that is gone.
        let early = if delivery.redelivered { lock(&self.waits).left(key, Instant::now()) } else { None };
        let answer = match early {
            Some(_) => None,
            None => Some(self.judge(&mut delivery, &lost).await),
        };
        // What is held needs no body.
        drop(delivery);
        let told = match (answer, early) {
            (Some(Answer::Take), _) => {
                lock(&self.waits).done(key);
                written(acker.ack(BasicAckOptions::default())).await
            }
            (Some(Answer::Reject), _) => {
                lock(&self.waits).done(key);
                reject(&acker).await
            }
            (Some(Answer::Later(wait)), _) => {
                let wait = lock(&self.waits).later(key, wait, Instant::now());
                self.give_back(&acker, wait, &lost).await
            }
            (Some(Answer::Unknown), _) => self.unknown(&acker, key, &lost).await,
            (None, wait) => self.give_back(&acker, wait.unwrap_or_default(), &lost).await,
        };
        if let Err(error) = told {
            tracing::debug!(%error, "the broker was not told of a verdict: the message comes again");
        }
    }

    async fn judge(&self, delivery: &mut Delivery, lost: &CancellationToken) -> Answer {
        let correlation = delivery.properties.correlation_id().as_ref().map(|id| id.as_str());
        let Some(handle) = place::handle(delivery.routing_key.as_str(), correlation) else {
            tracing::warn!("a message names no handle; it is rejected");
            return Answer::Reject;
        };
        if self.intake.standing(&handle) == Standing::Unknown {
            return Answer::Unknown;
        }
        let body = mem::take(&mut delivery.data).into();
        match wire::incoming(&delivery.properties, body, &handle.expose()) {
            Ok(incoming) => self.offer(&handle, incoming, lost).await,
            Err(malformed) => {
                tracing::warn!(?handle, reason = %malformed, "what came is no message; it is rejected");
                Answer::Reject
            }
        }
    }

    /// Offers a message until there is a verdict.
    ///
    /// What only finds no time or no room stays here meanwhile: a queue would give it again at once, and a quorum queue
    /// counts how often it did.
    async fn offer(&self, handle: &HandleId, incoming: Incoming, lost: &CancellationToken) -> Answer {
        let (begun, mut wait) = (Instant::now(), FIRST);
        loop {
            let verdict = self.intake.offer(handle, incoming.clone()).await;
            let answer = answer::of(&verdict);
            if answer != Answer::Later(None) || begun.elapsed() >= PATIENCE {
                told(handle, &verdict);
                return answer;
            }
            let held = self.hold(wait, &CancellationToken::new(), lost).await;
            if !matches!(held, Held::Over) || self.closing.is_cancelled() {
                return answer;
            }
            wait = (2 * wait).min(LONGEST);
        }
    }

    /// Holds a message, and gives it back to its queue.
    async fn give_back(&self, acker: &Acker, wait: Duration, lost: &CancellationToken) -> Result<(), Error> {
        match self.hold(wait, &CancellationToken::new(), lost).await {
            Held::Over | Held::Displaced => requeue(acker).await,
            Held::Lost => Ok(()),
        }
    }

    /// Holds a message whose handle is unknown, and gives it back or, after its time, rejects it.
    async fn unknown(&self, acker: &Acker, key: u64, lost: &CancellationToken) -> Result<(), Error> {
        let waiting = lock(&self.waits).unknown(key, self.keep_unknown, Instant::now());
        let Some((wait, since)) = waiting else {
            tracing::warn!("a message was for nobody for too long; it is rejected");
            return reject(acker).await;
        };
        let (place, displaced) = lock(&self.unknown).hold(since);
        let held = self.hold(wait, &displaced, lost).await;
        lock(&self.unknown).held.remove(&place);
        match held {
            Held::Over => requeue(acker).await,
            Held::Displaced => {
                tracing::warn!("too many messages are for nobody; the oldest is rejected");
                lock(&self.waits).done(key);
                reject(acker).await
            }
            Held::Lost => Ok(()),
        }
    }

    async fn hold(&self, wait: Duration, displaced: &CancellationToken, lost: &CancellationToken) -> Held {
        tokio::select! {
            biased;
            () = lost.cancelled() => Held::Lost,
            () = self.closing.cancelled() => Held::Over,
            () = displaced.cancelled() => Held::Displaced,
            () = sleep(wait) => Held::Over,
        }
    }

    /// What a message is known by when it comes again; one without an id by its body.
    fn key(&self, delivery: &Delivery) -> u64 {
        let properties = &delivery.properties;
        let id = properties.message_id().as_ref().map(|id| id.as_str());
        let correlation = properties.correlation_id().as_ref().map(|id| id.as_str());
        let body = if id.is_none() { delivery.data.as_slice() } else { &[] };
        self.hasher.hash_one((delivery.routing_key.as_str(), correlation, id, body))
    }
}

/// Why a message is rejected stands in the log: its sender does not hear of it.
fn told(handle: &HandleId, verdict: &Verdict) {
    match verdict {
        Verdict::Refused(_) => tracing::warn!(?handle, "a message was refused; it is rejected"),
        Verdict::TooLarge => tracing::warn!(?handle, "a message is too large; it is rejected"),
        Verdict::Ended => tracing::warn!(?handle, "a message came to a handle that has ended; it is rejected"),
        // The receiver has said why.
        _ => {}
    }
}

async fn reject(acker: &Acker) -> Result<(), Error> {
    written(acker.reject(BasicRejectOptions { requeue: false })).await
}

async fn requeue(acker: &Acker) -> Result<(), Error> {
    written(acker.nack(BasicNackOptions { requeue: true, multiple: false })).await
}

/// Waits until the answer is written; one that is not is the same as none: the broker gives the message again.
async fn written(answer: impl Future<Output = Result<bool, Error>>) -> Result<(), Error> {
    match timeout(WRITTEN, answer).await {
        Ok(Ok(_)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
