//! What a client asks for under `$rpc`.

use super::{
    RpcError,
    members::{Member, Members, Writer, text},
};
use crate::Dsn;
use serde_json::value::RawValue;
use std::{collections::HashSet, time::Duration};

/// What a client asked for under `$rpc`, flat or nested.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RpcOptions {
    /// `callback`: where the result is to be sent.
    pub callback: Option<Target>,
    /// `timeout`: how long the method may run; 10 to 120 s.
    pub timeout: Option<Duration>,
    /// `rayId`: the client's own name for the call; 1 to 128 printable ASCII characters.
    pub ray_id: Option<String>,
    /// `ignoreCache`: whether the method is to pass its cache by; `false` where nothing is said.
    pub ignore_cache: bool,
    callback_pointer: Option<String>,
}

impl RpcOptions {
    /// Where `callback` stood in the request, as a JSON pointer (RFC 6901): `/params/$rpc.callback`, for example.
    #[must_use]
    pub fn callback_pointer(&self) -> Option<&str> {
        self.callback_pointer.as_deref()
    }
}

/// Where a result is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the protocol knows these two, and nobody may overlook one")]
pub enum Target {
    /// To this Dsn, which no policy has judged yet.
    Dsn(Dsn),
    /// To the operator's topic: the client wrote `true`.
    Topic,
}

/// Takes everything under `$rpc` out of `params`; the text of the rest, if there was anything.
///
/// `place` is the pointer of `params` itself.
pub(super) fn take(params: &Members<'_>, place: &str) -> Result<(RpcOptions, Option<String>), RpcError> {
    let mut taken = Taken::default();
    let mut found = false;
    for member in params.iter() {
        match Spelling::of(&member.name) {
            Spelling::Business => continue,
            Spelling::Flat(name) => taken.set(name, member.value, &pointer(place, &member.name))?,
            Spelling::Nested => taken.set_nested(member, place)?,
        }
        found = true;
    }
    Ok((taken.options, found.then(|| without_options(params))))
}

fn without_options(params: &Members<'_>) -> String {
    let mut rest = Writer::with_capacity(64);
    for member in params.iter().filter(|member| matches!(Spelling::of(&member.name), Spelling::Business)) {
        rest.push(member, member.value.get());
    }
    rest.finish()
}

/// Appends a member's name to a JSON pointer (RFC 6901 §3).
pub(super) fn pointer(place: &str, name: &str) -> String {
    format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"))
}

enum Spelling<'a> {
    Business,
    Flat(&'a str),
    Nested,
}

impl<'a> Spelling<'a> {
    fn of(name: &'a str) -> Self {
        match name.split_at_checked("$rpc".len()) {
            Some((prefix, rest)) if prefix.eq_ignore_ascii_case("$rpc") => match rest.strip_prefix('.') {
                Some(option) => Self::Flat(option),
                None if rest.is_empty() => Self::Nested,
                None => Self::Business,
            },
            _ => Self::Business,
        }
    }
}

/// The options so far, and which were named: `false` is an answer too.
#[derive(Default)]
struct Taken {
    options: RpcOptions,
    named: HashSet<String>,
}

impl Taken {
    fn set_nested(&mut self, member: &Member<'_>, place: &str) -> Result<(), RpcError> {
        let place = pointer(place, &member.name);
        let members = Members::read(member.value).map_err(|reason| RpcError::invalid_params(&place, reason))?;
        members.iter().try_for_each(|inner| self.set(&inner.name, inner.value, &pointer(&place, &inner.name)))
    }

    fn set(&mut self, name: &str, value: &RawValue, place: &str) -> Result<(), RpcError> {
        let refused = |reason: String| RpcError::invalid_params(place, reason);
        let options = &mut self.options;
        let read = match name {
            "callback" => target(value).map(|target| {
                options.callback = Some(target);
                options.callback_pointer = Some(place.to_owned());
            }),
            "timeout" => timeout(value).map(|limit| options.timeout = Some(limit)),
            "rayId" => ray_id(value).map(|id| options.ray_id = Some(id)),
            "ignoreCache" => boolean(value).map(|ignore| options.ignore_cache = ignore),
            _ => Err("unknown option; known are callback, timeout, rayId, ignoreCache".to_owned()),
        };
        read.map_err(refused)?;
        if self.named.insert(name.to_owned()) { Ok(()) } else { Err(refused("an option given twice".to_owned())) }
    }
}

fn target(value: &RawValue) -> Result<Target, String> {
    if value.get() == "true" {
        return Ok(Target::Topic);
    }
    let dsn = text(value).ok_or("expected a DSN, or true for the topic of the service")?;
    dsn.parse().map(Target::Dsn).map_err(|error: crate::DsnError| error.to_string())
}

fn timeout(value: &RawValue) -> Result<Duration, String> {
    let seconds: Option<f64> = serde_json::from_str(value.get()).ok();
    seconds
        .filter(|seconds| (10.0..=120.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected a number of seconds, 10 to 120".to_owned())
}

/// An integer stands for its digits: the first systems with `$rpc` send numbers too.
fn ray_id(value: &RawValue) -> Result<String, String> {
    let integer = value.get().trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
    let id = if integer { Some(value.get().into()) } else { text(value) };
    id.filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| matches!(byte, b' '..=b'~')))
        .map(Into::into)
        .ok_or_else(|| "expected 1 to 128 printable ASCII characters, or an integer".to_owned())
}

fn boolean(value: &RawValue) -> Result<bool, String> {
    value.get().parse().map_err(|_| "expected true or false".to_owned())
}
