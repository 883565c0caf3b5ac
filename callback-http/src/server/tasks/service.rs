//! A request's way: to the worker, or to the wrapped service.

use super::{answer, layer::Config};
use crate::server::{
    Body,
    body::{Inner, is_coded, take, with_body},
    expression::{Asked, Expression, Place},
    idempotency,
    prefer::Prefer,
    problem::{self, Refusal, hal},
};
use bytes::Bytes;
use callback_core::{Acknowledgment, BoxError, Dsn, Payload};
use callback_dispatch::Work;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use serde_json::Value;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::timeout;
use tower_service::Service;

/// A service whose `POST`s may be answered later; made by [`TaskLayer`](super::TaskLayer).
#[derive(Clone)]
pub struct TaskService<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> TaskService<S> {
    pub(super) const fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }
}

impl<S, B, R> Service<Request<B>> for TaskService<S>
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
            let is_ours = request.method() == Method::POST
                && config.template.as_ref().is_none_or(|it| it.parameters(request.uri().path()).is_some());
            if !is_ours {
                return inner.call(request.map(Body::new)).await;
            }
            if config.callbacks.iter().any(Expression::is_of_body) && is_coded(request.headers()) {
                return Ok(Refusal::new(problem::CODING_UNSUPPORTED).into_http());
            }
            let (parts, body) = request.into_parts();
            let body = match take(&parts.headers, body, config.limit).await {
                Ok(body) => body,
                Err(untaken) => return Ok(Refusal::untaken(&untaken, config.limit).into_http()),
            };
            match accept(&config, &parts, &body).await {
                Ok(Some(response)) => Ok(response),
                Ok(None) => inner.call(with_body(parts, body)).await,
                Err(refusal) => Ok(refusal.into_http()),
            }
        })
    }
}

/// Stores a request and says so; nothing if it is to be answered by the service itself.
async fn accept(config: &Config, parts: &Parts, body: &Bytes) -> Result<Option<Response<Body>>, Refusal> {
    let prefer = Prefer::of(&parts.headers);
    let path = config.template.as_ref().and_then(|template| template.parameters(parts.uri.path()));
    let asked = Asked::new(parts, path.unwrap_or_default(), body);
    let callback = callback(config, &asked)?;
    if callback.is_none() && !prefer.respond_async {
        return Ok(None);
    }
    if config.reads_body() && is_coded(&parts.headers) {
        return Err(Refusal::new(problem::CODING_UNSUPPORTED));
    }
    let (dsn, place) = callback.map_or((None, Place::Request), |(dsn, place)| (Some(dsn), place));
    let key = idempotency::key(parts, None).map_err(|reason| Refusal::new(problem::INVALID_REQUEST).detail(reason))?;
    let work = work(config, parts, body, &asked, dsn)?;
    let work = key.iter().fold(work, Work::idempotency_key);
    let work = work.result_limit(config.result_limit);
    let Some((work, capability)) = config.owner.sign(parts, work, key.as_deref()) else {
        return Err(Refusal::new(problem::CALLER_UNKNOWN));
    };
    let accepted = config.worker.accept(work).await.map_err(|error| {
        tracing::debug!(%error, "a request was not accepted");
        Refusal::not_accepted(&place, &error)
    })?;
    let dispatcher = config.worker.dispatcher();
    let href = config.owner.href(&config.tasks, &dispatcher, accepted.id(), capability, key.as_deref()).await;
    let href = href.map_err(|error| Refusal::outbox(&error))?;
    if let (None, Some(wait)) = (accepted.dsn(), prefer.wait.filter(|_| prefer.respond_async))
        && let Some(response) = within(config, &accepted, wait, &href).await
    {
        return Ok(Some(response));
    }
    Ok(Some(acknowledge(&accepted, &href, prefer)))
}

/// The callback that a request names, and where.
fn callback(config: &Config, asked: &Asked<'_>) -> Result<Option<(Dsn, Place)>, Refusal> {
    let invalid = |place: &Place, reason: &str| Refusal::new(problem::CALLBACK_INVALID).at(place, reason);
    let mut found: Option<(String, Place)> = None;
    let mut unfit = None;
    for expression in &config.callbacks {
        let place = expression.place();
        match expression.evaluate(asked).map_err(|reason| invalid(&place, reason))? {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => match &found {
                Some((known, _)) if *known != text => return Err(invalid(&place, "another callback is named before")),
                Some(_) => {}
                None => found = Some((text, place)),
            },
            Some(_) => unfit = unfit.or(Some(place)),
        }
    }
    match (found, unfit) {
        (Some((text, place)), _) => {
            let dsn: Dsn = text.parse().map_err(|error| Refusal::callback(&place, &error))?;
            Ok(Some((dsn, place)))
        }
        (None, Some(place)) => Err(invalid(&place, "a callback is a text")),
        (None, None) => Ok(None),
    }
}

/// The work of a request: what its run will see, and nothing else.
fn work(config: &Config, parts: &Parts, body: &Bytes, asked: &Asked<'_>, dsn: Option<Dsn>) -> Result<Work, Refusal> {
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let work = Work::new(Payload::new(content_type.unwrap_or_default(), body.clone()))
        .operation(format!("POST {}", parts.uri.path()));
    let mut work = config.keep.keep(parts, work);
    // Without it nobody can read the body.
    for value in parts.headers.get_all(header::CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok()) {
        work = work.header(header::CONTENT_ENCODING.as_str(), value);
    }
    if let Some(name) = &config.profile {
        work = work.profile(name);
    }
    if let Some(meta) = value(config.meta_at.as_ref(), asked)? {
        work = work.meta(meta);
    }
    if let Some(secret) = value(config.secret_at.as_ref(), asked)? {
        let Value::String(secret) = secret else {
            let place = config.secret_at.as_ref().map_or(Place::Request, Expression::place);
            return Err(Refusal::new(problem::INVALID_MEMBER).at(&place, "must be a string"));
        };
        work = work.secret(secret);
    }
    if let Some(limit) = config.time_limit {
        work = work.time_limit(limit);
    }
    if let Some(time) = expires_in(config, asked)?.or(config.expires_in) {
        work = work.expires_in(time);
    }
    Ok(match dsn {
        Some(dsn) => work.callback(dsn),
        None => work,
    })
}

/// What stands at a place; null is nothing.
fn value(expression: Option<&Expression>, asked: &Asked<'_>) -> Result<Option<Value>, Refusal> {
    let Some(expression) = expression else { return Ok(None) };
    let invalid = |reason: &str| Refusal::new(problem::INVALID_MEMBER).at(&expression.place(), reason);
    Ok(expression.evaluate(asked).map_err(invalid)?.filter(|value| !value.is_null()))
}

/// When the request says that its task expires.
fn expires_in(config: &Config, asked: &Asked<'_>) -> Result<Option<Duration>, Refusal> {
    let Some(expression) = &config.expires_at else { return Ok(None) };
    let invalid = |reason: &str| Refusal::new(problem::INVALID_MEMBER).at(&expression.place(), reason);
    let number = |seconds: f64| Duration::try_from_secs_f64(seconds).ok().filter(|wait| !wait.is_zero());
    let wait = match value(Some(expression), asked)? {
        None => return Ok(None),
        Some(Value::Number(seconds)) => seconds.as_f64().and_then(number),
        Some(Value::String(text)) => match text.parse() {
            Ok(seconds) => number(seconds),
            Err(_) => OffsetDateTime::parse(&text, &Rfc3339)
                .ok()
                .and_then(|time| SystemTime::from(time).duration_since(SystemTime::now()).ok()),
        },
        Some(_) => None,
    };
    let reason = "a task expires at a time of RFC 3339 that is to come, or in more than 0 seconds";
    Ok(Some(wait.ok_or_else(|| invalid(reason))?))
}

/// The result, if it comes within the time that the client would wait.
async fn within(config: &Config, accepted: &Acknowledgment, wait: Duration, href: &str) -> Option<Response<Body>> {
    let wait = wait.min(config.longest_wait);
    let dispatcher = config.worker.dispatcher();
    let task = timeout(wait, dispatcher.wait(accepted.id())).await.ok()?.ok()??;
    let mut response = answer::result(task.outcome()?);
    let headers = response.headers_mut();
    headers.insert(PREFERENCE_APPLIED, HeaderValue::from_str(&format!("wait={}", wait.as_secs())).ok()?);
    headers.insert(header::CONTENT_LOCATION, HeaderValue::from_str(&format!("{href}/result")).ok()?);
    Some(response)
}

const PREFERENCE_APPLIED: &str = "preference-applied";

fn acknowledge(accepted: &Acknowledgment, href: &str, prefer: Prefer) -> Response<Body> {
    let mut response = hal(StatusCode::ACCEPTED, &accepted.to_hal(href));
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(href) {
        headers.insert(header::LOCATION, location);
    }
    headers.insert(header::RETRY_AFTER, answer::retry_after(Duration::ZERO));
    if prefer.respond_async {
        headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static("respond-async"));
    }
    response
}

impl<S> fmt::Debug for TaskService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskService").field("worker", &self.config.worker).finish_non_exhaustive()
    }
}
