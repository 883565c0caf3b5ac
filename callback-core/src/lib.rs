#![doc = include_str!("../README.md")]

mod dsn;
mod pattern;
mod policy;

mod id;
mod payload;

mod attempt;
mod message;
mod signature;

mod consent;
mod error;
mod receipt;
mod schedule;
mod sink;

mod ack;
mod problem;
mod rpc;

mod keys;
mod memory;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use ack::Acknowledgment;
pub use async_trait::async_trait;
pub use attempt::Attempt;
pub use consent::{Consent, Consented};
pub use dsn::{Destination, Dsn, DsnError, DsnErrorKind, HostPort, Params};
pub use error::{BoxError, ErrorKind, Phase, SinkError};
pub use id::{InvalidId, MessageId, TaskId};
pub use keys::Keys;
pub use memory::{Delivered, MemorySink};
pub use message::{Message, MessageBuilder, MessageError};
pub use pattern::Pattern;
pub use payload::Payload;
#[cfg(feature = "net")]
pub use policy::Resolver;
pub use policy::{Forbidden, Policy, Rule, RuleError};
pub use problem::Problem;
pub use receipt::{Evidence, Receipt};
pub use rpc::{
    Call, Incoming, InvalidAnswer, Rejected, RpcAnswer, RpcError, RpcId, RpcOptions, RpcOutcome, RpcRequest,
    RpcResponse, Target, join_batch,
};
pub use schedule::{Failed, Schedule, ScheduleError};
pub use signature::{KeyError, Secret, Signer, Verifier, VerifyError};
pub use sink::Sink;
