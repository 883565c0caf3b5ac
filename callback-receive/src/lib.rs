#![doc = include_str!("../README.md")]

mod receiver;

mod callback;
mod delivery;
mod expect;

mod intake;
mod listener;

mod handle;
mod memory;
mod named;
mod registry;
mod slot;
mod sync;

mod dead_letter;
mod inbox;
mod transaction;

mod call;
mod error;

pub use call::{CallError, RpcClient};
pub use callback::Callback;
pub use dead_letter::{DeadLetter, DeadLetters};
pub use delivery::Delivery;
pub use error::{InboxError, ReceiveError};
pub use expect::Expect;
pub use handle::{HandleId, InvalidHandle};
#[cfg(feature = "sqlite")]
pub use inbox::SqliteInbox;
pub use inbox::{Inbox, MemoryInbox};
pub use intake::{Intake, Standing};
pub use listener::{Incoming, Listener, Verdict};
pub use receiver::{Receiver, ReceiverBuilder};
pub use transaction::Transaction;
