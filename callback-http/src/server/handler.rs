//! Runs accepted calls.

use super::{
    Body,
    body::{Read, read},
    service::{IGNORE_CACHE, TIMEOUT, URI},
};
use async_trait::async_trait;
use bytes::Bytes;
use callback_core::{BoxError, Payload, RpcAnswer, RpcError, RpcId, RpcOptions, RpcResponse};
use callback_dispatch::{Failure, Handler, Outcome, Task};
use http::{HeaderValue, Method, Request, Response, Uri, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    fmt,
    future::poll_fn,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tower_service::Service;

/// Runs accepted calls through a JSON-RPC service: what a [`Worker`](callback_dispatch::Worker) is given.
///
/// The service sees the stored request and nothing else: method, path, the headers and extensions that the layer keeps,
/// and among the extensions the [`Task`] and the [`RpcOptions`]. The first run and every later one are the same. A call
/// without a callback reaches the service from the layer, and has no [`Task`]: a method takes it as an `Option`.
pub struct RpcHandler<S> {
    // A lock, since a service may be `Send` without being `Sync`; it is held to clone it.
    service: Mutex<S>,
    extensions: Vec<SetExtension>,
}

type SetExtension = Box<dyn Fn(&Task, &mut http::Extensions) -> Result<(), serde_json::Error> + Send + Sync>;

/// The most that is read of a service's answer, in bytes. What may be sent is less.
const ANSWER_LIMIT: usize = 16 << 20;

impl<S> RpcHandler<S> {
    /// A handler that calls this service: the very one that the layer wraps.
    pub const fn new(service: S) -> Self {
        Self { service: Mutex::new(service), extensions: Vec::new() }
    }

    /// Sets an extension again that [`keep_extension`](super::RpcLayerBuilder::keep_extension) stored under this name.
    ///
    /// A call whose extension cannot be read any more is not run without it: it ends as -32603.
    #[must_use]
    pub fn extension<T>(mut self, name: impl Into<String>) -> Self
    where
        T: DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let name = name.into();
        self.extensions.push(Box::new(move |task, extensions| {
            if let Some(value) = task.extension(&name) {
                extensions.insert(T::deserialize(value)?);
            }
            Ok(())
        }));
        self
    }

    fn request(&self, task: &Task) -> Result<Request<Body>, serde_json::Error> {
        let mut request = Request::new(Body::from(task.payload().body().clone()));
        *request.method_mut() = Method::POST;
        let uri = task.extension(URI).and_then(Value::as_str).and_then(|uri| uri.parse::<Uri>().ok());
        *request.uri_mut() = uri.unwrap_or_else(|| Uri::from_static("/"));
        let headers = request.headers_mut();
        for (name, value) in task.headers() {
            if let (Ok(name), Ok(value)) = (name.parse::<header::HeaderName>(), HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(task.payload().body().len()));
        let mut options = RpcOptions::default();
        options.ignore_cache = task.extension(IGNORE_CACHE) == Some(&Value::Bool(true));
        let seconds = task.extension(TIMEOUT).and_then(Value::as_f64);
        options.timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        options.ray_id = task.correlation_id().map(str::to_owned);
        let extensions = request.extensions_mut();
        extensions.insert(task.clone());
        extensions.insert(options);
        for set in &self.extensions {
            set(task, extensions)?;
        }
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
        let service = self.service.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = match self.request(&task) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(task = %task.id(), %error, "a kept extension cannot be read");
                return internal(&task, "a kept extension cannot be read");
            }
        };
        match answer(service, request).await {
            Ok((status, body)) => match RpcAnswer::read(&id(&task), &body) {
                Ok(answer) if answer.is_error() => rpc_outcome(Outcome::failed, "failed", answer.into_body()),
                Ok(answer) => rpc_outcome(Outcome::completed, "completed", answer.into_body()),
                Err(invalid) => internal(&task, &format!("{invalid} (HTTP status {status})")),
            },
            Err(reason) => internal(&task, &reason),
        }
    }

    fn failure(&self, task: &Task, failure: &Failure) -> Outcome {
        let error = match failure {
            Failure::Interrupted => RpcError::new(RpcError::INTERRUPTED, "Interrupted"),
            Failure::TimedOut(limit) => RpcError::new(RpcError::TIMED_OUT, "Method timed out")
                .with_data(json!({ "seconds": limit.as_secs_f64() })),
            Failure::TooLarge { limit } => {
                RpcError::new(RpcError::RESULT_TOO_LARGE, "Result too large").with_data(json!({ "limit": limit }))
            }
            other => {
                RpcError::new(RpcError::INTERNAL, "Internal error").with_data(json!({ "reason": other.to_string() }))
            }
        };
        failed(task, error)
    }
}

/// Calls the service and reads its answer with its status; the reason if there is none.
async fn answer<S, B>(mut service: S, request: Request<Body>) -> Result<(u16, Bytes), String>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let failed = |error: BoxError| {
        tracing::error!(%error, "a service failed");
        "the service failed".to_owned()
    };
    poll_fn(|context| service.poll_ready(context)).await.map_err(|error| failed(error.into()))?;
    let response = service.call(request).await.map_err(|error| failed(error.into()))?;
    let status = response.status().as_u16();
    match read(Box::pin(response.into_body()), ANSWER_LIMIT).await {
        Read::Whole(body) => Ok((status, body)),
        Read::Longer(..) => Err(format!("the answer is larger than {ANSWER_LIMIT} bytes")),
        Read::Failed(error) => Err(failed(error)),
    }
}

fn rpc_outcome(outcome: impl Fn(Payload) -> Outcome, how: &str, body: impl Into<Bytes>) -> Outcome {
    outcome(Payload::new("application/json", body)).with_event_type(format!("callback.rpc.{how}"))
}

fn internal(task: &Task, reason: &str) -> Outcome {
    tracing::warn!(task = %task.id(), operation = task.operation(), reason, "a method gave no JSON-RPC answer");
    failed(task, RpcError::new(RpcError::INTERNAL, "Internal error").with_data(json!({ "reason": reason })))
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
