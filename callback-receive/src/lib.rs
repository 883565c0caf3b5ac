#![doc = include_str!("../README.md")]
//!
//! # Plan
//!
//! Depends on `callback-core` and `callback-store`, never on a transport.
//!
//! | file | will hold |
//! |---|---|
//! | `receiver.rs` | `Receiver`, the one type that user code holds whatever the transport: `spawn`, `expect`, `resume_all`, `call`, `close`; `ReceiverBuilder`: inbox, verifier, body limit |
//! | `callback.rs` | `Callback`, one handle: `dsn`, `url`, `next` (cancel-safe), `Stream`, `is_resumed`, `finish` |
//! | `delivery.rs` | `Delivery`, one callback: `message`, `json`, `rpc`, `accept`, `accept_in`, `refuse`, `retry_later`, `sender_waits`; dropped unanswered it comes again |
//! | `listener.rs` | `Listener`, what a transport implements; `Intake`, where it offers each message; `Verdict`, by which it answers its sender |
//! | `inbox.rs` | `Inbox` (sealed): `MemoryInbox`, `SqliteInbox` |
//! | `call.rs` | `RpcClient`, so that `call` can put its own Dsn into `$rpc.callback` and await the result |
//!
//! Rules that the code will keep:
//!
//! - What has no verdict within `answer_within` (default 15 s), or finds the handle's bounded queue full, is answered 503 with `Retry-After`.
//! - An id is remembered from `accept()` in direct mode (in memory, bounded, evictions are counted), or from storing in inbox mode. A duplicate of a message whose verdict is open joins that verdict; a refused id is not remembered.
//! - The `Verifier` has no memory: a retry is not a replay. Freshness (5 min either way) is judged on live transports alone; what a broker or the inbox kept may be days old.
//! - Registry, named expectations, inbox, deduplication and verification are free of transports; the race between a dropped handle and an arriving message is explored with a model checker.
