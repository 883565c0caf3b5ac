//! The connections of a sink: one a Dsn, made when it is needed, and made again when it was lost.

use crate::{
    connection::{Job, Jobs, drive},
    dial::Dialler,
    outcome::Failure,
    session::{Pace, Session},
};
use callback_core::{Dsn, ErrorKind, Phase};
use std::{
    collections::HashMap,
    future::pending,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The pause after the first failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two tries to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a connection without work is kept.
const IDLE: Duration = Duration::from_secs(120);

/// To how many Dsns of one scheme, host and port there are connections at once.
const AT_A_HOST: usize = 64;

/// How many jobs wait for a place on a connection beside those that wait in line for it.
const QUEUE: usize = 64;

/// How long the connections may take to end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// All connections of a sink.
pub(crate) struct Links {
    dialler: Dialler,
    limit: usize,
    by_dsn: Mutex<ByDsn>,
    tasks: TaskTracker,
    /// Cancelled at the end, for those that are connecting.
    over: CancellationToken,
}

#[derive(Default)]
struct ByDsn {
    links: HashMap<Dsn, Link>,
    /// How often a link was asked for.
    asked: u64,
}

/// One link, until its socket is cut: there is no second one to its Dsn before.
struct Link {
    /// None where it is leaving.
    jobs: Option<mpsc::Sender<Box<Job>>>,
    /// When it was asked for last.
    asked: u64,
    /// Cancelled when it is gone.
    gone: CancellationToken,
}

/// Where a job can be put.
pub(crate) enum Place {
    Open(mpsc::Sender<Box<Job>>),
    /// Nowhere until this is cancelled: a connection has to end first.
    Leaving(CancellationToken),
}

impl ByDsn {
    /// Closes, where there are so many links of a kind, the one without work that was used longest ago.
    ///
    /// Gives what has to be waited for until there is room.
    fn make_room(
        &mut self,
        limit: usize,
        is_alike: impl Fn(&Dsn) -> bool,
    ) -> Result<Option<CancellationToken>, Failure> {
        if self.links.keys().filter(|dsn| is_alike(dsn)).count() < limit {
            return Ok(None);
        }
        let alike = self.links.iter_mut().filter(|(dsn, _)| is_alike(dsn)).map(|(_, link)| link);
        let unused = alike.filter(|link| link.jobs.as_ref().is_none_or(|jobs| jobs.strong_count() == 1));
        // One that leaves already comes last: somebody else waits for its room.
        let oldest = unused.min_by_key(|link| (link.jobs.is_none(), link.asked));
        let Some(oldest) = oldest else {
            return Err(Failure::new(ErrorKind::Throttled, Phase::Connect, "too many connections are in use"));
        };
        // Without a sender it says goodbye.
        oldest.jobs = None;
        Ok(Some(oldest.gone.clone()))
    }
}

impl Links {
    pub(crate) fn new(dialler: Dialler, limit: usize) -> Arc<Self> {
        let (tasks, over) = (TaskTracker::new(), CancellationToken::new());
        Arc::new(Self { dialler, limit, by_dsn: Mutex::default(), tasks, over })
    }

    pub(crate) fn dialler(&self) -> &Dialler {
        &self.dialler
    }

    /// The queue of the connection to a Dsn. Holding it keeps the connection from being closed as idle.
    pub(crate) fn to(self: &Arc<Self>, dsn: &Dsn) -> Result<Place, Failure> {
        let mut by_dsn = self.lock();
        by_dsn.asked += 1;
        let now = by_dsn.asked;
        if let Some(link) = by_dsn.links.get_mut(dsn)
            && !link.gone.is_cancelled()
        {
            link.asked = now;
            return Ok(match &link.jobs {
                Some(jobs) if !jobs.is_closed() => Place::Open(jobs.clone()),
                _ => Place::Leaving(link.gone.clone()),
            });
        }
        by_dsn.links.remove(dsn);
        // Clients choose the Dsns: neither we nor a third party is to be flooded with connections.
        let at_host = by_dsn.make_room(AT_A_HOST, |other| other.destination() == dsn.destination())?;
        if let Some(gone) = at_host {
            return Ok(Place::Leaving(gone));
        }
        if let Some(gone) = by_dsn.make_room(self.limit, |_| true)? {
            return Ok(Place::Leaving(gone));
        }
        let (sender, jobs) = mpsc::channel(QUEUE);
        let gone = CancellationToken::new();
        let (guard, links) = (gone.clone().drop_guard(), Arc::downgrade(self));
        let running = run(dsn.clone(), jobs, Weak::clone(&links), self.over.clone());
        let of = dsn.clone();
        self.tasks.spawn(async move {
            let _guard = guard;
            running.await;
            if let Some(links) = links.upgrade() {
                links.lock().links.remove(&of);
            }
        });
        by_dsn.links.insert(dsn.clone(), Link { jobs: Some(sender.clone()), asked: now, gone });
        Ok(Place::Open(sender))
    }

    /// Ends all connections; nobody waits for anything on them.
    pub(crate) async fn close(&self) {
        self.over.cancel();
        self.lock().links.clear();
        self.tasks.close();
        // Those that are slower end by themselves.
        let _ = timeout(LAST_WORDS, self.tasks.wait()).await;
    }

    /// Lets the link go whose queue this is, if nobody else holds it.
    fn retire(&self, dsn: &Dsn, jobs: &Jobs) -> bool {
        let mut by_dsn = self.lock();
        match jobs.sender_strong_count() {
            0 => true,
            // The one that is left is ours: whoever delivers took his from there.
            1 if jobs.is_empty() => {
                if let Some(link) = by_dsn.links.get_mut(dsn) {
                    link.jobs = None;
                }
                true
            }
            _ => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, ByDsn> {
        self.by_dsn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

/// One link: a socket at a time, as long as there is work.
async fn run(dsn: Dsn, mut jobs: Jobs, links: Weak<Links>, over: CancellationToken) {
    let retire = |jobs: &Jobs| links.upgrade().is_none_or(|links| links.retire(&dsn, jobs));
    let (mut pace, mut failures, mut not_before) = (Pace::default(), 0, Instant::now());
    loop {
        let mut first = match timeout(IDLE, jobs.recv()).await {
            Ok(Some(job)) => job,
            Ok(None) => return,
            Err(_elapsed) if retire(&jobs) => return,
            Err(_elapsed) => continue,
        };
        tokio::select! {
            () = sleep_until(not_before) => {}
            () = first.reply.closed() => continue,
        }
        if !first.is_wanted() {
            continue;
        }
        let Some(opener) = links.upgrade() else { return };
        let opened = tokio::select! {
            opened = opener.dialler.open(&dsn) => opened,
            () = over.cancelled() => return,
        };
        drop(opener);
        match opened {
            Ok((socket, subprotocol)) => {
                let session = Session::new(subprotocol, pace, Some(IDLE), Instant::now().into_std());
                let ended = drive(socket, session, &mut jobs, Some(first), retire, pending()).await;
                if ended.is_retired {
                    return;
                }
                pace = ended.pace;
                failures = if ended.was_of_use { 0 } else { failures + 1 };
            }
            Err(failure) => {
                failures += 1;
                tracing::debug!(destination = %dsn.destination(), kind = %failure.kind, phase = %failure.phase, "cannot connect");
                first.fail(failure.clone());
                while let Ok(job) = jobs.try_recv() {
                    job.fail(failure.clone());
                }
            }
        }
        not_before = Instant::now() + pause(failures);
    }
}

/// How long to wait after so many failures in a row: half of it is random, so that not all come back at once.
fn pause(failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let longest = FIRST_PAUSE.saturating_mul(1 << doublings.min(10)).min(LONGEST_PAUSE);
    let random = u32::try_from(RandomState::new().hash_one(failures) % 1_000).unwrap_or_default();
    longest / 2 + longest / 2 * random / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::{Attempt, Message, Policy};
    use std::time::SystemTime;
    use tokio::sync::oneshot;

    #[test]
    fn a_link_that_somebody_wants_is_not_forgotten() {
        let tls = crate::tls::config(None).expect("certificates");
        let dialler = Dialler { policy: Policy::default(), tls, origin: None, allow_unsigned: false };
        let (links, dsn) = (Links::new(dialler, 1), "wss://example.com/".parse::<Dsn>().expect("a Dsn"));
        let (sender, mut jobs) = mpsc::channel(1);
        let link = Link { jobs: Some(sender.clone()), asked: 0, gone: CancellationToken::new() };
        links.lock().links.insert(dsn.clone(), link);
        assert!(!links.retire(&dsn, &jobs), "somebody is about to send a job");

        let message = Message::builder("a").build().expect("valid");
        let attempt = Attempt::new(1, SystemTime::now(), Instant::now().into_std());
        let job = Job { message, attempt, reply: oneshot::channel().0 };
        assert!(sender.try_send(Box::new(job)).is_ok());
        drop(sender);
        assert!(!links.retire(&dsn, &jobs), "a job waits");
        assert!(links.lock().links[&dsn].jobs.is_some());

        assert!(jobs.try_recv().is_ok());
        assert!(links.retire(&dsn, &jobs));
        assert!(links.lock().links[&dsn].jobs.is_none());
        assert!(links.retire(&dsn, &jobs), "nobody can send any more");
    }

    #[test]
    fn a_pause_grows_and_has_an_end() {
        assert_eq!(pause(0), Duration::ZERO);
        for (failures, longest) in [(1, 100), (2, 200), (3, 400), (6, 3_200), (7, 5_000), (1_000, 5_000)] {
            let longest = Duration::from_millis(longest);
            for _ in 0..20 {
                let pause = pause(failures);
                assert!(longest / 2 <= pause && pause <= longest, "{failures}: {pause:?}");
            }
        }
    }
}
