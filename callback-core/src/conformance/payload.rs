#![expect(clippy::missing_errors_doc, reason = "a clause fails when it is skipped, or the sink breaks it")]
//! Bodies arrive byte for byte.

use super::{
    Harness, Unproved,
    probe::{Probe, build, message},
};
use crate::Payload;

async fn arrives<H: Harness>(harness: &H, body: Payload) -> Result<(), Unproved> {
    let (probe, message) = (Probe::new(harness), build(message(body)));
    probe.delivered(&message).await?;
    probe.arrived_once(&message).await
}

/// An empty body is a body.
pub async fn an_empty_body_arrives_unchanged<H: Harness>(harness: &H) -> Result<(), Unproved> {
    arrives(harness, Payload::new("application/octet-stream", "")).await
}

/// Letters of many scripts, quotes, line ends and a zero byte arrive as they are.
pub async fn a_unicode_body_arrives_unchanged<H: Harness>(harness: &H) -> Result<(), Unproved> {
    arrives(harness, Payload::from("Zwölf Boxkämpfer \u{1f600} 日本語 \"'\\{}\u{0}\r\n\r\n\t ")).await
}

/// Every byte arrives, and no encoding is assumed.
pub async fn a_binary_body_arrives_unchanged<H: Harness>(harness: &H) -> Result<(), Unproved> {
    arrives(harness, Payload::from((0..=255).rev().chain(0..=255).collect::<Vec<u8>>())).await
}

/// 1 MiB arrives, the largest body that the engine sends by default.
pub async fn a_large_body_arrives_unchanged<H: Harness>(harness: &H) -> Result<(), Unproved> {
    // 251 is prime, so a block that is lost or moved does not fit.
    arrives(harness, Payload::from((0..251).cycle().take(1 << 20).collect::<Vec<u8>>())).await
}
