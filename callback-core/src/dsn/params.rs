//! Taking query parameters one by one.

use super::{DsnError, percent};
use std::{borrow::Cow, fmt::Display, str::FromStr};

/// The query parameters of a [`Dsn`](crate::Dsn): take those that are known, then [`finish`](Self::finish).
///
/// Names and values are percent-decoded; `+` stays `+`. A name that is given twice is an error, whoever takes it.
/// Errors name parameters, and never print a value.
#[derive(Debug)]
#[must_use = "`finish` finds the parameters that nobody knows"]
pub struct Params<'a> {
    left: Vec<&'a str>,
    known: Vec<&'static str>,
}

impl<'a> Params<'a> {
    pub(super) fn new(query: &'a str) -> Self {
        Self { left: query.split('&').filter(|parameter| !parameter.is_empty()).collect(), known: Vec::new() }
    }

    /// Takes a parameter, if it is there.
    ///
    /// `T`'s own error is part of the reason, unless it repeats the value.
    ///
    /// # Errors
    /// When it is given twice, has no `=`, is not UTF-8, or is no `T`.
    pub fn take<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<Option<T>, DsnError> {
        self.known.push(name);
        let mut found = None;
        let mut times = 0;
        self.left.retain(|parameter| {
            let is_it = name_of(parameter).is_some_and(|given| given == name);
            if is_it {
                times += 1;
                found = Some(*parameter);
            }
            !is_it
        });
        if times > 1 {
            return Err(DsnError::invalid(format!("the parameter `{name}` is given more than once")));
        }
        found.map(|parameter| parse(name, parameter)).transpose()
    }

    /// Takes a parameter that must be there.
    ///
    /// # Errors
    /// When it is missing, and as [`take`](Self::take).
    pub fn require<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Result<T, DsnError> {
        self.take(name)?.ok_or_else(|| DsnError::invalid(format!("the parameter `{name}` is missing")))
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// When a parameter is left that nobody took: the error names it, and those that were asked for.
    pub fn finish(self) -> Result<(), DsnError> {
        let Some(parameter) = self.left.first() else { return Ok(()) };
        // Without a `=` it may be a bare token, and is not repeated.
        let unknown = match name_of(parameter) {
            Some(name) if parameter.contains('=') => format!("unknown parameter {:?}", shorten(&name)),
            _ => "a parameter without name or value".to_owned(),
        };
        let known: Vec<String> = self.known.iter().map(|name| format!("`{name}`")).collect();
        Err(DsnError::invalid(match &*known {
            [] => format!("{unknown}; none is known here"),
            _ => format!("{unknown}; known are {}", known.join(", ")),
        }))
    }
}

fn name_of(parameter: &str) -> Option<Cow<'_, str>> {
    percent::decode(parameter.split_once('=').map_or(parameter, |(name, _)| name))
}

fn parse<T: FromStr<Err: Display>>(name: &str, parameter: &str) -> Result<T, DsnError> {
    let Some((_, value)) = parameter.split_once('=') else {
        return Err(DsnError::invalid(format!("the parameter `{name}` has no value")));
    };
    let Some(value) = percent::decode(value) else {
        return Err(DsnError::invalid(format!("the parameter `{name}` is not UTF-8")));
    };
    value.parse().map_err(|error: T::Err| {
        let error = error.to_string();
        let repeats = error.is_empty() || (!value.is_empty() && error.contains(&*value));
        DsnError::invalid(if repeats {
            format!("the parameter `{name}` is not valid")
        } else {
            format!("the parameter `{name}` is not valid: {error}")
        })
    })
}

fn shorten(name: &str) -> &str {
    name.char_indices().nth(64).map_or(name, |(end, _)| &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(result: Result<impl Sized, DsnError>, reason: &str) {
        assert_eq!(result.err().map(|error| error.to_string()).as_deref(), Some(reason));
    }

    #[test]
    fn parameters_are_taken_by_type_and_decoded() {
        let mut params = Params::new("queue=a%2Fb+c&priority=7&");
        assert_eq!(params.take::<String>("queue"), Ok(Some("a/b+c".to_owned())));
        assert_eq!(params.require::<u8>("priority"), Ok(7));
        assert_eq!(params.take::<String>("exchange"), Ok(None));
        assert_eq!(params.finish(), Ok(()));
    }

    #[test]
    fn an_unknown_parameter_is_named_beside_the_known_ones() {
        let mut params = Params::new("key=1&plugin.library.paths=/tmp/evil.so");
        assert_eq!(params.take::<String>("key"), Ok(Some("1".to_owned())));
        assert_eq!(params.take::<i32>("partition"), Ok(None));
        refused(params.finish(), "unknown parameter \"plugin.library.paths\"; known are `key`, `partition`");
        refused(Params::new("a=1").finish(), "unknown parameter \"a\"; none is known here");
    }

    #[test]
    fn an_escaped_name_is_the_same_name() {
        refused(Params::new("key=1&k%65y=2").take::<u8>("key"), "the parameter `key` is given more than once");
    }

    #[test]
    fn no_error_prints_a_value() {
        refused(
            Params::new("n=hunter2").take::<u8>("n"),
            "the parameter `n` is not valid: invalid digit found in string",
        );
        refused(Params::new("c=dig").take::<u8>("c"), "the parameter `c` is not valid");
        refused(Params::new("hunter2").finish(), "a parameter without name or value; none is known here");
        refused(Params::new("n").take::<u8>("n"), "the parameter `n` has no value");
        refused(Params::new("n=%ff").take::<String>("n"), "the parameter `n` is not UTF-8");
        refused(Params::new("").require::<u8>("n"), "the parameter `n` is missing");
    }
}
