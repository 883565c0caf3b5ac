//! What a client asks for: a new subscription, or a change of one.

use crate::server::expression::Place;
use callback_dispatch::{NewSubscription, SubscriptionChange, Violations};
use serde_json::{Map, Value};
use std::time::Duration;

/// A new subscription, as a client writes it.
#[derive(Debug, Default)]
pub(super) struct Wish {
    /// The callback, and where it stands.
    pub(super) callback: Option<(String, Place)>,
    once: bool,
    service: Option<String>,
    events: Vec<String>,
    secret: Option<String>,
    meta: Option<Value>,
    lease: Option<Duration>,
}

/// What is wrong, so far.
#[derive(Default)]
struct Found(Option<Violations>);

impl Found {
    fn add(&mut self, pointer: impl Into<String>, reason: &str) {
        self.0 = Some(match self.0.take() {
            Some(violations) => violations.and(pointer, reason),
            None => Violations::at(pointer, reason),
        });
    }

    fn text(&mut self, pointer: &str, value: &Value) -> Option<String> {
        let text = value.as_str().map(str::to_owned);
        if text.is_none() {
            self.add(pointer, "must be a string");
        }
        text
    }

    fn events(&mut self, value: &Value) -> Vec<String> {
        let Some(events) = value.as_array() else {
            self.add("/events", "must be an array of strings");
            return Vec::new();
        };
        let events = events.iter().enumerate();
        events.filter_map(|(place, event)| self.text(&format!("/events/{place}"), event)).collect()
    }

    fn lease(&mut self, value: &Value) -> Option<Duration> {
        let lease = value.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let lease = lease.filter(|lease| !lease.is_zero());
        if lease.is_none() {
            self.add("/lease", "must be a number of seconds, more than 0");
        }
        lease
    }

    fn settle<T>(self, value: T) -> Result<T, Violations> {
        self.0.map_or(Ok(value), Err)
    }
}

impl Wish {
    /// Reads the members; null is as if it were not there.
    pub(super) fn parse(members: &Map<String, Value>) -> Result<Self, Violations> {
        let (mut wish, mut found) = (Self::default(), Found::default());
        let mut callbacks = 0;
        for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
            match name.as_str() {
                "callbackUrl" => {
                    callbacks += 1;
                    let text = found.text("/callbackUrl", value);
                    wish.callback = text.map(|text| (text, Place::Pointer("/callbackUrl".into())));
                }
                "callback" => {
                    callbacks += 1;
                    wish.callback(value, &mut found);
                }
                "kind" => match value.as_str() {
                    Some("once") => wish.once = true,
                    Some("continuous") => {}
                    _ => found.add("/kind", "must be once or continuous"),
                },
                "service" => wish.service = found.text("/service", value),
                "events" => wish.events = found.events(value),
                "secret" => wish.secret = found.text("/secret", value),
                "meta" if wish.meta.is_some() => found.add("/meta", "stands at the callback, too"),
                "meta" => wish.meta = Some(value.clone()),
                "lease" => wish.lease = found.lease(value),
                other => found.add(format!("/{}", escaped(other)), "is not known"),
            }
        }
        if callbacks > 1 {
            found.add("/callback", "stands for callbackUrl: only one of them can be there");
        }
        found.settle(wish)
    }

    /// `"https://…"`, or `{"url": …, "meta": …}`.
    fn callback(&mut self, value: &Value, found: &mut Found) {
        match value {
            Value::String(url) => self.callback = Some((url.clone(), Place::Pointer("/callback".into()))),
            Value::Object(members) => {
                for (name, value) in members {
                    match name.as_str() {
                        "url" => {
                            let text = found.text("/callback/url", value);
                            self.callback = text.map(|text| (text, Place::Pointer("/callback/url".into())));
                        }
                        "meta" if self.meta.is_some() => found.add("/meta", "stands at the callback, too"),
                        "meta" => self.meta = Some(value.clone()).filter(|meta| !meta.is_null()),
                        other => found.add(format!("/callback/{}", escaped(other)), "is not known"),
                    }
                }
                if !members.contains_key("url") {
                    found.add("/callback/url", "is missing");
                }
            }
            _ => found.add("/callback", "must be a string, or an object with url and meta"),
        }
    }

    /// The subscription, with a secret that came beside the body where there is none in it.
    pub(super) fn fill(self, mut new: NewSubscription, secret: Option<&str>) -> NewSubscription {
        if self.once {
            new = new.once();
        }
        if let Some(service) = self.service {
            new = new.service(service);
        }
        if let Some(lease) = self.lease {
            new = new.lease(lease);
        }
        if let Some(meta) = self.meta {
            new = new.meta(meta);
        }
        if let Some(secret) = self.secret.or_else(|| secret.map(str::to_owned)) {
            new = new.secret(secret);
        }
        self.events.into_iter().fold(new, NewSubscription::event)
    }
}

/// A change of a subscription, as a client writes it: a merge patch (RFC 7396) over the members that can change.
#[derive(Debug, Default)]
pub(super) struct Patch {
    active: Option<bool>,
    service: Option<Option<String>>,
    events: Option<Vec<String>>,
    secret: Option<Option<String>>,
    meta: Option<Value>,
    lease: Option<Option<Duration>>,
}

impl Patch {
    /// Reads the members; the client's own value is merged with the one that is there.
    pub(super) fn parse(members: &Map<String, Value>, meta: &Value) -> Result<Self, Violations> {
        let (mut patch, mut found) = (Self::default(), Found::default());
        for (name, value) in members {
            let is_null = value.is_null();
            match name.as_str() {
                "active" => {
                    patch.active = value.as_bool();
                    if patch.active.is_none() {
                        found.add("/active", "must be true or false");
                    }
                }
                "service" if is_null => patch.service = Some(None),
                "service" => patch.service = Some(found.text("/service", value)),
                "events" if is_null => patch.events = Some(Vec::new()),
                "events" => patch.events = Some(found.events(value)),
                "secret" if is_null => patch.secret = Some(None),
                "secret" => patch.secret = Some(found.text("/secret", value)),
                "lease" if is_null => patch.lease = Some(None),
                "lease" => patch.lease = Some(found.lease(value)),
                "meta" => patch.meta = Some(merge(meta.clone(), value)),
                "callbackUrl" | "callback" | "kind" | "UUID" | "status" | "topic" => {
                    found.add(format!("/{name}"), "cannot be changed");
                }
                other => found.add(format!("/{}", escaped(other)), "is not known"),
            }
        }
        found.settle(patch)
    }

    pub(super) fn into_change(self, overlap: Duration) -> SubscriptionChange {
        let mut change = SubscriptionChange::new();
        change = match self.active {
            Some(true) => change.resume(),
            Some(false) => change.pause(),
            None => change,
        };
        if let Some(service) = self.service {
            change = change.service(service);
        }
        if let Some(events) = self.events {
            change = change.events(events);
        }
        if let Some(lease) = self.lease {
            change = change.lease(lease);
        }
        if let Some(meta) = self.meta {
            change = change.meta(meta);
        }
        match self.secret {
            Some(Some(secret)) => change.secret(secret, overlap),
            Some(None) => change.no_secret(),
            None => change,
        }
    }
}

/// A merge patch applied (RFC 7396 §2).
fn merge(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut members = match target {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(name);
        } else {
            let merged = merge(members.remove(name).unwrap_or_default(), value);
            members.insert(name.clone(), merged);
        }
    }
    Value::Object(members)
}

/// A name in a JSON Pointer (RFC 6901 §3).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The vectors of RFC 7396, appendix A.
    #[test]
    fn a_merge_patch_is_applied_as_rfc_7396_says() {
        for (target, patch, expected) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"a":"foo"}), json!("bar"), json!("bar")),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            assert_eq!(merge(target.clone(), &patch), expected, "{target} {patch}");
        }
    }

    #[track_caller]
    fn check(body: Value, expected: &str) {
        let Value::Object(members) = body else { panic!("an object") };
        let violations = Wish::parse(&members).expect_err("wrong");
        assert_eq!(violations.to_string(), expected);
    }

    #[test]
    fn each_member_that_is_wrong_is_named() {
        check(json!({ "callbackUrl": 7 }), "/callbackUrl must be a string");
        check(json!({ "callback": 7 }), "/callback must be a string, or an object with url and meta");
        check(json!({ "callback": { "meta": 1 } }), "/callback/url is missing");
        check(json!({ "callback": { "url": "u", "a/b": 1 } }), "/callback/a~1b is not known");
        check(
            json!({ "callback": "a", "callbackUrl": "a" }),
            "/callback stands for callbackUrl: only one of them can be there",
        );
        check(json!({ "kind": "twice" }), "/kind must be once or continuous");
        check(json!({ "events": "a" }), "/events must be an array of strings");
        check(json!({ "events": ["a", 7] }), "/events/1 must be a string");
        check(json!({ "service": 7, "secret": 7 }), "/secret must be a string; /service must be a string");
        check(json!({ "lease": 0 }), "/lease must be a number of seconds, more than 0");
        check(json!({ "lease": -1 }), "/lease must be a number of seconds, more than 0");
        check(json!({ "callbackurl": "a" }), "/callbackurl is not known");
        check(json!({ "callback": { "url": "u", "meta": 1 }, "meta": 2 }), "/meta stands at the callback, too");
    }

    #[test]
    fn null_is_as_if_it_were_not_there() {
        let body = json!({ "callbackUrl": null, "kind": null, "events": null, "lease": null, "other": null });
        let wish = Wish::parse(body.as_object().expect("an object")).expect("fine");
        assert!(wish.callback.is_none() && wish.events.is_empty());
    }

    #[test]
    fn what_cannot_change_is_told() {
        let body = json!({ "callbackUrl": "https://a.example/", "active": 1, "x": 1 });
        let violations = Patch::parse(body.as_object().expect("an object"), &Value::Null).expect_err("wrong");
        assert_eq!(
            violations.to_string(),
            "/active must be true or false; /callbackUrl cannot be changed; /x is not known"
        );
    }
}
