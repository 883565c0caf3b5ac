//! Receives callbacks from a queue: prints the Dsn of a handle, then a line of JSON for each callback that comes.
//!
//! ```text
//! cargo run -p callback-amqp --features receiver --example receive-amqp -- amqp://guest:guest@localhost/ shop
//! ```
//! Exchange (`callbacks`) and queue are declared; what is rejected goes to the exchange that a third argument names.
//! `CALLBACK_KEY` holds the keys that callbacks are signed by: `whsec_…` or `whpk_…`; without it, nothing is judged. A body
//! that is `no` is refused, one that is `later` is wanted later, once.

#![expect(clippy::print_stdout, reason = "it is what the program is for")]

use callback_amqp::{AmqpCluster, AmqpReceiver};
use callback_core::BoxError;
use callback_receive::Receiver;
use serde_json::json;
use std::{collections::HashSet, env, time::Duration};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let (Some(url), Some(queue)) = (arguments.next(), arguments.next()) else {
        return Err("usage: receive-amqp URL_OF_THE_BROKER QUEUE [EXCHANGE_OF_DEAD_LETTERS]".into());
    };
    let mut amqp = AmqpReceiver::builder(AmqpCluster::new(url.parse()?)).queue(queue);
    if let Some(exchange) = arguments.next() {
        amqp = amqp.dead_letter_exchange(exchange);
    }
    let mut builder = Receiver::builder();
    if let Ok(keys) = env::var("CALLBACK_KEY") {
        builder = builder.verifier(keys.parse()?);
    }
    let receiver = builder.open(amqp.connect().await?).await?;
    let mut callback = receiver.spawn();
    println!("{}", callback.url());
    let mut postponed = HashSet::new();
    while let Some(delivery) = callback.next().await {
        let message = delivery.message();
        match &message.body()[..] {
            b"no" => delivery.refuse("not wanted").await?,
            b"later" if postponed.insert(message.id().to_string()) => {
                delivery.retry_later(Duration::from_millis(500)).await?;
            }
            _ => {
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
        }
    }
    Ok(())
}
