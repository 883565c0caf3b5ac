//! What is done now and then: messages that nobody may attempt grow old all the same.

use super::{Engine, chain};
use crate::{
    DeadLetter, Notice,
    measure::{self, Depths},
    outbox::{Write, Written, write},
};
use callback_core::TaskId;
use std::{sync::Arc, time::Duration};

/// How often it is looked for.
const EVERY: Duration = Duration::from_secs(60);

/// How often what waits is counted.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// How many rows end in one write.
const AT_ONCE: usize = 256;

impl Engine {
    /// Counts what waits, until the dispatcher closes.
    pub(crate) async fn count_until_closed(self: Arc<Self>) {
        loop {
            let (stored, first_due) = self.store.depth(self.now()).await.unwrap_or_default();
            let overdue = first_due.map_or(Duration::ZERO, |due| self.now().since(due));
            let (in_memory, fullest_lane) = self.lanes.depths();
            measure::depths(&Depths { in_memory, fullest_lane, stored, overdue });
            if self.pause(COUNT_EVERY).await {
                return;
            }
        }
    }

    /// Gives up what has waited too long in lanes that are closed or full, until the dispatcher closes.
    pub(crate) async fn age_until_closed(self: Arc<Self>) {
        while !self.pause(EVERY).await {
            let (lanes, _) = self.lanes.left_out();
            let now = self.now();
            let before = now.before(self.schedule.age_limit());
            while !lanes.is_empty() {
                let age = Write::Age { lanes: lanes.clone(), before, now, limit: AT_ONCE };
                let ended = match write(&*self.store, age).await {
                    Ok(Written::Ended(ended)) => ended,
                    Ok(_) => Vec::new(),
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "old messages could not be given up");
                        Vec::new()
                    }
                };
                for id in &ended {
                    measure::dead();
                    self.ended(*id);
                    self.tell_dead(*id).await;
                }
                // As long as any end: each may have held back the next of its key.
                if ended.is_empty() {
                    break;
                }
            }
        }
    }

    async fn tell_dead(&self, id: TaskId) {
        let (letter, row) = (self.store.dead_letter(id).await, self.store.find(id).await);
        if let (Ok(Some(DeadLetter { dsn, kind, .. })), Ok(Some(row))) = (letter, row) {
            // The letter has the attempts of former deliveries as well.
            let (destination, attempts) = (dsn.destination(), row.attempts);
            self.notices.raise(&Notice::Dead { id, destination, kind, attempts });
        }
    }
}
