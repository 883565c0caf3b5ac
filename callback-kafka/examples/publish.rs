//! Sends one signed message to a topic, and prints where it lies.
//!
//! ```sh
//! CALLBACK_KEY=whsec_… cargo run -p callback-kafka --example publish -- 127.0.0.1:9092 orders.completed
//! ```

use callback_core::{Attempt, Message, Payload, Signer, Sink};
use callback_kafka::{KafkaCluster, KafkaSink};
use std::{
    env,
    error::Error,
    time::{Duration, Instant, SystemTime},
};

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "a program prints what it did")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(brokers), Some(topic)) = (arguments.next(), arguments.next()) else {
        return Err("usage: publish BROKERS TOPIC".into());
    };
    let key: Signer = env::var("CALLBACK_KEY")?.parse()?;
    let sink = KafkaSink::builder().default_cluster(KafkaCluster::new(brokers).topic(&*topic)).build()?;
    let message = Message::builder("order.completed")
        .source("/orders")
        .subject("Bestellung 12345 für Zoë")
        .correlation_id("ray 7")
        .payload(Payload::new("application/json", r#"{"orderId":"12345","status":"completed"}"#))
        .build()?;
    // In a service the dispatcher does this, and tries again.
    let attempt = Attempt::new(1, SystemTime::now(), Instant::now() + Duration::from_secs(20)).sign(&key, &message);
    let receipt = sink.deliver(&format!("kafka:///{topic}").parse()?, &message, &attempt).await?;
    println!("{} {:?}", message.id(), receipt.evidence());
    sink.close().await?;
    Ok(())
}
