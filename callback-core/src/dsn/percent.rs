//! Percent-encoding (RFC 3986 §2.1).

use std::borrow::Cow;

/// Whether every `%` stands before two hexadecimal digits.
pub(super) fn is_valid(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| octet(rest.as_bytes()).is_some())
}

/// The decoded text; `None` where it is not UTF-8. `+` stays `+`.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    while let Some((&byte, rest)) = bytes.split_first() {
        let escaped = if byte == b'%' { octet(rest) } else { None };
        decoded.push(escaped.unwrap_or(byte));
        bytes = if escaped.is_some() { &rest[2..] } else { rest };
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn octet(digits: &[u8]) -> Option<u8> {
    let digit = |index: usize| char::from(*digits.get(index)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_is_decoded_once() {
        assert_eq!(decode("a%2Fb%252F+").as_deref(), Some("a/b%2F+"));
        assert_eq!(decode("gr%C3%B6%c3%9fe").as_deref(), Some("größe"));
        assert_eq!(decode("%ff"), None);
    }

    #[test]
    fn an_escape_has_two_digits() {
        for (text, valid) in [("", true), ("%41", true), ("%", false), ("%4", false), ("%4g", false), ("%%41", false)] {
            assert_eq!(is_valid(text), valid, "{text:?}");
        }
    }
}
