//! A stream that counts what was read of a message that is not whole yet, against what all connections may have in memory.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// What stands before the payload of a control frame of a client (RFC 6455 §5.2): two bytes, and the mask.
const CONTROL_HEAD: usize = 6;

/// A stream whose reads hold a permit a byte until the message that they belong to was taken.
pub(super) struct Metered<S> {
    inner: S,
    memory: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    read: u64,
    is_starved: bool,
}

impl<S> Metered<S> {
    pub(super) fn new(inner: S, memory: Arc<Semaphore>) -> Self {
        Self { inner, memory, held: None, read: 0, is_starved: false }
    }

    /// A whole message was read: gives the permits that are to be held as long as the message is.
    ///
    /// What was read ahead of the message after it is counted to this one: at most a buffer.
    pub(super) fn message(&mut self) -> Option<OwnedSemaphorePermit> {
        self.held.take()
    }

    /// A control frame was read, perhaps between the parts of a message.
    pub(super) fn control(&mut self, payload: usize) {
        if let Some(held) = &mut self.held {
            let bytes = (payload + CONTROL_HEAD).min(held.num_permits());
            drop(held.split(bytes));
            if held.num_permits() == 0 {
                self.held = None;
            }
        }
    }

    /// Whether a part of a message is there.
    pub(super) fn is_partial(&self) -> bool {
        self.held.is_some()
    }

    /// How many bytes were read, ever.
    pub(super) fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Whether the end of the stream came from the lack of memory.
    pub(super) fn is_starved(&self) -> bool {
        self.is_starved
    }

    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buf))?;
        let bytes = u32::try_from(buf.filled().len() - before).unwrap_or(u32::MAX);
        if bytes == 0 {
            return Poll::Ready(Ok(()));
        }
        self.read += u64::from(bytes);
        let Ok(permit) = Arc::clone(&self.memory).try_acquire_many_owned(bytes) else {
            self.is_starved = true;
            return Poll::Ready(Err(io::Error::other("there is no memory for messages")));
        };
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn what_is_read_is_counted_until_its_message_is_let_go() {
        let memory = Arc::new(Semaphore::new(20));
        let (mut peer, stream) = duplex(64);
        let mut stream = Metered::new(stream, Arc::clone(&memory));
        peer.write_all(&[0; 18]).await.expect("room");
        let mut buffer = [0; 64];
        assert_eq!(stream.read(&mut buffer).await.expect("there"), 18);
        assert_eq!((memory.available_permits(), stream.is_partial()), (2, true));
        stream.control(4);
        assert_eq!(memory.available_permits(), 12);
        let message = stream.message();
        assert_eq!((memory.available_permits(), stream.is_partial()), (12, false));
        stream.control(100);
        drop(message);
        assert_eq!((memory.available_permits(), stream.bytes_read()), (20, 18));
    }

    #[tokio::test]
    async fn what_exceeds_the_memory_ends_the_stream() {
        let memory = Arc::new(Semaphore::new(10));
        let (mut peer, stream) = duplex(64);
        let mut stream = Metered::new(stream, Arc::clone(&memory));
        peer.write_all(&[0; 11]).await.expect("room");
        assert!(stream.read(&mut [0; 64]).await.is_err());
        assert!(stream.is_starved());
    }
}
