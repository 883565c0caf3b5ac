//! The producer of one cluster: started by its first message, replaced after a fatal error, bounded.

use crate::{
    KafkaCluster, log,
    outcome::{self, Trouble},
    target::Target,
    topics::{Asked, Receipted},
    unsettled::{Settled, Slot, Unsettled},
    wire,
};
use callback_core::{Attempt, Message, Receipt, SinkError};
use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{
        DeliveryFuture, FutureProducer, FutureRecord, Producer as _, PurgeConfig, future_producer::OwnedDeliveryResult,
    },
};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context as TaskContext, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout_at,
};

/// How long a closing sink sends what nobody waits for any more.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// How many topics without a receipt a producer is asked for before it is replaced: librdkafka forgets none.
const TOPICS_WITHOUT_RECEIPT: usize = 256;

/// One cluster's producer and what is on its way.
#[derive(Debug)]
pub(crate) struct Producer {
    cluster: Arc<KafkaCluster>,
    /// A larger record travels alone.
    batch_size: usize,
    running: Arc<Current>,
    /// Held by whoever starts or retires a producer: the next one starts when the last one has been purged.
    changing: Arc<Mutex<()>>,
    permits: Arc<Semaphore>,
    unsettled: Arc<Unsettled>,
    trouble: Arc<AtomicU8>,
    receipted: Arc<Receipted>,
    topics_without_receipt: usize,
}

impl Producer {
    pub(crate) fn new(cluster: KafkaCluster) -> Self {
        let in_flight = cluster.most_in_flight();
        Self {
            batch_size: cluster.batch_size(),
            cluster: Arc::new(cluster),
            running: Arc::default(),
            changing: Arc::default(),
            permits: Arc::new(Semaphore::new(in_flight)),
            unsettled: Arc::new(Unsettled::new(in_flight)),
            trouble: Arc::default(),
            receipted: Arc::default(),
            topics_without_receipt: TOPICS_WITHOUT_RECEIPT,
        }
    }

    /// Why the cluster is out of reach, where it is.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        Trouble::from_number(self.trouble.load(Ordering::Relaxed))
    }

    /// Sends a record and waits for its report, for as long as the caller does.
    pub(crate) async fn send(
        &self,
        target: &Target,
        message: &Message,
        attempt: &Attempt,
    ) -> Result<Receipt, SinkError> {
        let key = wire::key(target, message);
        if let Some((partition, offset)) = self.unsettled.earlier(|| slot(target, key, message)).await {
            return Ok(outcome::receipt(partition, offset));
        }
        let permit = self.permit(attempt.deadline()).await?;
        let running = self.running().await?;
        // Counted before it is known what becomes of it: nobody may wait for that.
        let receipted = self.receipted.has(&target.topic);
        if !receipted && running.asked.reach(self.topics_without_receipt, &target.topic, &self.receipted) {
            self.replace(&running, Purge::Never).await;
        }
        let (headers, size) = wire::headers(message, attempt);
        let alone = wire::record_size(key, message, size) > self.batch_size;
        let body: &[u8] = message.body();
        let record = FutureRecord { partition: target.partition, ..FutureRecord::to(&target.topic) };
        let record = FutureRecord { key, payload: Some(body), headers: Some(headers), ..record };
        let report = running.producer().send_result(record).map_err(|(error, _)| error);
        let report = match report {
            Ok(report) => {
                let report = Some((report, permit));
                Awaited { report, producer: self, running: &running, target, key, message }.await
            }
            Err(error) => Err(error),
        };
        match report {
            Ok((partition, offset)) => {
                if !receipted {
                    self.receipted.insert(&target.topic);
                }
                if self.trouble.load(Ordering::Relaxed) != 0 {
                    self.trouble.store(0, Ordering::Relaxed);
                }
                Ok(outcome::receipt(partition, offset))
            }
            Err(error) => {
                let fatal = running.producer().client().fatal_error().map(|(code, _)| code);
                let code = match error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail) {
                    // They say no more than that there is a fatal error.
                    code @ (RDKafkaErrorCode::Fatal | RDKafkaErrorCode::PurgeQueue) => fatal.unwrap_or(code),
                    code => code,
                };
                let error = outcome::judge(code, alone, self.trouble());
                if fatal.is_some() {
                    self.replace(&running, Purge::Now).await;
                }
                Err(error)
            }
        }
    }

    /// A place among what is in flight.
    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, SinkError> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        match timeout_at(deadline.into(), Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(SinkError::throttled("too many messages to this cluster are in flight")),
        }
    }

    /// The producer, started if there is none.
    async fn running(&self) -> Result<Arc<Running>, SinkError> {
        if let Some(running) = self.running.get() {
            return Ok(running);
        }
        let changing = Arc::clone(&self.changing).lock_owned().await;
        if let Some(running) = self.running.get() {
            return Ok(running);
        }
        let (cluster, current) = (Arc::clone(&self.cluster), Arc::clone(&self.running));
        let context = Context { trouble: Arc::clone(&self.trouble) };
        // Whoever waits for it may go away: the producer is kept for the next message all the same.
        let started = spawn_blocking(move || {
            let running = start(&cluster, context)?;
            current.set(Some(Arc::clone(&running)));
            drop(changing);
            Ok(running)
        });
        let running: Result<_, String> = started.await.map_err(SinkError::unavailable)?;
        running.map_err(|text| SinkError::unavailable(format!("the producer does not start: {text}")))
    }

    /// Retires a producer: the next message starts another. What this one has in flight fails, or is reported by it.
    async fn replace(&self, running: &Arc<Running>, purge: Purge) {
        let _changing = self.changing.lock().await;
        if !self.running.get().is_some_and(|current| Arc::ptr_eq(&current, running)) {
            return;
        }
        if let Purge::Now = purge {
            let code = running.producer().client().fatal_error().map(|(code, _)| code);
            tracing::error!(?code, "a fatal error of librdkafka: the producer is replaced");
            let running = Arc::clone(running);
            let _ = spawn_blocking(move || running.purge()).await;
        }
        self.running.set(None);
    }

    /// Sends what is still queued, and stops. Gives the number of messages whose reports did not come.
    pub(crate) async fn close(&self) -> usize {
        let _changing = self.changing.lock().await;
        let running = self.running.set(None);
        let flushed = running.clone().map(|running| spawn_blocking(move || running.producer().flush(FLUSH_LIMIT)));
        let left = self.unsettled.settled_within(FLUSH_LIMIT).await;
        if let (Some(running), Some(flushed)) = (running, flushed) {
            let _ = flushed.await;
            let _ = spawn_blocking(move || running.stop()).await;
        }
        left
    }
}

/// The producer that takes messages, where one does.
#[derive(Debug, Default)]
struct Current(RwLock<Option<Arc<Running>>>);

impl Current {
    fn get(&self) -> Option<Arc<Running>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets it, and gives what was there before.
    fn set(&self, running: Option<Arc<Running>>) -> Option<Arc<Running>> {
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), running)
    }
}

/// Starts a producer. Blocks: threads are made, files and certificates read.
fn start(cluster: &KafkaCluster, context: Context) -> Result<Arc<Running>, String> {
    let producer = cluster.client_config().create_with_context(context).map_err(|error| match error {
        KafkaError::ClientCreation(text) => cluster.masked(text),
        // The other errors may print values.
        _ => "the settings are not taken".to_owned(),
    })?;
    Ok(Arc::new(Running { producer: Some(producer), asked: Asked::default() }))
}

fn slot(target: &Target, key: Option<&str>, message: &Message) -> Slot {
    Slot {
        topic: target.topic.clone(),
        partition: target.partition,
        key: key.map(str::to_owned),
        id: message.id().clone(),
    }
}

/// What becomes of the messages of a producer that is retired.
#[derive(Clone, Copy)]
enum Purge {
    Now,
    Never,
}

/// A started producer. Whoever drops it does not wait until it has stopped.
struct Running {
    producer: Option<FutureProducer<Context>>,
    asked: Asked,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running")
    }
}

impl Running {
    fn producer(&self) -> &FutureProducer<Context> {
        self.producer.as_ref().expect("it is taken when this is dropped, and not before")
    }

    /// Fails all messages. Blocks.
    fn purge(&self) {
        self.producer().purge(PurgeConfig::default().queue().inflight());
    }

    /// Fails all messages and ends its threads. Blocks; whoever else holds it drops it later.
    fn stop(self: Arc<Self>) {
        self.purge();
        drop(Arc::into_inner(self).and_then(|mut running| running.producer.take()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let producer = self.producer.take();
        if let (Some(producer), Ok(runtime)) = (producer, Handle::try_current()) {
            drop(runtime.spawn_blocking(move || drop(producer)));
        }
    }
}

/// The report of one record. Dropped before it came, it is kept for the message's next attempt.
struct Awaited<'a> {
    report: Option<(DeliveryFuture, OwnedSemaphorePermit)>,
    producer: &'a Producer,
    running: &'a Arc<Running>,
    target: &'a Target,
    key: Option<&'a str>,
    message: &'a Message,
}

impl Future for Awaited<'_> {
    type Output = Result<(i32, i64), KafkaError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let Some((report, _)) = &mut self.report else { return Poll::Pending };
        let result = place(ready!(Pin::new(report).poll(context)).map_err(|_| KafkaError::Canceled));
        self.report = None;
        Poll::Ready(result)
    }
}

fn place(report: Result<OwnedDeliveryResult, KafkaError>) -> Result<(i32, i64), KafkaError> {
    match report? {
        Ok(delivery) => Ok((delivery.partition, delivery.offset)),
        Err((error, _)) => Err(error),
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if let Some((report, permit)) = self.report.take() {
            let running = Arc::clone(self.running);
            let (receipted, topic) = (Arc::clone(&self.producer.receipted), self.target.topic.clone());
            let settled = async move {
                let settled: Settled = place(report.await.map_err(|_| KafkaError::Canceled)).ok();
                if settled.is_some() {
                    receipted.insert(&topic);
                }
                drop(running);
                settled
            };
            self.producer.unsettled.keep(slot(self.target, self.key, self.message), settled, permit);
        }
    }
}

/// Takes what librdkafka says of the whole cluster.
struct Context {
    trouble: Arc<AtomicU8>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log::line(level, facility, message);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(trouble) = error.rdkafka_error_code().and_then(Trouble::of) else {
            tracing::warn!(target: "librdkafka", reason);
            return;
        };
        let before = Trouble::from_number(self.trouble.load(Ordering::Relaxed));
        // That all brokers are down follows every failure, and says least.
        if trouble == Trouble::Connect && before.is_some() {
            return;
        }
        self.trouble.store(trouble as u8, Ordering::Relaxed);
        // It comes again with every try to connect.
        if before != Some(trouble) {
            tracing::warn!(target: "librdkafka", reason, "{}", trouble.text());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;
    use callback_core::ErrorKind;
    use futures_util::{FutureExt, future::join_all};
    use rdkafka::{mocking::MockCluster, types::RDKafkaRespErr};
    use std::time::SystemTime;

    fn target(topic: impl Into<String>) -> Target {
        Target { cluster: 0, topic: topic.into(), key: None, partition: None }
    }

    fn message() -> Message {
        Message::builder("a").build().expect("valid")
    }

    fn attempt() -> Attempt {
        Attempt::new(1, SystemTime::now(), Instant::now() + Duration::from_secs(60))
    }

    impl Producer {
        /// One that is replaced after eight topics.
        fn of(servers: String) -> Self {
            let cluster = KafkaCluster::new(servers).setting("topic.metadata.propagation.max.ms", "0");
            Self { topics_without_receipt: 8, ..Self::new(cluster) }
        }

        /// Delivers to the topic `known`.
        async fn started(&self) -> Arc<Running> {
            self.send(&target("known"), &message(), &attempt()).await.expect("delivered");
            self.running.get().expect("it is running")
        }

        fn still_is(&self, running: &Arc<Running>) -> bool {
            self.running.get().is_some_and(|current| Arc::ptr_eq(&current, running))
        }
    }

    #[test]
    fn whoever_names_topics_that_do_not_exist_does_not_fill_the_memory() {
        check(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, ErrorKind::Unroutable);
    }

    #[test]
    fn whoever_names_topics_that_are_not_ours_does_not_fill_the_memory() {
        check(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, ErrorKind::Unauthorized);
    }

    /// Each topic has this error, which is told as this.
    #[tokio::main]
    async fn check(error: RDKafkaRespErr, kind: ErrorKind) {
        let mock = MockCluster::new(1).expect("a mock");
        let producer = Producer::of(mock.bootstrap_servers());
        mock.create_topic("known", 1, 1).expect("a topic");
        let first = producer.started().await;
        let missing: Vec<_> = (0..8).map(|number| target(format!("missing-{number}"))).collect();
        for target in &missing {
            mock.topic_error(&target.topic, error).expect("the mock takes it");
        }
        let (message, attempt) = (message(), attempt());
        let (all_but_one, last) = missing.split_at(7);
        for result in join_all(all_but_one.iter().map(|target| producer.send(target, &message, &attempt))).await {
            assert_eq!(result.expect_err("it does not arrive").kind(), kind);
        }
        // A topic is counted once.
        producer.send(&missing[0], &message, &attempt).await.expect_err("it does not arrive");
        assert!(producer.still_is(&first));
        producer.send(&last[0], &message, &attempt).await.expect_err("it does not arrive");
        assert!(producer.running.get().is_none());
        producer.send(&target("known"), &message, &attempt).await.expect("delivered by another one");
        assert_eq!(producer.close().await, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_waits_for_no_answer_does_not_fill_the_memory() {
        let mock = MockCluster::new(1).expect("a mock");
        let producer = Producer::of(mock.bootstrap_servers());
        mock.create_topic("known", 1, 1).expect("a topic");
        let first = producer.started().await;
        mock.broker_down(1).expect("the mock takes it");
        let (message, attempt) = (message(), attempt());
        for number in 0..8 {
            assert!(producer.still_is(&first), "{number}");
            let target = target(format!("unanswered-{number}"));
            assert!(producer.send(&target, &message, &attempt).now_or_never().is_none());
        }
        assert!(producer.running.get().is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn topics_that_exist_are_not_counted() {
        let mock = MockCluster::new(1).expect("a mock");
        let producer = Producer::of(mock.bootstrap_servers());
        mock.create_topic("known", 1, 1).expect("a topic");
        let first = producer.started().await;
        for number in 0..20 {
            let target = target(format!("known-{number}"));
            mock.create_topic(&target.topic, 1, 1).expect("a topic");
            let sent = async { producer.send(&target, &message(), &attempt()).await.expect("delivered") };
            if number % 2 == 0 {
                sent.await;
            } else {
                // What nobody waits for is delivered all the same.
                assert!(sent.now_or_never().is_none());
                assert_eq!(producer.unsettled.settled_within(Duration::MAX).await, 0);
            }
        }
        assert!(producer.still_is(&first));
        assert_eq!(producer.close().await, 0);
    }
}
