//! From a request to an answer.

mod wire;

use super::answer::{self, Answer};
use bytes::{Bytes, BytesMut};
use callback_core::BoxError;
use callback_receive::{HandleId, Intake, Standing, Verdict};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt;
use std::{
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wire::Malformed;

/// Serves requests, whoever has read their heads.
pub(super) struct Requests {
    intake: OnceLock<Intake>,
    body_time: Duration,
    /// A permit a byte.
    memory: Arc<Semaphore>,
    closing: CancellationToken,
    under_way: TaskTracker,
}

impl Requests {
    pub(super) fn new(body_time: Duration, body_bytes: usize, closing: CancellationToken) -> Self {
        let memory = Arc::new(Semaphore::new(body_bytes.min(Semaphore::MAX_PERMITS)));
        Self { intake: OnceLock::new(), body_time, memory, closing, under_way: TaskTracker::new() }
    }

    /// Offers go there from here on; until then senders are told to come again.
    pub(super) fn open(&self, intake: Intake) {
        // It is opened once.
        let _ = self.intake.set(intake);
    }

    /// Waits for what is under way.
    pub(super) async fn close(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    /// Serves a request to this handle; `None` where its path names none.
    pub(super) async fn serve<B>(&self, handle: Option<HandleId>, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let _under_way = self.under_way.token();
        let Some(handle) = handle else { return answer::of(Verdict::Unknown) };
        let Some(intake) = self.intake.get().filter(|_| !self.closing.is_cancelled()) else {
            return answer::retry_later(None);
        };
        let (head, body) = request.into_parts();
        let standing = intake.standing(&handle);
        match head.method {
            Method::POST => {}
            Method::OPTIONS => return handshake(standing, &head.headers),
            _ => return answer::method_not_allowed(),
        }
        if standing == Standing::Unknown {
            // Nobody makes us read a body who has never been told a handle.
            return answer::of(Verdict::Unknown);
        }
        let (body, memory) = match self.read(&head.headers, body, intake.body_limit()).await {
            Ok(read) => read,
            Err(answer) => return answer,
        };
        let verdict = match wire::incoming(&head.headers, body) {
            Ok(incoming) => intake.offer(&handle, incoming).await,
            Err(malformed) => {
                let status = match malformed {
                    Malformed::Content(_) => StatusCode::BAD_REQUEST,
                    Malformed::Format => StatusCode::UNSUPPORTED_MEDIA_TYPE,
                };
                return answer::problem(status, &malformed.to_string());
            }
        };
        drop(memory);
        answer::of(verdict)
    }

    /// The whole body, or the answer to what is none.
    async fn read<B>(
        &self,
        headers: &HeaderMap,
        body: B,
        limit: usize,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Answer>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > limit) {
            return Err(answer::of(Verdict::TooLarge));
        }
        let read = async {
            let mut body = pin!(body);
            let mut held: Option<OwnedSemaphorePermit> = None;
            let mut all = BytesMut::new();
            let mut first = None;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| answer::problem(StatusCode::BAD_REQUEST, "the body broke off"))?;
                let Ok(data) = frame.into_data() else { continue };
                if all.len() + first.as_ref().map_or(0, Bytes::len) + data.len() > limit {
                    return Err(answer::of(Verdict::TooLarge));
                }
                let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let permit = Arc::clone(&self.memory).try_acquire_many_owned(bytes);
                let permit = permit.map_err(|_| answer::retry_later(None))?;
                match &mut held {
                    Some(held) => held.merge(permit),
                    None => held = Some(permit),
                }
                // Most bodies come in one piece, which is not copied.
                match first.take() {
                    None if all.is_empty() => first = Some(data),
                    piece => {
                        if let Some(piece) = piece {
                            all.extend_from_slice(&piece);
                        }
                        all.extend_from_slice(&data);
                    }
                }
            }
            Ok((first.unwrap_or_else(|| all.freeze()), held))
        };
        tokio::select! {
            biased;
            read = timeout(self.body_time, read) => match read {
                Ok(read) => read,
                Err(_elapsed) => Err(answer::problem(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
            },
            () = self.closing.cancelled() => Err(answer::retry_later(None)),
        }
    }
}

fn handshake(standing: Standing, headers: &HeaderMap) -> Answer {
    match standing {
        Standing::Open => answer::consent(headers.get("webhook-request-origin"), headers.get("webhook-request-rate")),
        Standing::Ended => answer::of(Verdict::Ended),
        _ => answer::of(Verdict::Unknown),
    }
}
