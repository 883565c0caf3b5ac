//! Listens for callbacks: prints the URL of a handle, then a line of JSON for each callback that comes.
//!
//! ```text
//! cargo run -p callback-ws --features receiver --example listen
//! ```
//! `CALLBACK_KEY` holds the keys that callbacks are signed by: `whsec_…` or `whpk_…`; without it, nothing is judged. A body
//! that is `no` is refused, one that is `later` wanted later, and at `end` the handle is given up and the next one printed.

#![expect(clippy::print_stdout, reason = "it is what the program is for")]

use callback_core::BoxError;
use callback_receive::Receiver;
use callback_ws::WsReceiver;
use serde_json::json;
use std::{env, time::Duration};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let ws = WsReceiver::bind("127.0.0.1:0", "ws://127.0.0.1:0/callbacks").await?;
    let mut builder = Receiver::builder().queue(1_000);
    if let Ok(keys) = env::var("CALLBACK_KEY") {
        builder = builder.verifier(keys.parse()?);
    }
    let receiver = builder.open(ws).await?;
    let mut callback = receiver.spawn();
    println!("{}", callback.url());
    while let Some(delivery) = callback.next().await {
        match &delivery.message().body()[..] {
            b"no" => delivery.refuse("not wanted").await?,
            b"later" => delivery.retry_later(Duration::from_secs(7)).await?,
            b"end" => {
                delivery.accept().await?;
                callback = receiver.spawn();
                println!("{}", callback.url());
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
