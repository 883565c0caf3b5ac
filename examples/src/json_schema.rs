//! A check of one's own: requests against JSON Schemas, before they are acknowledged.

use callback_core::{BoxError, async_trait};
use callback_dispatch::{Submission, Validator, Violations};
use serde_json::Value;
use std::{collections::HashMap, fmt};

/// Judges each operation's request by its JSON Schema; an operation without one passes.
///
/// The schemas are the operator's, and complete: a reference to another document is refused when the schema is added.
#[derive(Default)]
pub struct JsonSchema(HashMap<String, jsonschema::Validator>);

impl JsonSchema {
    /// Judges nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges the requests of an operation by this schema.
    ///
    /// # Errors
    /// When it is no schema, or refers to another document.
    pub fn operation(mut self, name: impl Into<String>, schema: &Value) -> Result<Self, BoxError> {
        self.0.insert(name.into(), jsonschema::validator_for(schema).map_err(|error| error.to_string())?);
        Ok(self)
    }
}

#[async_trait]
impl Validator for JsonSchema {
    async fn validate(&self, submission: &Submission<'_>) -> Result<(), Violations> {
        let Some(schema) = self.0.get(submission.operation) else { return Ok(()) };
        // What a client sent is not repeated: it may be secret.
        let found = schema.iter_errors(submission.content);
        let found = found.map(|error| Violations::at(error.instance_path().as_str(), error.masked().to_string()));
        found.reduce(Violations::join).map_or(Ok(()), Err)
    }
}

impl fmt::Debug for JsonSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JsonSchema").field(&self.0.keys()).finish()
    }
}
