//! A side that does what a script says, and a world in which things happen only when the relay waits for them.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use proxy_userspace::relay::Side;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::payload::Payload;

/// What a side does next when it is read or written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Gives or takes up to so many bytes.
    Move(usize),
    /// Is not ready, until the world says so.
    Wait,
    /// Fails, now and ever after.
    Fail,
}

/// The script of one side. A read script ends with the end of the stream; after its end a write script takes everything.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) reads: Vec<Step>,
    pub(crate) writes: Vec<Step>,
    /// Keeps what it took to itself until it is flushed, as TLS does.
    pub(crate) lazy: bool,
}

/// What happened to a side, shared with the test.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Bytes read from it.
    pub(crate) given: usize,
    pub(crate) received: Vec<u8>,
    pub(crate) kept: Vec<u8>,
    pub(crate) told_end: usize,
    pub(crate) failed: bool,
    reads: VecDeque<Step>,
    writes: VecDeque<Step>,
    waits_to_read: Option<Waker>,
    waits_to_write: Option<Waker>,
}

pub(crate) struct Scripted {
    sends: Payload,
    lazy: bool,
    seen: Rc<RefCell<Seen>>,
}

impl Scripted {
    pub(crate) fn new(stream: u64, script: &Script) -> (Self, Rc<RefCell<Seen>>) {
        let seen = Rc::new(RefCell::new(Seen {
            reads: script.reads.iter().copied().collect(),
            writes: script.writes.iter().copied().collect(),
            ..Seen::default()
        }));
        let side = Self {
            sends: Payload::new(stream, script.length()),
            lazy: script.lazy,
            seen: Rc::clone(&seen),
        };
        (side, seen)
    }
}

impl Script {
    /// Bytes it gives in all, if nothing fails.
    pub(crate) fn length(&self) -> u64 {
        let bytes = self.reads.iter().map(|step| match step {
            Step::Move(bytes) => *bytes as u64,
            Step::Wait | Step::Fail => 0,
        });
        bytes.sum()
    }
}

impl Seen {
    /// One thing that is waited for happens. False if nothing is waited for.
    fn happen(&mut self, read_first: bool) -> bool {
        let write = |seen: &mut Self| {
            let waker = seen.waits_to_write.take()?;
            seen.writes.pop_front();
            Some(waker)
        };
        let read = |seen: &mut Self| {
            let waker = seen.waits_to_read.take()?;
            seen.reads.pop_front();
            Some(waker)
        };
        let waker = if read_first {
            read(self).or_else(|| write(self))
        } else {
            write(self).or_else(|| read(self))
        };
        waker.map(Waker::wake).is_some()
    }

    fn fail(&mut self) -> io::Error {
        self.failed = true;
        io::ErrorKind::ConnectionReset.into()
    }

    fn take_kept(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        self.received.extend(kept);
    }
}

impl Side for Scripted {
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut seen = self.seen.borrow_mut();
        let Some(step) = seen.reads.front_mut() else {
            return Poll::Ready(Ok(()));
        };
        match step {
            Step::Move(left) => {
                let count = (*left).min(buffer.remaining());
                *left -= count;
                if *left == 0 {
                    seen.reads.pop_front();
                }
                buffer.put_slice(&self.sends.bytes(seen.given as u64, count));
                seen.given += count;
                Poll::Ready(Ok(()))
            }
            Step::Wait => {
                seen.waits_to_read = Some(cx.waker().clone());
                Poll::Pending
            }
            Step::Fail => Poll::Ready(Err(seen.fail())),
        }
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut seen = self.seen.borrow_mut();
        assert_eq!(seen.told_end, 0, "a write behind the end of the stream");
        assert!(!bytes.is_empty(), "an empty write");
        let count = match seen.writes.front().copied() {
            None => bytes.len(),
            Some(Step::Move(most)) => most.min(bytes.len()),
            Some(Step::Wait) => {
                seen.waits_to_write = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(Step::Fail) => return Poll::Ready(Err(seen.fail())),
        };
        seen.writes.pop_front();
        if self.lazy {
            seen.kept.extend(&bytes[..count]);
        } else {
            seen.received.extend(&bytes[..count]);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut seen = self.seen.borrow_mut();
        if seen.kept.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match seen.writes.front() {
            Some(Step::Wait) => {
                seen.waits_to_write = Some(cx.waker().clone());
                Poll::Pending
            }
            Some(Step::Fail) => Poll::Ready(Err(seen.fail())),
            Some(Step::Move(_)) | None => {
                seen.take_kept();
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut seen = self.seen.borrow_mut();
        seen.take_kept();
        seen.told_end += 1;
        Poll::Ready(Ok(()))
    }
}

/// Runs a future over scripted sides. What it waits for happens only when it can do nothing more, in an order that
/// `order` decides, so a wake-up it forgot to ask for stalls it, and that fails the test.
pub(crate) fn run<T>(
    future: impl Future<Output = T>,
    sides: [&Rc<RefCell<Seen>>; 2],
    mut order: u64,
) -> T {
    let woken = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    loop {
        while woken.0.swap(false, Relaxed) {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
        }
        for seen in sides {
            let seen = seen.borrow();
            assert!(
                seen.kept.is_empty() || seen.waits_to_write.is_some(),
                "{} bytes were not flushed",
                seen.kept.len()
            );
        }
        order = order.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (first, second) = if order & 1 == 0 {
            (sides[0], sides[1])
        } else {
            (sides[1], sides[0])
        };
        let read_first = order & 2 == 0;
        let happened =
            first.borrow_mut().happen(read_first) || second.borrow_mut().happen(read_first);
        assert!(happened, "the relay waits for nothing");
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}
