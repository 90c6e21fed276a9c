//! What one direction has to mind while the kernel may move its bytes past it.

use std::{
    fmt::Debug,
    future::Future,
    io,
    os::fd::BorrowedFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use crate::socket;

/// A way past the relay. The relay still gets what the kernel passes to it, and may neither write nor tell the end before
/// what went past it has arrived.
pub(super) trait Passage: Debug + Send {
    /// Hears what the kernel has to tell; fails where the stream cannot go on.
    fn attend(&mut self, cx: &Context<'_>, target: BorrowedFd<'_>) -> io::Result<()>;

    /// Whether the relay is not needed until what [`Passage::attend`] waits for comes.
    fn is_spared(&self) -> bool {
        false
    }

    /// The relay read bytes: the kernel passed them.
    fn took(&mut self, bytes: usize);

    /// The relay wrote bytes.
    fn wrote(&mut self, _bytes: usize) {}

    /// The source was read until nothing was left, and the relay holds nothing.
    fn poll_resume(&mut self, _cx: &mut Context<'_>, _target: &TcpStream) -> io::Result<()> {
        Ok(())
    }

    /// Whether all that went past the relay is where nothing can overtake it. To be called while the kernel moves no bytes:
    /// it passed some to the relay, or the source has ended.
    fn is_settled(&mut self, target: &TcpStream) -> io::Result<bool>;

    /// Resolves when [`Passage::is_settled`].
    fn poll_settled(&mut self, cx: &mut Context<'_>, target: &TcpStream) -> Poll<io::Result<()>> {
        while !self.is_settled(target)? {
            ready!(self.pause().poll(cx));
        }
        self.pause().over();
        Poll::Ready(Ok(()))
    }

    /// The time between looks.
    fn pause(&mut self) -> &mut Pause;

    /// Resolves, after a read that found the end of the source, to whether nothing comes in front of that end.
    fn poll_ended(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        told: bool,
    ) -> Poll<io::Result<bool>>;

    /// Bytes that the kernel moved from socket to socket.
    fn moved(&self) -> u64 {
        0
    }

    /// Times that the kernel was told to take over.
    fn promotions(&self) -> u32 {
        0
    }

    /// Whether the receiver has been too slow for the kernel to have the direction now.
    fn is_held_up(&self) -> bool {
        false
    }

    /// Times that the kernel gave the direction back to the relay.
    fn demotions(&self) -> u32 {
        0
    }

    /// Times that the kernel would have delivered bytes twice.
    fn repairs(&self) -> u32 {
        0
    }
}

/// Resolves, after a read that found the end of a source under a verdict program, to whether nothing comes in front of that
/// end, when it passed so many bytes and so many of them were read.
///
/// Bytes that are passed while the source's receive buffer is full wait in a queue of the kernel's, which a read does
/// not see (`sk_psock_verdict_apply()` and `tcp_bpf_recvmsg_parser()`, seen on 6.18): they were counted as passed, and
/// come. Before kernel 6.4 bytes may also wait for the verdict program.
///
/// Fails when it was no end but a reset, whose error the kernel has taken off the socket: its worker does so, for a moment,
/// when it writes redirected bytes to it (`sk_psock_backlog()`, seen on 6.18). The connection has ended then although we
/// have not `told` our end.
pub(super) fn poll_ended(
    cx: &mut Context<'_>,
    source: &TcpStream,
    told: bool,
    passed: impl FnOnce() -> io::Result<u64>,
    taken: u64,
    pause: &mut Pause,
) -> Poll<io::Result<bool>> {
    if !told && socket::has_ended(source)? {
        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
    }
    if socket::unread(source)? > 0 {
        socket::handle_waiting(source)?;
        return Poll::Ready(Ok(false));
    }
    if passed()? > taken {
        ready!(pause.poll(cx));
        return Poll::Ready(Ok(false));
    }
    pause.over();
    Poll::Ready(Ok(true))
}

/// Pauses between looks at what nothing tells of.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// The time between two looks, longer with each.
#[derive(Debug, Default)]
pub(super) struct Pause {
    timer: Option<Pin<Box<Sleep>>>,
    length: Duration,
}

impl Pause {
    /// Resolves after the next pause.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let length = &mut self.length;
        let timer = self.timer.get_or_insert_with(|| {
            *length = (*length * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            Box::pin(sleep_until(Instant::now() + *length))
        });
        ready!(timer.as_mut().poll(cx));
        self.timer = None;
        Poll::Ready(())
    }

    /// What was waited for has come.
    pub(super) fn over(&mut self) {
        *self = Self::default();
    }
}
