//! The sinks against servers and clients of every kind, and the receiver against senders.

#[cfg(feature = "server")]
mod browser;
mod peer;

mod answers;
mod bad_input;
mod connections;
mod dispatch;
mod handshake;
#[cfg(feature = "server")]
mod killed;
mod poison;
#[cfg(feature = "server")]
mod sessions;
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
