//! Subscriptions, and events for those who want them.

use super::State;
use crate::{
    Cursor, Page,
    clock::Micros,
    outbox::Written,
    row::{Order, Published, Row, Stage, Subscribed},
    subscription::{FanOut, SubscriptionEnd, SubscriptionId, SubscriptionQuery, SubscriptionRow, message_for},
};
use std::{
    collections::{BTreeSet, HashSet},
    ops::Bound,
    sync::Arc,
};

impl State {
    pub(super) fn publish(&mut self, event: Published) {
        match event {
            Published::To(row) => self.insert(row),
            Published::All(event) => _ = self.fan_out(&event),
        }
    }

    /// Stores a delivery for each subscription that wants the event; how many.
    pub(super) fn fan_out(&mut self, event: &FanOut) -> u64 {
        let wanting = self.subscriptions.values().filter(|row| event.is_for(row));
        let wanting: Vec<Arc<SubscriptionRow>> = wanting.map(Arc::clone).collect();
        let mut count = 0;
        for to in wanting {
            let sequence = to.ordered.then(|| to.sequence % 0x7fff_ffff + 1);
            // Whatever an event has, its deliveries can have.
            let Ok(stored) = message_for(&event.stored, event.delivery(&to), to.id, sequence) else { continue };
            self.insert(Arc::new(delivery(event, Arc::clone(&to), stored)));
            count += 1;
            if let Some(row) = self.subscriptions.get_mut(&to.id).filter(|row| row.once || row.ordered) {
                let row = Arc::make_mut(row);
                row.sequence = sequence.unwrap_or(row.sequence);
                row.spent = row.once;
            }
        }
        count
    }

    pub(super) fn subscribe(&mut self, row: Arc<SubscriptionRow>, limit: usize) -> Written {
        let counts = |known: &&Arc<SubscriptionRow>| {
            known.owner == row.owner && known.ended.is_none() && known.expires > row.created_at
        };
        if row.owner.is_some() && self.subscriptions.values().filter(counts).count() >= limit {
            return Written::TooMany;
        }
        self.subscriptions.insert(row.id, row);
        Written::Done
    }

    pub(super) fn change_subscription(&mut self, new: &SubscriptionRow) -> Written {
        let known = self.subscriptions.get_mut(&new.id).filter(|row| row.ended.is_none());
        let Some(row) = known.filter(|row| row.revision + 1 == new.revision) else { return Written::Superseded };
        let row = Arc::make_mut(row);
        (row.revision, row.active, row.expires) = (new.revision, new.active, new.expires);
        row.detail = new.detail.clone();
        Written::Done
    }

    pub(super) fn end_subscription(&mut self, id: SubscriptionId, end: SubscriptionEnd, now: Micros) -> Written {
        let Some(row) = self.subscriptions.get_mut(&id) else { return Written::Unknown };
        if row.ended.is_some() {
            return Written::Superseded;
        }
        let row = Arc::make_mut(row);
        (row.ended, row.ended_at) = (Some(end), Some(now));
        Written::Done
    }

    /// A row with its subscription as it is by now.
    pub(super) fn current(&self, mut row: Row) -> Row {
        if let Some(subscribed) = &mut row.subscribed
            && let Some(to) = self.subscriptions.get(&subscribed.to.id)
        {
            subscribed.to = Arc::clone(to);
        }
        row
    }

    pub(super) fn page(&self, query: &SubscriptionQuery) -> Page<SubscriptionRow> {
        let after = query.after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.subscriptions.range((after, Bound::Unbounded)).map(|(_, row)| row);
        let of_owner = rows.filter(|row| query.owner.is_none() || query.owner.as_deref() == row.owner.as_deref());
        let mut bytes = 0_usize;
        let fits = |row: &&Arc<SubscriptionRow>| {
            let before = bytes;
            bytes = bytes.saturating_add(row.kept().len());
            before < SubscriptionQuery::BYTES
        };
        let items: Vec<SubscriptionRow> =
            of_owner.take(query.limit).take_while(fits).map(|row| SubscriptionRow::clone(row)).collect();
        let last = items.last().filter(|_| items.len() == query.limit || bytes >= SubscriptionQuery::BYTES);
        let next = last.map(|row| Cursor { since: row.created_at, id: row.id.0 });
        Page { items, next }
    }

    /// Ends those that have got the one event that they may get, and have no open row of it left; how many.
    pub(super) fn end_spent(&mut self, now: Micros, limit: usize) -> u64 {
        let spent = self.subscriptions.values().filter(|row| row.spent && row.ended.is_none());
        let mut spent: BTreeSet<SubscriptionId> = spent.map(|row| row.id).collect();
        if !spent.is_empty() {
            let open = self.rows.values().filter(|entry| !entry.row.stage.is_ended());
            for subscribed in open.filter_map(|entry| entry.row.subscribed.as_ref()) {
                spent.remove(&subscribed.to.id);
            }
        }
        let ended = spent.into_iter().take(limit);
        ended.map(|id| u64::from(self.end_subscription(id, SubscriptionEnd::Completed, now).is_done())).sum()
    }

    /// Deletes subscriptions of long ago that no row delivers anything to; how many.
    pub(super) fn clean_subscriptions(&mut self, before: Micros, limit: usize) -> u64 {
        let is_old = |row: &&Arc<SubscriptionRow>| match row.ended_at {
            Some(ended_at) => ended_at < before,
            None => row.expires != Micros::NEVER && row.expires < before,
        };
        if !self.subscriptions.values().any(|row| is_old(&row)) {
            return 0;
        }
        let subscribed = self.rows.values().filter_map(|entry| entry.row.subscribed.as_ref());
        let used: HashSet<SubscriptionId> = subscribed.map(|it| it.to.id).collect();
        let old = self.subscriptions.values().filter(is_old).filter(|row| !used.contains(&row.id));
        let old: Vec<SubscriptionId> = old.map(|row| row.id).take(limit).collect();
        for id in &old {
            self.subscriptions.remove(id);
        }
        old.len() as u64
    }
}

fn delivery(event: &FanOut, to: Arc<SubscriptionRow>, stored: crate::row::Stored) -> Row {
    Row {
        id: event.delivery(&to),
        token: 0,
        stage: Stage::Delivering,
        held: false,
        due: event.now,
        worker: None,
        owner: to.owner.clone(),
        dsn: Some(to.dsn.clone()),
        starts: 0,
        attempts: 0,
        accepted_at: event.now,
        first_due: event.now,
        expires: event.expires,
        order: event.order_key(&to).map(|key| Order { key, stops: to.stops }),
        idempotency: None,
        work: None,
        result: Some(Arc::new(stored)),
        // The body is the outbox's own.
        subscribed: Some(Subscribed { to, share: 0 }),
    }
}
