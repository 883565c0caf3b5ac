//! The members of a JSON object, as sent, and whether one stands there twice.

use super::VERSION;
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};
use std::{borrow::Cow, collections::HashSet, fmt};

/// The members of one object in the order and the spelling of the text that they borrow.
pub(super) struct Members<'a>(Vec<Member<'a>>);

/// One member: its name decoded, and name and value as sent.
pub(super) struct Member<'a> {
    pub(super) name: Cow<'a, str>,
    key: &'a str,
    pub(super) value: &'a RawValue,
}

impl<'a> Members<'a> {
    /// Reads one level; what lies deeper stays text.
    pub(super) fn read(object: &'a RawValue) -> Result<Self, &'static str> {
        if !object.get().starts_with('{') {
            return Err("expected an object");
        }
        // The syntax was checked when the `RawValue` was made, but for lone surrogates.
        serde_json::from_str(object.get()).map_err(|_| "a member name is no Unicode text")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member<'a>> {
        self.0.iter()
    }

    pub(super) fn value(&self, name: &str) -> Option<&'a RawValue> {
        self.iter().find(|member| member.name == name).map(|member| member.value)
    }

    /// The first name that stands there for the second time.
    pub(super) fn duplicate(&self) -> Option<&str> {
        let mut seen = HashSet::with_capacity(self.0.len());
        self.iter().map(|member| &*member.name).find(|name| !seen.insert(*name))
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    let name = text(key).ok_or_else(|| de::Error::custom("a name is no Unicode text"))?;
                    members.push(Member { name, key: key.get(), value });
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

/// The string that `raw` is, decoded.
pub(super) fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    match serde_json::from_str(raw.get()) {
        Ok(plain) => Some(Cow::Borrowed(plain)),
        Err(_) => serde_json::from_str(raw.get()).ok().map(Cow::Owned),
    }
}

/// Writes an object of members with their names spelled as sent.
pub(super) struct Writer(String);

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        let mut text = String::with_capacity(bytes);
        text.push('{');
        Self(text)
    }

    pub(super) fn push(&mut self, member: &Member<'_>, value: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.extend([member.key, ":", value]);
    }

    pub(super) fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// An object whose members are taken one by one; a name that stands there twice is an error.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Envelope {
    #[serde(deserialize_with = "unique")]
    members: Map<String, Value>,
}

impl Envelope {
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name)
    }

    /// A missing version is read as ours, since the first systems with `$rpc.callback` send none.
    pub(super) fn check_version(&self) -> Result<(), &'static str> {
        match self.members.get("jsonrpc") {
            None => Ok(()),
            Some(version) if version == VERSION => Ok(()),
            Some(_) => Err("jsonrpc is \"2.0\""),
        }
    }
}

impl From<Map<String, Value>> for Envelope {
    fn from(members: Map<String, Value>) -> Self {
        Self { members }
    }
}

fn unique<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    struct Reader;

    impl<'de> Visitor<'de> for Reader {
        type Value = Map<String, Value>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map<String, Value>, A::Error> {
            let mut members = Map::new();
            while let Some((name, value)) = map.next_entry()? {
                if members.insert(name, value).is_some() {
                    return Err(de::Error::custom("a member is given twice"));
                }
            }
            Ok(members)
        }
    }

    deserializer.deserialize_map(Reader)
}
