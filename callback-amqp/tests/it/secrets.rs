//! What nobody may read in a log.

use crate::broker::{PATIENCE, attempt, shared, to_queue, unique};
use callback_core::{Dsn, Message, Sink};
use std::{
    io,
    sync::{Arc, Mutex},
};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().map_err(|_| io::Error::other("a test has failed"))?;
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// lapin writes a returned message to the log as a whole; its thread has none here.
#[tokio::test]
async fn a_message_that_comes_back_is_not_in_the_log() {
    let Some(broker) = shared() else { return };
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_max_level(tracing::Level::DEBUG).finish();
    tracing::subscriber::set_global_default(subscriber).expect("no other test has one");
    let sink = broker.sink();
    let message = Message::builder("a").header("x-planted", "planted").payload("planted").build().expect("valid");
    let nobody = format!("planted-{}", unique("nobody"));
    let error = sink.deliver(&to_queue(&nobody), &message, &attempt(PATIENCE)).await.expect_err("nobody is there");
    let missing: Dsn = "amqp:///?exchange=planted&routing_key=planted".parse().expect("a Dsn");
    let missing = sink.deliver(&missing, &message, &attempt(PATIENCE)).await.expect_err("nobody is there");
    for text in
        [format!("{error:?} {}", error.chain()), format!("{missing:?} {}", missing.chain()), format!("{sink:?}")]
    {
        assert!(!text.contains("planted"), "{text}");
    }
    #[cfg(feature = "receiver")]
    receiver_says_nothing(&broker).await;
    tracing::info!("the log is read");
    let log = String::from_utf8(log.0.lock().expect("a log").clone()).expect("text");
    assert!(log.contains("the log is read") && !log.contains("planted"), "{log}");
}

/// What a receiver rejects is in the log, and nothing of it.
#[cfg(feature = "receiver")]
async fn receiver_says_nothing(broker: &crate::broker::Broker) {
    use crate::receiver::{Post, accept, close};
    use callback_core::Signer;
    use callback_receive::Receiver;

    let post = Post::new(broker).await;
    let url = broker.url.replace("guest:guest", "planted:planted").parse().expect("a Dsn");
    let builder = callback_amqp::AmqpReceiver::builder(callback_amqp::AmqpCluster::new(url));
    let text = format!("{builder:?}");
    let error = builder.connect().await.expect_err("a wrong login");
    let receiver = post.open(Receiver::builder().body_limit(8)).await;
    let planted = |body: &'static str| {
        Message::builder("planted").header("x-planted", "planted").payload(body).build().expect("valid")
    };
    let mut callback = receiver.spawn();
    let signed = receiver.spawn().verifier("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().expect("a key"));
    let forger: Signer = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".parse().expect("a key");
    let forged = planted("planted");
    let attempt = attempt(PATIENCE).sign(&forger, &forged);
    post.sink.deliver(&signed.dsn(), &forged, &attempt).await.expect("delivered");
    post.deliver(&callback.dsn(), &planted("planted, and too large")).await;
    post.deliver(&callback.dsn(), &planted("planted")).await;
    crate::receiver::soon(callback.next()).await.expect("open").refuse("not wanted").await.expect("told");
    post.send(&callback.dsn(), "last").await;
    assert_eq!(accept(&mut callback).await, "last");
    close(&receiver).await;
    for text in [text, format!("{error:?} {error}"), format!("{receiver:?}")] {
        assert!(!text.contains("planted"), "{text}");
    }
}
