//! One try: a message is shaped, signed, sent, and the answer judged.

use super::{Engine, subscribe::signer};
use crate::{
    Profile, Recipient,
    clock::Micros,
    lane::{OpenLane, Rate, Sign},
    row::{Row, Stored},
};
use callback_core::{Attempt, Dsn, Message, Receipt, Signer, Sink, SinkError};
use futures_util::FutureExt;
use std::{panic::AssertUnwindSafe, sync::Arc};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

/// What an attempt came to.
pub(super) struct Answer {
    /// What the destination's own answer says of it, whatever a profile makes of that.
    pub(super) sign: Sign,
    pub(super) result: Result<Receipt, SinkError>,
}

impl Answer {
    /// Nothing was sent.
    fn unsent(error: SinkError) -> Self {
        Self { sign: Sign::None, result: Err(error) }
    }
}

impl Engine {
    /// Shapes, signs, and gives the message to the sink of its scheme; none if the destination allows no more for now.
    ///
    /// `taken` is the rate of those that it allows of which the attempt has a place.
    pub(super) async fn attempt(
        &self,
        row: &Row,
        stored: &Stored,
        lane: &OpenLane,
        taken: Option<&Arc<Rate>>,
        now: Micros,
    ) -> Option<Answer> {
        let unsent = |error| Some(Answer::unsent(error));
        let Some(dsn) = &row.dsn else { return unsent(SinkError::refused("no Dsn is stored")) };
        let sink = match self.sink(dsn) {
            Ok(sink) => sink,
            Err(error) => return unsent(error.into()),
        };
        let profile = match row.profile().map(|name| self.profile(Some(name))).transpose() {
            Ok(profile) => profile,
            Err(name) => {
                tracing::error!(id = %row.id, profile = name, "a message waits for a profile that is not registered");
                return unsent(SinkError::unavailable(format!("no profile named {name} is registered")));
            }
        };
        let deadline = Instant::now() + self.deadline;
        let mut attempt = Attempt::new(row.attempts.saturating_add(1), now.to_system(), deadline.into_std());
        if let Some(traceparent) = &stored.traceparent {
            attempt = attempt.with_traceparent(traceparent);
        }
        let span = tracing::info_span!("attempt", number = attempt.number(), destination = %dsn.destination());
        let delivery = async {
            if let Err(error) = self.consent(dsn, &lane.host, deadline).await {
                return Some(Answer { sign: Sign::of(Err(&error)), result: Err(error) });
            }
            if !lane.host.consent.admits(taken, Instant::now()) {
                return None;
            }
            let message = match profile {
                None => stored.message.clone(),
                Some(profile) => match self.shape_for(row, stored, profile, now) {
                    Ok(message) => message,
                    Err(error) => return unsent(error),
                },
            };
            Some(send(&**sink, profile, dsn, &message, self.sign(row, dsn, &message, attempt, now)).await)
        };
        let delivery = AssertUnwindSafe(delivery.instrument(span)).catch_unwind();
        let failed = match timeout_at(deadline, delivery).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(_panic)) => SinkError::unavailable("the sink panicked, or the signer, or the profile"),
            Err(_elapsed) => SinkError::timed_out("the deadline passed"),
        };
        Some(Answer { sign: Sign::of(Err(&failed)), result: Err(failed) })
    }

    fn shape_for(&self, row: &Row, stored: &Stored, profile: &dyn Profile, now: Micros) -> Result<Message, SinkError> {
        let message = &stored.message;
        let shaped = profile.shape(message.clone(), &self.recipient(row, stored, now)).map_err(SinkError::refused)?;
        if (shaped.id(), shaped.event_id()) != (message.id(), message.event_id()) {
            // Receivers deduplicate by them.
            return Err(SinkError::refused(format!("the profile {} changed an id", profile.name())));
        }
        Ok(shaped)
    }

    fn recipient(&self, row: &Row, stored: &Stored, now: Micros) -> Recipient {
        let service = stored.service.clone();
        if let Some(subscribed) = &row.subscribed {
            let to = &subscribed.to;
            let (id, href) = (to.id.to_string(), self.href("subscriptions", &to.id));
            return Recipient {
                id,
                href,
                service,
                meta: to.detail.meta.clone(),
                secret: to.secrets(now).next().cloned(),
            };
        }
        let context = row.work.as_ref().map(|work| &work.context);
        Recipient {
            id: row.id.to_string(),
            href: self.href("tasks", &row.id),
            service,
            meta: context.and_then(|context| context.meta.clone()).unwrap_or_default(),
            secret: context.and_then(|context| context.secret.as_ref()).map(|kept| kept.secret.clone()),
        }
    }

    /// Signs by the recipient's own secrets, else by the dispatcher's keys.
    fn sign(&self, row: &Row, dsn: &Dsn, message: &Message, attempt: Attempt, now: Micros) -> Attempt {
        match row.own_signer(now).as_ref().or_else(|| self.keys.signer(row.owner.as_deref(), dsn)) {
            Some(signer) => attempt.sign(signer, message),
            None => attempt,
        }
    }
}

async fn send(
    sink: &dyn Sink,
    profile: Option<&dyn Profile>,
    dsn: &Dsn,
    message: &Message,
    attempt: Attempt,
) -> Answer {
    let result = sink.deliver(dsn, message, &attempt).await;
    let sign = Sign::of(result.as_ref());
    let result = if let Some(profile) = profile { profile.judge(result) } else { result };
    Answer { sign, result }
}

impl Row {
    /// The profile that is named for it, if any is.
    fn profile(&self) -> Option<&str> {
        match &self.subscribed {
            Some(subscribed) => subscribed.to.detail.profile.as_deref(),
            None => self.work.as_ref()?.context.profile.as_deref(),
        }
    }

    fn own_signer(&self, now: Micros) -> Option<Signer> {
        match &self.subscribed {
            Some(subscribed) => signer(subscribed.to.secrets(now)),
            None => signer([&self.work.as_ref()?.context.secret.as_ref()?.secret]),
        }
    }
}
