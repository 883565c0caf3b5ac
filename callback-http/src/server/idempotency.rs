//! The header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header).

use http::request::Parts;

const NAME: &str = "idempotency-key";

/// A longer key is refused.
const LONGEST: usize = 255;

/// The key of a call, which is of its path, and of its place in a batch; none if the client named none.
pub(super) fn key(parts: &Parts, place: Option<usize>) -> Result<Option<String>, &'static str> {
    let mut values = parts.headers.get_all(NAME).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("Idempotency-Key is there twice");
    }
    let key = value.to_str().ok().and_then(|value| read(value.trim()));
    let key =
        key.ok_or("Idempotency-Key must be a string of 1 to 255 printable ASCII characters, in quotes or bare")?;
    let place = place.map_or_else(String::new, |place| place.to_string());
    // Neither a path nor a number has a line break in it.
    Ok(Some(format!("{}\n{place}\n{key}", parts.uri.path())))
}

/// A string of RFC 8941 §3.3.3, or bare characters that no such string needs to quote.
fn read(value: &str) -> Option<String> {
    let key = match value.strip_prefix('"') {
        None => value.bytes().all(is_bare).then(|| value.to_owned())?,
        Some(rest) => unquoted(rest.strip_suffix('"')?)?,
    };
    (1..=LONGEST).contains(&key.len()).then_some(key)
}

const fn is_bare(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b',' | b';')
}

fn unquoted(text: &str) -> Option<String> {
    let mut key = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        key.push(match character {
            '\\' => characters.next().filter(|escaped| matches!(escaped, '"' | '\\'))?,
            '"' => return None,
            ' '..='~' => character,
            _ => return None,
        });
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_string_in_quotes_or_bare() {
        let long = "x".repeat(256);
        for (value, expected) in [
            (r#""8e03978e-40d5""#, Some("8e03978e-40d5")),
            ("8e03978e-40d5", Some("8e03978e-40d5")),
            (r#""a b\"c\\""#, Some(r#"a b"c\"#)),
            (r#""""#, None),
            ("", None),
            (r#"""#, None),
            (r#""a"b""#, None),
            (r#""a\b""#, None),
            (r#""a\""#, None),
            (r#""a";b=1"#, None),
            ("a b", None),
            ("a,b", None),
            (&long, None),
        ] {
            assert_eq!(read(value).as_deref(), expected, "{value}");
        }
    }
}
