//! A request, as it is stored and made again.

use super::{
    Body,
    body::{Read, read},
};
use bytes::Bytes;
use callback_core::BoxError;
use callback_dispatch::{Task, Work};
use http::{Extensions, HeaderName, HeaderValue, Method, Request, Response, Uri, header, request::Parts};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    fmt,
    future::poll_fn,
    sync::{Mutex, PoisonError},
};
use tower_service::Service;

/// The name under which path and query are kept.
const URI: &str = "callback.uri";

/// What is passed on of a client's own request (protocol §4).
const PASS_ON: [&str; 3] = ["x-request-id", "x-correlation-id", "traceparent"];

/// The most that is read of a service's answer, in bytes. What may be sent is less.
pub(super) const ANSWER_LIMIT: usize = 16 << 20;

/// What is kept of a result that is larger than a message may be, in bytes, unless a layer says otherwise.
pub(super) const KEPT: usize = 4 << 20;

/// Why a service gave no answer that can be kept.
pub(super) enum Unanswered {
    Failed,
    TooLarge { limit: usize },
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => f.write_str("the service failed"),
            Self::TooLarge { limit } => write!(f, "the answer is larger than {limit} bytes"),
        }
    }
}

/// What is kept of a request beside its body.
#[derive(Default)]
pub(super) struct Keep {
    pub(super) headers: Vec<HeaderName>,
    extensions: Vec<KeepExtension>,
}

type KeepExtension = Box<dyn Fn(&Extensions, Work) -> Work + Send + Sync>;

impl Keep {
    pub(super) fn extension<T>(&mut self, name: String)
    where
        T: Serialize + Clone + Send + Sync + 'static,
    {
        self.extensions.push(Box::new(move |extensions, work| match extensions.get::<T>().map(serde_json::to_value) {
            Some(Ok(value)) => work.extension(name.clone(), value),
            Some(Err(error)) => {
                tracing::error!(name, %error, "an extension has no JSON form and is not kept");
                work
            }
            None => work,
        }));
    }

    /// Notes on the work what its run will see of the request, and what goes with its result.
    pub(super) fn keep(&self, parts: &Parts, work: Work) -> Work {
        let mut work = work.extension(URI, parts.uri.path_and_query().map_or("/", |path| path.as_str()));
        for name in PASS_ON {
            // A header that no message can carry is left behind: the call is not to fail for it.
            let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
            if let Some(value) = value.filter(|value| value.len() <= 1_024 && !value.contains('\t')) {
                work = work.pass_on(name, value);
            }
        }
        for name in &self.headers {
            for value in parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()) {
                work = work.header(name.as_str(), value);
            }
        }
        self.extensions.iter().fold(work, |work, keep| keep(&parts.extensions, work))
    }
}

/// A service that is called with stored requests.
pub(super) struct Stored<S> {
    // A lock, since a service may be `Send` without being `Sync`; it is held to clone it.
    service: Mutex<S>,
    extensions: Vec<SetExtension>,
}

type SetExtension = Box<dyn Fn(&Task, &mut Extensions) -> Result<(), serde_json::Error> + Send + Sync>;

impl<S> Stored<S> {
    pub(super) const fn new(service: S) -> Self {
        Self { service: Mutex::new(service), extensions: Vec::new() }
    }

    /// Sets again what [`Keep::extension`] kept.
    pub(super) fn extension<T>(&mut self, name: String)
    where
        T: DeserializeOwned + Clone + Send + Sync + 'static,
    {
        self.extensions.push(Box::new(move |task, extensions| {
            if let Some(value) = task.extension(&name) {
                extensions.insert(T::deserialize(value)?);
            }
            Ok(())
        }));
    }

    /// The request of this task, a `POST`, with the task among its extensions.
    pub(super) fn request(&self, task: &Task) -> Result<Request<Body>, serde_json::Error> {
        let payload = task.payload();
        let mut request = Request::new(Body::from(payload.body().clone()));
        *request.method_mut() = Method::POST;
        let uri = task.extension(URI).and_then(Value::as_str).and_then(|uri| uri.parse::<Uri>().ok());
        *request.uri_mut() = uri.unwrap_or_else(|| Uri::from_static("/"));
        let headers = request.headers_mut();
        for (name, value) in task.headers() {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        if let Ok(content_type) = HeaderValue::from_str(payload.content_type())
            && !content_type.is_empty()
        {
            headers.insert(header::CONTENT_TYPE, content_type);
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(payload.body().len()));
        let extensions = request.extensions_mut();
        extensions.insert(task.clone());
        for set in &self.extensions {
            set(task, extensions)?;
        }
        Ok(request)
    }

    /// Calls the service and reads its answer.
    pub(super) async fn call<B>(&self, request: Request<Body>) -> Result<Response<Bytes>, Unanswered>
    where
        S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send,
    {
        let failed = |error: BoxError| {
            tracing::error!(%error, "a service failed");
            Unanswered::Failed
        };
        let mut service = self.service.lock().unwrap_or_else(PoisonError::into_inner).clone();
        poll_fn(|context| service.poll_ready(context)).await.map_err(|error| failed(error.into()))?;
        let response = service.call(request).await.map_err(|error| failed(error.into()))?;
        let (parts, body) = response.into_parts();
        match read(Box::pin(body), ANSWER_LIMIT).await {
            Read::Whole(body) => Ok(Response::from_parts(parts, body)),
            Read::Longer(..) => Err(Unanswered::TooLarge { limit: ANSWER_LIMIT }),
            Read::Failed(error) => Err(failed(error)),
        }
    }
}
