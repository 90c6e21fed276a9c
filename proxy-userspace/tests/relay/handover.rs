//! The hand-over between kernel and relay to the byte. Here the test plays the kernel, and is as slow as it has to be for one byte
//! too early or too late to show.

use std::{
    io::Write as _,
    net::TcpStream as StdStream,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Waker,
    time::Duration,
};

use atomic_waker::AtomicWaker;
use proxy_userspace::{
    close::CloseReason,
    relay::{Accelerator, Pair, Promotion, Redirect, Refusal},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    payload::{Payload, expect_end},
    rig::{Rig, await_that, in_time},
};

/// Longer than the relay waits between two looks.
const SILENCE: Duration = Duration::from_millis(60);

/// A kernel that moves nothing by itself.
#[derive(Debug, Default)]
struct Kernel {
    up: Arc<Played>,
    down: Arc<Played>,
}

/// One direction, of which the test says what was redirected and what was passed.
#[derive(Debug)]
struct Played {
    redirected: AtomicU64,
    passed: AtomicU64,
    limit: AtomicU64,
    resume_at: AtomicU64,
    waker: AtomicWaker,
    /// The relay's own socket, into which the kernel writes.
    target: OnceLock<StdStream>,
}

impl Default for Played {
    fn default() -> Self {
        Self {
            redirected: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            resume_at: AtomicU64::new(u64::MAX),
            waker: AtomicWaker::new(),
            target: OnceLock::new(),
        }
    }
}

impl Accelerator for Kernel {
    fn admit(&self, downstream: &TcpStream, upstream: &TcpStream) -> Result<Pair, Refusal> {
        for (direction, target) in [(&self.up, upstream), (&self.down, downstream)] {
            let socket: OwnedFd = target.as_fd().try_clone_to_owned().unwrap();
            direction.target.set(socket.into()).unwrap();
        }
        Ok(Pair {
            up: Arc::<Played>::clone(&self.up),
            down: Arc::<Played>::clone(&self.down),
            whole: true,
        })
    }
}

impl Redirect for Played {
    fn redirected(&self) -> u64 {
        self.redirected.load(SeqCst)
    }

    fn passed(&self) -> u64 {
        self.passed.load(SeqCst)
    }

    fn repairs(&self) -> u32 {
        0
    }

    fn is_faulty(&self) -> bool {
        false
    }

    fn is_in_kernel(&self) -> bool {
        self.has_taken_over()
    }

    fn grant(&self, limit: u64, _notice_at: u64) {
        self.limit.store(limit, SeqCst);
    }

    fn resume(&self, passed: u64) {
        self.resume_at.store(passed, SeqCst);
    }

    fn reserve(&self, _bytes: u64) -> bool {
        true
    }

    fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    fn is_heard(&self) -> bool {
        true
    }
}

impl Played {
    /// Whether the kernel may have the direction: it was told to go on behind exactly what it has passed.
    fn has_taken_over(&self) -> bool {
        self.resume_at.load(SeqCst) == self.passed.load(SeqCst)
    }

    /// The program redirects bytes, which wait for a worker of the kernel's then.
    fn redirects(&self, bytes: usize) {
        assert!(self.has_taken_over());
        let redirected = self.redirected.fetch_add(bytes as u64, SeqCst) + bytes as u64;
        assert!(redirected <= self.limit.load(SeqCst), "beyond the credit");
    }

    /// The worker gets its turn.
    fn delivers(&self, bytes: &[u8]) {
        let mut target = self.target.get().unwrap();
        target.write_all(bytes).unwrap();
    }

    /// The program passes bytes, which come by the socket.
    async fn passes(&self, bytes: &[u8], by: &mut TcpStream) {
        self.passed.fetch_add(bytes.len() as u64, SeqCst);
        by.write_all(bytes).await.unwrap();
        self.waker.wake();
    }
}

/// Nothing comes, neither a byte nor the end.
async fn expect_silence(sink: &mut TcpStream) {
    let mut bytes = vec![0; 100_000];
    let read = timeout(SILENCE, sink.read(&mut bytes)).await;
    assert!(
        read.is_err(),
        "something overtook a redirected byte: {read:?}"
    );
}

async fn expect(sink: &mut TcpStream, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    sink.read_exact(&mut received).await.unwrap();
    assert!(received == bytes, "{} bytes differ", bytes.len());
}

/// Redirects bytes and then does what must not overtake them, once while all of them are on their way and once while the last is.
async fn overtaken(
    kernel: &Played,
    redirected: &[u8],
    from: &mut TcpStream,
    to: &mut TcpStream,
    overtakes: impl AsyncFnOnce(&mut TcpStream),
) {
    kernel.redirects(redirected.len());
    overtakes(from).await;
    expect_silence(to).await;
    let (last, first) = redirected.split_last().unwrap();
    kernel.delivers(first);
    expect(to, first).await;
    expect_silence(to).await;
    kernel.delivers(&[*last]);
    expect(to, &[*last]).await;
}

async fn hand_over(is_down: bool) {
    let kernel = Arc::new(Kernel::default());
    let Rig {
        app,
        server,
        ended,
        progress,
    } = Rig::promoted(Promotion {
        accelerator: Arc::<Kernel>::clone(&kernel),
        bytes: 0,
        reads: 0,
    })
    .await;
    let (mut from, mut to, direction, other) = if is_down {
        (server, app, &kernel.down, &kernel.up)
    } else {
        (app, server, &kernel.up, &kernel.down)
    };
    await_that("the kernel to take over", || other.has_taken_over()).await;
    let payload = Payload::new(7, u64::MAX);
    let mut at = 0;
    let mut next = |length| {
        let bytes = payload.bytes(at, length);
        at += length as u64;
        bytes
    };
    let mut passes = 0;
    for redirected in [1, 2, 1447, 4096, 20_000] {
        for passed in [1, 2, 5000] {
            await_that("the kernel to take over", || direction.has_taken_over()).await;
            let (first, then) = (next(redirected), next(passed));
            overtaken(direction, &first, &mut from, &mut to, async |from| {
                direction.passes(&then, from).await;
            })
            .await;
            expect(&mut to, &then).await;
            passes += 1;
            assert_eq!(progress.demotions(), passes);
        }
    }
    await_that("the kernel to take over", || direction.has_taken_over()).await;
    overtaken(direction, &next(3), &mut from, &mut to, async |from| {
        from.shutdown().await.unwrap();
    })
    .await;
    expect_end(&mut to).await;
    drop(to);
    expect_end(&mut from).await;
    assert_eq!(ended.await.unwrap().reason, CloseReason::Done);
    assert_eq!(progress.up() + progress.down(), at);
}

#[tokio::test]
async fn nothing_overtakes_a_redirected_byte_on_its_way_up() {
    in_time(hand_over(false)).await;
}

#[tokio::test]
async fn nothing_overtakes_a_redirected_byte_on_its_way_down() {
    in_time(hand_over(true)).await;
}
