//! How the layer is set up.

use super::{
    Owner as TaskOwner, RpcService,
    owner::Capability,
    reply,
    stored::{ANSWER_LIMIT, KEPT, Keep},
};
use callback_core::{Acknowledgment, Dsn, DsnError, RpcId, RpcResponse};
use callback_dispatch::{Interrupted, Work, Worker};
use http::{HeaderName, StatusCode, request::Parts};
use serde::Serialize;
use std::{collections::HashMap, fmt, sync::Arc};
use tower_layer::Layer;

/// Gives a JSON-RPC service `$rpc.callback`.
///
/// A call that names a callback is accepted by the worker and acknowledged; the worker's
/// [`RpcHandler`](super::RpcHandler) runs it. All other calls reach the wrapped service as before.
///
/// The layer never registers what it wraps: a router lays a layer over every route, and a service may be made anew for
/// each request. Give the handler the very service that the layer wraps.
///
/// Only a `POST` with a JSON content type is read, up to the limit, and must be JSON-RPC 2.0; everything else passes
/// through unread. A body with a content coding (`Content-Encoding`) is refused, 415: a callback in it could not be seen.
///
/// # Authentication
/// Goes in front of this layer. What is inside sees the stored call, without `Authorization` or what an outer layer put
/// into the request; [`keep_extension`](RpcLayerBuilder::keep_extension) hands on who the caller is, and
/// [`owner`](RpcLayerBuilder::owner) says on whose behalf the result is sent. The request's path and query are stored.
///
/// # Batches
/// Calls without a callback go to the service as one smaller batch; among its extensions is a `Vec<RpcOptions>`, in order,
/// and the longest `$rpc.timeout` in it limits all of it. If none of a batch is accepted or refused here, the service's
/// answer is returned as it is; else its parts are joined to the others', under HTTP 200.
#[derive(Clone)]
pub struct RpcLayer(pub(super) Arc<Config>);

pub(super) struct Config {
    pub(super) worker: Worker,
    pub(super) topic: Option<Dsn>,
    pub(super) status: StatusCode,
    pub(super) acknowledge: Acknowledge,
    pub(super) keep: Keep,
    pub(super) interrupted: HashMap<String, Interrupted>,
    pub(super) owner: Option<Owner>,
    pub(super) limit: usize,
    pub(super) pass_oversized: bool,
    pub(super) tasks: Option<Tasks>,
    pub(super) result_limit: usize,
}

/// Where tasks are served.
pub(super) struct Tasks {
    path: String,
    owner: TaskOwner,
}

/// A task that will be served.
pub(super) struct Served<'a> {
    tasks: &'a Tasks,
    capability: Option<Capability>,
    key: Option<String>,
}

impl Tasks {
    /// Notes on new work whose it is; nothing where the request does not say it.
    pub(super) fn sign(&self, parts: &Parts, work: Work, key: Option<&str>) -> (Work, Option<Served<'_>>) {
        match self.owner.sign(parts, work.clone(), key) {
            Some((work, capability)) => (work, Some(Served { tasks: self, capability, key: key.map(str::to_owned) })),
            None => (work, None),
        }
    }
}

impl Served<'_> {
    /// Where it is found, if that can be said.
    pub(super) async fn href(self, worker: &Worker, accepted: &Acknowledgment) -> Option<String> {
        let Tasks { path, owner, .. } = self.tasks;
        let href = owner.href(path, &worker.dispatcher(), accepted.id(), self.capability, self.key.as_deref()).await;
        href.inspect_err(|error| tracing::error!(%error, "the place of a task cannot be told")).ok()
    }
}

type Acknowledge = Box<dyn Fn(&Acknowledgment, RpcId) -> RpcResponse + Send + Sync>;
type Owner = Box<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

impl RpcLayer {
    /// A layer with the defaults.
    #[must_use]
    pub fn new(worker: Worker) -> Self {
        Self(Arc::new(Self::builder(worker).0))
    }

    /// Begins a layer that is set up otherwise.
    pub fn builder(worker: Worker) -> RpcLayerBuilder {
        RpcLayerBuilder(Config {
            worker,
            topic: None,
            status: StatusCode::OK,
            acknowledge: Box::new(reply::acknowledge),
            keep: Keep::default(),
            interrupted: HashMap::new(),
            owner: None,
            limit: 1 << 20,
            pass_oversized: false,
            tasks: None,
            result_limit: KEPT,
        })
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService::new(inner, Arc::clone(&self.0))
    }
}

impl fmt::Debug for RpcLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcLayer").field("worker", &self.0.worker).finish_non_exhaustive()
    }
}

/// Builds an [`RpcLayer`].
#[must_use]
pub struct RpcLayerBuilder(Config);

impl RpcLayerBuilder {
    /// Sets where the result goes of a call with `"$rpc.callback": true`. Default: such a call is refused.
    pub fn topic(mut self, dsn: Dsn) -> Self {
        self.0.topic = Some(dsn);
        self
    }

    /// Sets the HTTP status of an acknowledgment: 202, for example. Default 200, as JSON-RPC over HTTP has it.
    pub fn status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    /// Sets the shape of an acknowledgment. Default: [`Acknowledgment::to_rpc`].
    pub fn acknowledgment(
        mut self,
        shape: impl Fn(&Acknowledgment, RpcId) -> RpcResponse + Send + Sync + 'static,
    ) -> Self {
        self.0.acknowledge = Box::new(shape);
        self
    }

    /// Keeps a header of the request for the run: it is stored, and set again. Default: none.
    pub fn keep_header(mut self, name: HeaderName) -> Self {
        self.0.keep.headers.push(name);
        self
    }

    /// Keeps an extension of the request for the run, as JSON under a name.
    ///
    /// [`RpcHandler::extension`](super::RpcHandler::extension) of the same name sets it again. Default: none; what an
    /// outer layer put into the request is absent in the run.
    pub fn keep_extension<T>(mut self, name: impl Into<String>) -> Self
    where
        T: Serialize + Clone + Send + Sync + 'static,
    {
        self.0.keep.extension::<T>(name.into());
        self
    }

    /// Says what becomes of one method's calls that a crash cut short. Default: the worker's choice.
    pub fn interrupted(mut self, method: impl Into<String>, interrupted: Interrupted) -> Self {
        self.0.interrupted.insert(method.into(), interrupted);
        self
    }

    /// Says on whose behalf a request is made, from what authentication left in it. Default: nobody's.
    pub fn owner(mut self, owner: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.0.owner = Some(Box::new(owner));
        self
    }

    /// Says where clients find [`task_router`](super::task_router), which is given the same owner. Default: nowhere.
    ///
    /// An acknowledgment has the `Location` of its task then, but in a batch, and a result that is too large for its callback
    /// [is kept](Self::result_limit). A call whose owner the hook does not name is accepted all the same, and is not served.
    /// What the hook names is also on whose behalf the result is sent.
    pub fn tasks_at(mut self, path: impl Into<String>, owner: TaskOwner) -> Self {
        self.0.tasks = Some(Tasks { path: path.into().trim_end_matches('/').to_owned(), owner });
        self
    }

    /// Limits what is kept of a result that is larger than a message may be, in bytes: where tasks are served. Default 4 MiB,
    /// and 16 MiB at most.
    pub const fn result_limit(mut self, bytes: usize) -> Self {
        self.0.result_limit = if bytes < ANSWER_LIMIT { bytes } else { ANSWER_LIMIT };
        self
    }

    /// Limits the requests that are read, in bytes. Default 1 MiB; beyond it 413, since what is not read may hold `$rpc`.
    pub const fn body_limit(mut self, bytes: usize) -> Self {
        self.0.limit = bytes;
        self
    }

    /// Passes a request beyond the limit to the service instead of refusing it; a callback in it is then not seen.
    pub const fn pass_oversized(mut self) -> Self {
        self.0.pass_oversized = true;
        self
    }

    /// Checks the topic and makes the layer.
    ///
    /// # Errors
    /// When nobody serves the topic, or it has a user or password: its Dsn is shown to every client.
    pub fn build(self) -> Result<RpcLayer, DsnError> {
        if let Some(topic) = &self.0.topic {
            if topic.username().is_some() {
                return Err(DsnError::invalid("the topic is shown to clients: it cannot have a user or password"));
            }
            self.0.worker.check(topic)?;
        }
        Ok(RpcLayer(Arc::new(self.0)))
    }
}

impl fmt::Debug for RpcLayerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcLayerBuilder").field("worker", &self.0.worker).finish_non_exhaustive()
    }
}
