//! A kernel side that is the real one, but that its credit for one direction ends where a test says.

use std::{
    collections::VecDeque,
    io::Write as _,
    net::TcpStream as StdStream,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    task::Waker,
    thread,
};

use proxy_userspace::{
    relay::{Accelerator, Pair, Redirect, Refusal},
    socket,
};
use tokio::net::TcpStream;

/// A kernel side whose credit for one direction ends where a test says, at the latest.
#[derive(Debug)]
pub(crate) struct Rationed {
    pub(crate) inner: Arc<dyn Accelerator>,
    pub(crate) is_down: bool,
    pub(crate) spans: Vec<u64>,
    /// What the source's peer sends when the relay has read everything, and nothing is entered yet.
    pub(crate) queued: Mutex<Option<(StdStream, Vec<u8>)>>,
    pub(crate) entered: OnceLock<Entered>,
}

/// Both directions of a connection that was entered.
#[derive(Clone, Debug)]
pub(crate) struct Entered {
    /// The one under test.
    pub(crate) ration: Arc<Ration>,
    pub(crate) other: Arc<dyn Redirect>,
}

/// One direction. Each time that the kernel has taken over it gets so many bytes, and when there is no span left none any more.
#[derive(Debug)]
pub(crate) struct Ration {
    inner: Arc<dyn Redirect>,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    spans: VecDeque<u64>,
    /// The kernel may redirect up to this, whatever is granted.
    stop: u64,
    /// What the relay has granted.
    pub(crate) limit: u64,
    notice_at: u64,
    /// Times that the kernel was to take over.
    pub(crate) resumed: usize,
}

impl Accelerator for Rationed {
    fn admit(&self, downstream: &TcpStream, upstream: &TcpStream) -> Result<Pair, Refusal> {
        if let Some((mut peer, bytes)) = self.queued.lock().unwrap().take() {
            peer.write_all(&bytes).unwrap();
            let source = if self.is_down { upstream } else { downstream };
            while socket::unread(source).unwrap() < bytes.len() as u64 {
                thread::yield_now();
            }
        }
        let Pair { up, down, whole } = self.inner.admit(downstream, upstream)?;
        let (inner, other) = if self.is_down { (down, up) } else { (up, down) };
        let state = State {
            spans: self.spans.iter().copied().collect(),
            stop: 0,
            limit: 0,
            notice_at: 0,
            resumed: 0,
        };
        let ration = Arc::new(Ration {
            inner,
            state: Mutex::new(state),
        });
        let entered = Entered {
            ration: Arc::clone(&ration),
            other: Arc::clone(&other),
        };
        self.entered.set(entered).unwrap();
        let (up, down): (Arc<dyn Redirect>, Arc<dyn Redirect>) = if self.is_down {
            (other, ration)
        } else {
            (ration, other)
        };
        Ok(Pair { up, down, whole })
    }
}

impl Ration {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What the kernel has redirected and passed.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.inner.redirected(), self.inner.passed())
    }
}

impl Redirect for Ration {
    fn redirected(&self) -> u64 {
        self.inner.redirected()
    }

    fn passed(&self) -> u64 {
        self.inner.passed()
    }

    fn repairs(&self) -> u32 {
        self.inner.repairs()
    }

    fn is_faulty(&self) -> bool {
        self.inner.is_faulty()
    }

    fn is_in_kernel(&self) -> bool {
        self.inner.is_in_kernel()
    }

    fn grant(&self, limit: u64, notice_at: u64) {
        let mut state = self.state();
        (state.limit, state.notice_at) = (limit, notice_at);
        self.inner.grant(limit.min(state.stop), notice_at);
    }

    fn resume(&self, passed: u64) {
        if passed < self.inner.passed() {
            // Not known to the relay yet, and so the kernel does not take over.
            return self.inner.resume(passed);
        }
        let mut state = self.state();
        let span = state.spans.pop_front().unwrap_or_default();
        state.stop = self.inner.redirected() + span;
        self.inner
            .grant(state.limit.min(state.stop), state.notice_at);
        self.inner.resume(passed);
        state.resumed += 1;
    }

    fn reserve(&self, bytes: u64) -> bool {
        self.inner.reserve(bytes)
    }

    fn register(&self, waker: &Waker) {
        self.inner.register(waker);
    }

    fn is_heard(&self) -> bool {
        self.inner.is_heard()
    }
}
