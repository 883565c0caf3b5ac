//! How the layer is set up.

use super::TaskService;
use crate::server::{
    Expression, Owner,
    expression::Template,
    stored::{ANSWER_LIMIT, KEPT, Keep},
};
use callback_core::BoxError;
use callback_dispatch::Worker;
use http::HeaderName;
use serde::Serialize;
use std::{fmt, sync::Arc, time::Duration};
use tower_layer::Layer;

/// Makes any `POST` route asynchronous.
///
/// A request is accepted by the worker, and acknowledged by `202 Accepted`, if it names a callback at one of the places that
/// [`callback_at`](TaskLayerBuilder::callback_at) lists, or says `Prefer: respond-async` (RFC 7240). All others reach the
/// wrapped service as before. The worker's [`TaskHandler`](super::TaskHandler) runs what was accepted: give it the very
/// service that the layer wraps.
///
/// `Prefer: respond-async, wait=10` without a callback waits so long for the result, and answers with it if it comes.
/// A callback that cannot be used is refused, 403 or 422, and nothing is run. `Idempotency-Key` names a request that is
/// sent again: it gets the same acknowledgment, and is done once.
///
/// Where a callback may stand in the body, a body with a content coding (`Content-Encoding`) is refused, 415: what it names
/// could not be read. So is one that is accepted and may have another of the places in its body.
///
/// Every `POST` is read, up to the limit. What is inside sees of an accepted request its path, query, content type and body;
/// headers and extensions that are [kept](TaskLayerBuilder::keep_header); and the [`Task`](callback_dispatch::Task) among
/// the extensions. Authentication goes in front of this layer.
///
/// ```no_run
/// use axum::{Router, routing::post};
/// use callback_dispatch::{Dispatcher, Interrupted, MemoryOutbox};
/// use callback_http::{HttpSink, server::{Owner, TaskHandler, TaskLayer}};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let dispatcher = Dispatcher::builder(MemoryOutbox::new()).sink(HttpSink::new()?).start().await?;
/// let routes = Router::new().route("/orders", post(async || "done"));
/// let worker = dispatcher.worker("orders", Interrupted::RunAgain).run(TaskHandler::new(routes.clone()))?;
/// let layer = TaskLayer::builder(worker, Owner::capability()).callback_at("$request.body#/callbackUrl".parse()?).build()?;
/// let app: Router = routes.layer(layer);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TaskLayer(pub(super) Arc<Config>);

pub(super) struct Config {
    pub(super) worker: Worker,
    pub(super) owner: Owner,
    pub(super) callbacks: Vec<Expression>,
    pub(super) meta_at: Option<Expression>,
    pub(super) secret_at: Option<Expression>,
    pub(super) profile: Option<String>,
    pub(super) expires_at: Option<Expression>,
    pub(super) expires_in: Option<Duration>,
    pub(super) time_limit: Option<Duration>,
    pub(super) template: Option<Template>,
    pub(super) tasks: String,
    pub(super) longest_wait: Duration,
    pub(super) keep: Keep,
    pub(super) limit: usize,
    pub(super) result_limit: usize,
}

impl Config {
    /// The places that are looked at in a request.
    pub(super) fn expressions(&self) -> impl Iterator<Item = &Expression> {
        self.callbacks.iter().chain(&self.meta_at).chain(&self.secret_at).chain(&self.expires_at)
    }

    /// Whether one of them is in the body.
    pub(super) fn reads_body(&self) -> bool {
        self.expressions().any(Expression::is_of_body)
    }
}

impl TaskLayer {
    /// Begins a layer; without more it answers `Prefer: respond-async` alone.
    ///
    /// The owner is that of [`task_router`](super::task_router), where the tasks are served.
    pub fn builder(worker: Worker, owner: Owner) -> TaskLayerBuilder {
        let config = Config {
            worker,
            owner,
            callbacks: Vec::new(),
            meta_at: None,
            secret_at: None,
            profile: None,
            expires_at: None,
            expires_in: None,
            time_limit: None,
            template: None,
            tasks: "/tasks".to_owned(),
            longest_wait: Duration::from_secs(60),
            keep: Keep::default(),
            limit: 1 << 20,
            result_limit: KEPT,
        };
        TaskLayerBuilder { config, template: None }
    }
}

#[cfg(feature = "axum")]
impl TaskLayer {
    /// Adds to an Operation Object (OpenAPI 3.1) what this layer reads and answers: `callbacks` at its expressions, `Prefer`
    /// and `Idempotency-Key`, `202`, and its problems.
    ///
    /// What the operation says itself of a status stays.
    #[must_use]
    pub fn describe(&self, mut operation: serde_json::Value) -> serde_json::Value {
        use crate::server::openapi::{callback, headers, parameter, problem_reply};
        use serde_json::{Value, json};
        let text = json!({ "type": "string" });
        let parameters = [
            parameter("Prefer", "header", &text, "`respond-async`, and `wait=N` in seconds (RFC 7240)"),
            parameter("Idempotency-Key", "header", &text, "Names a request that is sent again."),
        ];
        match &mut operation["parameters"] {
            Value::Array(known) => known.extend(parameters),
            other => *other = parameters.into_iter().collect(),
        }
        for expression in &self.0.callbacks {
            let key = format!("{{{expression}}}");
            operation["callbacks"]["result"][key] = callback("The result of the request, or its failure");
        }
        let task = json!({ "$ref": "#/components/schemas/Task" });
        let mut replies = vec![(
            "202".to_owned(),
            json!({
                "description": "The request is stored: its result goes to the callback, and is served at `Location`",
                "headers": headers(&["Location", "Retry-After", "Preference-Applied"]),
                "content": { "application/hal+json": { "schema": task } },
            }),
        )];
        replies.extend([400, 403, 413, 415, 422, 500, 503].map(|status| (status.to_string(), problem_reply(status))));
        for (status, reply) in replies {
            if operation["responses"][&status].is_null() {
                operation["responses"][&status] = reply;
            } else if let Some(more) = reply["content"].as_object() {
                for (content_type, content) in more {
                    operation["responses"][&status]["content"][content_type] = content.clone();
                }
            }
        }
        operation
    }
}

impl<S> Layer<S> for TaskLayer {
    type Service = TaskService<S>;

    fn layer(&self, inner: S) -> TaskService<S> {
        TaskService::new(inner, Arc::clone(&self.0))
    }
}

impl fmt::Debug for TaskLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskLayer").field("worker", &self.0.worker).finish_non_exhaustive()
    }
}

/// Builds a [`TaskLayer`].
#[must_use]
pub struct TaskLayerBuilder {
    config: Config,
    template: Option<String>,
}

/// A layer that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskLayerError {
    /// The template of a path is malformed.
    #[error("the template of the path cannot be used")]
    Template(#[source] BoxError),
    /// An expression names a parameter of the path that the template does not have, or there is no template.
    #[error("no path_template names the parameter {0}")]
    Parameter(String),
    /// The header of the secret is kept for the run, where everybody sees it.
    #[error("the header {0} carries the secret: it cannot be kept")]
    Secret(HeaderName),
}

impl TaskLayerBuilder {
    /// Adds a place where a request may name its callback: a text.
    ///
    /// What stands there decides: absent or null is no callback; two places with different texts, or only values that are no
    /// text, are refused.
    pub fn callback_at(mut self, place: Expression) -> Self {
        self.config.callbacks.push(place);
        self
    }

    /// Sets the place of a value of the client's own, of any type, that the profile may send back. Default: nowhere.
    pub fn meta_at(mut self, place: Expression) -> Self {
        self.config.meta_at = Some(place);
        self
    }

    /// Sets the place of a secret that signs the result, of this receiver alone: a text. Default: nowhere.
    ///
    /// A header is not kept for the run. What stands in the body is stored with it, and the service sees it.
    pub fn secret_at(mut self, place: Expression) -> Self {
        self.config.secret_at = Some(place);
        self
    }

    /// Sets the shape of the result: the name of a registered profile. Default `bare`.
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.config.profile = Some(name.into());
        self
    }

    /// Sets the place where a request may say when its task expires: seconds from now, or a time of RFC 3339.
    ///
    /// A task that is not over by then, run and delivery, ends as expired. Default: nowhere.
    pub fn expires_at(mut self, place: Expression) -> Self {
        self.config.expires_at = Some(place);
        self
    }

    /// Sets when a task expires whose request does not say it. Default: never.
    pub const fn expires_in(mut self, time: Duration) -> Self {
        self.config.expires_in = Some(time);
        self
    }

    /// Limits each run. Default: the worker's limit.
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.config.time_limit = Some(limit);
        self
    }

    /// Sets the path that the layer reads, as OpenAPI writes it: `/items/{id}/tasks`. Default: every path.
    ///
    /// Other paths pass through unread. `$request.path.id` is a parameter of it.
    pub fn path_template(mut self, template: impl Into<String>) -> Self {
        self.template = Some(template.into());
        self
    }

    /// Sets where clients find [`task_router`](super::task_router). Default `/tasks`.
    pub fn tasks_at(mut self, path: impl Into<String>) -> Self {
        self.config.tasks = path.into().trim_end_matches('/').to_owned();
        self
    }

    /// Sets how long at most a request with `Prefer: respond-async, wait=N` is kept waiting. Default 60 s.
    pub const fn longest_wait(mut self, time: Duration) -> Self {
        self.config.longest_wait = time;
        self
    }

    /// Keeps a header of the request for the run: it is stored, and set again. Default: none.
    pub fn keep_header(mut self, name: HeaderName) -> Self {
        self.config.keep.headers.push(name);
        self
    }

    /// Keeps an extension of the request for the run, as JSON under a name.
    ///
    /// [`TaskHandler::extension`](super::TaskHandler::extension) of the same name sets it again. Default: none.
    pub fn keep_extension<T>(mut self, name: impl Into<String>) -> Self
    where
        T: Serialize + Clone + Send + Sync + 'static,
    {
        self.config.keep.extension::<T>(name.into());
        self
    }

    /// Limits what is kept of a result that is larger than a message may be, in bytes. Default 4 MiB, and 16 MiB at most.
    ///
    /// Such a result is served with its task; its callback gets a failure that says so. What is larger is not kept.
    pub const fn result_limit(mut self, bytes: usize) -> Self {
        self.config.result_limit = if bytes < ANSWER_LIMIT { bytes } else { ANSWER_LIMIT };
        self
    }

    /// Limits the requests that are read, in bytes. Default 1 MiB; beyond it 413, since what is not read may name a callback.
    pub const fn body_limit(mut self, bytes: usize) -> Self {
        self.config.limit = bytes;
        self
    }

    /// Makes the layer.
    ///
    /// # Errors
    /// When the template of the path is malformed, or lacks a parameter that an expression names; when the header of
    /// the secret is kept.
    pub fn build(mut self) -> Result<TaskLayer, TaskLayerError> {
        let template = self.template.as_deref().map(Template::parse).transpose();
        self.config.template = template.map_err(TaskLayerError::Template)?;
        if let Some(name) = self.config.secret_at.as_ref().and_then(Expression::header)
            && self.config.keep.headers.contains(name)
        {
            return Err(TaskLayerError::Secret(name.clone()));
        }
        for expression in self.config.expressions() {
            if let Some(name) = expression.path_parameter()
                && !self.config.template.as_ref().is_some_and(|template| template.names(name))
            {
                return Err(TaskLayerError::Parameter(name.to_owned()));
            }
        }
        Ok(TaskLayer(Arc::new(self.config)))
    }
}

impl fmt::Debug for TaskLayerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskLayerBuilder").field("worker", &self.config.worker).finish_non_exhaustive()
    }
}
