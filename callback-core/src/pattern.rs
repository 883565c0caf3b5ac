//! Which names of queues, exchanges and topics an operator opens.

use std::fmt;

/// A name, in which each `*` stands for any characters, also none; nothing else in it has a meaning.
///
/// ```
/// use callback_core::Pattern;
///
/// let results = Pattern::new("orders.*");
/// assert!(results.matches("orders.done") && results.matches("orders."));
/// assert!(!results.matches("orders") && !results.matches("payments.orders.done"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Any text is a pattern. The empty one matches the empty name alone, `*` every name.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The pattern as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole name is as the pattern says; letters of another case are others.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut pieces = self.0.split('*');
        let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        for piece in pieces {
            let Some(at) = rest.find(piece) else { return false };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last)
    }
}

/// The pattern as it was given.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("", "a", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("a", "A", false),
            ("*", "", true),
            ("*", "a/b", true),
            ("**", "a", true),
            ("a.*", "a.", true),
            ("a.*", "a", false),
            ("a.*", "b.a.", false),
            ("*.done", "orders.done", true),
            ("*.done", "orders.done.b", false),
            ("*.done", "done", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("ab*ba", "aba", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**a**", "bab", true),
            ("a?", "ab", false),
            ("ö*", "öä", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_is_printed_as_it_was_given() {
        assert_eq!(Pattern::new("a*").to_string(), "a*");
        assert_eq!(Pattern::new("a*").as_str(), "a*");
    }

    /// By trying every split, which takes long.
    fn slowly(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], _) => name.is_empty(),
            (['*', rest @ ..], _) => (0..=name.len()).any(|at| slowly(rest, &name[at..])),
            ([first, rest @ ..], [head, tail @ ..]) => first == head && slowly(rest, tail),
            (_, []) => false,
        }
    }

    proptest! {
        #[test]
        fn every_name_is_judged_as_by_trying_all(pattern in "[ab*]{0,8}", name in "[ab]{0,8}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(Pattern::new(pattern.as_str()).matches(&name), slowly(&chars(&pattern), &chars(&name)));
        }
    }
}
