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
    tracing::info!("the log is read");
    let log = String::from_utf8(log.0.lock().expect("a log").clone()).expect("text");
    assert!(log.contains("the log is read") && !log.contains("planted"), "{log}");
}
