//! Where a client sees what became of its task.

use super::answer;
use crate::server::{
    Owner,
    problem::{self, Refusal, hal, settle},
};
use axum::{
    Router,
    extract::{OriginalUri, Path, State, rejection::PathRejection},
    routing::get,
};
use callback_dispatch::{Dispatcher, EndError, Task, TaskState};
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use serde_json::{Value, json};
use std::sync::Arc;

/// Serves tasks: to be nested where [`tasks_at`](super::TaskLayerBuilder::tasks_at) says, `/tasks` by default.
///
/// | request | answer |
/// |---|---|
/// | `GET /{id}` | 200 with `status`, and `Retry-After` until the result is there; from then on 303 to the result |
/// | `GET /{id}?follow=no` | 200 with `status`, always |
/// | `GET /{id}/result` | the result, under the status and with the headers that the service gave it; or the failure as a problem under its own status; 404 before, 410 if there will be none |
/// | `PUT /{id}`, `DELETE /{id}` | 202: cancelled; 403 if it is over |
///
/// What is not the caller's is answered as what does not exist: 404. A task of any worker of the dispatcher is served, once
/// it has an owner. Representations are `application/hal+json`, errors `application/problem+json`; neither is to be
/// stored by caches.
pub fn task_router(dispatcher: &Dispatcher, owner: Owner) -> Router {
    let tasks = Arc::new(Tasks { dispatcher: dispatcher.clone(), owner });
    Router::new()
        .route("/{id}", get(read).put(cancel).delete(cancel).fallback(problem::method_not_allowed))
        .route("/{id}/result", get(result).fallback(problem::method_not_allowed))
        .fallback(problem::not_found)
        .with_state(tasks)
}

struct Tasks {
    dispatcher: Dispatcher,
    owner: Owner,
}

type Id = Result<Path<String>, PathRejection>;

impl Tasks {
    /// The caller's task of this id.
    async fn find(&self, id: &Id, parts: &Parts) -> Result<Task, Refusal> {
        let unknown = || Refusal::new(problem::NOT_FOUND);
        let Ok(Path(id)) = id else { return Err(unknown()) };
        let (id, capability) = id.split_once('.').map_or((id.as_str(), None), |(id, it)| (id, Some(it)));
        let id = id.parse().map_err(|_| unknown())?;
        let task = self.dispatcher.task(id).await.map_err(|error| Refusal::outbox(&error))?;
        task.filter(|task| self.owner.admits(parts, task, capability)).ok_or_else(unknown)
    }
}

/// The path of a request as the client sent it, whatever it is nested in.
fn path(parts: &Parts) -> &str {
    parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |uri| &uri.0).path()
}

async fn read(State(tasks): State<Arc<Tasks>>, id: Id, parts: Parts) -> Response<axum::body::Body> {
    let answer = async {
        let follow = follow(&parts)?;
        let task = tasks.find(&id, &parts).await?;
        let href = path(&parts);
        let result = format!("{href}/result");
        let has_result = task.outcome().is_some() && !is_given_up(&task);
        let mut body = representation(&task, href);
        if has_result {
            body["_links"]["result"] = json!({ "href": result });
        }
        let follows = has_result && follow;
        let mut response = hal(if follows { StatusCode::SEE_OTHER } else { StatusCode::OK }, &body);
        if follows {
            if let Ok(location) = HeaderValue::from_str(&result) {
                response.headers_mut().insert(header::LOCATION, location);
            }
        } else if !has_result && !task.state().is_ended() {
            response.headers_mut().insert(header::RETRY_AFTER, retry_after(&task));
        }
        Ok(response)
    };
    settle(answer.await)
}

async fn result(State(tasks): State<Arc<Tasks>>, id: Id, parts: Parts) -> Response<axum::body::Body> {
    let answer = async {
        let task = tasks.find(&id, &parts).await?;
        match (task.state(), task.outcome()) {
            (TaskState::Cancelled, _) => Err(Refusal::new(problem::TASK_CANCELLED)),
            (TaskState::Expired, _) => Err(Refusal::new(problem::TASK_EXPIRED)),
            (_, Some(outcome)) => Ok(answer::result(outcome)),
            (_, None) => {
                let mut response = Refusal::new(problem::NO_RESULT_YET).into_http();
                response.headers_mut().insert(header::RETRY_AFTER, retry_after(&task));
                Ok(response)
            }
        }
    };
    settle(answer.await)
}

async fn cancel(State(tasks): State<Arc<Tasks>>, id: Id, parts: Parts) -> Response<axum::body::Body> {
    let answer = async {
        let task = tasks.find(&id, &parts).await?;
        match tasks.dispatcher.cancel(task.id()).await {
            Ok(()) => {
                let body = json!({
                    "_links": { "self": { "href": path(&parts) } },
                    "UUID": task.id(),
                    "status": "cancelled",
                    "message": "The task is cancelled.",
                });
                Ok(hal(StatusCode::ACCEPTED, &body))
            }
            Err(EndError::Unknown) => Err(Refusal::new(problem::NOT_FOUND)),
            Err(EndError::Outbox(error)) => Err(Refusal::outbox(&error)),
            Err(_) => Err(Refusal::new(problem::TASK_OVER)),
        }
    };
    settle(answer.await)
}

/// Whether a redirect to the result is wanted.
fn follow(parts: &Parts) -> Result<bool, Refusal> {
    let query = parts.uri.query().unwrap_or_default();
    let mut values = url::form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "follow");
    match (values.next().as_ref().map(|(_, value)| &**value), values.next()) {
        (None | Some("yes"), None) => Ok(true),
        (Some("no"), None) => Ok(false),
        _ => Err(Refusal::new(problem::INVALID_REQUEST).detail("The parameter follow is yes or no.")),
    }
}

/// Whether nothing is to come of it any more, whatever came of it before.
fn is_given_up(task: &Task) -> bool {
    matches!(task.state(), TaskState::Cancelled | TaskState::Expired)
}

fn retry_after(task: &Task) -> HeaderValue {
    answer::retry_after(task.accepted_at().elapsed().unwrap_or_default())
}

/// A task as a client sees it.
fn representation(task: &Task, href: &str) -> Value {
    let (status, message) = match task.state() {
        TaskState::Accepted => ("accepted", "The task waits to be begun."),
        TaskState::Running => ("running", "The task is being done."),
        TaskState::Delivering => ("delivering", "The result is there, and on its way to the callback."),
        TaskState::Completed => ("completed", "The result is there."),
        TaskState::Delivered => ("delivered", "The callback has accepted the result."),
        TaskState::Dead => ("dead", "The result is there; the callback did not accept it."),
        TaskState::Cancelled => ("cancelled", "The task is cancelled."),
        TaskState::Expired => ("expired", "The task was not done in time."),
        _ => ("unknown", "The task is in a state that this service does not know."),
    };
    json!({
        "_links": { "self": { "href": href } },
        "UUID": task.id(),
        "status": status,
        "definitive": task.outcome().is_some() || task.state().is_ended(),
        "message": message,
    })
}
