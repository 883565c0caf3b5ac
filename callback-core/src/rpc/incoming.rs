//! What a client sends: one call or a batch, read without changing a byte of what the method gets.

use super::{
    RpcError, RpcId, RpcOptions, RpcResponse, VERSION,
    members::{Members, Writer, text},
    options::{self, pointer},
};
use bytes::Bytes;
use serde_json::{Number, value::RawValue};
use std::fmt;

/// The body of a request, taken apart.
///
/// ```
/// use callback_core::{Incoming, Target};
///
/// let body = r#"{"id":1,"method":"process","params":{"orderId":"12345","$rpc.callback":"https://example.com/done"}}"#;
/// let Ok(Incoming::Single(call)) = Incoming::parse(&body.into()) else { panic!("one call") };
/// assert!(matches!(call.options().callback, Some(Target::Dsn(_))));
/// assert_eq!(call.body(), r#"{"id":1,"method":"process","params":{"orderId":"12345"}}"#);
/// ```
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "JSON-RPC 2.0 knows these two")]
pub enum Incoming {
    /// One call.
    Single(Call),
    /// An array of one or more, each read for itself, in the order sent.
    Batch(Vec<Result<Call, Rejected>>),
}

impl Incoming {
    /// How many items a batch may have.
    pub const MAX_BATCH: usize = 1_000;

    /// How deep arrays and objects may nest: as deep as `serde_json` reads by default.
    pub const MAX_DEPTH: usize = 127;

    /// Reads a body whose length the caller has limited.
    ///
    /// # Errors
    /// When it is no JSON (-32700), an empty or too long batch, or a single item that cannot be called. In a batch, an
    /// item that cannot be called is an error in its own place.
    pub fn parse(body: &Bytes) -> Result<Self, Rejected> {
        let no_json = |reason: String| Rejected::answered(RpcId::Null, RpcError::parse(reason));
        let text = str::from_utf8(body).map_err(|error| no_json(format!("no UTF-8 text: {error}")))?;
        if is_deeper(text, Self::MAX_DEPTH) {
            return Err(no_json(format!("nested deeper than {} levels", Self::MAX_DEPTH)));
        }
        let whole: &RawValue = serde_json::from_str(text).map_err(|error| no_json(error.to_string()))?;
        if !whole.get().starts_with('[') {
            let call = Call::read(body, whole, "")?;
            // What names no option passes through whole, white space around it included.
            return Ok(Self::Single(if call.had_options { call } else { Call { body: body.clone(), ..call } }));
        }
        let items: Vec<&RawValue> = serde_json::from_str(whole.get()).map_err(|error| no_json(error.to_string()))?;
        let no_batch = |reason: String| Rejected::answered(RpcId::Null, RpcError::invalid_request("", reason));
        match items.len() {
            0 => Err(no_batch("an empty batch".to_owned())),
            1..=Self::MAX_BATCH => {
                let read = |(index, item)| Call::read(body, item, &format!("/{index}"));
                Ok(Self::Batch(items.into_iter().enumerate().map(read).collect()))
            }
            length => Err(no_batch(format!("a batch of {length} items; {} are allowed", Self::MAX_BATCH))),
        }
    }
}

/// One call that can be made: everything under `$rpc` is taken out of it.
pub struct Call {
    id: Option<RpcId>,
    method: String,
    options: RpcOptions,
    had_options: bool,
    body: Bytes,
}

impl Call {
    /// The most bytes of an id, and of a method's name.
    pub const MAX_NAME: usize = 1_024;

    /// The id; `None` for a notification.
    #[must_use]
    pub const fn id(&self) -> Option<&RpcId> {
        self.id.as_ref()
    }

    /// The method's name.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// What was asked for under `$rpc`.
    #[must_use]
    pub const fn options(&self) -> &RpcOptions {
        &self.options
    }

    /// Whether anything stood under `$rpc`, if only an empty object.
    #[must_use]
    pub const fn had_options(&self) -> bool {
        self.had_options
    }

    /// Whether it has no id, so that nobody may answer it (JSON-RPC 2.0 §4.1).
    #[must_use]
    pub const fn is_notification(&self) -> bool {
        self.id.is_none()
    }

    /// The request for the method: the bytes as sent, without `$rpc`.
    ///
    /// Where something was taken out, the members of the request and of its `params` are joined anew without white space
    /// between them; their order, their names and their values stay as they were spelled.
    #[must_use]
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// [`body`](Self::body), owned.
    #[must_use]
    pub fn into_body(self) -> Bytes {
        self.body
    }

    /// Reads the item at `place`, a slice of `body`.
    fn read(body: &Bytes, item: &RawValue, place: &str) -> Result<Self, Rejected> {
        let envelope = Members::read(item)
            .map_err(|reason| Rejected::answered(RpcId::Null, RpcError::invalid_request(place, reason)))?;
        let duplicate = envelope.duplicate();
        let id = envelope.value("id").map(read_id);
        let echo = match &id {
            Some(Ok(id)) if duplicate != Some("id") => id.clone(),
            _ => RpcId::Null,
        };
        let invalid = |member: &str, reason: &str| {
            Rejected::answered(echo.clone(), RpcError::invalid_request(&pointer(place, member), reason))
        };
        if let Some(name) = duplicate {
            return Err(invalid(name, "a member given twice"));
        }
        if envelope.value("jsonrpc").is_some_and(|version| text(version).as_deref() != Some(VERSION)) {
            return Err(invalid("jsonrpc", "expected \"2.0\""));
        }
        let id = id.transpose().map_err(|reason| invalid("id", reason))?;
        if id.as_ref().is_some_and(|id| id.to_string().len() > Self::MAX_NAME) {
            let error = RpcError::invalid_request(&pointer(place, "id"), "longer than 1,024 bytes");
            return Err(Rejected::answered(RpcId::Null, error));
        }
        let method = envelope.value("method").and_then(text).ok_or_else(|| invalid("method", "expected a string"))?;
        if method.len() > Self::MAX_NAME {
            return Err(invalid("method", "longer than 1,024 bytes"));
        }

        let (options, rest) = match envelope.value("params") {
            Some(params) => read_params(params, &pointer(place, "params"))
                .map_err(|error| Rejected { id: id.clone(), error: Box::new(error) })?,
            None => (RpcOptions::default(), None),
        };
        let had_options = rest.is_some();
        let body = match rest {
            Some(rest) => with_params(&envelope, &rest).into(),
            None => body.slice_ref(item.get().as_bytes()),
        };
        Ok(Self { id, method: method.into_owned(), options, had_options, body })
    }
}

/// Bodies are never printed: their length is.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("id", &self.id)
            .field("method", &self.method)
            .field("options", &self.options)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A call that cannot be made, and what its sender is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Rejected {
    /// `None` for a notification, whose sender is told nothing.
    id: Option<RpcId>,
    error: Box<RpcError>,
}

impl Rejected {
    fn answered(id: RpcId, error: RpcError) -> Self {
        Self { id: Some(id), error: Box::new(error) }
    }

    /// What is wrong; `data` says where and why, and holds no secret.
    #[must_use]
    pub const fn error(&self) -> &RpcError {
        &self.error
    }

    /// The answer; none for a notification, not even where its `params` are wrong (JSON-RPC 2.0 §4.1).
    ///
    /// What is no request at all (-32600, -32700) is always answered, since nobody can tell that it is a notification.
    #[must_use]
    pub fn into_response(self) -> Option<RpcResponse> {
        self.id.map(|id| RpcResponse::failure(id, *self.error))
    }
}

/// Joins the texts of requests, or of responses, to one batch.
///
/// ```
/// use callback_core::join_batch;
///
/// assert_eq!(join_batch([r#"{"id":1}"#, r#"{"id":2}"#]), r#"[{"id":1},{"id":2}]"#);
/// ```
pub fn join_batch<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Bytes {
    let mut batch = vec![b'['];
    for text in texts {
        if batch.len() > 1 {
            batch.push(b',');
        }
        batch.extend_from_slice(text.as_ref());
    }
    batch.push(b']');
    batch.into()
}

fn read_params(params: &RawValue, place: &str) -> Result<(RpcOptions, Option<String>), RpcError> {
    // Null is no structured value (JSON-RPC 2.0 §4.2), but clients send it for none, and services take it.
    if params.get().starts_with('[') || params.get() == "null" {
        return Ok((RpcOptions::default(), None));
    }
    let refused = |reason| RpcError::invalid_params(place, reason);
    if !params.get().starts_with('{') {
        return Err(refused("expected an object or an array"));
    }
    let members = Members::read(params).map_err(refused)?;
    match members.duplicate() {
        Some(name) => Err(RpcError::invalid_params(&pointer(place, name), "a member given twice")),
        None => options::take(&members, place),
    }
}

fn with_params(envelope: &Members<'_>, params: &str) -> String {
    let mut request = Writer::with_capacity(128 + params.len());
    for member in envelope.iter() {
        request.push(member, if member.name == "params" { params } else { member.value.get() });
    }
    request.finish()
}

/// Refuses an integer that would come back as another one.
fn read_id(id: &RawValue) -> Result<RpcId, &'static str> {
    let read = serde_json::from_str(id.get()).map_err(|_| "expected a string, a number or null")?;
    match &read {
        RpcId::Number(number) if is_rounded(number, id.get()) => Err("an integer beyond 64 bits; send it as a string"),
        _ => Ok(read),
    }
}

fn is_rounded(number: &Number, sent: &str) -> bool {
    number.is_f64() && !sent.contains(['.', 'e', 'E']) && sent != "-0"
}

/// Whether arrays and objects nest deeper than `limit`; strings are passed over.
fn is_deeper(text: &str, limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}
