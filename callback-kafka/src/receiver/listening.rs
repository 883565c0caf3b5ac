//! From records to verdicts: offers many at once, within bounds, and says how far each partition was passed.

use super::{
    kept::Kept,
    log::Log,
    progress::Progress,
    wire::{Offer, Unread},
};
use callback_receive::{HandleId, Incoming, Intake, Standing, Verdict};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, HashMap},
    future,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// How long a record waits that nobody says a time for: it doubles from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(10);

/// What any record waits, so that one that is wanted at once, again and again, leaves time for others.
const LEAST_WAIT: Duration = Duration::from_millis(10);

/// How often it is looked whether a key is expected by now.
const LOOK: Duration = Duration::from_secs(5);

/// How often it is stored how far was passed.
const STORE: Duration = Duration::from_secs(1);

/// What the receiver is asked.
pub(super) trait Take: Send + 'static {
    /// Offers a record; the position is stored with it, if it is stored.
    fn offer(
        &self,
        handle: HandleId,
        incoming: Incoming,
        position: Option<(String, i64)>,
    ) -> BoxFuture<'static, Verdict>;

    /// Whether nobody has ever expected the key here.
    fn is_unknown(&self, handle: &HandleId) -> bool;

    /// Stores positions; whether it did.
    fn pass(&self, positions: Vec<(String, i64)>) -> BoxFuture<'static, bool>;
}

impl Take for Intake {
    fn offer(
        &self,
        handle: HandleId,
        incoming: Incoming,
        position: Option<(String, i64)>,
    ) -> BoxFuture<'static, Verdict> {
        let intake = self.clone();
        let incoming = match position {
            Some((log, offset)) => incoming.position(log, offset),
            None => incoming,
        };
        async move { intake.offer(&handle, incoming).await }.boxed()
    }

    fn is_unknown(&self, handle: &HandleId) -> bool {
        self.standing(handle) == Standing::Unknown
    }

    fn pass(&self, positions: Vec<(String, i64)>) -> BoxFuture<'static, bool> {
        let intake = self.clone();
        let passed = async move {
            let stored = intake.pass(positions).await;
            stored.inspect_err(|error| tracing::warn!(error = error as &dyn std::error::Error, "no position is stored"))
        };
        passed.map(|stored| stored.is_ok()).boxed()
    }
}

/// What is in memory at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Records that are offered or wait to be offered again, and their bytes.
    pub(super) records: usize,
    pub(super) bytes: usize,
    /// How long records are kept whose key nobody expects, and their bytes.
    pub(super) keep: Duration,
    pub(super) keep_bytes: usize,
}

/// A record that was read.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) content: Result<Offer, Unread>,
}

/// Partition and offset.
type Place = (i32, i64);

/// A record that is offered.
#[derive(Debug)]
struct Record {
    partition: i32,
    offset: i64,
    offer: Offer,
    tries: u32,
}

enum Done {
    Judged(Record, Verdict),
    Stored(Vec<(i32, i64)>, bool),
}

/// What one receiver listens to.
pub(super) struct Listening<T> {
    intake: T,
    log: Log,
    has_inbox: bool,
    bounds: Bounds,
    progress: BTreeMap<i32, Progress>,
    under_way: FuturesUnordered<BoxFuture<'static, Done>>,
    /// What is offered or waits, and its bytes.
    held: (usize, usize),
    waiting: BTreeMap<(Instant, Place), Record>,
    /// Those among them that nobody said a time for.
    untimed: HashMap<HandleId, BTreeMap<Place, Instant>>,
    kept: Kept<Record>,
    stored: HashMap<i32, i64>,
    is_storing: bool,
}

impl<T: Take> Listening<T> {
    /// `starts` has the first offset of each partition.
    pub(super) fn new(intake: T, log: Log, has_inbox: bool, bounds: Bounds, starts: &[(i32, i64)]) -> Self {
        Self {
            intake,
            log,
            has_inbox,
            bounds,
            progress: starts.iter().map(|(partition, next)| (*partition, Progress::new(*next))).collect(),
            under_way: FuturesUnordered::new(),
            held: (0, 0),
            waiting: BTreeMap::new(),
            untimed: HashMap::new(),
            kept: Kept::new(bounds.keep, bounds.keep_bytes),
            stored: starts.iter().map(|(partition, next)| (*partition, next - 1)).collect(),
            is_storing: false,
        }
    }

    /// Offers what arrives, until it is closed or nothing can arrive any more; then waits for the verdicts of what is offered.
    pub(super) async fn run(mut self, mut arrivals: mpsc::Receiver<Arrived>, closing: CancellationToken) {
        let every = |time| {
            let mut ticks = interval_at(Instant::now() + time, time);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut look, mut store) = (every(LOOK), every(STORE));
        loop {
            let due = self.waiting.first_key_value().map(|((due, _), _)| *due);
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                Some(done) = self.under_way.next() => self.done(done),
                () = until(due) => self.offer_due(),
                _ = look.tick(), if self.has_inbox => self.look_after_kept(),
                _ = store.tick(), if self.has_inbox => self.store_positions(),
                arrived = arrivals.recv(), if self.has_room() => match arrived {
                    Some(arrived) => self.arrived(arrived),
                    None => break,
                },
            }
        }
        // Whoever reads records is told so.
        drop(arrivals);
        while let Some(done) = self.under_way.next().await {
            self.done(done);
        }
        if self.has_inbox {
            self.store_positions();
            while let Some(done) = self.under_way.next().await {
                self.done(done);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.held.0 < self.bounds.records && self.held.1 < self.bounds.bytes
    }

    fn arrived(&mut self, Arrived { partition, offset, content }: Arrived) {
        let progress = self.progress.entry(partition).or_insert_with(|| Progress::new(offset));
        if !progress.read(offset) {
            return;
        }
        match content {
            Ok(offer) => self.enter(Record { partition, offset, offer, tries: 0 }),
            Err(unread) => {
                tracing::debug!(topic = self.log.topic(), partition, offset, %unread, "a record is passed");
                self.pass(partition, offset, Some(unread.as_str()));
            }
        }
    }

    /// Takes a record into the bounds, and offers it.
    fn enter(&mut self, record: Record) {
        self.held = (self.held.0 + 1, self.held.1 + record.offer.size);
        self.offer(record);
    }

    fn leave(&mut self, record: &Record) {
        self.held = (self.held.0 - 1, self.held.1 - record.offer.size);
    }

    fn offer(&mut self, record: Record) {
        let Record { partition, offset, .. } = record;
        // If this is stored, everything up to there has its verdict.
        let position = self.progress.get(&partition).filter(|_| self.has_inbox);
        let position = position.map(|progress| (self.log.name(partition), progress.passed_with(offset)));
        let mut verdict = self.intake.offer(record.offer.handle, record.offer.incoming.clone(), position);
        // Begun here, so that the records of a key come in their order.
        match (&mut verdict).now_or_never() {
            Some(verdict) => self.judged(record, &verdict),
            None => self.under_way.push(verdict.map(|verdict| Done::Judged(record, verdict)).boxed()),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Judged(record, verdict) => self.judged(record, &verdict),
            Done::Stored(positions, is_stored) => {
                self.is_storing = false;
                if is_stored {
                    self.stored.extend(positions);
                }
            }
        }
    }

    fn judged(&mut self, record: Record, verdict: &Verdict) {
        let reason = match verdict {
            Verdict::Accepted | Verdict::Duplicate => None,
            Verdict::Ended => Some("ended"),
            Verdict::Refused(_) => Some("refused"),
            Verdict::TooLarge => Some("too_large"),
            Verdict::Unverified => Some("unverified"),
            Verdict::Unknown if self.has_inbox => return self.keep(record),
            Verdict::Unknown => Some("unknown"),
            Verdict::RetryLater(wait) => return self.wait(record, *wait),
            _ => return self.wait(record, None),
        };
        self.leave(&record);
        let Record { partition, offset, offer, .. } = record;
        if let Some(reason) = reason {
            tracing::debug!(topic = self.log.topic(), partition, offset, reason, "a record is passed");
        }
        self.pass(partition, offset, reason);
        self.hurry(&offer.handle);
    }

    /// Offers a record again after this time, or after one that grows.
    fn wait(&mut self, mut record: Record, asked: Option<Duration>) {
        let (now, place) = (Instant::now(), (record.partition, record.offset));
        let wait = asked.unwrap_or_else(|| wait(record.tries)).max(LEAST_WAIT);
        let due = now.checked_add(wait).unwrap_or(now + LAST_WAIT);
        record.tries = record.tries.saturating_add(1);
        if asked.is_none() {
            self.untimed.entry(record.offer.handle).or_default().insert(place, due);
        }
        self.waiting.insert((due, place), record);
    }

    /// The handle is done with a record: if another waits because there was no room, its time has come.
    fn hurry(&mut self, handle: &HandleId) {
        let Some((place, due)) = self.untimed.get(handle).and_then(|places| places.first_key_value()) else { return };
        let (place, due) = (*place, *due);
        self.take_out(handle, place);
        if let Some(record) = self.waiting.remove(&(due, place)) {
            self.waiting.insert((Instant::now(), place), record);
        }
    }

    /// It is offered, or timed.
    fn take_out(&mut self, handle: &HandleId, place: Place) {
        if let Some(places) = self.untimed.get_mut(handle) {
            places.remove(&place);
            if places.is_empty() {
                self.untimed.remove(handle);
            }
        }
    }

    fn offer_due(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.waiting.first_entry().filter(|first| first.key().0 <= now) {
            let ((_, place), record) = first.remove_entry();
            self.take_out(&record.offer.handle, place);
            self.offer(record);
        }
    }

    fn keep(&mut self, record: Record) {
        self.leave(&record);
        let size = record.offer.size;
        for record in self.kept.keep(record, size, Instant::now()) {
            self.pass(record.partition, record.offset, Some("evicted"));
        }
    }

    /// Passes what was kept for long enough, and offers what is expected by now.
    fn look_after_kept(&mut self) {
        for record in self.kept.expired(Instant::now()) {
            self.pass(record.partition, record.offset, Some("unknown"));
        }
        let intake = &self.intake;
        for record in self.kept.take(|record| !intake.is_unknown(&record.offer.handle)) {
            self.enter(record);
        }
    }

    /// A record has its verdict. What was not taken is counted.
    fn pass(&mut self, partition: i32, offset: i64, reason: Option<&'static str>) {
        if let Some(progress) = self.progress.get_mut(&partition) {
            progress.settle(offset);
        }
        if let Some(reason) = reason {
            let topic = self.log.topic().to_owned();
            metrics::counter!("callback_kafka_passed_total", "topic" => topic, "reason" => reason).increment(1);
        }
    }

    /// Stores how far was passed, where that has changed.
    fn store_positions(&mut self) {
        if self.is_storing {
            return;
        }
        let passed = self.progress.iter().map(|(partition, progress)| (*partition, progress.passed()));
        let is_new = |(partition, passed): &(i32, i64)| self.stored.get(partition).is_none_or(|stored| passed > stored);
        let positions: Vec<(i32, i64)> = passed.filter(is_new).collect();
        if positions.is_empty() {
            return;
        }
        let named = positions.iter().map(|(partition, offset)| (self.log.name(*partition), *offset)).collect();
        self.is_storing = true;
        let stored = self.intake.pass(named);
        self.under_way.push(stored.map(|is_stored| Done::Stored(positions, is_stored)).boxed());
    }
}

/// Resolves then, or never.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => future::pending().await,
    }
}

/// How long a record waits after so many tries before this one.
fn wait(tries: u32) -> Duration {
    FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries)).min(LAST_WAIT)
}

#[cfg(test)]
mod tests;
