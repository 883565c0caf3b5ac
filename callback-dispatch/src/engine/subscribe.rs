//! Subscriptions are judged, stored and changed.

use super::Engine;
use crate::{
    AcceptError, ChangeError, NewSubscription, OutboxError, Profile, Submission, Subscription, SubscriptionChange,
    SubscriptionEnd, SubscriptionId, Violations,
    clock::Micros,
    outbox::{Write, Written, write},
    profile::Bare,
    subscription::{Detail, KeptSecret, SubscriptionRow},
    validator,
    work::Context,
};
use callback_core::{Secret, Signer, TaskId};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// How many event types a subscription may name.
const MOST_EVENTS: usize = 100;

/// The longest secret, in bytes.
const LONGEST_SECRET: usize = 512;

/// The largest value of a subscriber's own, in bytes as JSON.
const LARGEST_META: usize = 64 << 10;

/// How many secrets sign at once at most: the newest ones.
const MOST_SECRETS: usize = 8;

impl Engine {
    /// Stores a new subscription.
    pub(crate) async fn subscribe(&self, new: NewSubscription) -> Result<Subscription, AcceptError> {
        self.check_open()?;
        let NewSubscription { dsn, topic, once, ordered, service, events, lease, meta, owner, profile, secret } = new;
        self.check(&dsn)?;
        let profile = profile.filter(|name| name != Bare::NAME);
        let shape = self.profile(profile.as_deref()).map_err(AcceptError::Profile)?;
        if owner.as_deref().is_some_and(|owner| check_text("", owner).is_err()) {
            return Err(AcceptError::Owner);
        }
        let mut found = check_wishes(service.as_deref(), &events);
        found.extend(check_meta(&meta, LARGEST_META).err());
        found.extend(secret.as_ref().and_then(|secret| check_secret(secret, shape).err()));
        Violations::all(found).map_err(AcceptError::Invalid)?;
        if !self.validators.is_empty() {
            let content = content(&new_view(&dsn, topic, once), service.as_deref(), &events, &meta);
            let submission =
                Submission { operation: "subscribe", content: &content, callback: Some(&dsn), owner: owner.as_deref() };
            validator::judge(&self.validators, &submission).await.map_err(AcceptError::Invalid)?;
        }
        let now = self.now();
        let stops = self.lanes.bounds().stops(&dsn.destination());
        let secrets = secret.map(|secret| KeptSecret { secret, until: i64::MAX });
        let row = SubscriptionRow {
            id: SubscriptionId(TaskId::new()),
            revision: 0,
            owner: owner.map(Arc::from),
            dsn,
            once,
            ordered,
            stops,
            active: true,
            spent: false,
            ended: None,
            ended_at: None,
            created_at: now,
            expires: lease.map_or(Micros::NEVER, |lease| now.after(lease)),
            sequence: 0,
            detail: Detail { service, events, profile, topic, meta, secrets: secrets.into_iter().collect() },
        };
        let limit = self.subscription_limit;
        let subscribe = Write::Subscribe { row: Arc::new(row.clone()), limit };
        match write(&*self.store, subscribe).await.map_err(AcceptError::Outbox)? {
            Written::TooMany => Err(AcceptError::TooMany { limit }),
            _ => Ok(self.subscription(row)),
        }
    }

    /// Changes one that has not ended.
    pub(crate) async fn change_subscription(
        &self,
        id: SubscriptionId,
        change: SubscriptionChange,
    ) -> Result<Subscription, ChangeError> {
        loop {
            let mut row = self.store.subscription(id).await?.ok_or(ChangeError::Unknown)?;
            let now = self.now();
            if row.ended.is_some() || row.expires <= now {
                return Err(ChangeError::Ended);
            }
            self.apply_change(&mut row, change.clone(), now).map_err(ChangeError::Invalid)?;
            row.revision += 1;
            if write(&*self.store, Write::ChangeSubscription(Arc::new(row.clone()))).await?.is_done() {
                return Ok(self.subscription(row));
            }
            // Somebody else changed it meanwhile.
        }
    }

    fn apply_change(
        &self,
        row: &mut SubscriptionRow,
        change: SubscriptionChange,
        now: Micros,
    ) -> Result<(), Violations> {
        let SubscriptionChange { active, service, events, lease, meta, secret } = change;
        let detail = &mut row.detail;
        row.active = active.unwrap_or(row.active);
        detail.service = service.unwrap_or_else(|| detail.service.take());
        detail.events = events.unwrap_or_else(|| std::mem::take(&mut detail.events));
        detail.meta = meta.unwrap_or_else(|| detail.meta.take());
        row.expires = lease.map_or(row.expires, |lease| lease.map_or(Micros::NEVER, |lease| now.after(lease)));
        let mut found = check_wishes(detail.service.as_deref(), &detail.events);
        found.extend(check_meta(&detail.meta, LARGEST_META).err());
        match secret {
            None => {}
            Some(None) => detail.secrets.clear(),
            Some(Some((secret, overlap))) => {
                // Whoever named a profile that is gone is not judged by it.
                let shape = self.profile(detail.profile.as_deref()).unwrap_or(&Bare);
                found.extend(check_secret(&secret, shape).err());
                rotate(&mut detail.secrets, secret, overlap, now);
            }
        }
        Violations::all(found)
    }

    pub(crate) async fn cancel_subscription(self: &Arc<Self>, id: SubscriptionId) -> Result<(), ChangeError> {
        let row = self.store.subscription(id).await?.ok_or(ChangeError::Unknown)?;
        let now = self.now();
        if row.expires <= now {
            return Err(ChangeError::Ended);
        }
        let end = Write::EndSubscription { id, end: SubscriptionEnd::Cancelled, now };
        match self.write_then(end, move |engine| engine.leave_all_of(id)).await? {
            Written::Done => Ok(()),
            Written::Unknown => Err(ChangeError::Unknown),
            _ => Err(ChangeError::Ended),
        }
    }

    /// A subscription as users see it.
    pub(crate) fn subscription(&self, row: SubscriptionRow) -> Subscription {
        let href = self.href("subscriptions", &row.id);
        Subscription::new(Arc::new(row), href, self.now())
    }

    /// Judges for whom work names its result's shape, value and secret.
    pub(super) fn check_recipient(&self, context: &Context) -> Result<(), AcceptError> {
        let profile = self.profile(context.profile.as_deref()).map_err(AcceptError::Profile)?;
        let secret = context.secret.as_ref().and_then(|kept| check_secret(&kept.secret, profile).err());
        let meta = context.meta.as_ref().and_then(|meta| check_meta(meta, self.body_limit).err());
        Violations::all(meta.into_iter().chain(secret)).map_err(AcceptError::Invalid)
    }

    /// Where something is served.
    pub(crate) fn href(&self, what: &str, id: &dyn std::fmt::Display) -> String {
        let base = self.public_url.as_deref().unwrap_or_default();
        format!("{base}/{what}/{id}")
    }

    /// The profile of this name; the name, if there is none.
    pub(crate) fn profile(&self, name: Option<&str>) -> Result<&dyn Profile, String> {
        let name = name.unwrap_or(Bare::NAME);
        self.profiles.get(name).map(|profile| &**profile).ok_or_else(|| name.to_owned())
    }

    /// Nothing is accepted while the dispatcher closes, or results wait for the store.
    pub(crate) fn check_open(&self) -> Result<(), AcceptError> {
        if self.closing.is_cancelled() {
            return Err(AcceptError::Closed);
        }
        if self.outage.is_on() {
            return Err(AcceptError::Outbox(OutboxError::not_stored("results wait to be stored first")));
        }
        Ok(())
    }
}

fn check_meta(meta: &Value, limit: usize) -> Result<(), Violations> {
    if !super::accept::is_nested_within(meta, super::accept::DEEPEST) {
        return Err(Violations::at("/meta", "is nested too deeply"));
    }
    if meta.to_string().len() > limit {
        return Err(Violations::at("/meta", format!("is larger than {limit} bytes")));
    }
    Ok(())
}

/// Whether a secret can sign: a `whsec_` key, or any text where the profile signs by it.
pub(super) fn check_secret(secret: &Secret, profile: &dyn Profile) -> Result<(), Violations> {
    let text = secret.expose();
    if text.is_empty() || text.len() > LONGEST_SECRET {
        return Err(Violations::at("/secret", format!("must have 1 to {LONGEST_SECRET} bytes")));
    }
    match signer([secret]) {
        Some(_) => Ok(()),
        None if profile.uses_secret() && !text.starts_with("whsec_") => Ok(()),
        None => Err(Violations::at("/secret", "must be whsec_ with base64 of 24 to 64 bytes")),
    }
}

/// What signs by these secrets: those that are `whsec_` keys.
pub(super) fn signer<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Option<Signer> {
    let is_key = |secret: &&str| secret.starts_with("whsec_") && !secret.contains(char::is_whitespace);
    let keys: Vec<&str> = secrets.into_iter().map(Secret::expose).filter(is_key).collect();
    let keys = Secret::from(keys.join(" "));
    keys.expose().parse().ok()
}

fn check_wishes(service: Option<&str>, events: &[String]) -> Vec<Violations> {
    let mut found = Vec::new();
    found.extend(service.and_then(|service| check_text("/service", service).err()));
    if events.len() > MOST_EVENTS {
        found.push(Violations::at("/events", format!("must be {MOST_EVENTS} at most")));
    }
    for (number, event) in events.iter().enumerate().take(MOST_EVENTS) {
        if !(1..=255).contains(&event.len()) || !event.bytes().all(|byte| byte.is_ascii_graphic()) {
            found.push(Violations::at(format!("/events/{number}"), "must have 1 to 255 printable ASCII characters"));
        }
    }
    found
}

pub(super) fn check_text(pointer: &str, text: &str) -> Result<(), Violations> {
    if !(1..=255).contains(&text.len()) || text.chars().any(char::is_control) {
        return Err(Violations::at(pointer, "must have 1 to 255 bytes and no control character"));
    }
    Ok(())
}

/// Puts a secret before the others, which sign for so long still.
fn rotate(secrets: &mut Vec<KeptSecret>, secret: Secret, overlap: Duration, now: Micros) {
    let until = now.after(overlap).0;
    secrets.iter_mut().for_each(|kept| kept.until = kept.until.min(until));
    secrets.retain(|kept| now.0 < kept.until);
    secrets.insert(0, KeptSecret { secret, until: i64::MAX });
    secrets.truncate(MOST_SECRETS);
}

/// A subscription as validators see it.
fn content(dsn: &Value, service: Option<&str>, events: &[String], meta: &Value) -> Value {
    let mut content = dsn.clone();
    if let Some(service) = service {
        content["service"] = service.into();
    }
    if !events.is_empty() {
        content["events"] = json!(events);
    }
    if !meta.is_null() {
        content["meta"] = meta.clone();
    }
    content
}

fn new_view(dsn: &callback_core::Dsn, topic: bool, once: bool) -> Value {
    let kind = if once { "once" } else { "continuous" };
    if topic { json!({ "kind": kind }) } else { json!({ "callbackUrl": dsn.expose(), "kind": kind }) }
}
