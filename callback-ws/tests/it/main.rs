//! The sink against servers of every kind, and the receiver against senders.

mod peer;

mod answers;
mod bad_input;
mod connections;
mod dispatch;
mod handshake;
mod poison;
mod tls;

#[cfg(feature = "receiver")]
mod hostile_senders;
#[cfg(all(feature = "axum", feature = "receiver"))]
mod nested;
#[cfg(feature = "receiver")]
mod receiver;
#[cfg(feature = "receiver")]
mod round_trip;
#[cfg(feature = "receiver")]
mod sender;
