//! The header `Prefer` (RFC 7240).

use http::HeaderMap;
use std::time::Duration;

/// What of it concerns a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Prefer {
    /// The client would rather be told at once than wait (§4.1).
    pub(super) respond_async: bool,
    /// How long the client would wait (§4.3).
    pub(super) wait: Option<Duration>,
}

impl Prefer {
    /// Reads all headers of the name. Of a preference that is there twice the first counts; what is not known, or not
    /// well formed, is passed over (§2).
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let (mut prefer, mut seen_wait) = (Self::default(), false);
        let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        for preference in values.flat_map(|value| split(value, ',')) {
            let preference = split(preference, ';').next().unwrap_or_default();
            let (name, value) =
                preference.split_once('=').map_or((preference, None), |(name, value)| (name, Some(value)));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => prefer.respond_async = true,
                "wait" if !seen_wait => {
                    seen_wait = true;
                    let seconds = value.map(|value| value.trim().trim_matches('"'));
                    prefer.wait = seconds.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
                }
                _ => {}
            }
        }
        prefer
    }
}

/// Splits at a separator that does not stand in a quoted string.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |c| {
        let splits = c == separator && !is_quoted;
        if c == '"' && !is_escaped {
            is_quoted = !is_quoted;
        }
        is_escaped = c == '\\' && is_quoted && !is_escaped;
        splits
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[track_caller]
    fn check(values: &[&'static str], respond_async: bool, wait: Option<u64>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", HeaderValue::from_static(value));
        }
        let expected = Prefer { respond_async, wait: wait.map(Duration::from_secs) };
        assert_eq!(Prefer::of(&headers), expected, "{values:?}");
    }

    #[test]
    fn preferences_are_read_as_rfc_7240_writes_them() {
        check(&[], false, None);
        check(&["respond-async"], true, None);
        check(&["Respond-Async, WAIT=10"], true, Some(10));
        check(&["respond-async", "wait=10"], true, Some(10));
        check(&["wait=\"10\"; a=b"], false, Some(10));
        check(&["wait = 10 , respond-async ; foo"], true, Some(10));
        check(&["wait=1, wait=2"], false, Some(1));
        check(&["wait=x, wait=2"], false, None);
        check(&["wait=-1"], false, None);
        check(&["wait"], false, None);
        check(&["foo=\"a, respond-async; wait=1\", return=minimal"], false, None);
        check(&["foo=\"\\\", respond-async\""], false, None);
        check(&["respond-async-not, xrespond-async"], false, None);
    }
}
