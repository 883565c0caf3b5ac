//! Waiting for the end of a task.

use super::Engine;
use callback_core::TaskId;
use std::collections::hash_map::Entry;
use tokio::sync::oneshot;

impl Engine {
    /// Begins to wait for the end of a task.
    pub(crate) fn waiter(&self, id: TaskId) -> Waiter<'_> {
        let (sender, over) = oneshot::channel();
        self.state().waiting.entry(id).or_default().push(sender);
        Waiter { engine: self, id, over }
    }
}

/// Waits for the end of a task; once dropped, nothing remembers it.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    engine: &'a Engine,
    id: TaskId,
    over: oneshot::Receiver<()>,
}

impl Waiter<'_> {
    /// Resolves when the task is over, or the dispatcher is.
    pub(crate) async fn over(&mut self) {
        let _ = (&mut self.over).await;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.over.close();
        if let Entry::Occupied(mut waiting) = self.engine.state().waiting.entry(self.id) {
            waiting.get_mut().retain(|other| !other.is_closed());
            if waiting.get().is_empty() {
                waiting.remove();
            }
        }
    }
}
