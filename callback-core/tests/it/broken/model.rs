//! A small sink that keeps the contract, but for one defect.

use super::Defect;
use callback_core::{
    Attempt, Dsn, DsnError, ErrorKind, Evidence, Message, MessageId, Receipt, Signer, Sink, SinkError, async_trait,
    conformance::{Fault, Harness, Received, Skip},
};
use std::{
    cell::Cell,
    fmt,
    mem::ManuallyDrop,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex as Turn, Semaphore},
    task::yield_now,
    time::{sleep, timeout_at},
};

thread_local! {
    /// The defect of the sinks that are made on this thread: a harness is started by its type alone.
    static DEFECT: Cell<Option<Defect>> = const { Cell::new(None) };
}

pub(super) fn with_defect<T>(defect: Option<Defect>, run: impl FnOnce() -> T) -> T {
    DEFECT.set(defect);
    run()
}

/// What is shared with the sinks.
#[derive(Default)]
struct State {
    received: Vec<Received>,
    fault: Option<Fault>,
    connection: u32,
    connections: usize,
}

pub(super) struct FarEnd {
    defect: Option<Defect>,
    state: Arc<Mutex<State>>,
}

pub(super) struct Model {
    defect: Option<Defect>,
    state: Arc<Mutex<State>>,
    own: Mutex<Own>,
    in_flight: Semaphore,
    turn: Turn<()>,
}

/// What a sink knows.
#[derive(Default)]
struct Own {
    connection: u32,
    closed: bool,
    gave_up: bool,
    deliveries: u32,
    queued: Option<Received>,
    unanswered: u32,
    password: Option<String>,
}

/// How many deliveries may be in flight.
const LIMIT: u32 = 10_000;

/// How many messages without an answer a connection has places for.
const PLACES: u32 = 100;

const NAME: &str = "model";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Model {
    fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn judge(&self, dsn: &Dsn) -> Result<(), DsnError> {
        if dsn.scheme() != NAME && !self.has(Defect::ChecksNoScheme) {
            return Err(DsnError::unknown_scheme(dsn.scheme(), &[NAME]));
        }
        let mut params = dsn.params();
        let _token: Option<String> = params.take("token")?;
        match params.finish() {
            Err(_) if self.has(Defect::IgnoresParameters) => Ok(()),
            Err(error) if self.has(Defect::RepeatsValue) => {
                Err(DsnError::invalid(format!("{error}: {}", dsn.query().unwrap_or_default())))
            }
            result => result,
        }
    }

    fn policy(dsn: &Dsn, host: &str) -> Result<(), DsnError> {
        let forbidden = dsn.hosts().iter().any(|named| named.to_string() == host);
        if forbidden { Err(DsnError::forbidden("the host is not open")) } else { Ok(()) }
    }

    fn kind(&self, right: ErrorKind, defect: Defect, wrong: ErrorKind) -> ErrorKind {
        if self.has(defect) { wrong } else { right }
    }

    /// What the far end is sent.
    fn packed(&self, message: &Message, attempt: &Attempt) -> Received {
        let body = message.body();
        let body = match self.defect {
            Some(Defect::EmptyToNull) if body.is_empty() => b"null".to_vec(),
            Some(Defect::TrimsBody) => body.trim_ascii().to_vec(),
            Some(Defect::BodyAsText) => String::from_utf8_lossy(body).into_owned().into_bytes(),
            Some(Defect::CutsBody) => body[..body.len().min(64 << 10)].to_vec(),
            _ => body.to_vec(),
        };
        let id = match self.defect {
            Some(Defect::NewIdForRetry) if attempt.number() == 2 => MessageId::new(),
            _ => message.id().clone(),
        };
        let mut attempt = attempt.clone();
        if self.has(Defect::SignsByItself) && attempt.signature().is_none() {
            let signer: Signer = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key");
            attempt = attempt.sign(&signer, message);
        }
        let mut headers: Vec<(String, String)> = Vec::new();
        let mut add = |name: String, value: &str| headers.push((name, value.to_owned()));
        add("content-type".to_owned(), message.content_type());
        for (name, value) in attempt.headers(message) {
            if name != "webhook-signature" || !self.has(Defect::DropsSignature) {
                add(name.to_owned(), &value);
            }
        }
        for (name, value) in message.attributes() {
            if name != "subject" || !self.has(Defect::DropsSubject) {
                add(format!("ce-{name}"), &value);
            }
        }
        for (name, value) in message.headers() {
            if !self.has(Defect::DropsHeaders) {
                add(name.to_owned(), value);
            }
        }
        Received::new(id, body).with_headers(headers)
    }

    /// Connects again where the connection broke.
    fn connected(&self) -> Result<bool, SinkError> {
        let far = lock(&self.state).connection;
        let mut own = lock(&self.own);
        if own.connection == far {
            return Ok(true);
        }
        if !self.has(Defect::NeverReconnects) {
            own.connection = far;
        }
        if self.has(Defect::DisconnectAsSuccess) {
            return Ok(false);
        }
        let kind = self.kind(ErrorKind::Unavailable, Defect::DisconnectAsRefusal, ErrorKind::Refused);
        Err(SinkError::new(kind, "the connection broke"))
    }

    async fn send(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<(), SinkError> {
        yield_now().await;
        if self.has(Defect::LimitsInFlight) {
            sleep(Duration::from_millis(50)).await;
        }
        if self.has(Defect::ConnectsBeforePolicy) {
            lock(&self.state).connections += 1;
        }
        if !self.has(Defect::NoPolicyInDeliver) && !self.has(Defect::NoPolicyAtConnect) {
            Self::policy(dsn, "inside.example")?;
        }
        lock(&self.state).connections += 1;
        if lock(&self.own).unanswered >= PLACES {
            return Err(SinkError::unavailable("no place on the connection"));
        }
        if lock(&self.own).gave_up {
            return Err(SinkError::unavailable("given up"));
        }
        if !self.connected()? {
            return Ok(());
        }
        let packed = self.packed(message, attempt);
        let fault = lock(&self.state).fault;
        match fault {
            Some(Fault::Outage) => {
                lock(&self.own).gave_up = self.has(Defect::GivesUp);
                let kind = self.kind(ErrorKind::Unavailable, Defect::OutageAsRefusal, ErrorKind::Refused);
                let text = match self.defect {
                    Some(Defect::PrintsDsn) => dsn.expose().to_owned(),
                    Some(Defect::PrintsHeader) => format!("{:?}", message.headers().collect::<Vec<_>>()),
                    _ => "out of reach".to_owned(),
                };
                Err(SinkError::new(kind, text))
            }
            Some(Fault::Refuse) if self.has(Defect::RefusalAsSuccess) => Ok(()),
            Some(Fault::Refuse) => {
                let kind = self.kind(ErrorKind::Refused, Defect::RefusalAsOutage, ErrorKind::Unavailable);
                let body = String::from_utf8_lossy(message.body()).into_owned();
                Err(SinkError::new(kind, if self.has(Defect::PrintsBody) { body } else { "no".to_owned() }))
            }
            Some(Fault::Throttle(wait)) => {
                let kind = self.kind(ErrorKind::Throttled, Defect::ThrottleAsOutage, ErrorKind::Unavailable);
                let error = SinkError::new(kind, "slow down");
                match wait {
                    Some(wait) if !self.has(Defect::DropsWait) => Err(error.with_retry_after(wait)),
                    _ => Err(error),
                }
            }
            Some(Fault::Stall) => {
                let copies = if self.has(Defect::RepeatsUnanswered) { 2 } else { 1 };
                lock(&self.state).received.extend(vec![packed; copies]);
                // Whoever is dropped here gives nothing back.
                lock(&self.own).unanswered += u32::from(self.has(Defect::KeepsPlaces));
                std::future::pending().await
            }
            _ => {
                self.take(packed);
                Ok(())
            }
        }
    }

    /// A far end in good order takes it.
    fn take(&self, packed: Received) {
        let mut own = lock(&self.own);
        own.deliveries += 1;
        let sent = match self.defect {
            Some(Defect::AnswersBeforeSending) => own.queued.replace(packed).into_iter().collect(),
            Some(Defect::LosesEveryThird) if own.deliveries.is_multiple_of(3) => Vec::new(),
            Some(Defect::SendsTwice) => vec![packed; 2],
            _ => vec![packed],
        };
        lock(&self.state).received.extend(sent);
    }

    async fn deliver_in_time(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let now = Instant::now();
        let mut deadline = match attempt.deadline() {
            // Nor one that is over before it begins: where the machine is busy that is every one.
            _ if self.has(Defect::IgnoresDeadline) => now + Duration::from_secs(600),
            over if over <= now && self.has(Defect::ForgetsOldDeadline) => now + Duration::from_secs(600),
            over if over <= now => return Err(SinkError::timed_out("over before it began")),
            deadline => deadline,
        };
        let mut turn = None;
        if self.has(Defect::OneAfterTheOther) {
            let left = deadline.saturating_duration_since(now);
            turn = Some(self.turn.lock().await);
            deadline = Instant::now() + left;
        }
        let sent = timeout_at(deadline.into(), self.send(dsn, message, attempt)).await;
        drop(turn);
        match sent {
            Ok(sent) => sent.map(|()| Receipt::new(Evidence::Acknowledged)),
            Err(_elapsed) => {
                let is_connected = lock(&self.own).deliveries > 0;
                let kind = match self.defect {
                    Some(Defect::DeadlineAsOutage) => ErrorKind::Unavailable,
                    Some(Defect::LimitsConnecting) if !is_connected => ErrorKind::Unavailable,
                    Some(Defect::StalledConnectAsRefusal) if !is_connected => ErrorKind::Refused,
                    _ => ErrorKind::TimedOut,
                };
                Err(SinkError::new(kind, "no answer in time"))
            }
        }
    }
}

#[async_trait]
impl Sink for Model {
    fn schemes(&self) -> &[&str] {
        if self.has(Defect::UpperCaseScheme) { &["model", "Model"] } else { &[NAME] }
    }

    fn check(&self, dsn: &Dsn) -> Result<(), DsnError> {
        match self.defect {
            Some(Defect::RefusesOwnDsn) => return Err(DsnError::invalid("no")),
            Some(Defect::CheckAsksFarEnd) if lock(&self.state).fault == Some(Fault::Outage) => {
                return Err(DsnError::invalid("nobody is there"));
            }
            Some(Defect::CheckNeedsRuntime) => drop(tokio::runtime::Handle::current()),
            Some(Defect::CheckSends) => lock(&self.state).received.push(Received::new(MessageId::new(), "")),
            _ => {}
        }
        if !self.has(Defect::NoPolicyInCheck) {
            Self::policy(dsn, "forbidden.example")?;
        }
        self.judge(dsn)
    }

    async fn deliver(&self, dsn: &Dsn, message: &Message, attempt: &Attempt) -> Result<Receipt, SinkError> {
        let in_flight = self.in_flight.acquire().await.map_err(SinkError::unavailable)?;
        let closed = lock(&self.own).closed;
        if closed && !self.has(Defect::DeliversWhenClosed) {
            let kind = self.kind(ErrorKind::Unavailable, Defect::ClosedAsRefusal, ErrorKind::Refused);
            return Err(SinkError::new(kind, "the sink is closed"));
        }
        if !self.has(Defect::NoPolicyInDeliver) {
            Self::policy(dsn, "forbidden.example")?;
        }
        match self.judge(dsn) {
            Err(error) if self.has(Defect::ForeignIsTemporary) => return Err(SinkError::unavailable(error)),
            judged => judged?,
        }
        if self.has(Defect::LogsBody) {
            tracing::debug!(body = ?message.body(), "delivering");
        }
        let _span = self.has(Defect::LogsDsn).then(|| tracing::info_span!("deliver", dsn = dsn.expose()));
        lock(&self.own).password = dsn.password().map(str::to_owned);
        if self.has(Defect::LimitsInFlight) && self.in_flight.available_permits() < LIMIT as usize - 100 {
            return Err(SinkError::unavailable("too many at once"));
        }
        if self.has(Defect::CountsDropped) {
            let in_flight = ManuallyDrop::new(in_flight);
            let ended = self.deliver_in_time(dsn, message, attempt).await;
            // A delivery that is dropped does not come here.
            drop(ManuallyDrop::into_inner(in_flight));
            return ended;
        }
        self.deliver_in_time(dsn, message, attempt).await
    }

    async fn close(&self) -> Result<(), SinkError> {
        let was_closed = std::mem::replace(&mut lock(&self.own).closed, true);
        if was_closed && self.has(Defect::ClosesOnce) {
            return Err(SinkError::unavailable("closed already"));
        }
        if self.has(Defect::ClosesWithoutWaiting) {
            return Ok(());
        }
        self.in_flight.acquire_many(LIMIT).await.map(drop).map_err(SinkError::unavailable)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = if self.has(Defect::PrintsPassword) { lock(&self.own).password.clone() } else { None };
        f.debug_struct("Model").field("password", &password).finish_non_exhaustive()
    }
}

fn dsn(host: &str) -> Dsn {
    format!("{NAME}://planted-user:planted-password@{host}/?token=planted-token").parse().expect("valid")
}

#[async_trait]
impl Harness for FarEnd {
    type Sink = Model;

    async fn start() -> Result<Self, Skip> {
        Ok(Self { defect: DEFECT.get(), state: Arc::default() })
    }

    fn sink(&self) -> Model {
        Model {
            defect: self.defect,
            state: Arc::clone(&self.state),
            own: Mutex::default(),
            in_flight: Semaphore::new(LIMIT as usize),
            turn: Turn::default(),
        }
    }

    fn dsn(&self) -> Dsn {
        dsn("open.example")
    }

    async fn received(&self) -> Vec<Received> {
        lock(&self.state).received.clone()
    }

    async fn inject(&self, fault: Fault) -> Result<(), Skip> {
        let mut state = lock(&self.state);
        match fault {
            Fault::Disconnect => state.connection += 1,
            _ => state.fault = Some(fault),
        }
        Ok(())
    }

    async fn heal(&self) {
        lock(&self.state).fault = None;
    }

    fn forbidden(&self) -> Result<(Model, Dsn), Skip> {
        Ok((self.sink(), dsn("forbidden.example")))
    }

    fn forbidden_at_connect(&self) -> Result<(Model, Dsn), Skip> {
        Ok((self.sink(), dsn("inside.example")))
    }

    async fn connections(&self) -> Option<usize> {
        Some(lock(&self.state).connections)
    }

    fn patience(&self) -> Duration {
        // Every clause runs at once here, a hundred tasks each: on a busy machine one waits a second for its turn.
        Duration::from_secs(5)
    }
}
