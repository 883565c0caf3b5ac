use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::WriteError;
use crate::error::Cause;

/// Calls back exactly once: with a result, or on drop with an unknown outcome.
pub(super) struct Answer<T> {
    done: Option<Done<T>>,
}

type Done<T> = Box<dyn FnOnce(Result<T, WriteError>) + Send>;

impl<T> Answer<T> {
    pub(super) fn new(done: impl FnOnce(Result<T, WriteError>) + Send + 'static) -> Self {
        let done: Done<T> = Box::new(done);
        Self { done: Some(done) }
    }

    pub(super) fn give(mut self, result: Result<T, WriteError>) {
        self.call(result);
    }

    fn call(&mut self, result: Result<T, WriteError>) {
        let Some(done) = self.done.take() else { return };
        // A panic here is the caller's own; it must not reach the other writes of the batch.
        if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
            tracing::error!("what is called when a write is done panicked");
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.call(Err(WriteError::unknown(Cause::Ended)));
        }
    }
}
