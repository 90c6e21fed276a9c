//! The sockmap path: the kernel redirects what arrives on one socket to the other, and the relay only watches.
//!
//! A redirect knows no back-pressure: the source's window opens although the target may not have taken the bytes. So the
//! kernel gets credit. While a flow uses it up in time the relay extends it; when it runs out, or the target is gone, the
//! kernel passes the bytes to the relay instead, whose reads and writes give TCP its back-pressure again.
//!
//! Redirected bytes travel through a queue of their own before they are in the target's send queue. Nothing else may be
//! written to the target, and neither the end of the stream be told nor the socket be closed, before all of them are
//! there: [`Passage::poll_settled`].
//!
//! That queue is emptied by a worker thread of the kernel's that is bound to the CPU (`sk_psock_backlog()` on `system_wq`), so
//! every message waits for its turn twice in an exchange. Where client and server share a session with processes that only compute
//! the worker may wait long for 5 µs of work: seen on 6.18 (two cores, ten such processes) are 8 ms for one in ten and 52 ms at
//! most, and a fifth to a half of the requests that copying made. With each in a session of its own, as services are, nine tenths
//! of that went; so it probably is the scheduler's grouping of sessions, to which the worker does not belong. Calibration
//! measures processor time, which shows nothing of it: whose rule meets it can ask for `copy`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    task::{Context, Poll},
};

use tokio::net::TcpStream;

use super::{
    accelerate::Redirect,
    passage::{self, Passage, Pause},
    replies::out_of_sequence,
};
use crate::socket;

/// Credit of a flow at first, in bytes.
pub const FIRST_WINDOW: u64 = 64 * 1024;
/// Most credit of a flow: what a target that takes nothing leaves in kernel memory beyond the sockets' buffers.
pub const MOST_WINDOW: u64 = 2 * 1024 * 1024;

/// One direction that the kernel may move.
#[derive(Debug)]
pub(super) struct RedirectPassage {
    redirect: Arc<dyn Redirect>,
    /// Whether the kernel has both sockets; otherwise it only passes.
    whole: bool,
    /// Most bytes between the redirect and the target's send queue.
    window: u64,
    /// The kernel may redirect up to this.
    limit: u64,
    /// What [`socket::sent_exactly`] said of the target when nothing was in flight. Less than that, and all would seem to be in
    /// the send queue while some is not: the relay's own bytes would overtake it.
    base: u64,
    /// Bytes the relay read from the source since then.
    taken: u64,
    /// Bytes the relay wrote to the target since then.
    written: u64,
    /// Whether the kernel was told to take over, and passed nothing since.
    resumed: bool,
    /// Whether all that was redirected is known to be in the target's send queue.
    settled: bool,
    demotions: u32,
    pause: Pause,
}

impl RedirectPassage {
    /// Of a redirect that was just admitted: the kernel passes everything.
    pub(super) fn new(
        redirect: Arc<dyn Redirect>,
        target: &TcpStream,
        whole: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            redirect,
            whole,
            window: FIRST_WINDOW,
            limit: 0,
            base: socket::sent_exactly(target)?,
            taken: 0,
            written: 0,
            resumed: false,
            settled: true,
            demotions: 0,
            pause: Pause::default(),
        })
    }

    /// Bytes that were redirected and are not in the target's send queue yet.
    fn waiting(&self, target: &impl AsFd) -> io::Result<u64> {
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

impl Passage for RedirectPassage {
    fn moved(&self) -> u64 {
        self.redirect.redirected()
    }

    fn promotions(&self) -> u32 {
        self.demotions + u32::from(self.resumed)
    }

    fn is_held_up(&self) -> bool {
        self.demotions > 0 && !self.resumed
    }

    fn demotions(&self) -> u32 {
        self.demotions
    }

    fn repairs(&self) -> u32 {
        self.redirect.repairs()
    }

    fn took(&mut self, bytes: usize) {
        self.taken += bytes as u64;
        if self.resumed {
            self.resumed = false;
            self.demotions += 1;
        }
    }

    fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    fn attend(&mut self, cx: &Context<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
        self.redirect.register(cx.waker());
        if self.redirect.is_faulty() {
            return Err(out_of_sequence());
        }
        let redirected = self.redirect.redirected();
        // A target that is gone has no error here: it is met where that is the source, and blamed on the right side.
        if self.resumed
            && redirected >= self.notice_at()
            && let Ok(waiting) = self.waiting(&target)
            && waiting < self.window / 2
        {
            self.grow(waiting);
            self.grant(redirected - waiting.min(redirected) + self.window);
        }
        Ok(())
    }

    fn is_spared(&self) -> bool {
        self.resumed
            && self.redirect.is_heard()
            && self.redirect.passed() == self.taken
            && self.redirect.redirected() < self.notice_at()
            && !self.redirect.is_faulty()
    }

    fn poll_resume(&mut self, cx: &mut Context<'_>, target: &TcpStream) -> io::Result<()> {
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

    fn pause(&mut self) -> &mut Pause {
        &mut self.pause
    }

    fn poll_ended(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        told: bool,
    ) -> Poll<io::Result<bool>> {
        let passed = || Ok(self.redirect.passed());
        passage::poll_ended(cx, source, told, passed, self.taken, &mut self.pause)
    }

    fn is_settled(&mut self, target: &TcpStream) -> io::Result<bool> {
        if !self.settled {
            self.settled = self.waiting(target)? == 0;
        }
        Ok(self.settled)
    }
}
