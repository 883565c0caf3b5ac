#![doc = include_str!("../README.md")]
//!
//! # Plan
//!
//! Depends on `callback-core` for its sink; the feature `receiver` pulls in `callback-receive`. It never depends on another transport.
//!
//! | file | will hold |
//! |---|---|
//! | `config.rs` | `AmqpSinkBuilder`: default cluster, named clusters, the policy for unregistered hosts; `AmqpCluster`: client certificate, patterns of exchanges and queues, declaration of queues |
//! | `sink.rs` | `AmqpSink`: one connection a cluster and vhost, a reconnect loop of its own with backoff |
//! | `wire.rs` | message and attempt to properties and headers and back, pure |
//! | `outcome.rs` | confirm, return, channel or connection error to `Receipt` or `SinkError`, pure |
//! | `receiver.rs` | `AmqpReceiver`, the listener for `callback-receive` |
//!
//! Rules that the code will keep:
//!
//! - Confirms are pipelined over concurrent `deliver` calls and owned by a collector task, never by the `deliver` future: dropping it leaves the sink usable.
//! - A message is judged only when every confirm that could carry its return is settled, and by its `message_id`.
//! - Channels are shared only among Dsns of one exchange. An exchange other than the default is checked passively on a channel of its own first, since a missing one closes the channel for everybody on it.
//! - A delivery is over by its attempt's deadline, whatever the broker does.
//! - The conformance kit for sinks passes against a real broker.
