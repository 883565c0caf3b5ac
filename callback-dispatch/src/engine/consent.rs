//! Destinations are asked before the first message, and now and then again.

use super::{Engine, chain};
use crate::{
    OutboxError,
    lane::{Host, StoredConsent},
    outbox::{Write, Written},
};
use callback_core::{Consent, Dsn, ErrorKind, SinkError};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Who asks, by scheme, and how long an answer counts.
#[derive(Debug)]
pub(crate) struct Consents {
    pub(crate) by_scheme: HashMap<String, Arc<dyn Consent>>,
    pub(crate) age: Duration,
}

impl Engine {
    /// Resolves once it is known that a destination lets us send to it: it is asked if that is not known.
    pub(super) async fn consent(&self, dsn: &Dsn, host: &Host, deadline: Instant) -> Result<(), SinkError> {
        let Consents { by_scheme, age } = &self.consents;
        let Some(asking) = by_scheme.get(dsn.scheme()) else { return Ok(()) };
        let consent = &host.consent;
        if consent.is_given(self.now(), *age) {
            return Ok(());
        }
        let _turn = consent.turn().await;
        if consent.is_given(self.now(), *age) {
            return Ok(());
        }
        if consent.has_refused(dsn, Instant::now()) {
            return Err(SinkError::unauthorized("the destination did not consent a moment ago"));
        }
        let destination = dsn.destination();
        match self.store.consent(&destination).await {
            Ok(Some(stored)) if stored.counts(self.now(), *age) => {
                consent.give(stored);
                return Ok(());
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = %chain(&error), "a consent could not be read: it is asked for again"),
        }
        let answer = asking.ask(dsn, deadline.into_std()).await;
        let consented = answer.inspect_err(|error| {
            if error.kind() == ErrorKind::Unauthorized {
                consent.refuse(dsn, Instant::now());
            }
        })?;
        let (per_minute, until) = (consented.requests_per_minute(), self.now().after(*age));
        tracing::debug!(%destination, ?per_minute, "a destination has consented");
        let given = StoredConsent { destination, per_minute, until };
        consent.give(given.clone());
        // Nobody waits for it: lost in a crash, it is asked for once more.
        let done = Box::new(|result: Result<Written, OutboxError>| {
            if let Err(error) = result {
                tracing::warn!(error = %chain(&error), "a consent could not be stored");
            }
        });
        let _ = self.store.submit(Write::Consent(given), done);
        Ok(())
    }
}
