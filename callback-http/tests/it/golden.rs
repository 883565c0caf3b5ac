//! Each shape on the wire is that of its golden file: what a real exchange gave, with ids, times and addresses masked.
//!
//! With `UPDATE_GOLDEN` in the environment the files are written instead.

mod messages;
mod problems;
mod subscriptions;
mod tasks;

use crate::{receiver::Received, shop::Reply};
use callback_core::TaskId;
use http::HeaderMap;
use serde_json::Value;
use std::{fs, path::PathBuf};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// What the server or the client says of itself, and of the connection.
const OF_THE_EXCHANGE: &[&str] = &["accept", "content-length", "date", "host", "transfer-encoding", "user-agent"];

/// What differs from one exchange to the next by more than its form.
const MASKED: &[&str] = &["webhook-timestamp", "webhook-signature", "x-coreos-hmac-signature"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// An answer.
#[track_caller]
fn answered(name: &str, reply: &Reply) {
    check(name, &format!("{}\n{}", reply.status.as_u16(), lines(&reply.headers, &reply.body)));
}

/// What a receiver got.
#[track_caller]
fn received(name: &str, received: &Received) {
    check(name, &format!("{} {}\n{}", received.method, received.uri, lines(&received.headers, &received.body)));
}

#[track_caller]
fn check(name: &str, text: &str) {
    let (path, text) = (folder().join(name).with_extension("txt"), masked(text));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, &text).expect("written");
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(text, golden, "{name}: UPDATE_GOLDEN=1 writes it anew");
}

/// The headers in the order of their names, and the body.
fn lines(headers: &HeaderMap, body: &[u8]) -> String {
    let mut lines: Vec<String> = headers
        .iter()
        .filter(|(name, _)| !OF_THE_EXCHANGE.contains(&name.as_str()))
        .map(|(name, value)| {
            let value = if MASKED.contains(&name.as_str()) { "{masked}" } else { value.to_str().expect("ASCII") };
            format!("{name}: {}\n", without_time(value))
        })
        .collect();
    lines.sort_unstable();
    let body = match serde_json::from_slice::<Value>(body) {
        Ok(json) => serde_json::to_string_pretty(&json).expect("JSON"),
        Err(_) => str::from_utf8(body).expect("a text").to_owned(),
    };
    let body: Vec<String> = body.split('"').map(without_time).collect();
    format!("{}\n{}\n", lines.concat(), body.join("\""))
}

fn without_time(text: &str) -> String {
    OffsetDateTime::parse(text, &Rfc3339).map_or_else(|_| text.to_owned(), |_| "{time}".to_owned())
}

/// Numbers the ids in the order in which they come, and takes away capabilities, ports and the times of cursors.
fn masked(text: &str) -> String {
    let (mut masked, mut ids, mut rest) = (String::new(), Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        if let Some(id) = rest.get(..36).filter(|id| id.parse::<TaskId>().is_ok()) {
            let number = ids.iter().position(|known| *known == id).unwrap_or(ids.len());
            if number == ids.len() {
                ids.push(id);
            }
            masked.push_str(&format!("{{id {}}}", number + 1));
            rest = &rest[36..];
            if let Some(after) = rest.strip_prefix('.').and_then(|rest| rest.get(22..)) {
                masked.push_str(".{capability}");
                rest = after;
            }
        } else if let Some(after) = rest.strip_prefix("127.0.0.1:") {
            masked.push_str("127.0.0.1:{port}");
            rest = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
        } else if let Some(after) = without_microseconds(rest) {
            masked.push_str("{time}");
            rest = after;
        } else {
            masked.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    masked
}

/// What comes after a number that can only be microseconds since 1970.
fn without_microseconds(text: &str) -> Option<&str> {
    let after = text.trim_start_matches(|digit: char| digit.is_ascii_digit());
    (text.len() - after.len() == 16).then_some(after)
}

#[test]
fn a_mask_tells_ids_apart() {
    let (a, b) = (TaskId::new(), TaskId::new());
    let text = format!("a\": \"http://127.0.0.1:1234/{a}/{b}\", {a}.{}/result ü?1795478475141082_{b}", "x".repeat(22));
    let expected = "a\": \"http://127.0.0.1:{port}/{id 1}/{id 2}\", {id 1}.{capability}/result ü?{time}_{id 2}";
    assert_eq!(masked(&text), expected);
    let times = lines(&HeaderMap::new(), br#"{"a":"2021-02-25T15:02:10.25Z","b":"2021"}"#);
    assert_eq!(times, "\n{\n  \"a\": \"{time}\",\n  \"b\": \"2021\"\n}\n");
}
