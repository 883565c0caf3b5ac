//! A call whose result comes as a callback.

use crate::{Callback, Delivery, ReceiveError, Receiver};
use async_trait::async_trait;
use callback_core::{Acknowledgment, BoxError, RpcError, RpcRequest, RpcResponse};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::pin::pin;

/// Sends a JSON-RPC request and gives its response, by whatever way. Any
/// `Fn(RpcRequest) -> impl Future<Output = Result<RpcResponse, BoxError>>` is one.
#[async_trait]
pub trait RpcClient: Send + Sync {
    /// Sends the request.
    ///
    /// # Errors
    /// When there is no response.
    async fn send(&self, request: RpcRequest) -> Result<RpcResponse, BoxError>;
}

#[async_trait]
impl<F, R> RpcClient for F
where
    F: Fn(RpcRequest) -> R + Send + Sync,
    R: Future<Output = Result<RpcResponse, BoxError>> + Send,
{
    async fn send(&self, request: RpcRequest) -> Result<RpcResponse, BoxError> {
        self(request).await
    }
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request was not sent, or not answered; what the client says.
    #[error("the request has no response")]
    Client(#[source] BoxError),
    /// The receiver was closed before the result came.
    #[error("the receiver is closed")]
    Closed,
    /// The result is not of the shape that was asked for.
    #[error("the result is of another shape")]
    Malformed(#[source] serde_json::Error),
    /// The service answered without an acknowledgment: it does not know `$rpc.callback`, and may have run the method.
    #[error("the service acknowledged no callback")]
    NotAcknowledged,
    /// The parameters are no JSON object, so that there is no place for `$rpc.callback`.
    #[error("the parameters are no JSON object")]
    Params,
    /// The service refused the call, or the method failed.
    #[error(transparent)]
    Rpc(RpcError),
}

impl Receiver {
    /// Calls a method, and waits for the result that comes as a callback.
    ///
    /// Puts the Dsn of a handle of its own into `$rpc.callback` of `params`, a JSON object, and checks the acknowledgment.
    /// The result counts whenever it comes, before the acknowledgment as well: some services call back before they answer.
    /// What is sent to the handle and is no response to this call is refused.
    ///
    /// There is no time limit but the caller's, `tokio::time::timeout` for example. Nothing of it survives a restart:
    /// [`expect`](Self::expect) does.
    ///
    /// # Errors
    /// See [`CallError`].
    ///
    /// # Cancellation
    /// Dropped, it is forgotten; the service is told that the handle is gone when it calls back.
    pub async fn call<T: DeserializeOwned>(
        &self,
        client: &impl RpcClient,
        method: &str,
        params: &(impl Serialize + Sync),
    ) -> Result<T, CallError> {
        let mut params = serde_json::to_value(params).map_err(CallError::Malformed)?;
        let Value::Object(members) = &mut params else { return Err(CallError::Params) };
        let mut callback = self.spawn();
        members.insert("$rpc.callback".to_owned(), callback.url().into());
        // The id is told to nobody but the service.
        let id = callback_core::TaskId::new().to_string();
        let request = RpcRequest::new(id.clone(), method, params);
        let mut sent = pin!(client.send(request));
        let response = tokio::select! {
            // First of all: what is here is here, whatever becomes of the answer.
            biased;
            early = result(&mut callback, &id) => return early,
            response = &mut sent => response.map_err(CallError::Client)?,
        };
        if let Err(error) = response.outcome {
            return Err(CallError::Rpc(error));
        }
        if Acknowledgment::from_rpc(&response).is_none() {
            return Err(CallError::NotAcknowledged);
        }
        result(&mut callback, &id).await
    }
}

/// The response to the call of this id, among what comes.
async fn result<T: DeserializeOwned>(callback: &mut Callback, id: &str) -> Result<T, CallError> {
    loop {
        let delivery = callback.next().await.ok_or(CallError::Closed)?;
        let Some(response) = response(&delivery, id) else {
            let refused = delivery.refuse("this is no response to the call").await;
            refused.map_err(|error| closed(&error))?;
            continue;
        };
        delivery.accept().await.map_err(|error| closed(&error))?;
        let value = response.outcome.map_err(CallError::Rpc)?;
        return serde_json::from_value(value).map_err(CallError::Malformed);
    }
}

fn response(delivery: &Delivery, id: &str) -> Option<RpcResponse> {
    let response: RpcResponse = delivery.json().ok()?;
    (response.id == id.into()).then_some(response)
}

/// A spawned handle's verdict has one way to fail.
fn closed(error: &ReceiveError) -> CallError {
    tracing::debug!(error = error as &dyn std::error::Error, "a callback has no verdict");
    CallError::Closed
}
