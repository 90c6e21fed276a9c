//! Connections on which nothing waits hold no buffers. A binary of its own, because it counts every allocation.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use proxy_userspace::{
    relay::{Progress, Relay, Side},
    rule::PathChoice,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::{JoinSet, yield_now},
};

const CONNECTIONS: usize = 10_000;
/// Bytes each side of each connection sends.
const MESSAGE: usize = 12_000;
/// What an idle connection may hold: its task with the relay in it, and its counts.
const ALLOWED: usize = 1024;
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is left to the system's allocator; only sizes are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A side that sends one message and then nothing, and that takes little at a time.
struct Slow {
    sends: usize,
    ready: bool,
}

impl Side for Slow {
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
}

impl AsyncRead for Slow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.sends == 0 {
            return Poll::Pending;
        }
        buffer.put_slice(&vec![7; self.sends]);
        self.sends = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.ready = !self.ready;
        if self.ready {
            return Poll::Ready(Ok(bytes.len().min(MESSAGE / 4)));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn idle_connections_hold_no_buffers() {
    let mut relays = JoinSet::new();
    let mut flows = Vec::with_capacity(CONNECTIONS);
    let before = LIVE.load(Relaxed);
    for _ in 0..CONNECTIONS {
        let progress = Arc::<Progress>::default();
        flows.push(Arc::clone(&progress));
        relays.spawn(async move {
            let mut relay = Relay::new(progress, Some(IDLE_TIMEOUT));
            let side = |sends| Slow {
                sends,
                ready: false,
            };
            relay
                .run(&mut side(MESSAGE), &mut side(MESSAGE), PathChoice::Copy)
                .await
        });
    }
    let moved = |progress: &Arc<Progress>| progress.up() + progress.down() == 2 * MESSAGE as u64;
    while !flows.iter().all(moved) {
        yield_now().await;
    }
    let each = (LIVE.load(Relaxed) - before) / CONNECTIONS;
    assert!(each <= ALLOWED, "{each} bytes per idle connection");
}
