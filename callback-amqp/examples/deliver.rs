//! Delivers a line of standard input after the other to a queue, and prints the id of each.
//!
//! ```text
//! cargo run -p callback-amqp --example deliver -- amqp://guest:guest@localhost/ results
//! ```
//! The queue is declared. `CALLBACK_KEY` holds the key that signs: `whsec_…` or `whsk_…`; without it, nothing is signed.

#![expect(clippy::print_stdout, reason = "it is what the program is for")]

use callback_amqp::{AmqpCluster, AmqpSink};
use callback_core::{Attempt, BoxError, Dsn, Message, Payload, Signer, Sink};
use std::{
    env, io,
    time::{Duration, Instant, SystemTime},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let (Some(url), Some(queue)) = (arguments.next(), arguments.next()) else {
        return Err("usage: deliver URL_OF_THE_BROKER QUEUE".into());
    };
    let cluster = AmqpCluster::new(url.parse()?).queue(&*queue).declare_queues();
    let sink = AmqpSink::builder().default_cluster(cluster).build()?;
    let dsn: Dsn = format!("amqp:///?queue={queue}").parse()?;
    let signer: Option<Signer> = env::var("CALLBACK_KEY").ok().map(|key| key.parse()).transpose()?;
    for line in io::stdin().lines() {
        let message = Message::builder("order.completed")
            .source("/orders")
            .subject("Bestellung für 100 %")
            .correlation_id("ray 7")
            .payload(Payload::new("application/json", line?))
            .build()?;
        let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + Duration::from_secs(20));
        let attempt = match &signer {
            Some(signer) => attempt.sign(signer, &message),
            None => attempt,
        };
        sink.deliver(&dsn, &message, &attempt).await?;
        println!("{}", message.id().as_str());
    }
    Ok(sink.close().await?)
}
