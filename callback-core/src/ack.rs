//! The answer that a client gets at once.

use crate::{Dsn, RpcId, RpcResponse, TaskId};
use serde_json::{Value, json};

/// Says that a task was stored, and where its result will go.
///
/// ```
/// use callback_core::{Acknowledgment, TaskId};
///
/// let acknowledgment = Acknowledgment::new(TaskId::new(), Some("https://example.com/order/callback".parse()?));
/// let response = acknowledgment.to_rpc("example_order".into());
/// assert_eq!(response.outcome.as_ref().unwrap()["callback"]["url"], "https://example.com/order/callback");
/// assert_eq!(Acknowledgment::from_rpc(&response), Some(acknowledgment));
/// # Ok::<_, callback_core::DsnError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgment {
    id: TaskId,
    dsn: Option<Dsn>,
}

impl Acknowledgment {
    /// The task was stored; its result goes to `dsn`, or is kept to be fetched.
    #[must_use]
    pub const fn new(id: TaskId, dsn: Option<Dsn>) -> Self {
        Self { id, dsn }
    }

    /// The task.
    #[must_use]
    pub const fn id(&self) -> TaskId {
        self.id
    }

    /// Where the result goes; `None` where it is fetched.
    #[must_use]
    pub const fn dsn(&self) -> Option<&Dsn> {
        self.dsn.as_ref()
    }

    /// The JSON-RPC response: `{"callback": {"id": …, "url": …, "status": true, "data": []}}`.
    ///
    /// `url` is the Dsn in full, passwords included, since it goes back to the client that sent it. Without a Dsn it is
    /// left out.
    #[must_use]
    pub fn to_rpc(&self, id: RpcId) -> RpcResponse {
        let mut callback = json!({ "id": self.id, "status": true, "data": [] });
        if let Some(dsn) = &self.dsn {
            callback["url"] = dsn.expose().into();
        }
        RpcResponse::success(id, json!({ "callback": callback }))
    }

    /// The mirror of [`to_rpc`](Self::to_rpc); `None` if the response is another one.
    #[must_use]
    pub fn from_rpc(response: &RpcResponse) -> Option<Self> {
        let callback = response.outcome.as_ref().ok()?.get("callback")?;
        if callback.get("status")? != &Value::Bool(true) {
            return None;
        }
        let id = callback.get("id")?.as_str()?.parse().ok()?;
        let dsn = match callback.get("url") {
            Some(url) => Some(url.as_str()?.parse().ok()?),
            None => None,
        };
        Some(Self { id, dsn })
    }

    /// The answer to a plain HTTP request, as `application/hal+json`; `href` is where the task is served.
    #[must_use]
    pub fn to_hal(&self, href: &str) -> Value {
        let message = match self.dsn {
            Some(_) => "The task was accepted; its result will be sent to the callback.",
            None => "The task was accepted; its result will be served here.",
        };
        json!({ "_links": { "self": { "href": href } }, "UUID": self.id, "status": "accepted", "message": message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RpcError;

    fn id() -> TaskId {
        "0193e5a0-7c1e-7000-8000-000000000001".parse().expect("a UUID")
    }

    #[test]
    fn a_response_mirrors_the_acknowledgment() {
        for dsn in [None, Some("https://example.com/order/callback".parse().expect("a Dsn"))] {
            let acknowledgment = Acknowledgment::new(id(), dsn);
            let text = serde_json::to_string(&acknowledgment.to_rpc(1.into())).expect("JSON");
            let response = serde_json::from_str(&text).expect("a response");
            assert_eq!(Acknowledgment::from_rpc(&response), Some(acknowledgment));
        }
    }

    #[test]
    fn without_a_dsn_there_is_no_url() {
        let response = Acknowledgment::new(id(), None).to_rpc(1.into());
        let expected = json!({ "callback": { "id": id(), "status": true, "data": [] } });
        assert_eq!(response.outcome, Ok(expected));
    }

    #[test]
    fn another_response_is_no_acknowledgment() {
        let callback = |callback: Value| RpcResponse::success(1, json!({ "callback": callback }));
        for response in [
            RpcResponse::failure(1, RpcError::new(RpcError::INTERNAL, "Internal error")),
            RpcResponse::success(1, json!({ "orderId": "12345" })),
            callback(json!(null)),
            callback(json!({ "id": id() })),
            callback(json!({ "id": id(), "status": false })),
            callback(json!({ "id": "12345", "status": true })),
            callback(json!({ "id": id(), "status": true, "url": null })),
            callback(json!({ "id": id(), "status": true, "url": "no dsn" })),
        ] {
            assert_eq!(Acknowledgment::from_rpc(&response), None, "{response:?}");
        }
    }

    #[test]
    fn hal_links_to_the_task() {
        let hal = Acknowledgment::new(id(), None).to_hal("/tasks/1");
        assert_eq!(hal["_links"]["self"]["href"], "/tasks/1");
        assert_eq!(hal["UUID"], id().to_string());
        assert_eq!(hal["status"], "accepted");
        assert!(hal["message"].is_string());
    }
}
