//! Destinations that a process has attached.

use super::State;
use crate::{
    clock::Micros,
    outbox::{Attaching, AttachmentRow, Holder, Keep, Keeping, Parked, Parking, Written},
    row::Stage,
};
use callback_core::{Dsn, TaskId};

impl State {
    pub(super) fn attach(&mut self, attaching: Attaching) -> Written {
        let Attaching { dsn, id, presented, secret, now, until, limit } = attaching;
        if let Some(presented) = &presented
            && !self.attachments.get(&dsn).is_some_and(|(_, row)| row.admits(presented, now))
        {
            return Written::Unknown;
        }
        let (secret, former) = (secret.map(|it| it.0), presented.map(|it| it.0));
        self.attachments.insert(dsn.clone(), (id, AttachmentRow { holder: Holder::This, until, secret, former }));
        Written::Count(self.rouse(&dsn, now, limit))
    }

    pub(super) fn rouse(&mut self, dsn: &Dsn, now: Micros, limit: usize) -> u64 {
        let later = self.free.range((Micros(now.0.saturating_add(1)), 0)..(Micros::NEVER, 0));
        let rows = later.filter_map(|(_, key)| self.rows.get(key)).map(|entry| &entry.row);
        let of_dsn = rows.filter(|row| row.stage == Stage::Delivering && row.dsn.as_ref() == Some(dsn));
        let ids: Vec<TaskId> = of_dsn.map(|row| row.id).take(limit).collect();
        for id in &ids {
            self.change(*id, now, |_| true, |row| row.due = now);
        }
        ids.len() as u64
    }

    pub(super) fn park(&mut self, parking: &Parking) -> Written {
        let Parking { id, token, dsn, now, soon } = parking;
        let is_it = |row: &crate::row::Row| row.stage == Stage::Delivering && row.token == *token;
        let Some(entry) = self.by_id.get(id).and_then(|key| self.rows.get(key)) else { return Written::Unknown };
        if !is_it(&entry.row) {
            return Written::Superseded;
        }
        let Some((_, row)) = self.attachments.get_mut(dsn) else { return Written::Parked(Parked::Unknown) };
        let parked = row.parked(*now);
        let due = match parked {
            Parked::Here => Some(*soon),
            Parked::Elsewhere => None,
            Parked::Away => Some(row.until),
            Parked::Over | Parked::Unknown => {
                // What waited for it is given up: nobody comes back for it, whatever his clock says.
                (row.secret, row.former) = (None, None);
                return Written::Parked(parked);
            }
        };
        self.change(*id, *now, is_it, |row| (row.held, row.due) = (false, due.unwrap_or(row.due)));
        Written::Parked(parked)
    }

    pub(super) fn keep_attached(&mut self, keeping: Vec<Keeping>) -> Written {
        let mut replaced = Vec::new();
        for Keeping { dsn, id, until, state } in keeping {
            let Some((_, row)) = self.attachments.get_mut(&dsn).filter(|(held_by, _)| *held_by == id) else {
                replaced.push(id);
                continue;
            };
            row.until = until;
            row.holder = if state == Keep::Held { Holder::This } else { Holder::Nobody };
            if state == Keep::Over {
                (row.secret, row.former) = (None, None);
            }
        }
        Written::Replaced(replaced)
    }

    /// Whoever had something attached is dead.
    pub(super) fn let_go_of_all(&mut self) {
        for (_, row) in self.attachments.values_mut() {
            row.holder = Holder::Nobody;
        }
    }
}
