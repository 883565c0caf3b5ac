//! Text as PostgreSQL can keep it: all characters but U+0000.

use std::borrow::Cow;

/// Stands before the character that tells which of the two it stands for.
const ESCAPE: char = '\u{1}';

/// The form in which a text is stored.
pub(super) fn stored(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\0' => escaped.extend([ESCAPE, '0']),
            ESCAPE => escaped.extend([ESCAPE, '1']),
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}

/// The text of a stored form.
pub(super) fn read(stored: String) -> String {
    if !stored.contains(ESCAPE) {
        return stored;
    }
    let mut text = String::with_capacity(stored.len());
    let mut characters = stored.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            ESCAPE if characters.next() == Some('0') => '\0',
            other => other,
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_read_back_as_it_was_and_none_is_stored_with_a_nul() {
        for text in ["", "ä", "\0", "a\0b", "\u{1}", "\u{1}0", "\0\u{1}\u{1}1\0", "\u{1}\u{1}"] {
            let stored = stored(text).into_owned();
            assert!(!stored.contains('\0'), "{text:?}");
            assert_eq!(read(stored), text);
        }
    }

    #[test]
    fn two_texts_have_two_forms() {
        assert_ne!(stored("\0"), stored("\u{1}0"));
        assert_ne!(stored("\u{1}"), stored("\u{1}1"));
    }
}
