//! The sink against servers of every kind.

mod peer;

mod answers;
mod bad_input;
mod connections;
mod dispatch;
mod handshake;
mod poison;
mod tls;
