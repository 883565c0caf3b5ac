//! The sinks against servers and clients of every kind.

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
