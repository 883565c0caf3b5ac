//! What cannot be attempted here waits in the store.

use super::{super::Place, Engine, Hand, Local, Way};
use crate::{
    lane::{OpenLane, Sign},
    outbox::{AttachmentId, Keep, Keeping, Parked, Parking, Write, Written},
    row::Row,
};
use callback_core::{Dsn, ErrorKind, Phase, SinkError};
use std::{sync::Arc, time::Duration};

/// When a row is tried again whose Dsn is attached here, though the sink has no connection to it.
const SOON: Duration = Duration::from_secs(1);

/// For how long rows of a lane are left to the process that has their Dsn attached.
const ELSEWHERE: Duration = Duration::from_secs(30);

impl Engine {
    /// Gives a row back that is not attempted here, or ends it where nobody comes back for it; false if it is to be attempted.
    ///
    /// Of one that found no connection under an attachment, that is told.
    pub(in crate::engine) async fn park(
        self: &Arc<Self>,
        row: &Row,
        place: &Place,
        hand: &Arc<Hand>,
        (way, tried): (Way, Option<AttachmentId>),
    ) -> bool {
        let (Some(dsn), Some(lane)) = (&row.dsn, &place.lane) else { return false };
        let now = self.now();
        let parking = Parking { id: row.id, token: row.token, dsn: dsn.clone(), now, soon: now.after(SOON) };
        match self.write_until_stored(Write::Park(parking)).await {
            Some(Written::Parked(Parked::Here)) => {
                let attachment = self.local.attachment(dsn);
                if attachment.is_some() && attachment != tried {
                    // It was attached meanwhile, and this row passed over.
                    self.rouse(dsn.clone());
                }
                self.wake.notify_one();
                true
            }
            Some(Written::Parked(parked)) => self.parked(row, dsn, lane, hand, (way, parked)).await,
            // It was cancelled, or has expired.
            _ => true,
        }
    }

    async fn parked(
        self: &Arc<Self>,
        row: &Row,
        dsn: &Dsn,
        lane: &OpenLane,
        hand: &Arc<Hand>,
        parked: (Way, Parked),
    ) -> bool {
        match parked {
            (_, Parked::Away | Parked::Here) => self.wake.notify_one(),
            (_, Parked::Elsewhere) => {
                lane.learn(Sign::Throttled(ELSEWHERE));
                if self.local.attachment(dsn).is_some() {
                    self.lanes.lift(&dsn.destination());
                }
                self.look_again();
            }
            (Way::None, Parked::Unknown) => return false,
            (_, Parked::Over | Parked::Unknown) => {
                let is_first = self.mark_gone(dsn, hand);
                self.give_up_unattempted(row).await;
                if is_first {
                    self.bury(dsn).await;
                }
            }
        }
        true
    }

    /// Ends what a destination said is gone, though it may have been let go of since it was `tried`.
    pub(in crate::engine) async fn end_attached(&self, dsn: &Dsn, tried: Option<AttachmentId>) {
        let Some(id) = self.local.take_gone(dsn, tried) else { return };
        let over = Keeping { dsn: dsn.clone(), id, until: self.now(), state: Keep::Over };
        let _ = self.write_until_stored(Write::KeepAttached(vec![over])).await;
    }
}

impl Local {
    /// What is to be ended where a destination is gone: nobody's client is away then.
    fn take_gone(&self, dsn: &Dsn, tried: Option<AttachmentId>) -> Option<AttachmentId> {
        let mut state = self.state();
        let here = state.take(dsn, |_| true);
        let id = here.as_ref().map(|here| here.id).or(tried)?;
        state.left.retain(|left| left.id != id || left.state == Keep::Over);
        drop(state);
        if let Some(here) = here {
            here.lost.cancel();
        }
        Some(id)
    }
}

/// Whether a local sink had no connection to the destination: nothing was sent, and no attempt is counted.
pub(in crate::engine) fn is_unconnected(error: &SinkError) -> bool {
    error.kind() == ErrorKind::Unavailable && error.phase() == Some(Phase::Connect)
}
