//! A call's way: to the worker, or to the wrapped service.

use super::{
    Body,
    body::{Inner, Read, Untaken, is_coded, read, take, wanting_no_coding, with_body},
    idempotency,
    layer::Config,
    reply::{self, Reply},
};
use bytes::Bytes;
use callback_core::{
    BoxError, Call, Incoming, Payload, Rejected, RpcError, RpcId, RpcOptions, RpcResponse, Target, join_batch,
};
use callback_dispatch::Work;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request::Parts};
use serde_json::{json, value::RawValue};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;
use tower_service::Service;

/// The names under which the layer keeps what belongs to the call itself.
pub(super) const IGNORE_CACHE: &str = "callback.ignoreCache";
pub(super) const TIMEOUT: &str = "callback.timeout";

/// A JSON-RPC service with `$rpc.callback`; made by [`RpcLayer`](super::RpcLayer).
#[derive(Clone)]
pub struct RpcService<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> RpcService<S> {
    pub(super) const fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }
}

impl<S, B, R> Service<Request<B>> for RpcService<S>
where
    S: Service<Request<Body>, Response = Response<R>, Future: Send> + Clone + Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = Inner::ready(&mut self.inner);
        let config = Arc::clone(&self.config);
        Box::pin(async move {
            if request.method() != Method::POST || !is_json(request.headers()) {
                return inner.call(request.map(Body::new)).await;
            }
            if is_coded(request.headers()) {
                return Ok(wanting_no_coding(Reply::coded().into_http()));
            }
            let (parts, body) = request.into_parts();
            match take(&parts.headers, body, config.limit).await {
                Ok(body) => answer(&config, inner, parts, body).await,
                Err(Untaken::Longer(read, rest)) if config.pass_oversized => {
                    inner.call(Request::from_parts(parts, Body::prefixed(read, rest))).await
                }
                Err(Untaken::Longer(..)) => Ok(Reply::too_large(config.limit).into_http()),
                Err(Untaken::Failed) => {
                    let reason = "the request was not read to its end";
                    let error = RpcError::at(RpcError::PARSE, "Parse error", "", reason);
                    Ok(Reply::error(RpcId::Null, error).into_http())
                }
            }
        })
    }
}

async fn answer<S, R>(config: &Config, inner: Inner<S>, parts: Parts, body: Bytes) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<R>>,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    match Incoming::parse(&body) {
        Err(rejected) => Ok(not_made(rejected).map_or_else(reply::no_content, Reply::into_http)),
        Ok(Incoming::Single(call)) => match Way::of(call) {
            Way::Worker(call, id) => Ok(accept(config, &parts, call, id, None).await.into_http()),
            Way::Service(call) => single(inner, parts, call).await,
        },
        Ok(Incoming::Batch(items)) => batch(config, inner, parts, items).await,
    }
}

/// What is said of a call that cannot be made; nothing of a notification.
fn not_made(rejected: Rejected) -> Option<Reply> {
    let error = rejected.error().clone();
    let reply = rejected.into_response().map(Reply::rejected);
    if reply.is_none() {
        tracing::warn!(%error, "a notification was refused");
    }
    reply
}

/// Where a call goes.
enum Way {
    /// It names a callback, and can be answered under this id.
    Worker(Call, RpcId),
    Service(Call),
}

impl Way {
    fn of(call: Call) -> Self {
        match (call.id().cloned(), &call.options().callback) {
            (Some(id), Some(_)) => Self::Worker(call, id),
            (None, Some(_)) => {
                metrics::counter!("callback_rpc_notifications_with_callback_total").increment(1);
                tracing::warn!(method = call.method(), "a notification named a callback, which it cannot have");
                Self::Service(call)
            }
            (_, None) => Self::Service(call),
        }
    }
}

/// Stores a call and says so.
///
/// `place` is the call's in its batch.
async fn accept(config: &Config, parts: &Parts, call: Call, id: RpcId, place: Option<usize>) -> Reply {
    let pointer = call.options().callback_pointer().unwrap_or_default().to_owned();
    let dsn = match &call.options().callback {
        Some(Target::Dsn(dsn)) => Some(dsn),
        _ => config.topic.as_ref(),
    };
    let Some(dsn) = dsn else {
        let reason = "the service has no topic: name a DSN";
        return Reply::error(id, RpcError::at(RpcError::INVALID_PARAMS, "Invalid params", &pointer, reason));
    };
    let key = match idempotency::key(parts, place) {
        Ok(key) => key,
        Err(reason) => {
            return Reply::error(id, RpcError::at(RpcError::INVALID_REQUEST, "Invalid Request", "", reason));
        }
    };
    let work = key.iter().fold(work(config, parts, &call, dsn.clone()), Work::idempotency_key);
    let (work, served) = match &config.tasks {
        Some(tasks) => tasks.sign(parts, work.result_limit(config.result_limit), key.as_deref()),
        None => (work, None),
    };
    match config.worker.accept(work).await {
        Ok(acknowledgment) => {
            let href = match served {
                Some(served) => served.href(&config.worker, &acknowledgment).await,
                None => None,
            };
            Reply::accepted((config.acknowledge)(&acknowledgment, id), config.status, href)
        }
        Err(error) => {
            tracing::debug!(method = call.method(), %error, "a call was not accepted");
            Reply::not_accepted(id, &pointer, &error)
        }
    }
}

/// The work of a call: what its method will see, and nothing else.
fn work(config: &Config, parts: &Parts, call: &Call, dsn: callback_core::Dsn) -> Work {
    let options = call.options();
    let mut work =
        Work::new(Payload::new("application/json", call.body().clone())).callback(dsn).operation(call.method());
    if options.ignore_cache {
        work = work.extension(IGNORE_CACHE, true);
    }
    if let Some(limit) = options.timeout {
        work = work.time_limit(limit).extension(TIMEOUT, limit.as_secs_f64());
    }
    if let Some(ray_id) = &options.ray_id {
        work = work.correlation_id(ray_id);
    }
    if let Some(interrupted) = config.interrupted.get(call.method()) {
        work = work.interrupted(*interrupted);
    }
    if let Some(owner) = config.owner.as_ref().and_then(|owner| owner(parts)) {
        work = work.owner(owner);
    }
    config.keep.keep(parts, work)
}

/// Gives a call without callback to the service; limits it where the client asks for that.
async fn single<S, R>(inner: Inner<S>, parts: Parts, call: Call) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<R>>,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let named_callback = call.options().callback.is_some();
    let (id, limit) = (call.id().cloned(), call.options().timeout);
    let mut request = with_body(parts, call.body().clone());
    request.extensions_mut().insert(call.options().clone());
    let response = match limited(limit, inner.call(request)).await {
        Ok(response) => response?,
        Err(limit) => return Ok(id.map_or_else(reply::no_content, |id| timed_out(id, limit).into_http())),
    };
    // A notification that named a callback is answered as JSON-RPC over HTTP answers one, whatever the service said.
    Ok(if named_callback { reply::no_content() } else { response })
}

/// Accepts what names a callback, gives the rest to the service as one smaller batch, and joins the answers.
async fn batch<S, R>(
    config: &Config,
    inner: Inner<S>,
    parts: Parts,
    items: Vec<Result<Call, Rejected>>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<R>>,
    R: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut answers: Vec<Bytes> = Vec::with_capacity(items.len());
    let (mut accepted, mut rest) = (Vec::new(), Vec::new());
    for (place, item) in items.into_iter().enumerate() {
        match item.map(Way::of) {
            Err(rejected) => answers.extend(not_made(rejected).map(|reply| reply::to_json(&reply.response))),
            Ok(Way::Worker(call, id)) => accepted.push(accept(config, &parts, call, id, Some(place))),
            Ok(Way::Service(call)) => rest.push(call),
        }
    }
    // A batch in which nothing was ours is the service's, and so is its answer.
    let is_foreign = accepted.is_empty() && answers.is_empty();
    let replies = join_all(accepted).await;
    answers.extend(replies.iter().map(|reply| reply::to_json(&reply.response)));
    if !rest.is_empty() {
        // The batch runs as one: the longest limit that a call in it names is for all of it.
        let limit = rest.iter().filter_map(|call| call.options().timeout).max();
        let ids: Vec<RpcId> = rest.iter().filter_map(|call| call.id().cloned()).collect();
        let mut request = with_body(parts, join_batch(rest.iter().map(|call| call.body())));
        let options: Vec<RpcOptions> = rest.iter().map(|call| call.options().clone()).collect();
        request.extensions_mut().insert(options);
        // The error leaves before the next await: nobody asks of it that it be `Send`.
        let response = match limited(limit, inner.call(request)).await {
            Ok(response) => Ok(response?),
            Err(limit) => Err(limit),
        };
        match response {
            Ok(response) if is_foreign => return Ok(response),
            Ok(response) => answers.extend(split(response, ids).await),
            Err(limit) => {
                let timed_out = ids.into_iter().map(|id| reply::to_json(&timed_out(id, limit).response));
                answers.extend(timed_out);
            }
        }
    }
    Ok(if answers.is_empty() { reply::no_content() } else { reply::json(join_batch(answers)) })
}

/// The answers in a service's answer to a batch, byte for byte; an error for each id if there are none.
async fn split(response: Response<Body>, ids: Vec<RpcId>) -> Vec<Bytes> {
    if response.status() == StatusCode::NO_CONTENT {
        return Vec::new();
    }
    let body = match read(response.into_body(), 16 << 20).await {
        Read::Whole(body) => body,
        Read::Longer(..) | Read::Failed(_) => Bytes::new(),
    };
    let answers: Result<Vec<&RawValue>, _> = serde_json::from_slice(&body);
    match answers {
        Ok(answers) => answers.into_iter().map(|answer| body.slice_ref(answer.get().as_bytes())).collect(),
        Err(_) if serde_json::from_slice::<RpcResponse>(&body).is_ok() => vec![body],
        Err(_) => {
            let reason = json!({ "reason": "the service gave no JSON-RPC answer to a batch" });
            let error = RpcError::new(RpcError::INTERNAL, "Internal error").with_data(reason);
            ids.into_iter().map(|id| reply::to_json(&RpcResponse::failure(id, error.clone()))).collect()
        }
    }
}

/// Waits within a limit, if there is one; the limit if it passed.
async fn limited<F: Future>(limit: Option<Duration>, future: F) -> Result<F::Output, Duration> {
    match limit {
        Some(limit) => timeout(limit, future).await.map_err(|_elapsed| limit),
        None => Ok(future.await),
    }
}

fn timed_out(id: RpcId, limit: Duration) -> Reply {
    let data = json!({ "seconds": limit.as_secs_f64() });
    Reply::error(id, RpcError::new(RpcError::TIMED_OUT, "Method timed out").with_data(data))
}

/// `application/json`, `application/json-rpc`, `application/jsonrequest`, or a type that ends in `+json`.
fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(essence.as_str(), "application/json" | "application/json-rpc" | "application/jsonrequest")
        || essence.ends_with("+json")
}

impl<S> fmt::Debug for RpcService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcService").field("worker", &self.config.worker).finish_non_exhaustive()
    }
}
