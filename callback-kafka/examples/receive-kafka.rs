//! Receives callbacks from a topic: prints the DSN of a handle, then a line of JSON for each callback that comes.
//!
//! ```text
//! cargo run -p callback-kafka --features receiver --example receive-kafka -- 127.0.0.1:9092 callbacks
//! ```
//! `CALLBACK_KEY` holds the keys that callbacks are signed by: `whsec_…` or `whpk_…`; without it, nothing is judged.
//! `KAFKA_USER` and `KAFKA_PASSWORD` are shown to the brokers by SCRAM-SHA-512. A body that is `later` is wanted a second
//! later, once.

#![expect(clippy::print_stdout, reason = "it is what the program is for")]

use callback_core::BoxError;
use callback_kafka::{KafkaCluster, KafkaReceiver};
use callback_receive::Receiver;
use serde_json::json;
use std::{env, time::Duration};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let (Some(brokers), Some(topic)) = (arguments.next(), arguments.next()) else {
        return Err("usage: receive-kafka BROKERS TOPIC".into());
    };
    let mut cluster = KafkaCluster::new(brokers);
    if let Ok(user) = env::var("KAFKA_USER") {
        cluster = cluster.scram_sha_512(user, env::var("KAFKA_PASSWORD")?);
    }
    let mut builder = Receiver::builder();
    if let Ok(keys) = env::var("CALLBACK_KEY") {
        builder = builder.verifier(keys.parse()?);
    }
    let receiver = builder.open(KafkaReceiver::open(cluster, &topic).await?).await?;
    let mut callback = receiver.spawn();
    println!("{}", callback.url());
    let mut was_later = false;
    while let Some(delivery) = callback.next().await {
        if &delivery.message().body()[..] == b"later" && !was_later {
            was_later = true;
            delivery.retry_later(Duration::from_secs(1)).await?;
            continue;
        }
        let message = delivery.accept().await?;
        let line = json!({
            "id": message.id(),
            "event": message.event_id(),
            "type": message.event_type(),
            "source": message.source(),
            "subject": message.subject(),
            "contentType": message.content_type(),
            "body": String::from_utf8_lossy(message.body()),
        });
        println!("{line}");
    }
    Ok(())
}
