//! The sockmap path: the kernel redirects what arrives on one socket to the other, and the relay only watches.
//!
//! A redirect knows no back-pressure: the source's window opens although the target may not have taken the bytes. So the
//! kernel gets credit. While a flow uses it up in time the relay extends it; when it runs out, or the target is gone, the
//! kernel passes the bytes to the relay instead, whose reads and writes give TCP its back-pressure again.
//!
//! Redirected bytes travel through a queue of their own before they are in the target's send queue. Nothing else may be
//! written to the target, and neither the end of the stream be told nor the socket be closed, before all of them are
//! there: [`Passage::poll_settled`].

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use super::accelerate::Redirect;
use crate::socket;

/// Credit of a flow at first, in bytes.
pub const FIRST_WINDOW: u64 = 64 * 1024;
/// Most credit of a flow: what a target that takes nothing leaves in kernel memory beyond the sockets' buffers.
pub const MOST_WINDOW: u64 = 2 * 1024 * 1024;
/// Pauses between looks at a target that has not taken everything yet: nothing tells when it has.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// One direction that the kernel may move.
#[derive(Debug)]
pub(super) struct Passage {
    redirect: Box<dyn Redirect>,
    /// Whether the kernel has both sockets; otherwise it only passes.
    whole: bool,
    /// Most bytes between the redirect and the target's send queue.
    window: u64,
    /// The kernel may redirect up to this.
    limit: u64,
    /// What [`socket::sent`] said of the target when nothing was in flight.
    base: u64,
    /// Bytes the relay read from the source since then.
    taken: u64,
    /// Bytes the relay wrote to the target since then.
    written: u64,
    /// Redirected bytes that are counted already.
    counted: u64,
    /// Whether the kernel was told to take over, and passed nothing since.
    resumed: bool,
    /// Whether all that was redirected is known to be in the target's send queue.
    settled: bool,
    demotions: u32,
    pause: Pause,
}

impl Passage {
    /// Of a redirect that was just admitted: the kernel passes everything.
    pub(super) fn new(
        redirect: Box<dyn Redirect>,
        target: &TcpStream,
        whole: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            redirect,
            whole,
            window: FIRST_WINDOW,
            limit: 0,
            base: socket::sent(target)?,
            taken: 0,
            written: 0,
            counted: 0,
            resumed: false,
            settled: true,
            demotions: 0,
            pause: Pause::default(),
        })
    }

    /// Bytes that the kernel moved since the last call.
    pub(super) fn moved(&mut self) -> u64 {
        let redirected = self.redirect.redirected();
        let new = redirected.wrapping_sub(self.counted);
        self.counted = redirected;
        new
    }

    pub(super) fn demotions(&self) -> u32 {
        self.demotions
    }

    pub(super) fn repairs(&self) -> u32 {
        self.redirect.repairs()
    }

    /// The relay read bytes: the kernel passed them, and does not redirect until it is told to.
    pub(super) fn took(&mut self, bytes: usize) {
        self.taken += bytes as u64;
        if self.resumed {
            self.resumed = false;
            self.demotions += 1;
        }
    }

    /// The relay wrote bytes.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// Hears what the kernel has to tell: extends the credit, and fails where the stream cannot go on.
    pub(super) fn attend(&mut self, cx: &Context<'_>, target: &TcpStream) -> io::Result<()> {
        self.redirect.register(cx.waker());
        if self.redirect.is_faulty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "TCP delivered bytes that are out of sequence",
            ));
        }
        let redirected = self.redirect.redirected();
        if self.resumed && redirected >= self.notice_at() {
            let waiting = self.waiting(target)?;
            if waiting < self.window / 2 {
                self.grow(waiting);
                self.grant(redirected - waiting.min(redirected) + self.window);
            }
        }
        Ok(())
    }

    /// Lets the kernel take over, once there is room in the window. To be called when the source was read until nothing
    /// was left and the relay holds nothing.
    pub(super) fn poll_resume(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
    ) -> io::Result<()> {
        while self.whole && !self.resumed {
            let waiting = self.waiting(target)?;
            if waiting < self.window / 2 {
                self.grow(waiting);
                let redirected = self.redirect.redirected();
                self.grant(redirected - waiting.min(redirected) + self.window);
                self.redirect.resume(self.taken);
                self.resumed = true;
                self.settled = false;
                self.pause.over();
            } else if self.pause.poll(cx).is_pending() {
                break;
            }
        }
        Ok(())
    }

    /// Resolves when all that was redirected is in the target's send queue. To be called when the kernel redirects no
    /// more: it passed bytes since it was told to take over, or the source has ended.
    pub(super) fn poll_settled(
        &mut self,
        cx: &mut Context<'_>,
        target: &TcpStream,
    ) -> Poll<io::Result<()>> {
        while !self.is_settled(target)? {
            ready!(self.pause.poll(cx));
        }
        self.pause.over();
        Poll::Ready(Ok(()))
    }

    /// Resolves, after a read that found the end of the source, to whether nothing comes in front of that end.
    ///
    /// Bytes that are passed while the source's receive buffer is full wait in a queue of the kernel's, which a read does
    /// not see (`sk_psock_verdict_apply()` and `tcp_bpf_recvmsg_parser()`, seen on 6.18): they were counted as passed, and
    /// come. Before kernel 6.4 bytes may also wait for the verdict program.
    ///
    /// Fails when it was no end but a reset, whose error the kernel has taken off the socket: its worker does so, for a moment,
    /// when it writes redirected bytes to it (`sk_psock_backlog()`, seen on 6.18). The connection has ended then although we
    /// have not `told` our end.
    pub(super) fn poll_ended(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        told: bool,
    ) -> Poll<io::Result<bool>> {
        if !told && socket::has_ended(source)? {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if socket::unread(source)? > 0 {
            socket::handle_waiting(source)?;
            return Poll::Ready(Ok(false));
        }
        if self.redirect.passed() > self.taken {
            ready!(self.pause.poll(cx));
            return Poll::Ready(Ok(false));
        }
        self.pause.over();
        Poll::Ready(Ok(true))
    }

    /// Whether all that was redirected is in the target's send queue.
    pub(super) fn is_settled(&mut self, target: &TcpStream) -> io::Result<bool> {
        if !self.settled {
            self.settled = self.waiting(target)? == 0;
        }
        Ok(self.settled)
    }

    /// Bytes that were redirected and are not in the target's send queue yet.
    fn waiting(&self, target: &TcpStream) -> io::Result<u64> {
        let expected = self.base + self.redirect.redirected() + self.written;
        Ok(expected.saturating_sub(socket::sent(target)?))
    }

    /// A flow that uses up its window while the target keeps up gets a larger one.
    fn grow(&mut self, waiting: u64) {
        let used_up = self.redirect.redirected() >= self.notice_at();
        let wanted = (self.window * 2).min(MOST_WINDOW);
        let more = wanted - self.window;
        if used_up && self.limit > 0 && waiting < self.window / 8 && self.redirect.reserve(more) {
            self.window = wanted;
        }
    }

    fn grant(&mut self, limit: u64) {
        self.limit = limit;
        self.redirect.grant(limit, self.notice_at());
    }

    /// Where half the window is used up.
    fn notice_at(&self) -> u64 {
        self.limit.saturating_sub(self.window / 2)
    }
}

/// The time between two looks, longer with each.
#[derive(Debug, Default)]
struct Pause {
    timer: Option<Pin<Box<Sleep>>>,
    length: Duration,
}

impl Pause {
    /// Resolves after the next pause.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
    fn over(&mut self) {
        *self = Self::default();
    }
}
