//! Runtime expressions of OpenAPI 3.1: where in a request a value stands.

use bytes::Bytes;
use callback_core::BoxError;
use http::{HeaderName, header, request::Parts};
use serde_json::{Value, value::RawValue};
use std::{collections::HashMap, fmt, str::FromStr};

/// Names a part of a request: a runtime expression (OpenAPI 3.1 §4.8.20.4).
///
/// | expression | value |
/// |---|---|
/// | `$url` | the request's URL, a text |
/// | `$method` | its method, a text |
/// | `$request.header.callback-url` | a header, named without regard to case |
/// | `$request.query.callbackUrl` | a query parameter, percent-decoded |
/// | `$request.path.id` | a parameter of the path, percent-decoded |
/// | `$request.body` | the body: JSON of any type, or a text |
/// | `$request.body#/callback/url` | what this JSON Pointer (RFC 6901) points to, of any JSON type |
///
/// `$statusCode` and `$response.…` speak of an answer, which there is none of yet: they are refused, and the error says so.
///
/// ```
/// use callback_http::server::Expression;
///
/// let expression: Expression = "$request.body#/callbackUrl".parse()?;
/// assert_eq!(expression.to_string(), "$request.body#/callbackUrl");
/// # Ok::<_, callback_http::server::ExpressionError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression(Part);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Url,
    Method,
    Header(HeaderName),
    Query(String),
    Path(String),
    Body { pointer: Option<String> },
}

/// Why a text is no expression over a request: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {position}: {reason}")]
pub struct ExpressionError {
    position: usize,
    reason: &'static str,
}

impl ExpressionError {
    /// The character at which it is wrong, from 1; one past the last where something is missing.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.position
    }
}

/// Where a value stands, in a request as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A JSON Pointer into the body.
    Pointer(String),
    Header(String),
    Parameter(String),
    Request,
}

/// A request, as expressions see it.
pub(super) struct Asked<'a> {
    parts: &'a Parts,
    path: HashMap<&'a str, String>,
    body: &'a Bytes,
    /// Its syntax was checked. What is in it is read where it is asked for: what no `Value` can be, at some other place, is not
    /// to hide a callback.
    json: Option<&'a RawValue>,
}

impl<'a> Asked<'a> {
    /// The parameters of the path are those that its template names.
    pub(super) fn new(parts: &'a Parts, path: HashMap<&'a str, String>, body: &'a Bytes) -> Self {
        // A byte order mark may be passed over (RFC 8259 §8.1).
        let json = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        Self { parts, path, body, json: serde_json::from_slice(json).ok() }
    }
}

const UNREADABLE: &str = "it cannot be read: nested too deeply, too large a number, or no Unicode text";

fn read(json: &RawValue) -> Result<Value, &'static str> {
    serde_json::from_str(json.get()).map_err(|_| UNREADABLE)
}

/// What a JSON Pointer points to (RFC 6901 §4); the last of members of one name.
fn pointed<'a>(json: &'a RawValue, pointer: &str) -> Result<Option<&'a RawValue>, &'static str> {
    let mut found = json;
    for token in pointer.split('/').skip(1) {
        let next = match found.get().as_bytes() {
            [b'{', ..] => {
                let mut members: HashMap<String, &RawValue> =
                    serde_json::from_str(found.get()).map_err(|_| UNREADABLE)?;
                members.remove(&token.replace("~1", "/").replace("~0", "~"))
            }
            [b'[', ..] => {
                let items: Vec<&RawValue> = serde_json::from_str(found.get()).map_err(|_| UNREADABLE)?;
                let is_index = token == "0" || token.starts_with(|digit: char| ('1'..='9').contains(&digit));
                token.parse::<usize>().ok().filter(|_| is_index).and_then(|index| items.get(index).copied())
            }
            _ => None,
        };
        match next {
            Some(next) => found = next,
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}

impl Expression {
    /// The value in this request, if there is one; why there is more than one.
    pub(super) fn evaluate(&self, asked: &Asked<'_>) -> Result<Option<Value>, &'static str> {
        let text = |value: String| Some(Value::String(value));
        Ok(match &self.0 {
            Part::Url => text(url(asked.parts)),
            Part::Method => text(asked.parts.method.to_string()),
            Part::Header(name) => {
                let value = only(asked.parts.headers.get_all(name).iter(), "the header is there more than once")?;
                match value {
                    Some(value) => text(value.to_str().map_err(|_| "the header is no text")?.trim().to_owned()),
                    None => None,
                }
            }
            Part::Query(name) => {
                let query = url::form_urlencoded::parse(asked.parts.uri.query().unwrap_or_default().as_bytes());
                let values = query.filter(|(known, _)| known == name).map(|(_, value)| value.into_owned());
                only(values, "the parameter is there more than once")?.map(Value::String)
            }
            Part::Path(name) => asked.path.get(name.as_str()).cloned().map(Value::String),
            Part::Body { pointer: Some(pointer) } => match asked.json {
                Some(json) => pointed(json, pointer)?.map(read).transpose()?,
                None => None,
            },
            Part::Body { pointer: None } => match asked.json {
                Some(json) => Some(read(json)?),
                None if asked.body.is_empty() => None,
                None => str::from_utf8(asked.body).ok().map(Value::from),
            },
        })
    }

    pub(super) fn place(&self) -> Place {
        match &self.0 {
            Part::Url | Part::Method => Place::Request,
            Part::Header(name) => Place::Header(name.as_str().to_owned()),
            Part::Query(name) | Part::Path(name) => Place::Parameter(name.clone()),
            Part::Body { pointer } => Place::Pointer(pointer.clone().unwrap_or_default()),
        }
    }

    /// Whether it names the body, or something in it.
    pub(super) const fn is_of_body(&self) -> bool {
        matches!(self.0, Part::Body { .. })
    }

    /// The header that it names.
    pub(super) const fn header(&self) -> Option<&HeaderName> {
        match &self.0 {
            Part::Header(name) => Some(name),
            _ => None,
        }
    }

    /// The parameter of the path that it names.
    pub(super) const fn path_parameter(&self) -> Option<&str> {
        match &self.0 {
            Part::Path(name) => Some(name.as_str()),
            _ => None,
        }
    }
}

/// The only item, if there is one.
fn only<T>(mut items: impl Iterator<Item = T>, several: &'static str) -> Result<Option<T>, &'static str> {
    let first = items.next();
    if items.next().is_some() { Err(several) } else { Ok(first) }
}

/// The URL: as it was sent if it is whole, else at the host that the request names, over `http`.
fn url(parts: &Parts) -> String {
    if parts.uri.scheme().is_some() {
        return parts.uri.to_string();
    }
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    format!("http://{host}{}", parts.uri.path_and_query().map_or("/", |path| path.as_str()))
}

const SOURCES: &str = "expected header.NAME, query.NAME, path.NAME, or body";

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        let at = |rest: &str, reason| {
            let position = text.chars().count() - rest.chars().count() + 1;
            ExpressionError { position, reason }
        };
        let part = match text {
            "$url" => Part::Url,
            "$method" => Part::Method,
            _ if text == "$statusCode" || text.starts_with("$response.") => {
                return Err(at(text, "it speaks of an answer, and a request is looked at before there is one"));
            }
            _ => {
                let Some(source) = text.strip_prefix("$request.") else {
                    return Err(at(text, "expected $url, $method, or $request.…"));
                };
                if let Some(token) = source.strip_prefix("header.") {
                    if token.is_empty() {
                        return Err(at(token, "expected the name of a header"));
                    }
                    if let Some(wrong) = token.find(|c| !is_tchar(c)) {
                        return Err(at(&token[wrong..], "no name of a header has this character"));
                    }
                    Part::Header(token.parse().map_err(|_| at(token, "expected the name of a header"))?)
                } else if let Some(name) = source.strip_prefix("query.") {
                    Part::Query(unescaped(name).map_err(|(rest, reason)| at(rest, reason))?)
                } else if let Some(name) = source.strip_prefix("path.") {
                    Part::Path(unescaped(name).map_err(|(rest, reason)| at(rest, reason))?)
                } else if let Some(rest) = source.strip_prefix("body") {
                    Part::Body { pointer: pointer(rest).map_err(|(rest, reason)| at(rest, reason))? }
                } else {
                    return Err(at(source, SOURCES));
                }
            }
        };
        Ok(Self(part))
    }
}

type Wrong<'a> = (&'a str, &'static str);

/// Nothing, or `#` and a JSON Pointer (RFC 6901 §3), kept as it is written.
fn pointer(text: &str) -> Result<Option<String>, Wrong<'_>> {
    let Some(pointer) = text.strip_prefix('#') else {
        return if text.is_empty() { Ok(None) } else { Err((text, "expected # and a JSON Pointer, or the end")) };
    };
    if !pointer.is_empty() && !pointer.starts_with('/') {
        return Err((pointer, "a JSON Pointer begins with /"));
    }
    for (place, _) in pointer.match_indices('~') {
        if !pointer[place + 1..].starts_with(['0', '1']) {
            return Err((&pointer[place..], "~ stands before 0 or 1 alone"));
        }
    }
    Ok(Some(pointer.to_owned()))
}

/// The characters of a JSON string (RFC 7159 §7), which may be none.
fn unescaped(text: &str) -> Result<String, Wrong<'_>> {
    let mut is_escaped = false;
    for (place, c) in text.char_indices() {
        if c < ' ' || (c == '"' && !is_escaped) {
            return Err((&text[place..], "a name holds this character only escaped, as in JSON"));
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    let read = serde_json::from_str(&format!("\"{text}\""));
    read.map_err(|_| (&text[text.find('\\').unwrap_or_default()..], "an escape that JSON does not know"))
}

/// A character of a token (RFC 9110 §5.6.2).
const fn is_tchar(c: char) -> bool {
    matches!(
        c,
        '!' | '#' | '$' | '%' | '&' | '\'' | '*' | '+' | '-' | '.' | '^' | '_' | '`' | '|' | '~' | '0'..='9' | 'a'..='z' | 'A'..='Z'
    )
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |name: &str| {
            let quoted = Value::from(name).to_string();
            quoted[1..quoted.len() - 1].to_owned()
        };
        match &self.0 {
            Part::Url => f.write_str("$url"),
            Part::Method => f.write_str("$method"),
            Part::Header(name) => write!(f, "$request.header.{name}"),
            Part::Query(name) => write!(f, "$request.query.{}", escaped(name)),
            Part::Path(name) => write!(f, "$request.path.{}", escaped(name)),
            Part::Body { pointer: None } => f.write_str("$request.body"),
            Part::Body { pointer: Some(pointer) } => write!(f, "$request.body#{pointer}"),
        }
    }
}

/// A path with parameters in braces, as OpenAPI writes it: `/items/{id}/tasks`.
#[derive(Clone, Debug)]
pub(super) struct Template(Vec<Segment>);

#[derive(Clone, Debug)]
enum Segment {
    Literal(String),
    Parameter(String),
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, BoxError> {
        let path = text.strip_prefix('/').ok_or("the template of a path begins with /")?;
        let segments = path.split('/').map(|segment| match segment.strip_prefix('{') {
            Some(name) => match name.strip_suffix('}') {
                Some(name) if !name.is_empty() && !name.contains(['{', '}']) => Ok(Segment::Parameter(name.to_owned())),
                _ => Err(format!("{segment} is no parameter of a path: expected a name in braces")),
            },
            None if segment.contains(['{', '}']) => {
                Err(format!("{segment}: a parameter is a whole segment of the path"))
            }
            None => Ok(Segment::Literal(segment.to_owned())),
        });
        Ok(Self(segments.collect::<Result<_, _>>()?))
    }

    pub(super) fn names(&self, parameter: &str) -> bool {
        self.0.iter().any(|segment| matches!(segment, Segment::Parameter(name) if name == parameter))
    }

    /// The parameters of this path; none if it is another one.
    pub(super) fn parameters(&self, path: &str) -> Option<HashMap<&str, String>> {
        let mut parameters = HashMap::new();
        let mut segments = path.strip_prefix('/')?.split('/');
        for expected in &self.0 {
            let segment = segments.next()?;
            match expected {
                Segment::Literal(literal) if literal == segment => {}
                Segment::Literal(_) => return None,
                Segment::Parameter(_) if segment.is_empty() => return None,
                Segment::Parameter(name) => _ = parameters.insert(name.as_str(), percent_decoded(segment)),
            }
        }
        segments.next().is_none().then_some(parameters)
    }
}

/// Percent-decoding alone: to a path `+`, `&` and `=` are characters like others (RFC 3986 §3.3).
fn percent_decoded(segment: &str) -> String {
    let value = format!("={}", segment.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(value.as_bytes()).map(|(_, value)| value.into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use serde_json::json;

    const BODY: &str = r#"{"callbackUrl":"https://a.example/","callback":{"url":"u","meta":{"a":1}},"a/b":1,"m~n":2,
        "params":{"$rpc.callback":"r"},"urls":["first","second"],"":"empty","none":null}"#;

    fn request() -> (Parts, Bytes) {
        let request = Request::post("/items/a%20b+c/tasks?to=https%3A%2F%2Fq.example%2F%3Fa%3Db&two=1&two=2&To=other")
            .header("host", "api.example")
            .header("Callback-Url", " https://h.example/ ")
            .header("twice", "1")
            .header("twice", "2");
        (request.body(()).expect("a request").into_parts().0, BODY.into())
    }

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "a literal at every call")]
    fn check(expression: &str, expected: Result<Option<Value>, &'static str>) {
        let (parts, body) = request();
        let template = Template::parse("/items/{id}/tasks").expect("a template");
        let asked = Asked::new(&parts, template.parameters(parts.uri.path()).expect("it matches"), &body);
        let parsed: Expression = expression.parse().expect("an expression");
        assert_eq!(parsed.evaluate(&asked), expected, "{expression}");
    }

    #[test]
    fn each_part_of_a_request_is_found() {
        check(
            "$url",
            Ok(Some(json!(
                "http://api.example/items/a%20b+c/tasks?to=https%3A%2F%2Fq.example%2F%3Fa%3Db&two=1&two=2&To=other"
            ))),
        );
        check("$method", Ok(Some(json!("POST"))));
        check("$request.header.callback-url", Ok(Some(json!("https://h.example/"))));
        check("$request.header.CALLBACK-URL", Ok(Some(json!("https://h.example/"))));
        check("$request.header.absent", Ok(None));
        check("$request.header.twice", Err("the header is there more than once"));
        check("$request.query.to", Ok(Some(json!("https://q.example/?a=b"))));
        check("$request.query.To", Ok(Some(json!("other"))));
        check("$request.query.tO", Ok(None));
        check("$request.query.two", Err("the parameter is there more than once"));
        check("$request.path.id", Ok(Some(json!("a b+c"))));
        check("$request.path.Id", Ok(None));
    }

    #[test]
    fn a_pointer_keeps_the_type_of_what_it_points_to() {
        check("$request.body", Ok(Some(serde_json::from_str(BODY).expect("JSON"))));
        check("$request.body#", Ok(Some(serde_json::from_str(BODY).expect("JSON"))));
        check("$request.body#/callbackUrl", Ok(Some(json!("https://a.example/"))));
        check("$request.body#/callback/url", Ok(Some(json!("u"))));
        check("$request.body#/callback/meta", Ok(Some(json!({ "a": 1 }))));
        check("$request.body#/params/$rpc.callback", Ok(Some(json!("r"))));
        check("$request.body#/urls/1", Ok(Some(json!("second"))));
        check("$request.body#/urls/01", Ok(None));
        check("$request.body#/urls/-", Ok(None));
        check("$request.body#/urls/+1", Ok(None));
        check("$request.body#/urls/2", Ok(None));
        check("$request.body#/callbackUrl/a", Ok(None));
        check("$request.body#/a~1b", Ok(Some(json!(1))));
        check("$request.body#/m~0n", Ok(Some(json!(2))));
        check("$request.body#/", Ok(Some(json!("empty"))));
        check("$request.body#/none", Ok(Some(Value::Null)));
        check("$request.body#/absent/url", Ok(None));
    }

    #[test]
    fn a_body_that_is_no_json_is_a_text_and_nothing_is_in_it() {
        let (parts, _) = request();
        let evaluate = |expression: &str, body: &'static [u8]| {
            let body = Bytes::from_static(body);
            let asked = Asked::new(&parts, HashMap::new(), &body);
            expression.parse::<Expression>().expect("an expression").evaluate(&asked).expect("at most one")
        };
        assert_eq!(evaluate("$request.body", b"https://a.example/"), Some(json!("https://a.example/")));
        assert_eq!(evaluate("$request.body", b""), None);
        assert_eq!(evaluate("$request.body", b"\xff"), None);
        assert_eq!(evaluate("$request.body#/a", b"a=1"), None);
    }

    #[test]
    fn what_cannot_be_read_hides_nothing_beside_it() {
        let (parts, _) = request();
        let evaluate = |expression: &str, body: &str| {
            let body = Bytes::copy_from_slice(body.as_bytes());
            let asked = Asked::new(&parts, HashMap::new(), &body);
            expression.parse::<Expression>().expect("an expression").evaluate(&asked)
        };
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for other in [r#""\ud83d""#, "1e999", &deep] {
            let body = format!(r#"{{"other":{other},"to":["u"]}}"#);
            assert_eq!(evaluate("$request.body#/to/0", &body), Ok(Some(json!("u"))));
            assert_eq!(evaluate("$request.body#/absent", &body), Ok(None));
            for within in ["", "#", "#/other"] {
                assert_eq!(evaluate(&format!("$request.body{within}"), &body), Err(UNREADABLE), "{within}");
            }
        }
        assert_eq!(evaluate("$request.body#/a", r#"{"\ud83d":1}"#), Err(UNREADABLE));
        assert_eq!(evaluate("$request.body#/a", r#"{"a":1,"a":2}"#), Ok(Some(json!(2))));
        assert_eq!(evaluate("$request.body#/a", "\u{feff}{\"a\":1}"), Ok(Some(json!(1))));
    }

    #[test]
    fn an_expression_is_written_as_it_was_read() {
        for text in [
            "$url",
            "$method",
            "$request.header.x-a!#$%&'*+-.^_`|~0",
            "$request.query.name",
            "$request.query.",
            r#"$request.query.a\"b"#,
            "$request.path.ä",
            "$request.body",
            "$request.body#",
            "$request.body#/",
            "$request.body#//a~0b~1c",
        ] {
            let expression: Expression = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(expression.to_string(), text);
        }
        let escaped: Expression = r"$request.query.\u0061".parse().expect("an expression");
        assert_eq!(escaped, "$request.query.a".parse().expect("an expression"));
    }

    #[test]
    fn an_error_names_the_place() {
        for (text, position) in [
            ("", 1),
            ("url", 1),
            ("$URL", 1),
            ("$urls", 1),
            ("$statusCode", 1),
            ("$response.body#/a", 1),
            ("{$url}", 1),
            ("$request.", 10),
            ("$request.cookie.a", 10),
            ("$request.header.", 17),
            ("$request.header.a b", 18),
            ("$request.header.a{b", 18),
            ("$request.query.a\"b", 17),
            ("$request.query.a\nb", 17),
            ("$request.query.ä\\x", 17),
            ("$request.query.a\\", 17),
            ("$request.body.a", 14),
            ("$request.bodya", 14),
            ("$request.body#a", 15),
            ("$request.body#/a~", 17),
            ("$request.body#/a~2", 17),
        ] {
            let error = text.parse::<Expression>().expect_err(text);
            assert_eq!(error.position(), position, "{text:?}: {error}");
        }
        for text in ["$statusCode", "$response.header.Location"] {
            let error = text.parse::<Expression>().expect_err(text);
            assert!(error.to_string().contains("speaks of an answer"), "{error}");
        }
    }

    #[test]
    fn a_parameter_of_the_path_is_the_whole_segment() {
        let template = Template::parse("/items/{id}/tasks").expect("a template");
        for (segment, expected) in [
            ("https:%2F%2Fa.example%2F%3Fto=b&c=d", "https://a.example/?to=b&c=d"),
            ("a=b&c=d", "a=b&c=d"),
            ("=&", "=&"),
            ("&a", "&a"),
            ("a;b=1,2", "a;b=1,2"),
            ("%26%3D%2B+%20%25", "&=++ %"),
            ("%zz%", "%zz%"),
        ] {
            let parameters = template.parameters(&format!("/items/{segment}/tasks")).expect("it matches");
            assert_eq!(parameters["id"], expected, "{segment}");
        }
        assert!(template.parameters("/items//tasks").is_none());
    }

    #[test]
    fn a_template_matches_whole_paths() {
        let template = Template::parse("/items/{id}/tasks").expect("a template");
        for path in ["/items/1", "/items/1/tasks/", "/items/1/other", "/x/items/1/tasks", ""] {
            assert!(template.parameters(path).is_none(), "{path}");
        }
        for text in ["items", "/{}", "/{a", "/a{b}", "/{a}b", "/{a{b}}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
