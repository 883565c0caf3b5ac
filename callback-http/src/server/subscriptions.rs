//! Standing wishes for events over HTTP (protocol §3.3).

mod representation;
mod request;

use super::{
    Body,
    body::{is_coded, take},
    expression::Place,
    problem::{self, Refusal, hal, settle},
};
use axum::{
    Router,
    extract::{OriginalUri, Path, Request, State, rejection::PathRejection},
    routing::get,
};
use bytes::Bytes;
use callback_core::{BoxError, Dsn, DsnError};
use callback_dispatch::{
    AcceptError, ChangeError, Cursor, Dispatcher, NewSubscription, Submission, Subscription, SubscriptionQuery,
    Validator, Violations,
};
use http::{HeaderName, HeaderValue, Response, StatusCode, header, request::Parts};
use request::{Patch, Wish};
use serde_json::{Map, Value, json};
use std::{fmt, sync::Arc, time::Duration};

/// A secret that is replaced signs beside the new one for this long, unless the router says otherwise.
const OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);

/// The media type of a change (RFC 7396 §4).
const MERGE_PATCH: &str = "application/merge-patch+json";

/// Serves subscriptions: to be nested at `/subscriptions`, where the links in messages point.
///
/// | request | answer |
/// |---|---|
/// | `POST /` `{"callbackUrl", "kind", "service", "events", "secret", "meta", "lease"}` | 201, `Location`, `{"_links", "message", "UUID"}` |
/// | `GET /` | 200: the caller's, oldest first; `?limit=` 1 to 1,000, default 100; `_links.next` where there are more |
/// | `GET /{id}` | 200 |
/// | `PATCH /{id}` (RFC 7396) | 200: `secret`, `service`, `events`, `meta`, `lease` (null takes each away), `active` |
/// | `PUT /{id}`, `DELETE /{id}` | 202: cancelled; 403 if it has ended |
///
/// `callbackUrl` alone is needed; `callback`, a text or `{"url", "meta"}`, stands for it. `kind` is `continuous`, the default,
/// or `once`; `lease` is in seconds. A callback that the service does not accept is a 403, what is malformed a 422 that names
/// each place. A secret is never sent back. What is not the caller's is answered as what does not exist: 404.
/// Representations are `application/hal+json`, errors `application/problem+json`.
pub struct SubscriptionRouter;

impl SubscriptionRouter {
    /// Begins a router. The function says who makes a request, from what authentication left in it: 1 to 255 bytes. To a
    /// request that names nobody the answer is 403, before its body is read; what cannot be an owner is the service's own
    /// fault: 500, and an error in the log.
    pub fn builder(
        dispatcher: &Dispatcher,
        owner: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> SubscriptionRouterBuilder {
        SubscriptionRouterBuilder(Config {
            dispatcher: dispatcher.clone(),
            owner: Box::new(owner),
            profile: None,
            topic: None,
            validators: Vec::new(),
            secret_header: None,
            overlap: OVERLAP,
            limit: 64 << 10,
        })
    }
}

impl fmt::Debug for SubscriptionRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubscriptionRouter")
    }
}

struct Config {
    dispatcher: Dispatcher,
    owner: Hook,
    profile: Option<String>,
    topic: Option<Dsn>,
    validators: Vec<Box<dyn Validator>>,
    secret_header: Option<HeaderName>,
    overlap: Duration,
    limit: usize,
}

type Hook = Box<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// Builds a router of subscriptions.
#[must_use]
pub struct SubscriptionRouterBuilder(Config);

impl SubscriptionRouterBuilder {
    /// Sets the shape of all messages: the name of a registered profile. Default `bare`.
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.0.profile = Some(name.into());
        self
    }

    /// Sets the topic for those who name no callback: the answer names it as `topic`. Default: a callback must be named.
    pub fn topic(mut self, dsn: Dsn) -> Self {
        self.0.topic = Some(dsn);
        self
    }

    /// Judges a request before it is stored, its `secret` left out; several are all asked. A violation is a 422.
    pub fn validator(mut self, validator: impl Validator) -> Self {
        self.0.validators.push(Box::new(validator));
        self
    }

    /// Takes the secret from this header too, where the body has none: `x-coreos-callback-secret`, for example. Default: from
    /// the body alone.
    pub fn secret_header(mut self, name: HeaderName) -> Self {
        self.0.secret_header = Some(name);
        self
    }

    /// Sets for how long a secret that was replaced signs beside the new one. Default 24 h.
    pub const fn secret_overlap(mut self, time: Duration) -> Self {
        self.0.overlap = time;
        self
    }

    /// Limits requests, in bytes. Default 64 KiB.
    pub const fn body_limit(mut self, bytes: usize) -> Self {
        self.0.limit = bytes;
        self
    }

    /// Checks the topic and makes the router.
    ///
    /// # Errors
    /// When nobody serves the topic, or it has a user or password: its Dsn is shown to every client.
    pub fn build(self) -> Result<Router, DsnError> {
        if let Some(topic) = &self.0.topic {
            if topic.username().is_some() {
                return Err(DsnError::invalid("the topic is shown to clients: it cannot have a user or password"));
            }
            self.0.dispatcher.check(topic)?;
        }
        Ok(Router::new()
            .route("/", get(list).post(create).fallback(problem::method_not_allowed))
            .route("/{id}", get(read).patch(change).put(cancel).delete(cancel).fallback(problem::method_not_allowed))
            .fallback(problem::not_found)
            .with_state(Arc::new(self.0)))
    }
}

impl fmt::Debug for SubscriptionRouterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubscriptionRouterBuilder").field("topic", &self.0.topic).finish_non_exhaustive()
    }
}

type Id = Result<Path<String>, PathRejection>;
type Answer = Response<axum::body::Body>;

impl Config {
    fn owner(&self, parts: &Parts) -> Result<String, Refusal> {
        (self.owner)(parts).ok_or_else(|| Refusal::new(problem::CALLER_UNKNOWN))
    }

    /// The secret that stands in a header. One that cannot be read is told, or the client would believe that it signs.
    fn secret<'a>(&self, parts: &'a Parts) -> Result<Option<&'a str>, Refusal> {
        let Some(name) = &self.secret_header else { return Ok(None) };
        let mut values = parts.headers.get_all(name).iter().map(HeaderValue::to_str);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(Ok(secret)), None) => Ok(Some(secret)),
            _ => {
                Err(Refusal::new(problem::INVALID_REQUEST)
                    .detail(format!("The header {name} is there twice, or no text.")))
            }
        }
    }

    /// The caller's subscription of this id.
    async fn find(&self, id: &Id, parts: &Parts) -> Result<Subscription, Refusal> {
        let unknown = || Refusal::new(problem::NOT_FOUND);
        let owner = self.owner(parts)?;
        let Ok(Path(id)) = id else { return Err(unknown()) };
        let id = id.parse().map_err(|_| unknown())?;
        let found = self.dispatcher.subscriptions().get(id).await.map_err(|error| Refusal::outbox(&error))?;
        found.filter(|subscription| subscription.owner() == Some(&owner)).ok_or_else(unknown)
    }

    /// A request whose body is a JSON object, of a media type that ends so.
    async fn object<B>(&self, parts: &Parts, body: B, suffixes: &[&str]) -> Result<Map<String, Value>, Refusal>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = content_type.and_then(|it| it.split(';').next()).unwrap_or_default().trim().to_ascii_lowercase();
        if !suffixes.iter().any(|suffix| essence.ends_with(suffix)) {
            return Err(Refusal::new(problem::UNSUPPORTED_MEDIA_TYPE));
        }
        if is_coded(&parts.headers) {
            return Err(Refusal::new(problem::CODING_UNSUPPORTED));
        }
        let body = take(&parts.headers, body, self.limit).await;
        let body = body.map_err(|untaken| Refusal::untaken(&untaken, self.limit))?;
        match serde_json::from_slice(&body) {
            Ok(Value::Object(members)) => Ok(members),
            Ok(_) => Err(Refusal::new(problem::INVALID_MEMBER).at(&Place::Pointer(String::new()), "must be an object")),
            Err(_) => Err(Refusal::new(problem::BODY_INVALID)),
        }
    }

    /// Asks the validators, all of them.
    async fn judge(&self, members: &Map<String, Value>, dsn: Option<&Dsn>, owner: &str) -> Result<(), Violations> {
        if self.validators.is_empty() {
            return Ok(());
        }
        let mut members = members.clone();
        members.remove("secret");
        let content = Value::Object(members);
        let mut submission = Submission::new("subscribe", &content).owner(owner);
        if let Some(dsn) = dsn {
            submission = submission.callback(dsn);
        }
        let mut found: Option<Violations> = None;
        for validator in &self.validators {
            if let Err(more) = validator.validate(&submission).await {
                found = Some(match found {
                    Some(violations) => violations.join(more),
                    None => more,
                });
            }
        }
        found.map_or(Ok(()), Err)
    }
}

/// The path of a request as the client sent it, whatever it is nested in.
fn path(parts: &Parts) -> &str {
    parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |uri| &uri.0).path()
}

async fn create(State(config): State<Arc<Config>>, request: Request) -> Answer {
    let answer = async {
        let (parts, body) = request.into_parts();
        let owner = config.owner(&parts)?;
        let members = config.object(&parts, body, &["/json", "+json"]).await?;
        let wish = Wish::parse(&members).map_err(|violations| Refusal::violations(&violations))?;
        let dsn = match &wish.callback {
            Some((url, place)) => {
                let dsn: Dsn = url.parse().map_err(|error| Refusal::callback(place, &error))?;
                config.dispatcher.check(&dsn).map_err(|error| Refusal::callback(place, &error))?;
                Some(dsn)
            }
            None if config.topic.is_some() => None,
            None => return Err(Refusal::violations(&Violations::at("/callbackUrl", "is missing"))),
        };
        config.judge(&members, dsn.as_ref(), &owner).await.map_err(|violations| Refusal::violations(&violations))?;
        let place = wish.callback.as_ref().map_or(Place::Request, |(_, place)| place.clone());
        let new = match (&dsn, &config.topic) {
            (None, Some(topic)) => NewSubscription::topic(topic.clone()),
            (Some(dsn), _) => NewSubscription::new(dsn.clone()),
            (None, None) => return Err(Refusal::new(problem::INVALID_REQUEST)),
        };
        let new = wish.fill(new.owner(owner), config.secret(&parts)?);
        let new = config.profile.iter().fold(new, NewSubscription::profile);
        let created = config.dispatcher.subscriptions().create(new).await;
        let created = created.map_err(|error| refused(&place, &error))?;
        let href = format!("{}/{}", path(&parts).trim_end_matches('/'), created.id());
        let mut body = json!({
            "_links": { "self": { "href": href } },
            "message": "Your request to subscribe has been accepted.",
            "UUID": created.id().to_string(),
        });
        if created.is_topic() {
            body["topic"] = created.dsn().expose().into();
        }
        let mut response = hal(StatusCode::CREATED, &body);
        if let Ok(location) = HeaderValue::from_str(&href) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        Ok(response)
    };
    settle(answer.await)
}

async fn list(State(config): State<Arc<Config>>, parts: Parts) -> Answer {
    let answer = async {
        let owner = config.owner(&parts)?;
        let (limit, after) = page(&parts)?;
        let mut query = SubscriptionQuery::default().owner(owner).limit(limit);
        if let Some(after) = after {
            query = query.after(after);
        }
        let page = config.dispatcher.subscriptions().list(&query).await.map_err(|error| Refusal::outbox(&error))?;
        let (base, uri) = (path(&parts).trim_end_matches('/'), path(&parts));
        let items = page.items.iter().map(|item| representation::of(item, &format!("{base}/{}", item.id())));
        let mut body = json!({
            "_links": { "self": { "href": uri } },
            "_embedded": { "subscriptions": items.collect::<Vec<_>>() },
        });
        if let Some(next) = page.next {
            body["_links"]["next"] = json!({ "href": format!("{uri}?limit={limit}&after={next}") });
        }
        Ok(hal(StatusCode::OK, &body))
    };
    settle(answer.await)
}

/// Which page of the list is asked for.
fn page(parts: &Parts) -> Result<(usize, Option<Cursor>), Refusal> {
    let (mut limit, mut after) = (100, None);
    for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
        let invalid = |reason| Refusal::new(problem::INVALID_REQUEST).detail(reason);
        match &*name {
            "limit" => {
                limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=1_000).contains(limit))
                    .ok_or_else(|| invalid("The parameter limit is a number from 1 to 1,000."))?;
            }
            "after" => after = Some(value.parse().map_err(|_| invalid("The parameter after is that of a link next."))?),
            _ => {}
        }
    }
    Ok((limit, after))
}

async fn read(State(config): State<Arc<Config>>, id: Id, parts: Parts) -> Answer {
    let answer = async {
        let found = config.find(&id, &parts).await?;
        Ok(hal(StatusCode::OK, &representation::of(&found, path(&parts))))
    };
    settle(answer.await)
}

async fn change(State(config): State<Arc<Config>>, id: Id, request: Request) -> Answer {
    let answer = async {
        let (parts, body) = request.into_parts();
        let found = config.find(&id, &parts).await?;
        let members = config.object(&parts, body, &["/json", MERGE_PATCH]).await?;
        let patch = Patch::parse(&members, found.meta()).map_err(|violations| Refusal::violations(&violations))?;
        let change = patch.into_change(config.overlap);
        let changed =
            config.dispatcher.subscriptions().update(found.id(), change).await.map_err(|error| not_changed(&error))?;
        Ok(hal(StatusCode::OK, &representation::of(&changed, path(&parts))))
    };
    let mut answer = settle(answer.await);
    if answer.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE && !answer.headers().contains_key(header::ACCEPT_ENCODING)
    {
        answer.headers_mut().insert("accept-patch", HeaderValue::from_static(MERGE_PATCH));
    }
    answer
}

async fn cancel(State(config): State<Arc<Config>>, id: Id, parts: Parts) -> Answer {
    let answer = async {
        let found = config.find(&id, &parts).await?;
        config.dispatcher.subscriptions().cancel(found.id()).await.map_err(|error| not_changed(&error))?;
        let body = json!({
            "_links": { "self": { "href": path(&parts) } },
            "message": "Your subscription is cancelled.",
        });
        Ok::<Response<Body>, _>(hal(StatusCode::ACCEPTED, &body))
    };
    settle(answer.await)
}

fn refused(place: &Place, error: &AcceptError) -> Refusal {
    tracing::debug!(%error, "a subscription was not accepted");
    Refusal::not_accepted(place, error)
}

fn not_changed(error: &ChangeError) -> Refusal {
    match error {
        ChangeError::Ended => Refusal::new(problem::SUBSCRIPTION_OVER),
        ChangeError::Unknown => Refusal::new(problem::NOT_FOUND),
        ChangeError::Invalid(violations) => Refusal::violations(violations),
        ChangeError::Outbox(error) => Refusal::outbox(error),
        other => {
            tracing::error!(error = %other, "a subscription could not be changed");
            Refusal::new(problem::UNAVAILABLE)
        }
    }
}
