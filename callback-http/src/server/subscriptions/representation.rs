//! A subscription as its owner sees it.

use callback_dispatch::{Subscription, SubscriptionEnd, SubscriptionState};
use serde_json::{Value, json};
use std::time::SystemTime;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Its members; neither its secret, nor passwords and queries of its callback.
pub(super) fn of(subscription: &Subscription, href: &str) -> Value {
    let mut body = json!({
        "_links": { "self": { "href": href } },
        "UUID": subscription.id().to_string(),
        "status": status(subscription.state()),
        "kind": if subscription.is_once() { "once" } else { "continuous" },
        "events": subscription.events(),
        "hasSecret": subscription.has_secret(),
        "created": rfc_3339(subscription.created_at()),
    });
    let target = if subscription.is_topic() { "topic" } else { "callbackUrl" };
    body[target] = subscription.dsn().to_string().into();
    if let Some(service) = subscription.service() {
        body["service"] = service.into();
    }
    if !subscription.meta().is_null() {
        body["meta"] = subscription.meta().clone();
    }
    if let Some(expires) = subscription.expires_at() {
        body["expires"] = rfc_3339(expires).into();
    }
    body
}

const fn status(state: SubscriptionState) -> &'static str {
    match state {
        SubscriptionState::Active => "active",
        SubscriptionState::Paused => "paused",
        SubscriptionState::Ended(SubscriptionEnd::Cancelled) => "cancelled",
        SubscriptionState::Ended(SubscriptionEnd::Completed) => "completed",
        SubscriptionState::Ended(SubscriptionEnd::Gone) => "gone",
        SubscriptionState::Ended(SubscriptionEnd::Expired) => "expired",
        _ => "ended",
    }
}

fn rfc_3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}
