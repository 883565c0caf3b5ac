//! Runs accepted calls.

use super::{
    Body,
    service::{IGNORE_CACHE, TIMEOUT},
    stored::{Stored, Unanswered},
};
use async_trait::async_trait;
use bytes::Bytes;
use callback_core::{BoxError, Payload, RpcAnswer, RpcError, RpcId, RpcOptions, RpcResponse};
use callback_dispatch::{Failure, Handler, Outcome, Task};
use http::{Request, Response};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{fmt, time::Duration};
use tower_service::Service;

/// Runs accepted calls through a JSON-RPC service: what a [`Worker`](callback_dispatch::Worker) is given.
///
/// The service sees the stored request and nothing else: method, path, the headers and extensions that the layer keeps,
/// and among the extensions the [`Task`] and the [`RpcOptions`]. The first run and every later one are the same. A call
/// without a callback reaches the service from the layer, and has no [`Task`]: a method takes it as an `Option`.
pub struct RpcHandler<S>(Stored<S>);

impl<S> RpcHandler<S> {
    /// A handler that calls this service: the very one that the layer wraps.
    pub const fn new(service: S) -> Self {
        Self(Stored::new(service))
    }

    /// Sets an extension again that [`keep_extension`](super::RpcLayerBuilder::keep_extension) stored under this name.
    ///
    /// A call whose extension cannot be read any more is not run without it: it ends as -32603.
    #[must_use]
    pub fn extension<T>(mut self, name: impl Into<String>) -> Self
    where
        T: DeserializeOwned + Clone + Send + Sync + 'static,
    {
        self.0.extension::<T>(name.into());
        self
    }

    fn request(&self, task: &Task) -> Result<Request<Body>, serde_json::Error> {
        let mut request = self.0.request(task)?;
        let mut options = RpcOptions::default();
        options.ignore_cache = task.extension(IGNORE_CACHE) == Some(&Value::Bool(true));
        let seconds = task.extension(TIMEOUT).and_then(Value::as_f64);
        options.timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        options.ray_id = task.correlation_id().map(str::to_owned);
        request.extensions_mut().insert(options);
        Ok(request)
    }
}

#[async_trait]
impl<S, B> Handler for RpcHandler<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    async fn run(&self, task: Task) -> Outcome {
        let request = match self.request(&task) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(task = %task.id(), %error, "a kept extension cannot be read");
                return internal(&task, "a kept extension cannot be read");
            }
        };
        match self.0.call(request).await {
            Ok(response) => match RpcAnswer::read(&id(&task), response.body()) {
                Ok(answer) if answer.is_error() => rpc_outcome(Outcome::failed, "failed", answer.into_body()),
                Ok(answer) => rpc_outcome(Outcome::completed, "completed", answer.into_body()),
                Err(invalid) => internal(&task, &format!("{invalid} (HTTP status {})", response.status().as_u16())),
            },
            Err(Unanswered::TooLarge { limit }) => failed(&task, too_large(limit)),
            Err(unanswered) => internal(&task, &unanswered.to_string()),
        }
    }

    fn failure(&self, task: &Task, failure: &Failure) -> Outcome {
        let error = match failure {
            Failure::Interrupted => RpcError::new(RpcError::INTERRUPTED, "Interrupted"),
            Failure::TimedOut(limit) => RpcError::new(RpcError::TIMED_OUT, "Method timed out")
                .with_data(json!({ "seconds": limit.as_secs_f64() })),
            Failure::TooLarge { limit } => too_large(*limit),
            Failure::Kept { limit } => RpcError::new(RpcError::RESULT_TOO_LARGE, "Result too large")
                .with_data(json!({ "limit": limit, "kept": true })),
            other => {
                RpcError::new(RpcError::INTERNAL, "Internal error").with_data(json!({ "reason": other.to_string() }))
            }
        };
        failed(task, error)
    }
}

fn rpc_outcome(outcome: impl Fn(Payload) -> Outcome, how: &str, body: impl Into<Bytes>) -> Outcome {
    outcome(Payload::new("application/json", body)).with_event_type(format!("callback.rpc.{how}"))
}

fn internal(task: &Task, reason: &str) -> Outcome {
    tracing::warn!(task = %task.id(), operation = task.operation(), reason, "a method gave no JSON-RPC answer");
    failed(task, RpcError::new(RpcError::INTERNAL, "Internal error").with_data(json!({ "reason": reason })))
}

fn too_large(limit: usize) -> RpcError {
    RpcError::new(RpcError::RESULT_TOO_LARGE, "Result too large").with_data(json!({ "limit": limit }))
}

fn failed(task: &Task, error: RpcError) -> Outcome {
    rpc_outcome(Outcome::failed, "failed", super::reply::to_json(&RpcResponse::failure(id(task), error)))
}

/// The id of the stored call.
fn id(task: &Task) -> RpcId {
    #[derive(Deserialize)]
    struct Identified {
        id: RpcId,
    }
    task.json::<Identified>().map_or(RpcId::Null, |call| call.id)
}

impl<S> fmt::Debug for RpcHandler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcHandler").finish_non_exhaustive()
    }
}
