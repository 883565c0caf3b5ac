//! The routes, described in OpenAPI 3.1.

use super::problem;
use axum::{Router, response::IntoResponse, routing::get};
use http::header;
use serde_json::{Map, Value, json};

/// An OpenAPI 3.1 document of a service: its own operations, and the routers of this crate where they are nested.
///
/// ```
/// use callback_http::server::OpenApi;
///
/// let document = OpenApi::new("Orders", "1.0.0").tasks("/tasks").problems("/problems").to_json();
/// assert_eq!(document["openapi"], "3.1.1");
/// assert!(document["paths"]["/tasks/{id}"]["get"].is_object());
/// ```
#[derive(Clone, Debug)]
pub struct OpenApi(Value);

impl OpenApi {
    /// A document of this title and version, without paths.
    #[must_use]
    pub fn new(title: &str, version: &str) -> Self {
        Self(json!({
            "openapi": "3.1.1",
            "info": { "title": title, "version": version },
            "paths": {},
            "components": { "schemas": { "Problem": problem_schema() } },
        }))
    }

    /// Adds an operation of the service's own, as an Operation Object (OpenAPI 3.1 §4.8.10).
    ///
    /// [`TaskLayer::describe`](super::TaskLayer::describe) adds to it what the layer answers.
    #[must_use]
    pub fn operation(mut self, method: &str, path: &str, operation: Value) -> Self {
        self.0["paths"][path][method.to_ascii_lowercase()] = operation;
        self
    }

    /// Adds [`task_router`](super::task_router), nested at this path.
    #[must_use]
    pub fn tasks(mut self, path: &str) -> Self {
        let id = parameter("id", "path", &json!({ "type": "string" }), "The task, as `Location` names it.");
        let follow = parameter(
            "follow",
            "query",
            &json!({ "enum": ["yes", "no"], "default": "yes" }),
            "Whether a task with a result redirects to it.",
        );
        let task = reply("The task", "application/hal+json", &json!({ "$ref": "#/components/schemas/Task" }));
        let mut moved = task.clone();
        moved["description"] = "The result is there".into();
        moved["headers"] = headers(&["Location"]);
        let mut waiting = task.clone();
        waiting["headers"] = headers(&["Retry-After"]);
        let cancel = |name: &str| {
            let replies = [("202", task.clone())];
            operation(&format!("Cancels the task ({name})"), replies, &[403, 404, 503])
        };
        self.0["components"]["schemas"]["Task"] = task_schema();
        self.0["paths"][format!("{path}/{{id}}")] = json!({
            "parameters": [id],
            "get": with(operation("Says how the task does", [("200", waiting), ("303", moved)], &[400, 404, 503]), "parameters", json!([follow])),
            "put": cancel("as the adidas guidelines write it"),
            "delete": cancel("as HTTP writes it"),
        });
        let result = json!({ "description": "The result, as the service answered it", "content": { "*/*": {} } });
        let moved = json!({ "description": "The result, where that is a redirect of the service's" });
        let failure =
            reply("The failure, under its own status", "application/problem+json", &json!({ "$ref": PROBLEM }));
        self.0["paths"][format!("{path}/{{id}}/result")] = json!({
            "parameters": [id],
            "get": operation(
                "The result of the task",
                [("2XX", result), ("3XX", moved), ("4XX", failure.clone()), ("5XX", failure)],
                &[404, 410, 503],
            ),
        });
        self
    }

    /// Adds a router of [subscriptions](super::SubscriptionRouter), nested at this path, with what it sends.
    #[must_use]
    pub fn subscriptions(mut self, path: &str) -> Self {
        let id = parameter("id", "path", &json!({ "type": "string" }), "The subscription's UUID.");
        let schemas = &mut self.0["components"]["schemas"];
        schemas["Subscription"] = subscription_schema();
        schemas["NewSubscription"] = new_subscription_schema();
        schemas["SubscriptionChange"] = subscription_change_schema();
        let hal = |what: &str, schema: &Value| reply(what, "application/hal+json", schema);
        let one = hal("The subscription", &json!({ "$ref": "#/components/schemas/Subscription" }));
        let accepted = hal("It was accepted", &links(&json!({ "message": { "type": "string" } }), &["message"]));
        let mut created = hal(
            "The subscription is stored",
            &links(
                &json!({ "message": { "type": "string" }, "UUID": { "type": "string", "format": "uuid" }, "topic": { "type": "string" } }),
                &["message", "UUID"],
            ),
        );
        created["headers"] = headers(&["Location"]);
        for name in ["readSubscription", "changeSubscription", "cancelSubscription"] {
            created["links"][name] = json!({ "operationId": name, "parameters": { "id": "$response.body#/UUID" } });
        }
        let items = json!({ "type": "array", "items": { "$ref": "#/components/schemas/Subscription" } });
        let list = links(
            &json!({ "_embedded": { "type": "object", "properties": { "subscriptions": items }, "required": ["subscriptions"] } }),
            &["_embedded"],
        );
        let mut create = operation("Subscribes", [("201", created)], &[400, 403, 413, 415, 422, 500, 503]);
        create["requestBody"] = body("application/json", "NewSubscription");
        create["requestBody"]["content"]["application/json"]["example"] =
            json!({ "callbackUrl": "https://example.com/send/callback/here", "events": ["order.completed"] });
        create["callbacks"] = json!({
            "notification": { "{$request.body#/callbackUrl}": callback("An event that the subscription asks for") },
        });
        let limit = parameter(
            "limit",
            "query",
            &json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 100 }),
            "How many at most.",
        );
        let after = parameter(
            "after",
            "query",
            &json!({ "type": "string" }),
            "Where the page before ended: the link `next` has it.",
        );
        let read = operation("The caller's subscriptions", [("200", hal("A page of them", &list))], &[400, 403, 503]);
        self.0["paths"][path] = json!({ "post": create, "get": with(read, "parameters", json!([limit, after])) });

        let mut change =
            operation("Changes the subscription", [("200", one.clone())], &[400, 403, 404, 413, 415, 422, 503]);
        change["requestBody"] = body("application/merge-patch+json", "SubscriptionChange");
        change["operationId"] = "changeSubscription".into();
        let cancel = |name: &str| {
            operation(&format!("Cancels the subscription ({name})"), [("202", accepted.clone())], &[403, 404, 503])
        };
        self.0["paths"][format!("{path}/{{id}}")] = json!({
            "parameters": [id],
            "get": with(
                operation("The subscription", [("200", one)], &[403, 404, 503]),
                "operationId",
                "readSubscription".into(),
            ),
            "patch": change,
            "put": cancel("as the adidas guidelines write it"),
            "delete": with(cancel("as HTTP writes it"), "operationId", "cancelSubscription".into()),
        });
        self
    }

    /// Adds [`key_router`](super::key_router).
    #[must_use]
    pub fn keys(mut self) -> Self {
        let set = json!({ "type": "object", "properties": { "keys": { "type": "array", "items": { "type": "object" } } }, "required": ["keys"] });
        let replies = [("200", reply("A JWK Set (RFC 7517)", "application/jwk-set+json", &set))];
        self.0["paths"]["/.well-known/callback-keys"] =
            json!({ "get": operation("The service's public keys", replies, &[]) });
        self
    }

    /// Adds [`problem_router`](super::problem_router), nested at this path.
    #[must_use]
    pub fn problems(mut self, path: &str) -> Self {
        for kind in problem::ALL {
            let text = reply(kind.title, "text/plain", &json!({ "type": "string" }));
            let summary = format!("What {} means", kind.name);
            self.0["paths"][format!("{path}/{}", kind.name)] =
                json!({ "get": operation(&summary, [("200", text)], &[]) });
        }
        self
    }

    /// The document.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.0.clone()
    }

    /// Serves the document at `/openapi.json`, and in it where it is.
    pub fn router(&self) -> Router {
        let body = format!("{:#}\n", self.0);
        let headers = [(header::CONTENT_TYPE, "application/json")];
        Router::new().route("/openapi.json", get(async move || (headers, body).into_response()))
    }
}

const PROBLEM: &str = "#/components/schemas/Problem";

/// An operation with these replies, and a problem under each of these statuses.
pub(super) fn operation<'a>(
    summary: &str,
    replies: impl IntoIterator<Item = (&'a str, Value)>,
    problems: &[u16],
) -> Value {
    let mut all: Map<String, Value> =
        problems.iter().map(|status| (status.to_string(), problem_reply(*status))).collect();
    all.extend(replies.into_iter().map(|(status, reply)| (status.to_owned(), reply)));
    json!({ "summary": summary, "responses": all })
}

/// The problems that are told under this status.
pub(super) fn problem_reply(status: u16) -> Value {
    let names: Vec<&str> = problem::ALL.iter().filter(|kind| kind.status == status).map(|kind| kind.name).collect();
    let mut reply = reply(&names.join(", "), "application/problem+json", &json!({ "$ref": PROBLEM }));
    if status == 503 {
        reply["headers"] = headers(&["Retry-After"]);
    }
    reply
}

fn reply(what: &str, content_type: &str, schema: &Value) -> Value {
    json!({ "description": what, "content": { content_type: { "schema": schema } } })
}

pub(super) fn parameter(name: &str, place: &str, schema: &Value, what: &str) -> Value {
    json!({ "name": name, "in": place, "required": place == "path", "schema": schema, "description": what })
}

pub(super) fn headers(names: &[&str]) -> Value {
    let header = |name: &&str| {
        let kind = if *name == "Retry-After" { "integer" } else { "string" };
        ((*name).to_owned(), json!({ "schema": { "type": kind } }))
    };
    Value::Object(names.iter().map(header).collect())
}

fn body(content_type: &str, schema: &str) -> Value {
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    json!({ "required": true, "content": { content_type: { "schema": schema } } })
}

/// What goes to a callback: a `POST`, an event of CloudEvents in binary mode, signed as Standard Webhooks says.
pub(super) fn callback(what: &str) -> Value {
    let header = |name: &str, what: &str| parameter(name, "header", &json!({ "type": "string" }), what);
    json!({
        "post": {
            "summary": what,
            "parameters": [
                header("webhook-id", "The delivery, the same in every attempt: what is there twice is one."),
                header("webhook-timestamp", "The attempt, in Unix seconds."),
                header("webhook-signature", "Standard Webhooks: v1 or v1a."),
                header("ce-type", "What happened."),
                header("ce-subject", "The task or subscription."),
            ],
            "requestBody": { "required": true, "content": { "*/*": {} } },
            "responses": {
                "2XX": { "description": "Accepted" },
                "410": { "description": "Nothing more is to be sent here" },
                "429": { "description": "Later; `Retry-After` is obeyed" },
                "default": { "description": "Tried again, or given up, by the service's table of outcomes" },
            },
        },
    })
}

fn with(mut value: Value, name: &str, member: Value) -> Value {
    value[name] = member;
    value
}

/// An object in HAL with these members beside `_links`.
fn links(properties: &Value, required: &[&str]) -> Value {
    let link = json!({ "type": "object", "properties": { "href": { "type": "string" } }, "required": ["href"] });
    let mut properties = properties.clone();
    properties["_links"] = json!({ "type": "object", "additionalProperties": link, "required": ["self"] });
    let required: Vec<&str> = required.iter().copied().chain(["_links"]).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457",
        "properties": {
            "type": { "type": "string", "format": "uri-reference" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "detail": { "type": "string" },
                        "pointer": { "type": "string" },
                        "header": { "type": "string" },
                        "parameter": { "type": "string" },
                    },
                    "required": ["detail"],
                },
            },
        },
        "required": ["title", "status"],
    })
}

fn task_schema() -> Value {
    links(
        &json!({
            "UUID": { "type": "string", "format": "uuid" },
            "status": { "enum": ["accepted", "running", "delivering", "completed", "delivered", "dead", "cancelled", "expired"] },
            "definitive": { "type": "boolean", "description": "Whether what came of it is certain" },
            "message": { "type": "string" },
        }),
        &["UUID", "status", "message"],
    )
}

/// The members that a client may set, in a new subscription and in a change.
fn wishes() -> Value {
    json!({
        "service": { "type": ["string", "null"], "minLength": 1, "maxLength": 255 },
        "events": { "type": ["array", "null"], "items": { "type": "string", "minLength": 1, "maxLength": 255 }, "maxItems": 100 },
        "secret": { "type": ["string", "null"], "writeOnly": true },
        "meta": {},
        "lease": { "type": ["number", "null"], "exclusiveMinimum": 0, "description": "Seconds" },
    })
}

fn new_subscription_schema() -> Value {
    let mut properties = wishes();
    properties["callbackUrl"] = json!({ "type": ["string", "null"], "format": "uri", "maxLength": 2048 });
    properties["callback"] = json!({
        "description": "Stands for callbackUrl",
        "oneOf": [
            { "type": "string", "maxLength": 2048 },
            {
                "type": "object",
                "properties": { "url": { "type": "string", "maxLength": 2048 }, "meta": {} },
                "required": ["url"],
                "additionalProperties": false,
            },
        ],
    });
    properties["kind"] = json!({ "enum": ["continuous", "once"], "default": "continuous" });
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn subscription_change_schema() -> Value {
    let mut properties = wishes();
    properties["active"] = json!({ "type": "boolean" });
    json!({ "type": "object", "description": "A merge patch (RFC 7396)", "properties": properties, "additionalProperties": false })
}

fn subscription_schema() -> Value {
    links(
        &json!({
            "UUID": { "type": "string", "format": "uuid" },
            "status": { "enum": ["active", "paused", "cancelled", "completed", "gone", "expired", "ended"] },
            "kind": { "enum": ["continuous", "once"] },
            "callbackUrl": { "type": "string" },
            "topic": { "type": "string" },
            "service": { "type": "string" },
            "events": { "type": "array", "items": { "type": "string" } },
            "hasSecret": { "type": "boolean" },
            "meta": {},
            "created": { "type": "string", "format": "date-time" },
            "expires": { "type": "string", "format": "date-time" },
        }),
        &["UUID", "status", "kind", "events", "hasSecret", "created"],
    )
}
