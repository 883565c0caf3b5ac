//! What follows when a destination says that a Dsn is no more.

use super::{Engine, Hand};
use crate::{
    Notice, SubscriptionEnd, measure,
    outbox::{Settle, Write, Written},
    row::{Row, Stage},
};
use callback_core::{Dsn, ErrorKind};
use std::sync::{Arc, atomic::Ordering};

/// How many messages are given up in one transaction.
const BATCH: usize = 500;

impl Engine {
    /// Marks what is in hand for this Dsn, and what comes into hand until it is buried; whether it was not marked before.
    pub(super) fn mark_gone(&self, dsn: &Dsn, hand: &Arc<Hand>) -> bool {
        let mut state = self.state();
        if hand.gone.load(Ordering::Acquire) || state.is_gone(dsn) {
            // The answer to another message came first.
            return false;
        }
        state.gone.push(dsn.clone());
        for other in state.in_hand.values().filter(|other| other.dsn.as_ref() == Some(dsn)) {
            other.gone.store(true, Ordering::Release);
        }
        true
    }

    /// Gives up what else waits for this Dsn, and says so.
    pub(super) async fn bury(&self, dsn: &Dsn) {
        self.notices.raise(&Notice::Gone { dsn: dsn.clone() });
        loop {
            let bury = Write::Bury { dsn: dsn.clone(), now: self.now(), limit: BATCH };
            let Some(Written::Ended(ids)) = self.write_until_stored(bury).await else { break };
            for id in &ids {
                measure::dead();
                self.ended(*id);
            }
            if !ids.is_empty() {
                self.look_again();
            }
            if ids.len() < BATCH {
                break;
            }
        }
        self.state().gone.retain(|gone| gone != dsn);
        self.local.buried.notify_waiters();
    }

    /// Ends a message that is not attempted any more.
    pub(super) async fn give_up_unattempted(&self, row: &Row) {
        self.end_once(row, SubscriptionEnd::Gone).await;
        let step = Settle {
            id: row.id,
            token: row.token,
            from: row.stage,
            to: Stage::Dead,
            held: false,
            due: row.due,
            attempts: row.attempts,
            now: self.now(),
            kind: Some(ErrorKind::Gone),
            failed: None,
            order: row.order,
        };
        if self.persist(Write::Settle(step)).await {
            measure::dead();
            self.ended(row.id);
            if row.order.is_some() {
                self.look_again();
            }
        }
    }
}
