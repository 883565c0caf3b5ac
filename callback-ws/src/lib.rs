#![doc = include_str!("../README.md")]
//!
//! # Plan
//!
//! Depends on `callback-core` for its sink; the features `server` and `receiver` pull in an engine. It never depends on another transport.
//!
//! | file | will hold |
//! |---|---|
//! | `config.rs` | `WsSinkBuilder`: policy, root certificates, origin |
//! | `sink.rs` | `WsSink`, the sink of `ws` and `wss` |
//! | `session.rs` | frames and matching of acknowledgments as a state machine without I/O |
//! | `hub.rs` | `Hub`, the sink of `session`, local to the process that holds the socket, and its router |
//! | `wire.rs` | message and attempt to frame and back, pure |
//! | `outcome.rs` | acknowledgment, refusal (`later`, `refused`, `gone`) or close code to `Receipt` or `SinkError`, pure |
//! | `receiver.rs` | `WsReceiver`, the listener for `callback-receive` |
//!
//! Rules that the code will keep:
//!
//! - A `callback.v1` frame carries the attributes of the protocol and `body`, or `body_base64` where the body is not UTF-8; the signature covers the bytes of that body.
//! - Unknown members of a peer's frame are ignored; an unknown frame ends the connection with 1008.
//! - After a close with 1003, 1007, 1008 or 1009 among several unacknowledged frames, that Dsn goes one frame at a time until 256 were acknowledged.
//! - A session's resume secret stays with the client, is never in a URL, is stored as a hash, and changes at each resume.
//! - The conformance kit for sinks passes with the subprotocol, without it, and for the hub.
