//! What lapin writes, without what it writes on a channel that is closed.
//!
//! lapin 4.12 answers `channel.close` ahead of the publishes that it has not written yet, and writes those afterwards all
//! the same; it puts its own `channel.close` ahead of them, too. RabbitMQ takes any frame on a channel that is not open for
//! an error of the connection (504, `expected 'channel.open'`), which every other channel on it would pay for.

use std::{
    collections::HashSet,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection to a broker, on which no closed channel is written to.
pub(crate) struct Frames<S> {
    stream: S,
    filter: Filter,
}

impl<S> Frames<S> {
    /// Nothing may have been written on the stream yet.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, filter: Filter::new() }
    }
}

/// Reads the heads of frames (AMQP 0-9-1 §4.2.3).
struct Filter {
    /// How many of the next bytes go on.
    passing: usize,
    /// How many of the next bytes, after those, do not.
    dropping: usize,
    /// The beginning of a frame that came in pieces.
    head: Vec<u8>,
    /// Whether the head is judged, and goes on before anything else does.
    is_head_due: bool,
    /// The channels on which nothing but their opening and closing goes on.
    closed: HashSet<u16>,
}

/// What becomes of the first bytes, at least one, of those that are there.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Pass(usize),
    /// They are dropped, or kept as part of a head.
    Swallow(usize),
}

/// `AMQP`, 0, 0, 9, 1.
const PROTOCOL_HEADER: usize = 8;

/// Type, channel and size.
const FRAME_HEADER: usize = 7;

/// The type of a frame with a method, which begins with the numbers of its class and of itself.
const METHOD: u8 = 1;

const METHOD_NUMBERS: usize = 4;

const CHANNEL_OPEN: [u8; METHOD_NUMBERS] = [0, 20, 0, 10];
const CHANNEL_CLOSE: [u8; METHOD_NUMBERS] = [0, 20, 0, 40];
const CHANNEL_CLOSE_OK: [u8; METHOD_NUMBERS] = [0, 20, 0, 41];

impl Filter {
    fn new() -> Self {
        Self {
            passing: PROTOCOL_HEADER,
            dropping: 0,
            head: Vec::with_capacity(FRAME_HEADER + METHOD_NUMBERS),
            is_head_due: false,
            closed: HashSet::new(),
        }
    }

    /// Judges the bytes that come next; those that passed are counted by [`passed`](Self::passed).
    fn next(&mut self, bytes: &[u8]) -> Step {
        // Many frames that pass are one write.
        while self.head.is_empty() && self.dropping == 0 {
            let Some(size) = bytes.get(self.passing..).and_then(size) else { break };
            let head = &bytes[self.passing..];
            if self.passes(head) { self.passing += size } else { self.dropping = size }
        }
        if self.passing > 0 {
            return Step::Pass(self.passing.min(bytes.len()));
        }
        if self.dropping == 0 {
            return self.take_into_head(bytes);
        }
        let dropped = self.dropping.min(bytes.len());
        self.dropping -= dropped;
        Step::Swallow(dropped)
    }

    fn passed(&mut self, bytes: usize) {
        self.passing -= bytes;
    }

    fn take_into_head(&mut self, bytes: &[u8]) -> Step {
        let mut taken = 0;
        while let (None, Some(byte)) = (size(&self.head), bytes.get(taken)) {
            self.head.push(*byte);
            taken += 1;
        }
        if let Some(size) = size(&self.head) {
            let head = std::mem::take(&mut self.head);
            let left = size - head.len();
            if self.passes(&head) {
                (self.passing, self.is_head_due, self.head) = (left, true, head);
            } else {
                self.dropping = left;
            }
        }
        Step::Swallow(taken)
    }

    /// Whether a frame with this head goes on.
    fn passes(&mut self, head: &[u8]) -> bool {
        let channel = u16::from_be_bytes([head[1], head[2]]);
        let method = head[FRAME_HEADER..].first_chunk().filter(|_| head[0] == METHOD);
        match method {
            Some(&CHANNEL_OPEN) => {
                self.closed.remove(&channel);
                true
            }
            Some(&(CHANNEL_CLOSE | CHANNEL_CLOSE_OK)) => {
                self.closed.insert(channel);
                true
            }
            _ => !self.closed.contains(&channel),
        }
    }
}

/// How long the frame is that begins so, once there is enough of it to judge it.
fn size(head: &[u8]) -> Option<usize> {
    let payload = u32::from_be_bytes(*head.get(3..FRAME_HEADER)?.first_chunk()?) as usize;
    let needed = if head[0] == METHOD { FRAME_HEADER + METHOD_NUMBERS.min(payload) } else { FRAME_HEADER };
    // The last byte marks the end.
    (head.len() >= needed).then_some(FRAME_HEADER + payload + 1)
}

impl<S: AsyncWrite + Unpin> Frames<S> {
    /// Writes the head that is due.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.filter.is_head_due {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.filter.head))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.filter.head.drain(..written);
            self.filter.is_head_due = !self.filter.head.is_empty();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_head(context))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        match self.filter.next(bytes) {
            Step::Swallow(count) => Poll::Ready(Ok(count)),
            Step::Pass(count) => {
                let written = ready!(Pin::new(&mut self.stream).poll_write(context, &bytes[..count]))?;
                self.filter.passed(written);
                Poll::Ready(Ok(written))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_head(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::task::Waker;

    const PUBLISH: [u8; METHOD_NUMBERS] = [0, 60, 0, 40];

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xce]].concat()
    }

    fn method(channel: u16, numbers: [u8; METHOD_NUMBERS]) -> Vec<u8> {
        frame(METHOD, channel, &[&numbers[..], b"arguments"].concat())
    }

    /// Takes no more bytes at a time than these, in turn; with 0 it is busy once.
    struct Narrow {
        taken: Vec<u8>,
        widths: Vec<usize>,
        turn: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.turn += 1;
            let width = self.widths[self.turn % self.widths.len()].min(bytes.len());
            self.taken.extend(&bytes[..width]);
            if width == 0 { Poll::Pending } else { Poll::Ready(Ok(width)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What arrives of what is written, no more than so many bytes at a time.
    fn arrives(frames: &[Vec<u8>], pieces: &[usize], widths: &[usize]) -> Vec<u8> {
        let written = [b"AMQP\x00\x00\x09\x01".to_vec(), frames.concat()].concat();
        let narrow = Narrow { taken: Vec::new(), widths: widths.to_vec(), turn: 0 };
        let (mut stream, mut at, mut turn) = (Frames::new(narrow), 0, 0);
        let mut context = Context::from_waker(Waker::noop());
        while at < written.len() {
            let piece = &written[at..][..pieces[turn % pieces.len()].min(written.len() - at)];
            match Pin::new(&mut stream).poll_write(&mut context, piece) {
                Poll::Ready(count) => (at, turn) = (at + count.expect("written"), turn + 1),
                Poll::Pending => {}
            }
        }
        stream.stream.taken[PROTOCOL_HEADER..].to_vec()
    }

    #[track_caller]
    fn check(frames: &[Vec<u8>], expected: &[usize]) {
        let expected: Vec<u8> = expected.iter().flat_map(|at| frames[*at].clone()).collect();
        for piece in [1, 7, 8, 11, 1_000] {
            assert_eq!(arrives(frames, &[piece], &[1_000]), expected, "{piece} bytes at a time");
        }
    }

    #[test]
    fn a_channel_that_the_broker_closed_is_written_to_when_it_is_open_again() {
        let (publish, open) = (method(1, PUBLISH), method(1, CHANNEL_OPEN));
        let (header, body) = (frame(2, 1, b"header"), frame(3, 1, b"body"));
        let closed = method(1, CHANNEL_CLOSE_OK);
        let frames = [publish.clone(), closed, publish.clone(), header, body, open, publish];
        check(&frames, &[0, 1, 5, 6]);
    }

    #[test]
    fn a_channel_that_was_closed_from_here_is_not_written_to() {
        check(&[method(1, CHANNEL_CLOSE), method(1, PUBLISH), method(1, CHANNEL_CLOSE_OK)], &[0, 2]);
    }

    #[test]
    fn other_channels_and_the_connection_go_on() {
        let heartbeat = frame(8, 0, b"");
        check(&[method(1, CHANNEL_CLOSE_OK), method(2, PUBLISH), heartbeat, frame(3, 2, b"body")], &[0, 1, 2, 3]);
    }

    #[test]
    fn a_body_that_looks_like_a_method_closes_nothing() {
        check(&[frame(3, 1, &CHANNEL_CLOSE_OK), method(1, PUBLISH)], &[0, 1]);
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let methods = prop_oneof![Just(CHANNEL_OPEN), Just(CHANNEL_CLOSE), Just(CHANNEL_CLOSE_OK), Just(PUBLISH)];
        prop_oneof![
            (0..3_u16, methods).prop_map(|(channel, numbers)| method(channel, numbers)),
            (prop_oneof![Just(2), Just(3), Just(8)], 0..3_u16, proptest::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(kind, channel, payload)| frame(kind, channel, &payload)),
        ]
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(
            frames in proptest::collection::vec(any_frame(), 0..30),
            pieces in proptest::collection::vec(1..40_usize, 1..10),
            mut widths in proptest::collection::vec(0..40_usize, 0..10),
        ) {
            widths.push(1);
            let (mut closed, mut expected) = (HashSet::new(), Vec::<u8>::new());
            for frame in &frames {
                let (channel, is_of_channel) = (frame[2], frame[0] == METHOD && frame[8] == 20);
                let opens = is_of_channel && frame[10] == 10;
                if opens {
                    closed.remove(&channel);
                }
                if is_of_channel || !closed.contains(&channel) {
                    expected.extend(frame);
                }
                if is_of_channel && !opens {
                    closed.insert(channel);
                }
            }
            prop_assert_eq!(arrives(&frames, &pieces, &widths), expected);
        }
    }
}
