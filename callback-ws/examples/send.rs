//! Delivers the lines of standard input to a WebSocket server, all at once, and prints what became of each.
//!
//! ```text
//! cargo run -p callback-ws --example send -- ws://127.0.0.1:8765/ 20
//! ```
//! The number is the deadline of an attempt in seconds, 20 by default. What may be the moment's fault is tried five times. A
//! line of output is an id and what it ended with. `CALLBACK_KEY` holds the key that signs: `whsec_…` or `whsk_…`.

#![expect(clippy::print_stdout, reason = "it is what the program is for")]

use callback_core::{Attempt, BoxError, Dsn, Message, Payload, Policy, Rule, Signer, Sink};
use callback_ws::WsSink;
use std::{
    env, io,
    time::{Duration, Instant, SystemTime},
};

/// Attempts of a message, and the pause between two of them.
const ATTEMPTS: (u32, Duration) = (5, Duration::from_millis(200));

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let dsn: Dsn = arguments.next().ok_or("usage: send URL [SECONDS]")?.parse()?;
    let limit = Duration::from_secs(arguments.next().map_or(Ok(20), |text| text.parse())?);
    let signer: Option<Signer> = env::var("CALLBACK_KEY").ok().map(|key| key.parse()).transpose()?;
    let sink = WsSink::builder().policy(Policy::default().allow(Rule::loopback())).allow_unsigned().build()?;
    let mut deliveries = Vec::new();
    for line in io::stdin().lines() {
        let message = Message::builder("order.completed")
            .source("/orders")
            .subject("Bestellung für 100 %")
            .correlation_id("ray 7")
            .payload(Payload::new("application/json", line?))
            .build()?;
        deliveries.push(tokio::spawn(deliver(sink.clone(), dsn.clone(), message, signer.clone(), limit)));
    }
    for delivery in deliveries {
        println!("{}", delivery.await?);
    }
    Ok(sink.close().await?)
}

async fn deliver(sink: WsSink, dsn: Dsn, message: Message, signer: Option<Signer>, limit: Duration) -> String {
    let (attempts, pause) = ATTEMPTS;
    let mut number = 1;
    loop {
        let attempt = Attempt::new(number, SystemTime::now(), Instant::now() + limit);
        let attempt = match &signer {
            Some(signer) => attempt.sign(signer, &message),
            None => attempt,
        };
        match sink.deliver(&dsn, &message, &attempt).await {
            Ok(receipt) => return format!("{} {:?}", message.id(), receipt.evidence()),
            Err(error) if !error.is_temporary() || number == attempts => {
                return format!("{} {}", message.id(), error.chain());
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        number += 1;
    }
}
